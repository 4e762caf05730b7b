"""Read a manifest: the table that lists a set's images. `cellaug.data.sets` says what it holds."""

import errno
import os
import posixpath
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from io import BytesIO
from pathlib import Path

from cellaug.data.dataset import printable
from cellaug.data.layouts import check_label, side_of, speaks_of_sides
from cellaug.errors import DataError

import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES

_NAMES = ("path", "label", "split", "group", "origin")  # of a manifest's columns
_ORIGINS = {"real", "synthetic"}
_GENERATED = {"generated", "fake", "artificial", "augmented", "gan"}  # other words for synthetic
_GENERATED |= {"synthetisch", "künstlich", "generiert", "erzeugt", "synthétique", "sintético"}
_LIKE = {"path": ["filename", "file name", "filepath", "image", "image path", "image id", "images"]}
_LIKE |= {"label": ["class", "cell type", "celltype", "category", "diagnosis", "labels"]}
_NATURAL = {"real", "original", "originals", "natural", "genuine", "authentic", "echt"}
_MADE = re.compile("(is)?(synthetic|generated|fake|artificial|gan|synthetisch|generiert)")
# Of columns in one piece: a group in any name but that of a fact about it, or a whole name.
_GROUP = re.compile(
    "patient|participant|proband|subject|donor|spender|slide|smear|ausstrich|objektträger|präparat"
    "|specimen|animal|individual|wsi|barcode|accession"
    "|^(pat|person|fall|case|pid|mrn|sample|proben?|tier)s?(u?id|no|nr|nummer|number|code|name)?$"
)
_FACT = re.compile(
    "status|(?<!im)age|alter|sex|gender|geschlecht|diagnos|stain|färb|dat(e|um)|count|anzahl|type"
    "|quality|magni|scanner|path|file|width|height|label|class|comment|position|blood|ethnic|weight"
    "|disease|condition|therap|treatment|outcome|country|hospital|site|ward|race"
)
_SPLIT = re.compile("(data)?split|subset|usage|partition|tvt|(cv)?folds?|(is)?(train|test|val)")
_FLAGS = {"true": "1", "yes": "1", "ja": "1", "false": "0", "no": "0", "nein": "0"}
_SEP = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=(.)"?\r?\n', re.IGNORECASE)
_NO_GROUP = set("n.a. nil unknown unk missing - -- ? ?? ??? k.a. n.v. unbekannt tbd -1 x".split())
_NO_GROUP |= set("#nv #value! #ref! #name? #div/0! #null! #num! #wert! #bezug!".split())
_NO_GROUP |= set("notknown keineangabe ka anonym anonymous anonymized anon unbek keiner".split())
_NO_GROUP |= set("keinname nichtbekannt leer ohne nopatient unspecified notavailable".split())
_NO_GROUP |= {word.lower() for word in STR_NA_VALUES if word}
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
    seems to hold groups or a split under another name: column and our name.
    """
    table = read_table(file)
    table.columns = pd.Index([name.strip().lower() for name in table.columns], dtype=object)
    if twice := list(table.columns[table.columns.duplicated()]):
        raise DataError(f"{file}: several columns are called {twice[0]}; rename or remove them")
    table, recoded = _named(file, table, needed, columns), []
    overlooked = _overlooked(table)
    _refuse_origins(file, table)
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
    table.attrs.update(recoded=recoded, overlooked=overlooked)
    return table


def is_nothing(group: str) -> bool:
    """Whether a group is a word for none, such as unknown."""
    word = group.strip().lower()
    return word in _NO_GROUP or re.sub(r"[\s.]+", "", word) in _NO_GROUP


def _overlooked(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Columns that seem to be the group or the split, of a table without such a column."""
    found = []
    for column in table.columns.difference(_NAMES, sort=False):
        values, piece = set(table[column]) - {""}, re.sub(r"[\W_]+", "", column)
        names = {value for value in values if not is_nothing(value)}
        several = len(names) > 2 or (len(names) == 2 and any(re.search(r"\d", x) for x in names))
        named = _GROUP.search(piece) and not _FACT.search(piece)
        if "group" not in table and named and several and len(names) < len(table):
            found.append((column, "group"))
        if "split" not in table and 1 < len(values) <= 10:
            sides = [value for value in values if speaks_of_sides(value)]
            numbers = all(_flag(value).isdigit() for value in values)
            most = 2 * table[column].isin(sides).sum() >= len(table)
            if (len(sides) > 1 and most) or (numbers and _SPLIT.fullmatch(piece)):
                found.append((column, "split"))
    return found


def _flag(value: str) -> str:
    """A number as it is, and "1" or "0" for a word or number that means yes or no."""
    return _FLAGS.get(value.lower(), re.sub(r"\.0$", "", value))


def _refuse_origins(file: Path, table: pd.DataFrame) -> None:
    """`OriginError` if a table without a column origin says in another which are generated."""
    for column in table.columns.difference(_NAMES, sort=False) if "origin" not in table else ():
        words = set(table[column].str.lower()) - {""}
        made = words & (_GENERATED | {"synthetic"})
        told = made and words <= _GENERATED | _NATURAL | {"synthetic"}
        flags = _MADE.fullmatch(re.sub(r"[\W_]+", "", column)) and set(map(_flag, words))
        if told or (flags and "1" in flags <= {"0", "1"}) or (column == "generator" and words):
            what = f"the column {column} holds {', '.join(map(repr, sorted(words)[:3]))}, and there"
            what += " is no column origin, so that generated images would pass as real ones"
            fix = "Add a column origin with real or synthetic (generated) in each row"
            raise OriginError(f"{file}: {what}. {fix}, or rename {column} if it is no origin")


class MisnamedError(DataError):
    """A table lacks a column that it seems to have under another name."""


class OriginError(DataError):
    """A table's column origin cannot be read, so that generated images could pass as real ones."""


def _are_origins(file: Path, table: pd.DataFrame, meant: bool) -> bool:
    """Whether the column origin of a table is ours; `OriginError` if it is so only in part."""
    words = set(table["origin"].str.lower()) - {""} if "origin" in table else set()
    if odd := sorted(words - _ORIGINS):
        if meant or words & (_ORIGINS | _GENERATED):
            what = f"the column origin holds {', '.join(map(repr, odd[:3]))}"
            fix = "Expected real or synthetic (generated): correct it, or rename the column"
            raise OriginError(f"{file}: {what}. {fix}")
    return not odd


def _named(
    file: Path, table: pd.DataFrame, needed: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Give the columns of a manifest our names: those of `columns`, or their own."""
    there = f"(there are: {', '.join(table.columns)})"
    if odd := sorted(set(columns).difference(_NAMES)):
        raise DataError(f"columns: unknown name {odd[0]!r}. Expected {', '.join(_NAMES)}")
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
    reasons[outside] = f"outside the manifest's folder: expected a path below {root}"
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
            table = pd.read_csv(BytesIO(data), **options)
    except Exception as error:  # readers raise what they like on a damaged file
        what = f"cannot be read as {file.suffix[1:]} ({error}). Expected a table with the columns"
        fix = "path and label, saved as UTF-8 with commas, semicolons or tabs"
        raise DataError(f"{file}: {what} {fix}") from error
    table.columns = pd.Index(list(map(str, table.columns)), dtype=object)
    return table


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
            there = sorted(os.listdir(f"{root}/{folder}"))  # noqa: PTH208
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
