"""Open a set of labelled images, and report every file that is left out or converted.

A manifest, `.csv` (comma, semicolon or tab; UTF-8) or `.parquet`, has one row per image: path (or
file; below the manifest's folder), label, and if wanted split (train, validation, test), group
(patient or slide), origin (real or synthetic) and other columns, which are kept as texts.
"""

import inspect
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cellaug.data import published
from cellaug.data.dataset import REPORT_COLUMNS, Dataset, as_table, printable
from cellaug.data.phantom import phantom
from cellaug.data.published import MANIFEST, NAMES, PBC_FINE, PBC_FOLDERS, PBC_TOP
from cellaug.data.scan import scan
from cellaug.data.store import INDEX, Store
from cellaug.errors import DataError
from cellaug.files import cache_home, homes

import pandas as pd

SMALLEST_SIDE = 8  # pixels; an image that is smaller on a side shows no cell and is dropped
MANIFEST_SUFFIXES = (".csv", ".parquet")
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}
_SIDES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
_CSV = {"sep": None, "engine": "python", "dtype": object, "keep_default_na": False}
# A name that is not UTF-8 still finds its file this way.
_CSV |= {"encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}


def open_dataset(source: str | Path, **options) -> Dataset:
    """Open a set of labelled images; its report lists every file that is not used as it is.

    `source` is "phantom" (drawn cells; options as `cellaug.data.phantom.phantom` has them), "pbc"
    (8 classes), "pbc-fine" (11, from the file names), "bloodmnist-28", "-64", "-128" or "-224" (PBC
    as MedMNIST publishes it, with its split), a folder with one subfolder of images per class, a
    manifest (see this module) or a store. `class_names` gives the order of a folder's or manifest's
    classes, alphabetical otherwise. Public sets are looked for under `$CELLAUG_DATA`, then in the
    cache. `DataError` for whatever cannot be opened, or a class without a usable image.
    """
    drawn: Iterable[str] = inspect.signature(phantom).parameters if source == "phantom" else ()
    allowed = drawn or (() if source in NAMES else ("class_names",))
    if unknown := sorted(set(options) - set(allowed)):
        takes = ", ".join(allowed) or "none"
        raise DataError(f"unknown option {', '.join(unknown)}: {source} takes {takes}")
    try:
        return _open(source, options)
    except PermissionError as error:
        what = f"{error.filename or source}: cannot be read ({error.strerror})"
        raise DataError(f"{what}. Ask for the right to read it, or copy it") from error


def _open(source: str | Path, options: dict) -> Dataset:
    if source == "phantom":
        root, names, drawn = phantom(**options)
        credit = "phantom cells drawn by cellaug, not real ones"
        cells = _collect("phantom", root, _in_folders(root, names), names, credit)
        table = cells.table.merge(drawn.drop(columns="class"), "left", "path")
        return replace(cells, table=as_table(table, names))
    root, wanted = locate(source), options.get("class_names")
    if source in NAMES:
        name, (names, credit) = str(source), published.CLASSES[source]
        mnist, fine = name in published.BLOODMNIST, PBC_FINE if name == "pbc-fine" else None
        listed = _in_manifest(root / MANIFEST) if mnist else _in_folders(root, PBC_FOLDERS, fine)
        return _collect(name, root, listed, names, credit, keep_copies=mnist)
    if root.is_file():
        listed = _in_manifest(root)
        names = _in_order(root, listed["class"][listed["reason"] == ""].unique(), wanted)
        return _collect(root.stem, root.parent, listed, names)
    if (root / INDEX).is_file():
        return Store(root).dataset()
    folders = [e.name for e in root.iterdir() if not _clutter(e.name) and e.is_dir()]
    if not folders:
        hint = f". Give {file} to open its manifest" if (file := root / MANIFEST).is_file() else ""
        raise DataError(f"{source}: no classes. Expected one subfolder of images per class{hint}")
    names = _in_order(source, folders, wanted)
    return _collect(root.name, root, _in_folders(root, names), names)


def locate(source: str | Path) -> Path:
    """Return a public set's folder (made if it is packed), or the one given; else `DataError`."""
    if source in NAMES:
        return _find(str(source)).resolve()
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in MANIFEST_SUFFIXES):
        return path.resolve()
    problem = "is a file, but no manifest" if path.exists() else "no such folder or manifest"
    kinds = "a folder with one subfolder of images per class, or a manifest (.csv or .parquet)"
    raise DataError(f"{source}: {problem}. Give phantom, {', '.join(NAMES)}, {kinds}")


def _find(name: str) -> Path:
    pbc, places = name not in published.BLOODMNIST, homes()
    needed = PBC_FOLDERS if pbc else (MANIFEST,)
    parts = (f"pbc/{PBC_TOP}", PBC_TOP, "pbc") if pbc else (name,)
    for folder in (place / part for place in places for part in parts):
        if all((folder / inner).exists() for inner in needed):
            return folder
    known = published.SETS["pbc" if pbc else name]
    for file in (place / known.file for place in places):
        if file.is_file() and not pbc:
            from cellaug.data.fetch import make  # here: pooch warns when a notebook imports it

            make(cache_home() / name, known, file)
            return cache_home() / name
    what = f"the unpacked folder {PBC_TOP}" if pbc else f"the published file {known.file}"
    fetch = f"cellaug fetch {'pbc' if pbc else name}"
    fix = f"run `{fetch}`, or put {what} into a folder that CELLAUG_DATA names"
    raise DataError(f"{name} is not under {' or '.join(map(str, places))}: {fix}")


