"""Which images there are: paths, labels, and what was dropped or converted and why."""

import hashlib
import inspect
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cellaug.data.errors import DataError
from cellaug.data.images import read_image
from cellaug.data.scan import Record, cache_home, scan

import numpy as np
import pandas as pd

__all__ = ["DataError", "Dataset", "cache_home", "concat", "locate", "open_dataset"]

SMALLEST_SIDE = 8
"""Pixels; an image that is smaller on a side shows no cell and is dropped."""

PBC_TOP = "PBC_dataset_normal_DIB"
PBC_CREDIT = (
    "PBC: Acevedo, Merino, Alférez, Molina, Boldú, Rodellar, A dataset of microscopic peripheral "
    "blood cell images for development of automatic recognition systems, Data in Brief 30 (2020) "
    "105474, doi:10.17632/snkd93bnjr.1, CC BY 4.0"
)
PBC_FOLDERS = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "ig",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
"""The eight coarse classes, in the order that BloodMNIST numbers them too."""

PBC_FINE = {
    "PMY": "promyelocyte",
    "MY": "myelocyte",
    "MMY": "metamyelocyte",
    "BNE": "band neutrophil",
    "SNE": "segmented neutrophil",
    "EO": "eosinophil",
    "BA": "basophil",
    "MO": "monocyte",
    "LY": "lymphocyte",
    "ERB": "erythroblast",
    "PLATELET": "platelet",
}
"""Fine classes by file-name prefix: granulocytes as they ripen, then the others."""

REPORT_COLUMNS = ["path", "class", "outcome", "reason"]

_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images on disk.

    `labels` (N,) int64 are indices into `class_names`; `digests` are SHA-256 of the files' bytes.
    `report` (columns path, class, outcome, reason) lists every file that was dropped or has to be
    converted when read; a path in it is relative to `root`. `credit` is the line to quote with any
    image shown, empty if unknown. `truth` has one row of drawn parameters per image for phantoms.
    """

    name: str
    root: Path
    paths: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    report: pd.DataFrame
    credit: str = ""
    truth: pd.DataFrame | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def counts(self) -> pd.Series:
        """Return the number of images of each class, indexed by class name."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return pd.Series(counts, index=pd.Index(self.class_names, name="class"), name="images")

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Return the images at `indices` (whole numbers, or one truth value per image)."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise ValueError(f"expected {len(self)} truth values, got {indices.shape}")
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=self.labels[indices],
            digests=tuple(self.digests[i] for i in indices),
            truth=None if self.truth is None else self.truth.iloc[indices].reset_index(drop=True),
        )

    def outcomes(self) -> pd.DataFrame:
        """Count the report's files by outcome and kind of reason (what stands before the colon)."""
        kinds = self.report["reason"].str.split(":").str[0]
        groups = self.report.groupby(["outcome", kinds], sort=False)
        return groups.size().rename("files").reset_index()

    def of_class(self, label: int) -> "Dataset":
        """Return the images of one class."""
        return self.subset(self.labels == label)

    def sample(self, count: int, seed: int = 0) -> "Dataset":
        """Return `count` images drawn at random without replacement, all if there are fewer."""
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:count])

    def sample_per_class(self, count: int, seed: int = 0) -> "Dataset":
        """Return up to `count` images of every class, drawn at random, class after class."""
        chosen = []
        for label in range(len(self.class_names)):
            members = np.flatnonzero(self.labels == label)
            chosen.append(np.random.default_rng([seed, label]).permutation(members)[:count])
        return self.subset(np.concatenate(chosen))

    def read(self, size: int) -> np.ndarray:
        """Decode all images, centre cropped and resized: uint8 RGB (N, size, size, 3)."""
        images = np.empty((len(self), size, size, 3), np.uint8)
        with ThreadPoolExecutor() as pool:
            for place, image in enumerate(
                pool.map(lambda path: read_image(path, size), self.paths)
            ):
                images[place] = image
        return images

    @cached_property
    def fingerprint(self) -> str:
        """The data hash: 16 hexadecimal digits over all (class name, digest) pairs, sorted."""
        pairs = sorted(
            (self.class_names[label], digest)
            for label, digest in zip(self.labels, self.digests, strict=True)
        )
        text = "\n".join(f"{name}\t{digest}" for name, digest in pairs)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    def table(self) -> pd.DataFrame:
        """Return one row per image: path (relative to `root` if it lies there), class, digest."""
        return pd.DataFrame(
            {
                "path": [
                    (
                        path.relative_to(self.root) if path.is_relative_to(self.root) else path
                    ).as_posix()
                    for path in self.paths
                ],
                "class": np.array(self.class_names, object)[self.labels],
                "digest": self.digests,
            }
        )


