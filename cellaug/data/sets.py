"""Open a set of labelled images, and report every file that is left out or converted.

A manifest, `.csv` (comma, semicolon or tab; UTF-8, UTF-16 or Windows-1252) or `.parquet`, has one
row per image: path (or file; below the manifest's folder), label, and if wanted split (train,
validation, test), group (patient or slide), origin (real or synthetic) and other columns, which are
kept as texts. A `manifest.csv` (or .parquet) in a folder of classes adds all but the label to the
files that it lists; one in another folder, above the files that it lists, adds origin and group. An
image whose text chunk says that it is generated (`images.generated_by`) is synthetic.
"""

import inspect
import json
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellaug.data import layouts, published
from cellaug.data.columns import OriginError, is_nothing
from cellaug.data.dataset import REPORT_COLUMNS, Dataset, as_table, printable
from cellaug.data.images import CHUNK
from cellaug.data.layouts import check_label
from cellaug.data.phantom import phantom
from cellaug.data.published import MANIFEST, MANIFESTS, NAMES, PBC_FINE, PBC_FOLDERS, PBC_TOP
from cellaug.data.scan import scan
from cellaug.data.store import INDEX, Store
from cellaug.data.tables import MisnamedError, explained, read_manifest, read_rows, read_table
from cellaug.errors import DataError
from cellaug.files import cache_home, count, homes

import pandas as pd

SMALLEST_SIDE = 8  # pixels; an image that is smaller on a side shows no cell and is dropped
MANIFEST_SUFFIXES = (".csv", ".parquet")
OVERLOOKED = "column not read"  # how the report begins for a column that may be group or split
UNKNOWN = "group not known"  # how the report begins for these groups
# As `augment` and `generate` write them, perhaps with more words before and behind.
_GENERATED_NAME = r"(?:^|[/_ -])synthetic_(?:[^/]+_)?(\d+)_(\d{5,})(?:[_ -][^/]*)?\.\w+$"


def open_dataset(source: str | Path, **options) -> Dataset:
    """Open a set of labelled images; its report lists every file that is not used as it is.

    `source` is "phantom" (drawn cells; options as `cellaug.data.phantom.phantom` has them),
    "phantom-2" (drawn as another laboratory would stain, light and magnify them), "pbc"
    (8 classes), "pbc-fine" (11, from the file names), "bloodmnist-28", "-64", "-128" or "-224" (PBC
    as MedMNIST publishes it, with its split), a folder with one subfolder of images per class (or
    as `cellaug.data.layouts` has it), a manifest (see this module), a folder with images and a
    `manifest.csv`, or a store. `class_names` gives the order of a folder's or manifest's classes,
    alphabetical otherwise; `columns` other names of a manifest's columns, as {"path": "image ID"}.
    Public sets are looked for under `$CELLAUG_DATA`, then in the cache. `DataError` for whatever
    cannot be opened, a label that cannot be a folder's name, or a class without a usable image.
    """
    if source == "phantom-2":
        source, options = "phantom", {"laboratory": 1} | options
    drawn: Iterable[str] = inspect.signature(phantom).parameters if source == "phantom" else ()
    allowed = drawn or (() if source in NAMES else ("class_names", "columns"))
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
        name = "phantom-2" if options.get("laboratory") else "phantom"
        cells = _collect(name, root, layouts.in_folders(root, names), names, credit)
        table = cells.table.merge(drawn.drop(columns="class"), "left", "path")
        return replace(cells, table=as_table(table, names))
    root, wanted, columns = locate(source), options.get("class_names"), options.get("columns") or {}
    if source in NAMES:
        name, (names, credit) = str(source), published.CLASSES[source]
        mnist, fine = name in published.BLOODMNIST, PBC_FINE if name == "pbc-fine" else None
        if mnist:
            listed = read_manifest(root / MANIFEST, {})
        else:
            listed = layouts.in_folders(root, PBC_FOLDERS, fine)
        return _collect(name, root, listed, names, credit, keep_copies=mnist)
    if root.is_file():
        return _open_manifest(root, root.stem, wanted, columns)
    if (root / INDEX).is_file() and not columns:
        return Store(root).dataset()
    if inner := layouts.wrapped(root):
        files = layouts.in_folders(root, [inner.name])[["path", "class", "reason"]].to_numpy()
        rows = [(f"{root}/{path}", "", "dropped", why) for path, kind, why in files if not kind]
        rows.append((inner.as_posix(), "", "kept", "one folder more than expected: opened"))
        return _reported(_open(inner, options), rows)
    return _open_folder(root, wanted, columns)