def _in_order(source: str | Path, found: Iterable[str], wanted: Sequence[str] | None) -> tuple:
    """The classes in the wanted order, alphabetically otherwise."""
    names = sorted(found)
    if odd := [name for name in names if name != printable(name)]:
        raise DataError(f"{source}: the class name {odd[0]!r} is not valid UTF-8; rename it")
    looks = [unicodedata.normalize("NFC", name).casefold().strip() for name in names]
    if alike := [name for name, look in zip(names, looks, strict=True) if looks.count(look) > 1]:
        how = "differ only by case, spaces or the form of their accents"
        fix = "Put their images together, or give them other names"
        raise DataError(f"{source}: the classes {', '.join(alike)} {how}. {fix}")
    if wanted is not None and sorted(wanted) != names:
        both = f"{', '.join(wanted)}, but the classes {', '.join(names)}"
        raise DataError(f"{source}: class_names are {both}")
    return tuple(wanted or names)


def _in_folders(root: Path, folders: Sequence[str], kinds: dict | None = None) -> pd.DataFrame:
    """List class folders, as `_in_manifest` does; `kinds` gives classes by file-name prefix."""
    clutter, outside = "hidden or system clutter", "outside the class folders"
    others = {path.name for path in root.iterdir()}.difference(folders)
    rows = [(name, "", clutter if _clutter(name) else outside) for name in others]
    for folder in folders:
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            kind = folder if kinds is None else kinds.get(entry.name.split("_")[0], "")
            reason = "" if kind else "finer label not specified"
            if _clutter(entry.name):
                reason = clutter
            # Not entry.is_dir() for links, which raises on one that leads to itself.
            elif entry.is_dir(follow_symlinks=False) or os.path.isdir(entry):  # noqa: PTH112
                reason = "a folder inside a class folder; what it holds is not read"
            rows.append((f"{folder}/{entry.name}", kind or folder, reason))
    listed = pd.DataFrame(rows, columns=["path", "class", "reason"], dtype=object)
    return listed.assign(side="", group="", origin="real")


def _clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _in_manifest(file: Path) -> pd.DataFrame:
    """List a manifest as texts: path below its folder, class, reason to leave it out, side, …"""
    table = _read_table(file)
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns], dtype=object)
    if "path" not in table:
        table = table.rename(columns={"file": "path"})
    for needed in ("path", "label"):
        if needed not in table:
            fix = "Expected path (or file) and label, and if wanted split, group and origin"
            there = f"(there are: {', '.join(table.columns)})"
            raise DataError(f"{file}: no column '{needed}' {there}. {fix}")
    if twice := list(table.columns[table.columns.duplicated()]):
        raise DataError(f"{file}: several columns are called {twice[0]}; rename or remove them")
    # A row with too few fields leaves holes.
    table = table.apply(lambda column: column.fillna("").str.strip()).astype(object)
    ours = ["class", "digest", "side", "reason"]  # which have another meaning here
    if "origin" in table and not table["origin"].str.lower().isin(["", "real", "synthetic"]).all():
        ours.append("origin")
    names = {name: f"{name} (manifest)" for name in ours}
    table = table.rename(columns=names | {"label": "class", "split": "side"})
    reasons = pd.Series("", table.index, dtype=object)
    if "side" in table:
        reasons[table["side"] == ""] = "no split, where other rows have one"
    table = table.assign(**dict.fromkeys({"side", "group", "origin"}.difference(table), ""))
    table["side"] = table["side"].str.lower().replace(_SIDES)
    table["origin"] = table["origin"].str.lower().replace({"": "real"})
    root = file.parent.as_posix()
    places = pd.Series([_within(path, root) for path in table["path"]], dtype=object)
    reasons[table["class"] == ""] = "no label"
    reasons[places.isna()] = f"outside the manifest's folder: expected a path below {root}"
    reasons[table["path"] == ""] = "no path"
    table["path"] = places.fillna(table["path"])
    rows = table.loc[reasons == "", ["path", "class", "side", "group", "origin"]]
    distinct = rows.drop_duplicates()
    torn = rows["path"].isin(distinct["path"][distinct["path"].duplicated()])
    reasons[rows.index[rows.duplicated()]] = "listed twice"
    reasons[rows.index[torn]] = "listed with different labels, splits or groups"
    table["reason"] = [why and f"{why} (row {row + 1})" for row, why in reasons.items()]
    if table["reason"].all():
        first = table[["path", "reason"]].head(3).to_numpy()
        seen = "; ".join(f"{path or '(no path)'}: {why}" for path, why in first)
        raise DataError(f"{file}: no usable row ({seen or 'it has none'})")
    return table


