"""Which images there are: paths, labels, and what was dropped or converted and why."""

import hashlib
import inspect
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellaug.data.errors import DataError
from cellaug.data.images import read_image
from cellaug.data.manifest import MANIFEST, MANIFEST_SUFFIXES, read_manifest
from cellaug.data.scan import Record, cache_home, scan

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from cellaug.data.store import Store

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

BLOODMNIST = ("bloodmnist-28", "bloodmnist-64", "bloodmnist-128", "bloodmnist-224")
BLOODMNIST_CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
"""In the order of the published labels 0 to 7."""
BLOODMNIST_CREDIT = (
    "BloodMNIST: Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni, MedMNIST v2, Scientific Data 10 "
    f"(2023) 41, doi:10.5281/zenodo.10519652, CC BY 4.0; made from {PBC_CREDIT}"
)

NAMES = ("pbc", "pbc-fine", *BLOODMNIST)
"""The public sets."""

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
    sides: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    store: "Store | None" = None

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
            sides=None if self.sides is None else tuple(self.sides[i] for i in indices),
            groups=None if self.groups is None else tuple(self.groups[i] for i in indices),
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
        """Read all images, centre cropped and resized: uint8 RGB (N, size, size, 3)."""
        images = np.empty((len(self), size, size, 3), np.uint8)
        if self.store is not None and self.store.size == size:
            self.store.read(self.store.find(self.digests), images)
            return images
        with ThreadPoolExecutor() as pool:
            for place, image in enumerate(
                pool.map(lambda path: read_image(path, size), self.paths)
            ):
                images[place] = image
        return images

    def stored(self, size: int, folder: str | Path | None = None) -> "Dataset":
        """Return this dataset with its images decoded once into a store, new or brought up to date.

        Args:
            size: side of the stored images, pixels.
            folder: of the store; by default one in the cache home for this set and size. Store a
                whole set before dividing it: its parts then share the store.

        Raises:
            DataError: if there is no room, or a file has changed since the set was opened.
        """
        from cellaug.data.store import build_store  # here, because it needs Dataset's parts

        return replace(self, store=build_store(self, size, folder))

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
        """Return one row per image: path (relative to `root` if it lies there), class, digest.

        Where they are known, also its published side and its group.
        """
        known = {"side": self.sides, "group": self.groups}
        return pd.DataFrame(
            {
                "path": [relative(path, self.root) for path in self.paths],
                "class": np.array(self.class_names, object)[self.labels],
                "digest": self.digests,
            }
            | {name: values for name, values in known.items() if values is not None},
            dtype=object,  # file names need not be text that pandas could keep as such
        )


def open_dataset(source: str | Path, **options) -> Dataset:
    """Open a set of labelled images.

    `source` is one of the names

    - "phantom": cells drawn by cellaug; options `classes`, `images`, `size` (pixels), `seed` and
      `imbalance` as in `cellaug.data.phantom.phantom`;
    - "pbc": the PBC set with its 8 folders as classes;
    - "pbc-fine": the PBC set with 11 classes read from the file names;
    - "bloodmnist-28", "-64", "-128" or "-224": PBC as MedMNIST publishes it, with its own split;

    or a folder that has one subfolder of images per class, a manifest (see
    `cellaug.data.manifest`), or the folder of a store; option `class_names` of a folder or manifest
    gives the order of the classes, alphabetical otherwise. Public sets are looked for under
    `$CELLAUG_DATA` and then under the cache home. Every file that is not used as it stands is
    listed in the dataset's report. Raises `DataError` for an unknown name or option, a missing
    folder, a folder without classes or a class without a usable image.
    """
    try:
        return _open_phantom(options) if source == "phantom" else _open(source, options)
    except PermissionError as error:
        raise DataError(
            f"{error.filename or source}: cannot be read ({error.strerror}). Ask for the right to "
            "read it, or copy it"
        ) from error


def _open(source: str | Path, options: dict) -> Dataset:
    from cellaug.data.store import Store  # here, because it needs Dataset's parts

    allowed = set() if source in NAMES else {"class_names"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise DataError(
            f"unknown option {', '.join(unknown)}: {source} takes {' '.join(allowed) or 'none'} "
            '(only "phantom" has more)'
        )
    root = locate(source)
    if source == "pbc":
        return _open_folders("pbc", root, PBC_FOLDERS, PBC_FOLDERS, _by_folder, PBC_CREDIT)
    if source == "pbc-fine":
        names = tuple(PBC_FINE.values())
        return _open_folders("pbc-fine", root, PBC_FOLDERS, names, _by_prefix, PBC_CREDIT)
    if source in BLOODMNIST:
        return _open_manifest(
            root / MANIFEST, source, BLOODMNIST_CLASSES, BLOODMNIST_CREDIT, keep_copies=True
        )
    if root.is_file():
        return _open_manifest(root, root.stem, options.get("class_names"))
    if Store.is_at(root):
        return Store(root).dataset()
    folders = tuple(e.name for e in sorted(root.iterdir()) if e.is_dir() and not _clutter(e.name))
    if not folders:
        manifest = root / MANIFEST
        hint = f". Give {manifest} to open its manifest" if manifest.is_file() else ""
        raise DataError(f"{source}: no classes. Expected one subfolder of images per class{hint}")
    names = _in_order(source, folders, options.get("class_names"))
    return _open_folders(root.name, root, folders, names, _by_folder)


def locate(source: str | Path) -> Path:
    """Return the folder of a public set's images, or the folder or manifest of one's own.

    An npz file of BloodMNIST is unpacked first. Raises `DataError` if there is nothing.
    """
    if source in ("pbc", "pbc-fine"):
        return _find_pbc()
    if source in BLOODMNIST:
        return _find_bloodmnist(source)
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in MANIFEST_SUFFIXES):
        return path.resolve()
    problem = "is a file, but no manifest" if path.exists() else "no such folder or manifest"
    raise DataError(
        f"{source}: {problem}. Give phantom, {', '.join(NAMES)}, a folder with one subfolder of "
        f"images per class, or a manifest ({' or '.join(MANIFEST_SUFFIXES)})"
    )


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
        sides=_joined([dataset.sides for dataset in datasets]),
        groups=_joined([dataset.groups for dataset in datasets]),
        store=first.store if all(d.store is first.store for d in datasets) else None,
    )