def _open_folder(root: Path, wanted: Sequence[str] | None, columns: Mapping[str, str]) -> Dataset:
    found, file = layouts.read_layout(root), _manifest(root)
    if file and (found is None or len(found.class_names) == 1):
        with suppress(DataError) if found else nullcontext():  # class folders need no labels
            return _open_manifest(file, root.name, wanted, columns)
    if found is None:
        raise DataError(f"{root}: no classes. Expected one subfolder of images per class")
    listed, folders, words = found
    tables = [file for file in root.iterdir() if file.suffix.lower() in MANIFEST_SUFFIXES]
    if len(folders) == 1 and tables and not file:
        one = f"its images lie in one folder, {folders[0]}; {tables[0].name} may list their classes"
        raise DataError(f"{root}: {one}. Give the table itself: {tables[0]}")
    for name in folders:
        check_label(name, root, "a folder's name")
    names = _in_order(root, folders, wanted)
    listed = _with_manifest(root, listed, columns)
    unread = _unread(file, listed.attrs.pop("overlooked", ()), listed.attrs.pop("unread", ()))
    cells = _reported(_collect(root.name, root, listed, names), unread)
    group = ", with the patient or slide as group (if they are something else, such as a clinic or "
    group = (group + "a stain, list the images in a table)") * ("PATIENT" in words)
    said = f"folders are read as {words}{group}"
    return _reported(cells, [(".", "", "kept", said)] if words else [])


def _reported(cells: Dataset, rows: Iterable[tuple]) -> Dataset:
    """The set with further rows of its report, at the start."""
    more = pd.DataFrame(rows, columns=REPORT_COLUMNS, dtype=object)
    return replace(cells, report=pd.concat([more, cells.report], ignore_index=True))


def _open_manifest(
    file: Path, name: str, wanted: Sequence[str] | None, columns: Mapping[str, str]
) -> Dataset:
    listed = read_manifest(file, columns)
    recoded = ", ".join(listed.attrs.pop("recoded"))
    unread = _unread(file, listed.attrs.pop("overlooked"), listed.attrs.pop("unread"))
    names = _in_order(file, listed["class"][listed["reason"] == ""].unique(), wanted)
    cells = _collect(name, file.parent, listed, names, file=file)
    said = f"not UTF-8: the columns {recoded} are read as Windows-1252"
    return _reported(cells, unread + [(file.name, "", "converted", said)] * bool(recoded))


def _unread(
    file: Path | None, overlooked: Sequence[tuple[str, str]], others: Sequence[str]
) -> list[tuple]:
    """Warn of columns of a table that may be the group or the split; the rows of the report."""
    rows, names = [], sorted(set(others) - {column for column, _ in overlooked})
    if names:
        said = f"columns without a meaning here: {', '.join(names)}. One that names the patient or "
        said += "slide has to be called 'group', one with a published split 'split', and one that "
        said += "says what is generated 'origin'"
        rows.append((file.name if file else "", "", "kept", said))
    for column, ours in overlooked:
        said = f"{OVERLOOKED}: {column}, which may be the {ours}. If it is, rename it to {ours} or "
        said += f'give --columns {ours}="{column}" (not to run or book); if not, rename it, too'
        warnings.warn(f"{file}: {said}", stacklevel=2)
        rows.append((file.name if file else "", "", "kept", said))
    return rows


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


