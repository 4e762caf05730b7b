"""What a study's classifiers are tested on: its own test images, or another laboratory's cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellaug.classifiers import read_classifier
from cellaug.data import Dataset, open_dataset
from cellaug.data.class_map import LEAVE, read_class_map
from cellaug.errors import DataError
from cellaug.evaluation.classifiers import predicted_logits
from cellaug.files import write_npz
from cellaug.study.plan import OWN, Plan

import numpy as np


@dataclass(frozen=True)
class HeldOut:
    """Images with known classes on which every run is tested.

    `named` has the class of each image, in the words of the study's set or of one of its
    taxonomies; `groups` the patient or slide of each, None where it is not known of all.
    """

    name: str
    cells: Dataset
    named: np.ndarray
    groups: np.ndarray | None
    own: bool

    def truth(self, names: Sequence[str], fine: Sequence[str], numbers: np.ndarray) -> np.ndarray:
        """The class numbers (N,) in a taxonomy of `names`, −1 for images that it cannot place.

        `numbers` gives for each class of the study's set, `fine`, its number in the taxonomy.
        """
        places = {name: k for k, name in enumerate(names)}
        places |= {name: int(k) for name, k in zip(fine, numbers, strict=True)}
        return np.array([places.get(name, -1) for name in self.named])

    def logits(self, run: Path) -> np.ndarray:
        """What the classifier of a finished run says of the images, (N, classes)."""
        file = run / ("logits.npz" if self.own else f"logits-{self.cells.fingerprint[:12]}.npz")
        if not file.is_file():
            classifier = read_classifier(run / "classifier")
            images = self.cells.read(classifier.image_size)
            write_npz(file, test=predicted_logits(classifier.network, images))
        with np.load(file, allow_pickle=False) as known:
            return known["test"]


def own_test(cells: Dataset) -> HeldOut:
    """A study's own test images."""
    names = np.array(cells.class_names, object)[cells.labels]
    return HeldOut(OWN, cells, names, _groups(cells), own=True)


def other_laboratory(data: str, class_map: str, plan: Plan) -> HeldOut:
    """All real cells of another set whose classes a study knows.

    `class_map`, if not "", is a file that names the study's class, or a class of one of its
    taxonomies, for a class of the set that is called differently, or "leave". DataError for a class
    that is in neither, and for a map that leaves all.
    """
    given = read_class_map(class_map) if class_map else {}
    known = set(open_dataset(plan.data, **plan.options).class_names)
    known |= {name for merged in plan.taxonomies.values() for name in merged.values()}
    cells = open_dataset(data)
    cells = cells.subset(cells.table["origin"] == "real")
    if strange := ", ".join(name for name in given if name not in cells.class_names):
        are = ", ".join(cells.class_names)
        raise DataError(f"class map: {data} has no class {strange}; its classes are {are}")
    ours = {name: given.get(name, name) for name in cells.class_names}
    if unknown := sorted(set(ours.values()) - known - {LEAVE}):
        raise DataError(
            f"{data}: the study has no class {', '.join(unknown)}; its classes are "
            f"{', '.join(sorted(known))}. Say with --class-map FILE which is meant, or '{LEAVE}'"
        )
    named = np.array([ours[name] for name in cells.class_names], object)[cells.labels]
    if not (kept := named != LEAVE).any():
        raise DataError(f"{data}: the class map leaves every class, so nothing can be measured")
    for name, count in cells.counts().items():
        if ours[str(name)] == LEAVE:
            print(f"{data}: {count:,} images of {name} are left out, as the class map says")
    cells = cells.subset(kept)
    return HeldOut(cells.name, cells, named[kept], _groups(cells), own=False)


def _groups(cells: Dataset) -> np.ndarray | None:
    groups = cells.table["group"].to_numpy(str)
    return groups if (groups != "").all() else None