def _open_phantom(options: dict) -> Dataset:
    from cellaug.data.phantom import phantom  # here, because it draws with what this module offers

    allowed = inspect.signature(phantom).parameters
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise DataError(f"unknown option {', '.join(unknown)}: phantom takes {', '.join(allowed)}")
    root, names, truth = phantom(**options)
    credit = "phantom cells drawn by cellaug, not real ones"
    dataset = _open_folders("phantom", root, names, names, _by_folder, credit)
    files = [path.relative_to(root).as_posix() for path in dataset.paths]
    return replace(dataset, truth=truth.set_index("file").loc[files].reset_index())


def homes() -> list[Path]:
    """Where public sets are looked for, in that order."""
    named = os.environ.get("CELLAUG_DATA")
    return [*([Path(named).expanduser()] if named else []), cache_home()]


def _find_bloodmnist(name: str) -> Path:
    from cellaug.data.download import SETS, expand_npz  # here, because it needs this module

    published, places = SETS[name], homes()
    for home in places:
        if (home / name / MANIFEST).is_file():
            return (home / name).resolve()
    for home in places:
        if (home / published.file).is_file():
            expand_npz(home / published.file, cache_home() / name, published.size)
            return (cache_home() / name).resolve()
    raise DataError(
        f"{name} is not here (looked under {' and '.join(map(str, places))}). Either run "
        f"`cellaug fetch {name}`, or put the published file {published.file} into a folder and "
        "set CELLAUG_DATA to that folder"
    )


def _find_pbc() -> Path:
    places = homes()
    for home in places:
        for place in (home / "pbc" / PBC_TOP, home / PBC_TOP, home / "pbc"):
            if all((place / folder).is_dir() for folder in PBC_FOLDERS):
                return place.resolve()
    raise DataError(
        f"the PBC images are not here (looked under {' and '.join(map(str, places))}). Either run "
        f"`cellaug fetch pbc`, or put the unpacked folder {PBC_TOP} into a folder and set "
        "CELLAUG_DATA to that folder"
    )


def _clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _by_folder(folder: str, file: str) -> str | None:
    return folder


def _by_prefix(folder: str, file: str) -> str | None:
    return PBC_FINE.get(file.split("_")[0])


class _Listed(NamedTuple):
    file: str  # relative to the root, with forward slashes
    kind: str  # class name
    side: str = ""  # of a published split
    group: str = ""  # patient or slide


class _Found(NamedTuple):
    listed: _Listed
    record: Record


def _in_order(source: str | Path, found: Iterable[str], wanted: Sequence[str] | None) -> tuple:
    """The classes in the wanted order, alphabetically otherwise."""
    found = sorted(found)
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source}: the class name {name!r} is not valid UTF-8; rename it"
            ) from error
    looks = [unicodedata.normalize("NFC", name).casefold().strip() for name in found]
    alike = [name for name, look in zip(found, looks, strict=True) if looks.count(look) > 1]
    if alike:
        raise DataError(
            f"{source}: the classes {', '.join(alike)} differ only by case, spaces or the form of "
            "their accents. If they are one class, put their images together; if not, give them "
            "names that can be told apart"
        )
    names = tuple(found if wanted is None else wanted)
    if sorted(names) != found:
        raise DataError(
            f"{source}: class_names are {', '.join(names)}, but the classes {', '.join(found)}"
        )
    return names


def _open_folders(
    name: str,
    root: Path,
    folders: tuple[str, ...],
    class_names: tuple[str, ...],
    class_of: Callable[[str, str], str | None],
    credit: str = "",
) -> Dataset:
    report: list[tuple[str, str, str, str]] = []
    listed = _list_files(root, folders, class_of, report)
    return _collect(name, root, listed, class_names, report, credit)