def roughly(source: str | Path) -> int:
    """About how many images a set has, before it is opened; `DataError` as `locate`."""
    place = locate(source)
    if place.is_file():
        return len(read_table(place))
    return len(Store(place).dataset()) if (place / INDEX).is_file() else count(place)


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

    def look(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold().strip()

    looks = list(map(look, names))
    if alike := [name for name, look in zip(names, looks, strict=True) if looks.count(look) > 1]:
        how = "differ only by case, spaces or the form of their accents"
        fix = "Put their images together, or give them other names"
        raise DataError(f"{source}: the classes {', '.join(alike)} {how}. {fix}")
    if wanted is not None and sorted(wanted) != names:
        both = f"{', '.join(wanted)}, but the classes {', '.join(names)}"
        same = sorted(map(look, wanted)) == sorted(looks)
        fix = ". They differ by case, spaces or accents: write them as there" * same
        raise DataError(f"{source}: class_names are {both}{fix}")
    return tuple(wanted or names)


def _with_manifest(root: Path, listed: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Add what the manifest in a folder says of the listed files: origin, split, group, others."""
    if not (file := _manifest(root)):
        if columns:
            raise DataError(f"{root}: columns are those of a table; give the table, not its folder")
        return listed
    try:
        rows = read_rows(file, ("path",), columns)
    except DataError as error:
        if columns or isinstance(error, OriginError | MisnamedError):
            raise
        listed.loc[listed["path"] == file.name, "reason"] += f", and not used: {error}"
        return listed
    # Of several rows on a file the one that says "synthetic" is believed.
    rows = rows.sort_values("origin", kind="stable", ignore_index=True)
    row_of = _by_path(
        dict(zip(rows["path"], rows.index, strict=True))
    )  # no merge: not all is UTF-8
    there = listed["path"][listed["reason"] == ""].tolist()
    _refuse_renamed(file, rows, there)
    if len(rows) and there and all(row_of(path, -1) < 0 for path in there):
        what = f"none of its {len(rows):,} paths names an image here, such as {rows['path'][0]!r}"
        fix = "Correct the paths, which begin below its folder, or take the file away"
        raise DataError(f"{file}: {what}, so that its groups, splits and origins are lost. {fix}")
    told = rows.drop(columns=["path", "class", "outside"], errors="ignore")
    told = told.reindex([row_of(path, -1) for path in listed["path"]]).set_index(listed.index)
    told = told.fillna("")
    for name in ("side", "group"):
        told[name] = told[name].where(told[name] != "", listed[name])
    listed = listed[["path", "class", "reason"]].join(told)
    usable = listed["reason"] == ""
    if listed["side"][usable].any():
        lacking = usable & (listed["side"] == "")
        listed.loc[lacking, "reason"] = f"no split in {file.name}, where other files have one"
    listed.attrs |= {key: rows.attrs[key] for key in ("overlooked", "unread")}
    return listed


def _by_path(known: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """What a manifest says of a file, by its path; else of the one that differs in its ending.

    Images are converted, as from .png to .jpg, and keep what was written about them.
    """
    # not by pathlib, which is slow where there are many
    stems = {os.path.splitext(path)[0]: said for path, said in known.items()}  # noqa: PTH122
    return lambda path, nothing: known.get(path, stems.get(os.path.splitext(path)[0], nothing))  # noqa: PTH122


def _refuse_renamed(file: Path, rows: pd.DataFrame, there: Sequence[str]) -> None:
    """DataError if generated images of a manifest are gone, and there are others that it lacks.

    These may be the same under other names, and would pass as real. `rows` are the manifest's,
    `there` are the images.
    """
    generated = rows.loc[rows["origin"] == "synthetic", "path"]
    if generated.empty:
        return
    lists = (generated, rows["path"], there)
    made, known, found = ({os.path.splitext(x)[0] for x in paths} for paths in lists)  # noqa: PTH122 - many
    gone, others = made - found, sorted(found - known)
    if gone and others:
        what = f"{len(gone):,} of the {len(made):,} generated images that it names are not there"
        both = f"{len(others):,} images are that it does not name, such as {others[0]}"
        fix = "Write their names into its column path, or remove the rows of images that are gone"
        raise DataError(f"{file}: {what}, and {both}: nobody can tell whether these are the "
                        f"generated ones under other names. {fix}")  # fmt: skip


def _manifest(folder: Path) -> Path | None:
    return next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)


def told(root: Path, names: Sequence[str], read: Path | None = None) -> pd.DataFrame:
    """What manifests in all folders above the files `names` say of them, but for the one `read`.

    A row for each: origin ("real", "synthetic", "" if none says), group, by (the manifest) and
    said, of a synthetic one generator, seed and index as JSON. OriginError as `read_rows`.
    """
    parts = [os.path.split(name) for name in names]
    folders = {folder: os.path.realpath(root / folder) for folder in {part for part, _ in parts}}
    links = {(k, x.name) for k, v in folders.items() for x in os.scandir(v) if x.is_symlink()}
    files = [f"{folders[folder]}/{name}" for folder, name in parts]
    files = [os.path.realpath(x) if y in links else x for x, y in zip(files, parts, strict=True)]
    holding = {os.path.dirname(file) for file in files} | {*folders.values()}  # noqa: PTH120 - many
    above = {place for folder in holding for place in (Path(folder), *Path(folder).parents)}
    found, inside = dict[str, dict[str, str]](), os.path.realpath(root)
    for file in sorted(place / name for place in above for name in MANIFESTS):
        if file == read or not os.path.isfile(file):  # noqa: PTH113 - no error without a right
            continue
        try:
            rows = read_rows(file, ("path",), {})
        except OriginError:
            raise
        except DataError:  # another table of that name
            continue
        rows = rows.reindex(columns=["path", "origin", "group", "generator", "seed", "index"])
        if (rows["origin"] == "synthetic").any():
            start = f"{file.parent}/"
            below = [f"{start}{path}".startswith(f"{inside}/") for path in rows["path"]]
            there = [path.removeprefix(start) for path in files if path.startswith(start)]
            _refuse_renamed(file, rows[below], there)
        for path, origin, group, *facts in rows.fillna("").itertuples(index=False, name=None):
            row = found.setdefault(f"{file.parent}/{path}", {"origin": "", "group": "", "said": ""})
            row["group"] = row["group"] or group
            if origin > row["origin"]:  # of several the one that says "synthetic" is believed
                row |= {"origin": origin, "by": str(file)}
                said = dict(zip(("generator", "seed", "index"), facts, strict=True))
                row["said"] = json.dumps(said) if origin == "synthetic" else ""
    if not found:
        return pd.DataFrame("", range(len(files)), ["origin", "group", "by", "said"], dtype=object)
    of = _by_path(found)
    rows = [of(file, {}) for file in files]
    return pd.DataFrame(rows, columns=["origin", "group", "by", "said"], dtype=object).fillna("")


def _collect(
    name: str,
    root: Path,
    listed: pd.DataFrame,
    classes: Sequence[str],
    credit="",
    keep_copies=False,
    file: Path | None = None,
) -> Dataset:
    report: list[pd.DataFrame] = []

    def leave_out(table: pd.DataFrame, reasons: pd.Series, outcome: str = "dropped"):
        """Add the rows that have a reason to the report; return the others."""
        rows = table[["path", "class"]].assign(outcome=outcome, reason=reasons)
        report.append(rows[reasons != ""])
        return table[reasons == ""]

    table = leave_out(listed, listed["reason"]).drop(columns="reason")
    seen = scan(root, table["path"].tolist()).set_index(table.index)
    if file:
        seen["problem"] = explained(file, table["path"], seen["problem"])
    size = seen["width"].astype(str) + "×" + seen["height"].astype(str)
    small = "too small: " + size + f" pixels, expected at least {SMALLEST_SIDE} on each side"
    fit = (seen["problem"] != "") | (seen[["height", "width"]].min(axis=1) >= SMALLEST_SIDE)
    table = leave_out(table.assign(digest=seen["digest"]), seen["problem"].where(fit, small))
    other = told(root, table["path"].tolist(), file or _manifest(root)).set_index(table.index)
    table, unknown = _with_groups(table, other["group"])
    leave_out(table, unknown, "kept")
    table, belied = _with_origins(table, seen["generated"][table.index], other)
    leave_out(table, belied, "kept")
    table["group"] = table["group"].mask(table["origin"] == "synthetic", "")  # it is no patient's
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
        fix = "Add images to it or remove it"
        if file and len(dropped):  # the table may be wrong, not the class
            first = dropped.loc[dropped["reason"].str.len().idxmax()]
            what = f"{what}, such as {first['path']}: {first['reason']}"
            fix = f"Correct the paths in {file.name}, or remove the class from it"
        raise DataError(f"{file or root}: {what}. {fix}")
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


def _with_groups(table: pd.DataFrame, other: pd.Series) -> tuple[pd.DataFrame, pd.Series]:
    """Take groups from `other` where there are none; return which are no names, and left out."""
    group = table["group"].where(table["group"] != "", other)
    unknown = group.isin([name for name in group.unique() if name and is_nothing(name)])
    said = (f"{UNKNOWN}: " + group).where(unknown, "")
    return table.assign(group=group.mask(unknown, "")), said


def _with_origins(
    table: pd.DataFrame, said: pd.Series, other: pd.DataFrame
) -> tuple[pd.DataFrame, pd.Series]:
    """Believe whatever says that images are generated; return which of them were listed as real.

    `said` holds for each row what the file says (`generated_by`), `other` what a manifest (`told`);
    a file that is called as we call generated ones is one, too.
    """
    by = other["by"].where(said == "", f"the text chunk {CHUNK} of the file")
    said = said.where(said != "", other["said"])
    named = generated_names(table["path"])[said == ""].dropna()
    for row, seed, index in named.itertuples():  # converted files lose their text chunk
        said[row], by[row] = json.dumps({"generator": "", "seed": seed, "index": index}), "its name"
    said = said[said != ""]
    belied = (table["origin"] == "real") & table.index.isin(said.index)
    table = table.assign(origin=table["origin"].replace("", "real"))
    if len(said):
        table.loc[said.index, "origin"] = "synthetic"
        facts = pd.DataFrame(map(json.loads, said), said.index, dtype=object)
        for name in ("generator", "seed", "index"):
            told = table.get(name, pd.Series("", table.index, dtype=object))
            table[name] = told.where(told != "", facts[name].reindex(table.index, fill_value=""))
    return table, ("generated, though listed as real: " + by + " says so").where(belied, "")


def generated_names(paths: pd.Series) -> pd.DataFrame:
    """Seed and index of paths that we gave to generated images; NaN for other paths."""
    return paths.str.extract(_GENERATED_NAME)


def _copies(table: pd.DataFrame) -> pd.Series:
    """Reasons to drop byte-identical files: all but one in a class, all under several labels."""
    # Of copies on several sides of a published split the one that training does not see is kept.
    alike = table[table.duplicated("digest", keep=False)].sort_values("path")
    late = 2 * (alike["origin"] == "synthetic") + (alike["side"] == "train")
    alike = alike.loc[late.sort_values(kind="stable").index, ["digest", "path", "class", "side"]]
    groups = alike.groupby("digest")
    reasons = pd.Series("", table.index, dtype=object)
    later = alike[alike.duplicated("digest")]
    first = groups[["path", "side"]].transform("first").loc[later.index]
    sides = " (in the split " + first["side"] + ", this one in " + later["side"] + ")"
    reasons[later.index] = (
        "copy: of " + first["path"] + sides.where(first["side"] != later["side"], "")
    )
    torn = alike[groups["class"].transform("nunique") > 1].reset_index(names="row")
    one = torn.drop_duplicates(["digest", "class"])  # of each class: all would be a square number
    pairs = torn.merge(one, on="digest", suffixes=("", "_other"))
    pairs = pairs[pairs["class"] != pairs["class_other"]]
    named = pairs["path_other"] + " (" + pairs["class_other"] + ")"
    for row, others in named.groupby(pairs["row"]):  # not agg: it takes only what is UTF-8
        reasons[row] = f"same image under another label: {', '.join(others)}"
    return reasons
