"""A trained classifier on disk, and what it says about cells.

A *classifier directory* holds `classifier.npz`, the weights as float16; `features.npz`, those of
its training images, by which cells are known that are unlike them; and the card `classifier.json`.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellaug
from cellaug.data import DataError, Dataset
from cellaug.data.dataset import printable
from cellaug.data.images import read_image
from cellaug.evaluation.calibration import calibration, probabilities, temperature
from cellaug.evaluation.classifiers import classification_report
from cellaug.evaluation.features import pixels
from cellaug.evaluation.selection import INSIDE, distances, embed, neighbourhood, with_features
from cellaug.files import atomic_folder, progress, write_npz
from cellaug.generators import load_network, save_network

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    import keras

FORMAT = 1  # version of the card
WEIGHTS, FEATURES, CARD = "classifier.npz", "features.npz", "classifier.json"
BATCH = 256  # images that are decoded at once
FIELDS: dict[str, Any] = {"class_names": list, "image_size": int, "temperature": float}
FIELDS |= {"farthest": float, "features": str, "sha256": str}
UNLIKE = "not like the training cells"


@dataclass(frozen=True)
class Classifier:
    """A classifier's directory and its card."""

    folder: Path
    class_names: tuple[str, ...]
    image_size: int  # pixels
    card: Mapping[str, Any] = field(repr=False)

    @cached_property
    def network(self) -> "keras.Model":
        """Images in [-1, 1] to logits."""
        return load_network(self.folder / WEIGHTS, self.card, CARD)

    @cached_property
    def model(self) -> "keras.Model":
        """Images in [-1, 1] to features and logits."""
        return with_features(self.network)

    @cached_property
    def neighbours(self) -> NearestNeighbors:
        """The training images in the space of features; DataError for a damaged file."""
        data = (self.folder / FEATURES).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.card["features"]:
            raise DataError(f"{self.folder / FEATURES} is not the file that {CARD} describes")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return neighbourhood(file["features"].astype(float))

    def predict(self, images: np.ndarray) -> pd.DataFrame:
        """What it says about uint8 images (N, S, S, 3) of its size: a row for each.

        Columns: class, probability (of that class, 0–1, calibrated by temperature scaling on
        validation images), note (`UNLIKE` where the image lies farther from the training images
        than `farthest`, else ""), then the probability of each class, in columns of their names.
        """
        features, logits = embed(self.model, images)
        p = probabilities(logits, self.card["temperature"])
        distance = distances(self.neighbours, features)
        notes = np.where(distance > self.card["farthest"], UNLIKE, "")
        named = np.array(self.class_names, object)[p.argmax(1)]
        table = pd.DataFrame({"class": named, "probability": p.max(1), "note": notes})
        return table.join(pd.DataFrame(p, columns=list(self.class_names)))

    def predict_files(self, paths: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
        """`predict` for image files, with the column path first; and why others cannot be read."""
        tables, problems = [], []
        for start in progress(range(0, len(paths), BATCH), "predicting", unit_scale=BATCH):
            images, known = [], []
            for path in paths[start : start + BATCH]:
                try:
                    images.append(read_image(path, self.image_size))
                    known.append(str(path))
                except DataError as error:
                    problems.append(str(error))
            if images:
                table = self.predict(np.stack(images))
                table.insert(0, "path", known)
                tables.append(table)
        columns = ["path", "class", "probability", "note", *self.class_names]
        found = pd.concat(tables) if tables else pd.DataFrame(columns=columns)
        return found.reset_index(drop=True), problems


def save_classifier(
    model: "keras.Model", folder: str | Path, *, train: Dataset, validation: Dataset,
    test: Dataset | None = None, training: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a classifier directory, replacing one that is there; returns the folder.

    `model` maps images in [-1, 1] to logits, was built by a function of `cellaug.networks`, and has
    a layer "features". The sets are in memory: the real training images, those that set the
    temperature and the bound of likeness, and those, if any, that have been held out, which give
    the card's scores and its rate of false alarms: how many of these real cells are called unlike.
    """
    both = with_features(model)
    features, _ = embed(both, pixels(train))
    known = neighbourhood(features)
    own, logits = embed(both, pixels(validation))
    card: dict[str, Any] = {
        "format": FORMAT,
        "class_names": list(train.class_names),
        "image_size": int(model.input_shape[1]),
        "temperature": temperature(logits, validation.labels),
        "farthest": float(np.quantile(distances(known, own), INSIDE)),
        "data_name": printable(train.name),
        "data_hash": train.fingerprint,
        "credit": train.credit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cellaug": cellaug.__version__,
        "training": dict(training or {}),
    }
    if test is not None:
        own, logits = embed(both, pixels(test))
        report = classification_report(test.labels, logits.argmax(1), test.class_names)
        scores = {key: report[key] for key in ("accuracy", "macro_f1", "weighted_f1", "recall")}
        right = calibration(probabilities(logits, card["temperature"]), test.labels)
        alarms = float((distances(known, own) > card["farthest"]).mean())
        card["held_out"] = {"images": len(test), "false_alarms": alarms, **scores, **right}
    with atomic_folder(Path(folder).resolve()) as part:
        card |= save_network(model, part / WEIGHTS)
        write_npz(part / FEATURES, features=features.astype(np.float16))
        card["features"] = hashlib.sha256((part / FEATURES).read_bytes()).hexdigest()
        (part / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return Path(folder).resolve()


def load_classifier(folder: str | Path) -> Classifier:
    """Read a classifier directory, on either backend; no code from a file is run.

    Raises FileNotFoundError for a missing folder or file, DataError for a card or weights that
    cannot be read or of another format.
    """
    classifier = read_classifier(folder)
    _ = classifier.model, classifier.neighbours
    return classifier


def read_classifier(folder: str | Path) -> Classifier:
    """Like `load_classifier`, but the network is built when it is first used."""
    folder = Path(folder)
    for name in (CARD, WEIGHTS, FEATURES):
        if not (folder / name).is_file():
            fix = "'cellaug advise' writes one"
            raise FileNotFoundError(f"{folder} is no classifier directory: it lacks {name}; {fix}")
    path = folder / CARD
    try:
        card = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, an object: {error}") from error
    if card.get("format") != FORMAT:
        found = f"expected format {FORMAT}, found {card.get('format')!r}"
        raise DataError(f"{path}: {found}; another version of cellaug wrote it")
    for key, kind in FIELDS.items():
        if type(card.get(key)) is not kind:
            raise DataError(
                f"{path}: field {key} should be a {kind.__name__}, not {card.get(key)!r}"
            )
    names = card["class_names"]
    if (
        not names
        or not all(isinstance(x, str) and x for x in names)
        or len(set(names)) < len(names)
    ):
        raise DataError(f"{path}: field class_names should be different names, found {names!r:.80}")
    options = card.get("options")
    if not isinstance(options, dict) or options.get("classes") != len(names):
        raise DataError(f"{path}: {len(names)} class_names, but its network has another number")
    if not 8 <= card["image_size"] <= 2048:
        raise DataError(f"{path}: image_size should be from 8 to 2048, not {card['image_size']}")
    return Classifier(folder, tuple(names), card["image_size"], card)