def open_dataset(source: str | Path, **options) -> Dataset:
    """Open a set of labelled images.

    `source` is one of the names

    - "phantom": cells drawn by cellaug; options `classes`, `images`, `size` (pixels), `seed` and
      `imbalance` as in `cellaug.data.phantom.phantom`;
    - "pbc": the PBC set with its 8 folders as classes;
    - "pbc-fine": the PBC set with 11 classes read from the file names;

    or a folder that has one subfolder of images per class; its option `class_names` gives the order
    of the classes, alphabetical otherwise. PBC is looked for under `$CELLAUG_DATA`
    and then under the cache home. Every file that is not used as it stands is listed in the
    dataset's report. Raises `DataError` for an unknown name or option, a missing folder, a folder
    without classes or a class without a usable image.
    """
    if source == "phantom":
        return _open_phantom(options)
    allowed = set() if source in ("pbc", "pbc-fine") else {"class_names"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise DataError(
            f"unknown option {', '.join(unknown)}: {source} takes {' '.join(allowed) or 'none'} "
            '(only "phantom" has more)'
        )
    root = locate(source)
    if source == "pbc":
        return _collect("pbc", root, PBC_FOLDERS, PBC_FOLDERS, _by_folder, PBC_CREDIT)
    if source == "pbc-fine":
        names = tuple(PBC_FINE.values())
        return _collect("pbc-fine", root, PBC_FOLDERS, names, _by_prefix, PBC_CREDIT)
    entries = sorted(root.iterdir())
    folders = tuple(e.name for e in entries if e.is_dir() and not _clutter(e.name))
    if not folders:
        raise DataError(f"{source}: no classes. Expected one subfolder of images per class")
    names = tuple(options.get("class_names", folders))
    if sorted(names) != sorted(folders):
        raise DataError(
            f"{source}: class_names are {', '.join(names)}, but the folders {', '.join(folders)}"
        )
    return _collect(root.name, root, folders, names, _by_folder)


def locate(source: str | Path) -> Path:
    """Return the folder that holds the images of "pbc", "pbc-fine" or a folder of one's own.

    Raises `DataError` if it is not there.
    """
    if source in ("pbc", "pbc-fine"):
        return _find_pbc()
    root = Path(source).expanduser()
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(
            f'{source}: {problem}. Give "phantom", "pbc", "pbc-fine" or a folder with one '
            "subfolder of images per class"
        )
    return root.resolve()


def concat(datasets: Sequence[Dataset]) -> Dataset:
    """Put datasets with the same class names together, in the order given."""
    datasets = list(datasets)
    if not datasets:
        raise ValueError("concat expects at least one dataset")
    first = datasets[0]
    for other in datasets[1:]:
        if other.class_names != first.class_names:
            raise DataError(
                f"{first.name} and {other.name} have different classes "
                f"({', '.join(first.class_names)} and {', '.join(other.class_names)}); "
                "only sets with the same classes in the same order can be put together"
            )
    truths = [dataset.truth for dataset in datasets]
    return replace(
        first,
        name=" + ".join(dict.fromkeys(dataset.name for dataset in datasets)),
        paths=tuple(path for dataset in datasets for path in dataset.paths),
        labels=np.concatenate([dataset.labels for dataset in datasets]),
        digests=tuple(digest for dataset in datasets for digest in dataset.digests),
        report=pd.concat([d.report for d in datasets]).drop_duplicates(ignore_index=True),
        credit="; ".join(dict.fromkeys(d.credit for d in datasets if d.credit)),
        truth=None
        if any(truth is None for truth in truths)
        else pd.concat(truths, ignore_index=True),
    )


def _open_phantom(options: dict) -> Dataset:
    from cellaug.data.phantom import phantom  # here, because it draws with what this module offers

    allowed = inspect.signature(phantom).parameters
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise DataError(f"unknown option {', '.join(unknown)}: phantom takes {', '.join(allowed)}")
    root, names, truth = phantom(**options)
    dataset = _collect(
        "phantom", root, names, names, _by_folder, "phantom cells drawn by cellaug, not real ones"
    )
    files = [path.relative_to(root).as_posix() for path in dataset.paths]
    return replace(dataset, truth=truth.set_index("file").loc[files].reset_index())


def _find_pbc() -> Path:
    homes = [Path(os.environ["CELLAUG_DATA"])] if os.environ.get("CELLAUG_DATA") else []
    homes.append(cache_home())
    for home in homes:
        for place in (home / "pbc" / PBC_TOP, home / PBC_TOP, home / "pbc"):
            if all((place / folder).is_dir() for folder in PBC_FOLDERS):
                return place.resolve()
    raise DataError(
        f"the PBC images are not here (looked under {' and '.join(map(str, homes))}). Either run "
        f"`cellaug fetch pbc`, or put the unpacked folder {PBC_TOP} into a folder and set "
        "CELLAUG_DATA to that folder"
    )


def _clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _by_folder(folder: str, file: str) -> str | None:
    return folder


def _by_prefix(folder: str, file: str) -> str | None:
    return PBC_FINE.get(file.split("_")[0])


class _Found(NamedTuple):
    file: str  # relative to the root, with forward slashes
    kind: str  # class name
    record: Record


def _collect(
    name: str,
    root: Path,
    folders: tuple[str, ...],
    class_names: tuple[str, ...],
    class_of: Callable[[str, str], str | None],
    credit: str = "",
) -> Dataset:
    """List, look at and sort out the files of the class folders."""
    report: list[tuple[str, str, str, str]] = []
    listed = _list_files(root, folders, class_of, report)
    records = scan(root, [file for file, _ in listed])
    found = []
    for (file, kind), record in zip(listed, records, strict=True):
        if record.problem:
            report.append((file, kind, "dropped", record.problem))
        elif min(record.height, record.width) < SMALLEST_SIDE:
            reason = (
                f"too small: {record.width}×{record.height} pixels, "
                f"expected at least {SMALLEST_SIDE} on each side"
            )
            report.append((file, kind, "dropped", reason))
        else:
            found.append(_Found(file, kind, record))
    found = _without_copies(found, report)
    _report_conversions(found, report)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    found.sort(key=lambda item: (label_of[item.kind], item.file))
    for empty in sorted(set(class_names) - {item.kind for item in found}, key=label_of.get):
        reasons = Counter(row[3] for row in report if row[1] == empty and row[2] == "dropped")
        seen = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        raise DataError(
            f'{root}: class "{empty}" has no usable image ({seen or "no files"}). '
            "Add images to it or remove it"
        )
    return Dataset(
        name=name,
        root=root,
        paths=tuple(root / item.file for item in found),
        labels=np.array([label_of[item.kind] for item in found], np.int64),
        class_names=class_names,
        digests=tuple(item.record.digest for item in found),
        report=pd.DataFrame(sorted(report), columns=REPORT_COLUMNS, dtype=object),
        credit=credit,
    )


def _list_files(root, folders, class_of, report) -> list[tuple[str, str]]:
    """Return (file, class name) of everything that may be an image; report the rest."""
    listed = []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name in folders:
            continue
        reason = "hidden or system clutter" if _clutter(entry.name) else "outside the class folders"
        report.append((entry.name, "", "dropped", reason))
    for folder in folders:
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{root / folder}: cannot be read ({error.strerror})") from error
        for entry in entries:
            file = f"{folder}/{entry.name}"
            kind = class_of(folder, entry.name)
            if _clutter(entry.name):
                report.append((file, kind or folder, "dropped", "hidden or system clutter"))
            elif entry.is_dir():
                reason = "a folder inside a class folder; what it holds is not read"
                report.append((file, kind or folder, "dropped", reason))
            elif kind is None:
                report.append((file, folder, "dropped", "finer label not specified"))
            else:
                listed.append((file, kind))
    return listed


def _without_copies(found: list[_Found], report) -> list[_Found]:
    """Keep the first of byte-identical files in one class, none of those under several labels."""
    groups = defaultdict(list)
    for item in found:
        groups[item.record.digest].append(item)
    kept = []
    for group in groups.values():
        group.sort()
        kinds = {item.kind for item in group}
        if len(kinds) == 1:
            kept.append(group[0])
            for item in group[1:]:
                report.append((item.file, item.kind, "dropped", f"copy: of {group[0].file}"))
            continue
        for item in group:
            others = ", ".join(f"{o.file} ({o.kind})" for o in group if o.kind != item.kind)
            reason = f"same image under another label: {others}"
            report.append((item.file, item.kind, "dropped", reason))
    return kept


def _report_conversions(found: list[_Found], report) -> None:
    sizes = Counter((item.record.width, item.record.height) for item in found)
    usual = min(sizes, key=lambda size: (-sizes[size], size), default=None)
    for file, kind, record in found:
        notes = list(record.notes)
        if (record.width, record.height) != usual:
            size, most = f"{record.width}×{record.height}", f"{usual[0]}×{usual[1]}"
            notes.append(f"other size: {size} where most have {most}; centre cropped and resized")
        if notes:
            report.append((file, kind, "converted", "; ".join(notes)))
