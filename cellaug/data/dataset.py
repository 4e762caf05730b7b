"""A set of labelled images: one table, with the pixels in files, in a store or in memory."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellaug.data.images import check_images, fit_square, read_image
from cellaug.errors import DataError
from cellaug.files import write_atomically

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from cellaug.data.store import Store

COLUMNS = ["path", "class", "digest", "side", "group", "origin"]  # of every table, then others
REPORT_COLUMNS = ["path", "class", "outcome", "reason"]
UNLABELLED = ("cell",)  # the one class of images that have no label


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images.

    `table` has one row per image, numbered from 0: path (relative to `root` with forward slashes,
    absolute elsewhere), class (ordered categorical), digest (SHA-256, hexadecimal), side (of a
    published split) and group (patient or slide), "" if unknown, origin ("real" or "synthetic"),
    and others, of a manifest or a drawing. `report` (path, class, outcome, reason) lists every file
    that was dropped or is converted. `credit` goes with any image shown. `store` holds decoded
    images on disk, `images` (uint8 RGB (N, S, S, 3)) those of a set in memory.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    table: pd.DataFrame
    report: pd.DataFrame
    credit: str = ""
    store: "Store | None" = None
    images: np.ndarray | None = None

    @staticmethod
    def of_images(
        images: np.ndarray,
        labels: np.ndarray | Sequence[int] | None,
        class_names: Sequence[str],
        name: str = "images",
        credit: str = "",
        origin: str = "real",
    ) -> "Dataset":
        """Return a set in memory: uint8 RGB (N, S, S, 3), `labels` (N,) into `class_names` or None.

        Digests are those of the pixels. `ValueError` if these do not fit together.
        """
        images = check_images(images, name)
        if not len(images) or images.shape[1] != images.shape[2]:
            raise ValueError(f"{name}: expected square images, at least one, not {images.shape}")
        if labels is None:
            labels, class_names = np.zeros(len(images), int), UNLABELLED
        labels = np.asarray(labels)
        if labels.shape != (len(images),) or set(labels) - set(range(len(class_names))):
            wanted = f"{len(images)} whole numbers from 0 to {len(class_names) - 1}"
            raise ValueError(f"{name}: labels must be {wanted}, one per image")
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        named = [class_names[int(label)] for label in labels]
        columns = {"path": "", "class": named, "digest": digests, "origin": origin}
        table = as_table(pd.DataFrame(columns, dtype=object), class_names)
        report = pd.DataFrame(columns=REPORT_COLUMNS, dtype=object)
        return Dataset(name, Path(), tuple(class_names), table, report, credit, images=images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.table)

    @cached_property
    def labels(self) -> np.ndarray:
        """The classes as int64 numbers (N,) into `class_names`."""
        return self.table["class"].cat.codes.to_numpy(np.int64)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(self.root / path for path in self.table["path"])

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the files, hexadecimal."""
        return tuple(self.table["digest"])

    @property
    def unlabelled(self) -> bool:
        """Whether the images have no label: their one class is "cell"."""
        return self.class_names == UNLABELLED

    def counts(self) -> pd.Series:
        """Return the number of images of each class, indexed by class name."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return pd.Series(counts, pd.Index(self.class_names, name="class"), name="images")

    def origins(self) -> str:
        """Return a sentence on how many images are generated, and by what; "" if none is."""
        made = self.table[self.table["origin"] == "synthetic"]
        if made.empty:
            return ""
        named = made.get("generator", pd.Series(dtype=object)).replace("", None).dropna().unique()
        by = f" (by {', '.join(named[:3])}{', …' * (len(named) > 3)})" if len(named) else ""
        return f"{len(made):,} of {len(self):,} images are generated{by}"

    def outcomes(self) -> pd.DataFrame:
        """Count the report's files by outcome and kind of reason (the text before the colon)."""
        kinds = self.report["reason"].str.split(":").str[0]
        groups = self.report.groupby(["outcome", kinds], sort=False)
        return groups.size().rename("files").reset_index()

    @cached_property
    def fingerprint(self) -> str:
        """The data hash: 16 hexadecimal digits over all (class name, digest) pairs, sorted."""
        pairs = self.table[["class", "digest"]].itertuples(index=False, name=None)
        text = "\n".join(map("\t".join, sorted(pairs)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def subset(self, indices: Sequence[int] | np.ndarray | pd.Series) -> "Dataset":
        """Return the images at `indices` (whole numbers, or one truth value per image)."""
        table = self.table.iloc[np.asarray(indices)]
        images = None if self.images is None else self.images[table.index]
        return replace(self, table=table.reset_index(drop=True), images=images)

    def of_class(self, label: int) -> "Dataset":
        """Return the images of one class."""
        return self.subset(self.labels == label)

    def sample(self, count: int, seed: int = 0) -> "Dataset":
        """Return `count` images drawn at random without replacement, all if there are fewer."""
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:count])

    def sample_per_class(self, count: int, seed: int = 0) -> "Dataset":
        """Return up to `count` images of every class, drawn at random, class after class."""
        members = [np.flatnonzero(self.labels == label) for label in range(len(self.class_names))]
        drawn = [np.random.default_rng([seed, k]).permutation(m) for k, m in enumerate(members)]
        return self.subset(np.concatenate([rows[:count] for rows in drawn]))

    def read(self, size: int) -> np.ndarray:
        """Return all images, cropped, resized: uint8 RGB (N, size, size, 3); else `DataError`."""
        pixels = np.dtype((np.uint8, (size, size, 3)))
        if self.images is not None:
            resized = (fit_square(image, size) for image in self.images)
            return self.images if self.images.shape[1] == size else np.fromiter(resized, pixels)
        if self.store is not None and self.store.size == size:
            images = np.empty(len(self), pixels)
            self.store.read(self.store.find(self.digests), images)
            return images
        with ThreadPoolExecutor() as pool:
            read = pool.map(partial(read_image, size=size), self.paths)
            return np.fromiter(read, pixels, len(self))

    def in_memory(self, size: int) -> "Dataset":
        """Return this set with its images in memory, (size, size) pixels each."""
        return replace(self, images=self.read(size))

    def save(self, file: Path, **facts: Any) -> None:
        """Write table, report and `facts` (values as JSON has them) to a Parquet file."""
        # Parquet holds only UTF-8: the facts have a column as it is if its texts are not.
        table = self.table.copy()
        texts = table.select_dtypes(object)
        for name in texts:
            table[name] = [printable(t) if isinstance(t, str) else t for t in texts[name]]
        facts |= {key: getattr(self, key) for key in ("name", "class_names", "credit")}
        facts |= {"root": str(self.root), "report": self.report.to_numpy().tolist()}
        odd = [name for name in texts if table[name].tolist() != texts[name].tolist()]
        table.attrs = facts | {"odd": texts[odd].to_dict("list")}
        write_atomically(file, table.to_parquet(index=False))

    @staticmethod
    def load(file: Path) -> tuple["Dataset", dict]:
        """Read what `save` wrote, the set and the facts; raises what the readers raise."""
        table = pd.read_parquet(file)
        facts, table.attrs = table.attrs, {}
        class_names, root = tuple(facts["class_names"]), Path(facts["root"])
        for name, texts in facts["odd"].items():
            table[name] = pd.Series(texts, dtype=object)
        table = as_table(table, class_names)
        report = pd.DataFrame(facts["report"], columns=REPORT_COLUMNS, dtype=object)
        return Dataset(facts["name"], root, class_names, table, report, facts["credit"]), facts


