"""Read a manifest: the table that lists a set's images. `cellaug.data.sets` says what it holds."""

import errno
import os
import posixpath
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from csv import Error as CsvError
from difflib import get_close_matches
from functools import cache
from io import BytesIO
from pathlib import Path
from warnings import catch_warnings

from cellaug.data.columns import (
    GENERATED,
    NAMES,
    NO,
    ORIGINS,
    PERHAPS,
    REAL,
    YES,
    OriginError,
    overlooked,
    refuse_origins,
    unread,
)
from cellaug.data.dataset import printable
from cellaug.data.layouts import check_label, side_of
from cellaug.errors import DataError

import pandas as pd

_LIKE = {"path": ["filename", "file name", "filepath", "image", "image path", "image id", "images"]}
_LIKE |= {"label": ["class", "cell type", "celltype", "category", "diagnosis", "labels"]}
_SEP = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=(.)"?\r?\n', re.IGNORECASE)
_MISSING = f"cannot be read ({os.strerror(errno.ENOENT)})"
_CASE = ", which differs by case only"
_CSV = {"sep": None, "engine": "python", "dtype": object, "keep_default_na": False}
_CSV |= {"index_col": False}  # rows may have a field more than the head: a comma at their end
# A name that is not UTF-8 still finds its file this way.
_CSV |= {"encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}


def read_rows(file: Path, needed: Sequence[str], columns: Mapping[str, str]) -> pd.DataFrame:
    """Read a manifest as texts: path below its folder, class, side, group, origin and others.

    `outside` says of which rows the path leads out of the folder; it is left as it is then.
    `attrs["recoded"]` are the columns with texts that were not UTF-8, `attrs["overlooked"]` what
    seems to hold groups or a split under another name (column and our name), `attrs["unread"]` all
    others in which values repeat.
    """
    table = read_table(file)
    table.columns = pd.Index([name.strip().lower() for name in table.columns], dtype=object)
    if twice := list(table.columns[table.columns.duplicated()]):
        raise DataError(f"{file}: several columns are called {twice[0]}; rename or remove them")
    table, recoded = _named(file, table, needed, columns), []
    seem, others = overlooked(table), unread(table)
    refuse_origins(file, table)
    for name in table:
        try:
            "".join(table[name]).encode()
        except UnicodeEncodeError:
            root = file.parent.as_posix() if name == "path" else ""
            read = pd.Series([_recoded(text, root) for text in table[name]], dtype=object)
            recoded += [name] if (read != table[name]).any() else []
            table[name] = read
    ours = ["class", "digest", "side", "reason", "outside"]  # which have another meaning here
    if not _are_origins(file, table, "origin" in columns):
        ours.append("origin")
    names = {name: f"{name} (manifest)" for name in ours}
    table = table.rename(columns=names | {"label": "class", "split": "side"})
    table = table.assign(**dict.fromkeys({"side", "group", "origin"}.difference(table), ""))
    table["side"] = table["side"].str.lower().map(lambda name: side_of(name) or name)
    table["origin"] = table["origin"].str.lower()
    root = file.parent.as_posix()
    places = pd.Series([_within(path, root) for path in table["path"]], dtype=object)
    table["path"] = places.fillna(table["path"])
    table = table.assign(outside=places.isna())
    table.attrs.update(recoded=recoded, overlooked=seem, unread=others)
    return table


class MisnamedError(DataError):
    """A table lacks a column that it seems to have under another name."""


def _are_origins(file: Path, table: pd.DataFrame, meant: bool) -> bool:
    """Whether the column origin of a table is ours; `OriginError` if it is so only in part."""
    words = set(table["origin"].str.lower()) - {""} if "origin" in table else set()
    if odd := sorted(words - ORIGINS):
        if meant or words & (ORIGINS | GENERATED | PERHAPS | REAL) or words <= YES | NO:
            what = f"the column origin holds {', '.join(map(repr, odd[:3]))}"
            fix = "Expected real or synthetic (generated): correct it, or rename the column"
            raise OriginError(f"{file}: {what}. {fix}")
    return not odd


def _named(
    file: Path, table: pd.DataFrame, needed: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Give the columns of a manifest our names: those of `columns`, or their own."""
    there = f"(there are: {', '.join(table.columns)})"
    if odd := sorted(set(columns).difference(NAMES)):
        raise DataError(f"columns: unknown name {odd[0]!r}. Expected {', '.join(NAMES)}")
    taken = {name: column.strip().lower() for name, column in columns.items()}
    for name, column in taken.items():
        if column not in table:
            near = "".join(f", perhaps {c}" for c in get_close_matches(column, table.columns, 2))
            raise DataError(f"{file}: no column '{column}' for the {name} {there}{near}")
    given = {name: table[column] for name, column in taken.items()}
    table = table.drop(columns=list(taken.values()))
    table = table.rename(columns={name: f"{name} (manifest)" for name in given}).assign(**given)
    if "path" not in table:
        table = table.rename(columns={"file": "path"})
    for name in needed:
        if name not in table:
            fix = "Expected path (or file) and label, and if wanted split, group and origin"
            like = [c for c in table if get_close_matches(c.replace("_", " "), _LIKE[name], 1, 0.8)]
            say = (like or ["NAME"])[0]
            how = f"columns={{'{name}': '{say}'}}, or --columns {name}=\"{say}\""
            how += " (run and book have no such option: rename the column for them)"
            kind = MisnamedError if like else DataError
            raise kind(f"{file}: no column '{name}' {there}. {fix}; for another name {how}")
    # A row with too few fields leaves holes.
    return table.apply(lambda column: column.fillna("").str.strip()).astype(object)


def read_manifest(file: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """List a manifest's images: path below its folder, class, reason to leave it out, side, …"""
    table = read_rows(file, ("path", "label"), columns)
    root, outside = file.parent.as_posix(), table.pop("outside")
    reasons = pd.Series("", table.index, dtype=object)
    if table["side"].any():
        reasons[table["side"] == ""] = "no split, where other rows have one"
    reasons[table["class"] == ""] = "no label"
    fix = "put the manifest into a folder above the images"
    reasons[outside] = f"outside the manifest's folder: expected a path below {root}; {fix}"
    reasons[table["path"] == ""] = "no path"
    rows = table.loc[reasons == "", ["path", "class", "side", "group", "origin"]]
    rows["origin"] = rows["origin"].replace("", "real")
    distinct = rows.drop_duplicates()
    torn = rows["path"].isin(distinct["path"][distinct["path"].duplicated()])
    reasons[rows.index[rows.duplicated()]] = "listed twice"
    reasons[rows.index[torn]] = "listed with different labels, splits or groups"
    for row, label in table["class"][reasons == ""].drop_duplicates().items():
        check_label(label, file, f"row {row + 1}")
    table["reason"] = [why and f"{why} (row {row + 1})" for row, why in reasons.items()]
    if table["reason"].all():
        first = table[["path", "reason"]].head(3).to_numpy()
        seen = "; ".join(f"{path or '(no path)'}: {why}" for path, why in first)
        raise DataError(f"{file}: no usable row ({seen or 'it has none'})")
    return table


def read_table(file: Path) -> pd.DataFrame:
    """Read a table as texts, with the names of its columns; `DataError` if it is damaged."""
    try:
        if file.suffix.lower() == ".parquet":
            table = pd.read_parquet(file)
            table = table.reset_index(drop=table.index.name is None)
            table = table.astype(object).where(table.notna(), "").astype(str).astype(object)
        else:
            data, options = file.read_bytes(), _CSV
            if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                options = _CSV | {"encoding": "utf-16"}
            else:  # pandas needs the names of columns in UTF-8
                if found := _SEP.match(data):  # Excel's own line
                    data, options = data[found.end() :], _CSV | {"sep": found[1].decode("latin-1")}
                head, end, rows = data.partition(b"\n")
                text = _recoded(head.decode("utf-8", "surrogateescape"))
                if "\0" in text:
                    raise ValueError("it holds zero bytes, as UTF-16 without its mark does")
                if text.encode() != head and not set(",;\t") & set(text):
                    raise ValueError("it does not begin with the names of columns")
                data = text.encode() + end + rows
            with catch_warnings(record=True, action="always") as longer:
                table = pd.read_csv(BytesIO(data), **options)
            if longer:  # rows than the first line
                _refuse_more_fields(data, options, len(table.columns))
    except Exception as error:  # readers raise what they like on a damaged file
        what = f"cannot be read as {file.suffix[1:]} ({error}). Expected a table with the columns"
        fix = "path and label, saved as UTF-8 with commas, semicolons or tabs"
        raise DataError(f"{file}: {what} {fix}") from error
    table.columns = pd.Index(list(map(str, table.columns)), dtype=object)
    return table


def _refuse_more_fields(data: bytes, options: dict, count: int) -> None:
    """Raise ValueError if rows say something in a field more than there are names of columns."""
    head, more = data.partition(b"\n")[0], pd.Series(dtype=object)
    names: dict = {"header": None, "skiprows": 1, "usecols": [count]}
    names["names"] = [*range(count + 1)]
    names["sep"] = options["sep"] or max(",;\t", key=lambda sign: head.count(sign.encode()))
    with suppress(ValueError, IndexError, CsvError):  # no row has one
        more = pd.read_csv(BytesIO(data), **options | names)[count].fillna("").str.strip()
    if (more != "").any():
        row = int((more != "").argmax()) + 1
        raise ValueError(f"row {row} has more fields than the first line has names of columns")


def _recoded(text: str, root: str = "") -> str:
    """A text that is not UTF-8, from Windows-1252; a path below `root` if a file is called so."""
    if text == printable(text):
        return text
    read = text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return read if not root or os.path.lexists(f"{root}/{read}") else text


def _within(path: str, root: str) -> str | None:
    """The path from the folder `root` on, None if it leads out of it."""
    path = path.replace(os.sep, "/")
    if "\\" in path and not os.path.lexists(f"{root}/{path}"):
        path = path.replace("\\", "/")  # written on Windows
    place = posixpath.normpath(posixpath.join(root, path))
    return place[len(root) + 1 :] if place.startswith(f"{root}/") else None


def explained(file: Path, paths: pd.Series, problems: pd.Series) -> pd.Series:
    """Name files that nearly match a manifest's missing paths; `DataError` if most are missing."""
    gone = paths[problems == _MISSING]
    near = pd.Series(_near(file.parent, gone), gone.index, dtype=object)
    case = (a.casefold() == b.casefold() for a, b in zip(near, gone, strict=True))
    there = near + pd.Series(
        [" is there" + _CASE * same for same in case], gone.index, dtype=object
    )
    if 2 * len(gone) > len(paths):
        row = next(iter([*near.index[near != ""], *gone.index]))
        what = f"{len(gone):,} of {len(paths):,} paths name no file below {file.parent}"
        like = f"; {there[row]}" if near[row] else ""
        fix = "Expected paths from the table's folder on, with ending and case as there"
        raise DataError(f"{file}: {what}, such as {paths[row]!r} (row {row + 1}){like}. {fix}")
    near = near[near != ""]
    problems[near.index] = f"{_MISSING}: " + there[near.index]
    return problems


def _near(root: Path, paths: Iterable[str]) -> list[str]:
    """Files that differ from these paths by case, ending or one folder more; "" where none does."""

    @cache
    def names(folder: str) -> dict[str, str]:
        with suppress(OSError, ValueError):  # the latter for a NUL
            there = sorted(os.listdir(f"{root}/{folder}"))  # noqa: PTH208 - names are wanted
            return {Path(n).stem.lower(): n for n in there} | {n.lower(): n for n in there}
        return {}

    def follow(path: str, place: str) -> str:
        for part in path.lower().split("/"):
            name = names(place).get(part) or names(place).get(Path(part).stem)
            if not name:
                return ""
            place = f"{place}{name}/"
        return "" if place[:-1] == path else place[:-1]

    starts = ["", *(f"{name}/" for name in sorted(set(names("").values())) if names(f"{name}/"))]
    return [next(filter(None, (follow(path, at) for at in starts)), "") for path in paths]