def _read_table(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() == ".parquet":
            table = pd.read_parquet(file)
            return table.astype(object).where(table.notna(), "").astype(str).astype(object)
        return pd.read_csv(file, **_CSV)
    except Exception as error:  # readers raise what they like on a damaged file
        what = f"cannot be read as {file.suffix[1:]} ({error}). Expected a table with the columns"
        raise DataError(f"{file}: {what} path and label") from error


def _within(path: str, root: str) -> str | None:
    """The path from the folder `root` on, None if it leads out of it."""
    if "\\" in path and not os.path.lexists(f"{root}/{path}"):
        path = path.replace("\\", "/")  # written on Windows
    place = posixpath.normpath(posixpath.join(root, Path(path).as_posix()))
    return place[len(root) + 1 :] if place.startswith(f"{root}/") else None


def lists_origin(folder: Path, origin: str) -> bool:
    """Whether a folder's `manifest.csv` lists an image of that origin, "real" or "synthetic"."""
    file = folder / MANIFEST
    return file.is_file() and origin in set(_read_table(file).get("origin", ()))


def _collect(
    name: str,
    root: Path,
    listed: pd.DataFrame,
    classes: Sequence[str],
    credit="",
    keep_copies=False,
) -> Dataset:
    report: list[pd.DataFrame] = []

    def leave_out(table: pd.DataFrame, reasons: pd.Series, outcome: str = "dropped"):
        """Add the rows that have a reason to the report; return the others."""
        rows = table[["path", "class"]].assign(outcome=outcome, reason=reasons)
        report.append(rows[reasons != ""])
        return table[reasons == ""]

    table = leave_out(listed, listed["reason"]).drop(columns="reason")
    seen = scan(root, table["path"].tolist()).set_index(table.index)
    size = seen["width"].astype(str) + "×" + seen["height"].astype(str)
    small = "too small: " + size + f" pixels, expected at least {SMALLEST_SIDE} on each side"
    fit = (seen["problem"] != "") | (seen[["height", "width"]].min(axis=1) >= SMALLEST_SIDE)
    table = leave_out(table.assign(digest=seen["digest"]), seen["problem"].where(fit, small))
    copies = _copies(table)
    # Copies that a generator made say something about it.
    kept = (copies != "") & ((table["origin"] == "synthetic") | keep_copies)
    why = ", kept as published" if keep_copies else ", kept because it is generated"
    leave_out(table, (copies + why).where(kept, ""), "kept")
    table = leave_out(table, copies.mask(kept, ""))
    for empty in sorted(set(classes) - set(table["class"])):
        dropped = pd.concat(report).query("outcome == 'dropped' and `class` == @empty")
        kinds = Counter(reason.split(":")[0] for reason in sorted(dropped["reason"]))
        counted = "; ".join(f"{count} × {kind}" for kind, count in kinds.most_common(3))
        what = f'class "{empty}" has no usable image ({counted or "no files"})'
        raise DataError(f"{root}: {what}. Add images to it or remove it")
    seen, size = seen.loc[table.index], size[table.index]
    usual = "×".join(map(str, seen.groupby(["width", "height"]).size().idxmax()))
    other = "other size: " + size + f" where most have {usual}; centre cropped and resized"
    other = other.mask(size == usual, "")
    leave_out(table, (seen["notes"] + "; " + other).str.strip("; "), "converted")
    left_out = sorted(map(tuple, pd.concat(report).to_numpy()))
    rows = pd.DataFrame(left_out, columns=REPORT_COLUMNS, dtype=object)
    # One column at a time: pandas sorts by several only what is UTF-8.
    table = as_table(table.sort_values("path"), classes)
    table = table.sort_values("class", kind="stable", ignore_index=True)
    return Dataset(name, root, tuple(classes), table, rows, credit)


def _copies(table: pd.DataFrame) -> pd.Series:
    """Reasons to drop byte-identical files: all but one in a class, all under several labels."""
    # Of copies on several sides of a published split the one that training does not see is kept.
    alike = table[table.duplicated("digest", keep=False)].sort_values("path")
    late = 2 * (alike["origin"] == "synthetic") + (alike["side"] == "train")
    alike = alike.loc[late.sort_values(kind="stable").index, ["digest", "path", "class"]]
    groups = alike.groupby("digest")
    reasons = pd.Series("", table.index, dtype=object)
    later = alike[alike.duplicated("digest")]
    reasons[later.index] = "copy: of " + groups["path"].transform("first")[later.index]
    torn = alike[groups["class"].transform("nunique") > 1].reset_index(names="row")
    pairs = torn.merge(torn, on="digest", suffixes=("", "_other"))
    pairs = pairs[pairs["class"] != pairs["class_other"]]
    named = pairs["path_other"] + " (" + pairs["class_other"] + ")"
    for row, others in named.groupby(pairs["row"]):  # not agg: it takes only what is UTF-8
        reasons[row] = f"same image under another label: {', '.join(others)}"
    return reasons