def _open_manifest(
    file: Path,
    name: str,
    class_names: Sequence[str] | None = None,
    credit: str = "",
    keep_copies: bool = False,
) -> Dataset:
    report: list[tuple[str, str, str, str]] = []
    table = read_manifest(file, report)
    names = _in_order(file, set(table["label"]), class_names)
    listed = [_Listed(*row) for row in table[["path", "label", "split", "group"]].to_numpy()]
    return _collect(name, file.parent, listed, names, report, credit, keep_copies)


def _collect(
    name: str,
    root: Path,
    listed: list[_Listed],
    class_names: tuple[str, ...],
    report: list[tuple[str, str, str, str]],
    credit: str = "",
    keep_copies: bool = False,
) -> Dataset:
    """Look at the listed files and sort out those that cannot be used; `report` says why."""
    records = scan(root, [item.file for item in listed])
    found = []
    for item, record in zip(listed, records, strict=True):
        if record.problem:
            report.append((item.file, item.kind, "dropped", record.problem))
        elif min(record.height, record.width) < SMALLEST_SIDE:
            reason = (
                f"too small: {record.width}×{record.height} pixels, "
                f"expected at least {SMALLEST_SIDE} on each side"
            )
            report.append((item.file, item.kind, "dropped", reason))
        else:
            found.append(_Found(item, record))
    found = _without_copies(found, report, keep_copies)
    _report_conversions(found, report)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    found.sort(key=lambda item: (label_of[item.listed.kind], item.listed.file))
    used = {item.listed.kind for item in found}
    for empty in (class_name for class_name in class_names if class_name not in used):
        dropped = (row[3] for row in report if row[1] == empty and row[2] == "dropped")
        reasons = Counter(reason.split(":")[0] for reason in dropped)
        seen = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        raise DataError(
            f'{root}: class "{empty}" has no usable image ({seen or "no files"}). '
            "Add images to it or remove it"
        )
    return Dataset(
        name=name,
        root=root,
        paths=tuple(root / item.listed.file for item in found),
        labels=np.array([label_of[item.listed.kind] for item in found], np.int64),
        class_names=tuple(class_names),
        digests=tuple(item.record.digest for item in found),
        report=pd.DataFrame(sorted(report), columns=REPORT_COLUMNS, dtype=object),
        credit=credit,
        sides=_column(item.listed.side for item in found),
        groups=_column(item.listed.group for item in found),
    )


def _list_files(root, folders, class_of, report) -> list[_Listed]:
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
            elif _is_folder(entry):
                reason = "a folder inside a class folder; what it holds is not read"
                report.append((file, kind or folder, "dropped", reason))
            elif kind is None:
                report.append((file, folder, "dropped", "finer label not specified"))
            else:
                listed.append(_Listed(file, kind))
    return listed


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or what may not be looked at; reading it says so
        return False


def _without_copies(found: list[_Found], report, keep: bool) -> list[_Found]:
    """Keep the first of byte-identical files in one class, none of those under several labels.

    Of copies on several sides of a published split the one that training does not see is kept.
    With `keep` all stay, and are reported.
    """
    times = Counter(item.record.digest for item in found)
    kept = [item for item in found if times[item.record.digest] == 1]
    groups = defaultdict(list)
    for item in found:
        if times[item.record.digest] > 1:
            groups[item.record.digest].append(item)
    outcome, still = ("kept", ", kept as published") if keep else ("dropped", "")
    for group in groups.values():
        group.sort(key=lambda item: (item.listed.side == "train", item.listed.file))
        kinds = {item.listed.kind for item in group}
        first = group[0].listed
        if len(kinds) == 1:
            kept += group if keep else group[:1]
            for file, kind, *_ in (item.listed for item in group[1:]):
                report.append((file, kind, outcome, f"copy: of {first.file}{still}"))
            continue
        kept += group if keep else []
        for file, kind, *_ in (item.listed for item in group):
            others = ", ".join(
                f"{o.file} ({o.kind})" for o in (item.listed for item in group) if o.kind != kind
            )
            reason = f"same image under another label: {others}{still}"
            report.append((file, kind, outcome, reason))
    return kept


def _report_conversions(found: list[_Found], report) -> None:
    sizes = Counter((item.record.width, item.record.height) for item in found)
    usual = min(sizes, key=lambda size: (-sizes[size], size), default=None)
    for item, record in found:
        notes = list(record.notes)
        if (record.width, record.height) != usual:
            size, most = f"{record.width}×{record.height}", f"{usual[0]}×{usual[1]}"
            notes.append(f"other size: {size} where most have {most}; centre cropped and resized")
        if notes:
            report.append((item.file, item.kind, "converted", "; ".join(notes)))


def _column(values: Iterable[str]) -> tuple[str, ...] | None:
    """The values, None if all are empty."""
    column = tuple(values)
    return column if any(column) else None


def printable(name: str) -> str:
    """A file name as UTF-8 can hold it: bytes that are none are written out as \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def relative(path: Path, root: Path) -> str:
    """The path from the root on, with forward slashes; the whole path if it lies elsewhere."""
    whole, start = path.as_posix(), root.as_posix().rstrip("/") + "/"
    return whole.removeprefix(start)


def _joined(columns: list[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    if any(column is None for column in columns):
        return None
    return tuple(value for column in columns for value in column)
