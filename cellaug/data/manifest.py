"""A manifest: a table of images with their labels, as CSV or Parquet.

Columns `path` and `label`, and if wanted `split` (the side on which an image is to stay) and
`group` (the patient or slide that it comes from, never divided by a split). Paths are relative to
the manifest's folder, or absolute within it. Other columns are not read.
"""

import csv
import os
import posixpath
from pathlib import Path

from cellaug.data.errors import DataError

import pandas as pd

MANIFEST = "manifest.csv"
MANIFEST_SUFFIXES = (".csv", ".parquet")

_SIDES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


def lists_origin(folder: Path, origin: str) -> bool:
    """Whether a folder's `manifest.csv` lists an image of that origin, "real" or "synthetic".

    `generate` and `augment` write one. Raises DataError for a file that is no table.
    """
    if not (folder / MANIFEST).is_file():
        return False
    with (folder / MANIFEST).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        try:
            return any(row.get("origin") == origin for row in csv.DictReader(file))
        except csv.Error as error:
            raise DataError(f"{folder / MANIFEST}: no readable table ({error})") from error


def read_manifest(file: Path, report: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    """Read a manifest.

    Args:
        file: a `.csv` (comma, semicolon or tab; UTF-8) or `.parquet`.
        report: rows (path, class, outcome, reason) for what is left out are appended to it.

    Returns:
        The usable rows: text columns path (relative to the manifest's folder, with forward
        slashes), label, split and group (empty where not given).

    Raises:
        DataError: if it is no table, a needed column is missing, or no row is usable.
    """
    table = _read_table(file)
    table.columns = [str(name).strip().lower() for name in table.columns]
    for needed in ("path", "label"):
        if needed not in table.columns:
            raise DataError(
                f"{file}: no column '{needed}' (there are: {', '.join(table.columns)}). Expected "
                "path and label, and if wanted split and group"
            )
    has_split = "split" in table.columns
    table = table.reindex(columns=["path", "label", "split", "group"], fill_value="")
    # A row with too few fields leaves holes.
    table = table.apply(lambda column: column.fillna("").str.strip())
    table["split"] = table["split"].str.lower().replace(_SIDES)
    root = file.parent.as_posix()
    places = [_within(path, root) for path in table["path"]]
    reasons = [
        "no path"
        if not path
        else f"outside the manifest's folder: expected a path below {root}"
        if place is None
        else "no label"
        if not label
        else "no split, where other rows have one"
        if has_split and not split
        else ""
        for path, place, label, split in zip(
            table["path"], places, table["label"], table["split"], strict=True
        )
    ]
    for row, reason in enumerate(reasons):
        if reason:
            path, label = table.at[row, "path"], table.at[row, "label"]
            report.append((path, label, "dropped", f"{reason} (row {row + 1})"))
    table["path"] = places
    table = table.loc[[not reason for reason in reasons]]
    table = _without_doubles(table, report)
    if table.empty:
        seen = "; ".join(f"{path or '(no path)'}: {why}" for path, _, _, why in report[:3])
        raise DataError(f"{file}: no usable row ({seen or 'it has none'})")
    return table.reset_index(drop=True)


def _read_table(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() == ".parquet":
            table = pd.read_parquet(file)
            return table.astype(object).where(table.notna(), "").astype(str).astype(object)
        # A name that is not UTF-8 still finds its file this way.
        return pd.read_csv(
            file,
            sep=None,
            engine="python",
            dtype=object,
            keep_default_na=False,
            encoding="utf-8-sig",
            encoding_errors="surrogateescape",
        )
    except Exception as error:  # readers raise what they like on a damaged file
        raise DataError(
            f"{file}: cannot be read as {file.suffix[1:]} ({error}). Expected a table with the "
            "columns path and label"
        ) from error


def _within(path: str, root: str) -> str | None:
    """The path from the folder `root` on, None if it leads out of it."""
    if "\\" in path and not os.path.lexists(f"{root}/{path}"):
        path = path.replace("\\", "/")  # written on Windows
    whole = Path(path).as_posix() if Path(path).is_absolute() else f"{root}/{path}"
    place = posixpath.normpath(whole)
    return place[len(root) + 1 :] if place.startswith(f"{root}/") else None


def _without_doubles(table: pd.DataFrame, report) -> pd.DataFrame:
    """Keep one of equal rows; drop all rows of a path that contradict each other."""
    again = table.duplicated()
    distinct = table[~again]
    torn = distinct["path"][distinct.duplicated("path", keep=False)]
    contradicts = table["path"].isin(set(torn))
    for row, reason in (
        *((row, "listed twice") for row in table.index[again & ~contradicts]),
        *(
            (row, "listed with different labels, splits or groups")
            for row in table.index[contradicts]
        ),
    ):
        entry = table.loc[row]
        report.append((entry["path"], entry["label"], "dropped", f"{reason} (row {row + 1})"))
    return table[~again & ~contradicts]