def as_table(columns: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """A set's table from path, class, digest and others; texts are objects: not all are UTF-8."""
    table = pd.DataFrame({"side": "", "group": "", "origin": "real"}, columns.index)
    table[columns.columns] = columns
    table = table[[*COLUMNS, *table.columns.difference(COLUMNS, sort=False)]]
    texts = [name for name in table if pd.api.types.is_string_dtype(table[name])]
    table = table.astype(dict.fromkeys(texts, object)).reset_index(drop=True)
    return table.assign(**{"class": pd.Categorical(table["class"], class_names, ordered=True)})


def concat(datasets: Sequence[Dataset]) -> Dataset:
    """Join sets in order; `DataError` for other classes, or if only some are in memory."""
    first = datasets[0]
    for other in datasets:
        if other.class_names != first.class_names:
            wrong = f"have different classes or another order: {first.class_names} and"
            raise DataError(f"{first.name} and {other.name} {wrong} {other.class_names}")
        if (other.images is None) != (first.images is None):
            raise DataError(f"{first.name} and {other.name}: read both into memory, or none")
    tables = [d.table for d in datasets]
    for k, d in enumerate(datasets):
        if d.root != first.root:
            tables[k] = d.table.assign(path=[relative(path, first.root) for path in d.paths])
    return replace(
        first,
        name=" + ".join(dict.fromkeys(d.name for d in datasets)),
        table=pd.concat(tables, ignore_index=True),
        report=pd.concat([d.report for d in datasets]).drop_duplicates(ignore_index=True),
        credit="; ".join(dict.fromkeys(d.credit for d in datasets if d.credit)),
        store=first.store if all(d.store is first.store for d in datasets) else None,
        images=None if first.images is None else np.concatenate([d.images for d in datasets]),
    )


def printable(name: str) -> str:
    """A file name as UTF-8 can hold it: bytes that are none are written out as \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def relative(path: Path, root: Path) -> str:
    """The path from the root on, with forward slashes; the whole path if it lies elsewhere."""
    return path.as_posix().removeprefix(root.as_posix().rstrip("/") + "/")


def digest_numbers(digests: Iterable[str]) -> np.ndarray:
    """The first 8 bytes of SHA-256 digests in hex as numbers, uint64 (N,), in their order."""
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)
