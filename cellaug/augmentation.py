"""A trained generator on disk, and what it is for: a labelled training set with added cells.

A *generator directory* holds `generator.keras` (the network as Keras saves it) and
`generator.json` (what it draws, how to ask it, and what it was trained on). Those that come with
the package (`SHIPPED`) hold `generator.npz` instead, weights as float16, and the card names the
function of `cellaug.networks` that builds the network for them. `generate` writes images from one;
`augment` copies a data set and adds generated images to every class (section 4.7).
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import cellaug
from cellaug.data import DataError, Dataset, to_uint8
from cellaug.data.catalogue import relative
from cellaug.data.images import write_atomically, write_png
from cellaug.data.manifest import MANIFEST, lists_origin

import numpy as np
import pandas as pd
from tqdm import tqdm

if TYPE_CHECKING:
    import keras

FORMAT = 1
"""Version of `generator.json`."""

BATCH = 32
MODEL, WEIGHTS, CARD = "generator.keras", "generator.npz", "generator.json"
DISCRIMINATOR = "discriminator.npz"
CREDIT = "CREDIT.txt"

SHIPPED = Path(__file__).parent / "weights"
"""Generator directories that come with the package, by name."""

BUILDERS = ("generator", "conditional_generator", "discriminator")
"""Functions of `cellaug.networks` that a card may name."""


@dataclass(frozen=True)
class Generator:
    """A generator network and what is known about it; `load_generator` makes one.

    A conditional network takes `[latent vectors, class numbers]`, another latent vectors alone.
    `digest` is the SHA-256 of the network's file, in hex; `card` is all that its card says, for one
    that comes with the package how it was trained and how true its images are.
    """

    model: "keras.Model"
    class_names: tuple[str, ...]
    latent_dim: int
    image_size: int
    conditional: bool
    data_name: str
    data_hash: str
    credit: str
    created: str
    digest: str
    card: dict = field(repr=False)

    @property
    def source(self) -> str:
        """What stands in manifests: the data it learned from and the start of its own digest."""
        return f"{self.data_name} generator {self.digest[:16]}"

    def generate(
        self,
        labels: str | int | Sequence[str | int] | None = None,
        count: int = 1,
        seed: int | Sequence[int] = 0,
    ) -> np.ndarray:
        """Draw uint8 RGB images, N×size×size×3: `count` of them for each of `labels`, in order.

        `labels` are class names or class numbers, one or several; an unconditional generator takes
        None and draws `count` images. The latent vectors are rows of
        `numpy.random.default_rng(seed).standard_normal`, the same on every backend, so that the
        first images of a longer call are those of a shorter one.

        Raises DataError for a class that it does not know, for labels given to an unconditional
        generator, and for none given to a conditional one.
        """
        numbers = None if labels is None else np.repeat(self._numbers(labels), count)
        total = count if numbers is None else len(numbers)
        images = list(self._draw(numbers, total, seed))
        shape = (0, self.image_size, self.image_size, 3)
        return np.stack(images) if images else np.zeros(shape, np.uint8)

    def _numbers(self, labels: str | int | Sequence[str | int]) -> np.ndarray:
        if not self.conditional:
            raise DataError("this generator is unconditional and takes no label: leave it out")
        if isinstance(labels, str | int | np.integer):
            labels = [labels]
        known = {name: number for number, name in enumerate(self.class_names)}
        numbers = [known.get(x, -1) if isinstance(x, str) else int(x) for x in labels]
        unknown = [
            x
            for x, number in zip(labels, numbers, strict=True)
            if not 0 <= number < len(self.class_names)
        ]
        if unknown:
            raise DataError(
                f"the generator knows no class {', '.join(map(repr, dict.fromkeys(unknown)))}; "
                f"its classes are {', '.join(self.class_names)}"
            )
        return np.asarray(numbers, np.int32)

    def _draw(
        self, numbers: np.ndarray | None, total: int, seed: int | Sequence[int]
    ) -> Iterator[np.ndarray]:
        """One image after another, made in batches of a fixed size."""
        if numbers is None and self.conditional:
            raise DataError(
                f"this generator draws classes: say which of {', '.join(self.class_names)}"
            )
        rng = np.random.default_rng(seed)
        for start in range(0, total, BATCH):
            size = min(BATCH, total - start)
            latents = rng.standard_normal((size, self.latent_dim)).astype(np.float32)
            # always a whole batch: one shape to compile, and an image does not depend on how
            # many were asked for
            inputs = np.zeros((BATCH, self.latent_dim), np.float32)
            inputs[:size] = latents
            if numbers is not None:
                classes = np.zeros(BATCH, np.int32)
                classes[:size] = numbers[start : start + size]
                inputs = [inputs, classes]
            yield from to_uint8(np.asarray(self.model.predict_on_batch(inputs))[:size])


def save_generator(
    model: "keras.Model",
    folder: str | Path,
    *,
    class_names: Sequence[str],
    latent_dim: int,
    dataset: Dataset,
) -> Path:
    """Write a generator directory, replacing one that is there; returns the folder.

    `model` maps latent vectors, or `[latent vectors, class numbers]`, to square images in [-1, 1];
    which of the two, and the image size, are read off the model. `class_names` are the
    classes in the order of their numbers (empty for an unconditional one). `dataset` is what it was
    trained on: name, hash and credit go along.

    Raises ValueError for a model of another shape, FileExistsError for a folder that holds
    something else.
    """
    folder = Path(folder).resolve()
    inputs, shape = len(model.inputs), model.output_shape
    if inputs not in (1, 2) or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(
            "model: expected one or two inputs (latent vectors, class numbers) and square RGB "
            f"images out, but it has {inputs} inputs and output {shape}"
        )
    if inputs == 2 and not class_names:
        raise ValueError("class_names: a conditional generator needs the names of its classes")
    others = {path.name for path in folder.iterdir()} - {MODEL, CARD} if folder.is_dir() else None
    if others:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(sorted(others)[:3])}); choose a new folder"
        )
    card = {
        "format": FORMAT,
        "class_names": list(class_names),
        "latent_dim": int(latent_dim),
        "image_size": int(shape[1]),
        "conditional": inputs == 2,
        "data_name": dataset.name,
        "data_hash": dataset.fingerprint,
        "credit": dataset.credit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cellaug": cellaug.__version__,
    }
    part = _part_of(folder)
    try:
        model.save(part / MODEL)
        (part / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if folder.is_dir():
            shutil.rmtree(folder)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def save_weights(model: "keras.Model", file: Path) -> str:
    """Write a network's weights as float16 to an .npz file; returns the file's SHA-256, in hex.

    Half the size of float32, and no image changes visibly. `load_weights` reads them.
    """
    buffer = io.BytesIO()
    arrays = {f"{k:03d}": value.astype(np.float16) for k, value in enumerate(model.get_weights())}
    np.savez_compressed(buffer, **arrays)
    write_atomically(file, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def load_weights(model: "keras.Model", file: Path, digest: str) -> None:
    """Put saved weights into a network; no code is loaded with them.

    Raises DataError where the file is not the one with that SHA-256, or of another network.
    """
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{file} is not the file that its card describes: install cellaug again")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        values = [arrays[key].astype(np.float32) for key in sorted(arrays.files)]
    if [v.shape for v in values] != [tuple(v.shape) for v in model.weights]:
        raise DataError(f"{file} holds weights of another network than its card describes")
    model.set_weights(values)


def shipped_generators() -> list[str]:
    """The names of the generators that come with the package."""
    return sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))


def load_generator(source: str | Path) -> Generator:
    """Read a generator directory, or the one of that name that comes with the package.

    No code that lies in a file is run: Keras's safe mode, or plain arrays. The package's own take
    well under two seconds, once Keras and its backend are imported.

    Raises FileNotFoundError for a missing folder or file, DataError for a card or a network that
    cannot be read or that comes from another version of the format.
    """
    folder = _directory(source)
    shipped = (folder / WEIGHTS).is_file() and not (folder / MODEL).is_file()
    file = folder / (WEIGHTS if shipped else MODEL)
    for name in (file.name, CARD):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no generator directory: it lacks {name} (of {MODEL} and {CARD})"
            )
    card = _read_card(folder / CARD)
    model = _built(folder, WEIGHTS, card) if shipped else _saved(file)
    from cellaug.backend import use_xla

    model.jit_compile = use_xla()
    size = card["image_size"]
    expected = (2 if card["conditional"] else 1, (size, size, 3))
    if (len(model.inputs), tuple(model.output_shape[1:])) != expected:
        raise DataError(
            f"{folder}: {CARD} and {file.name} do not belong together: the card speaks of "
            f"{expected[0]} inputs and images {expected[1]}, the network has {len(model.inputs)} "
            f"and {tuple(model.output_shape[1:])}"
        )
    return Generator(
        model=model,
        class_names=tuple(card["class_names"]),
        latent_dim=card["latent_dim"],
        image_size=size,
        conditional=card["conditional"],
        data_name=card["data_name"],
        data_hash=card["data_hash"],
        credit=card["credit"],
        created=card["created"],
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        card=card,
    )


def load_discriminator(source: str | Path) -> "keras.Model":
    """The discriminator that was trained with a vanilla generator, to build an AC-GAN on the pair.

    Takes and raises what `load_generator` does.
    """
    folder = _directory(source)
    card = _read_card(folder / CARD)
    described = card.get("discriminator")
    if not isinstance(described, dict) or not (folder / DISCRIMINATOR).is_file():
        raise FileNotFoundError(
            f"{folder} holds no discriminator: of those shipped, pbc-vanilla-64 does"
        )
    return _built(folder, DISCRIMINATOR, {"builder": "discriminator", **described})


def _directory(source: str | Path) -> Path:
    """A generator directory by its path, or by its name if it comes with the package."""
    folder = Path(source)
    if not folder.is_dir() and str(source) in shipped_generators():
        folder = SHIPPED / source
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such generator directory, and cellaug ships "
            + (", ".join(shipped_generators()) or "none")
        )
    return folder


def _saved(file: Path) -> "keras.Model":
    """The network in a file that Keras wrote."""
    import keras

    # the layers that the networks bring along must be known before one is read
    import_module("cellaug.networks")
    try:
        with _without_initial_values():
            return keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:
        raise DataError(f"{file}: Keras cannot read this network: {error}") from error


@contextmanager
def _without_initial_values() -> Iterator[None]:
    """Let networks begin with zeros, which are about to be overwritten.

    For random values JAX compiles a program for every shape: nine seconds for a generator of 64 px.
    """
    import keras

    kinds = (keras.initializers.VarianceScaling, keras.initializers.RandomNormal)
    before = [kind.__call__ for kind in kinds]
    for kind in kinds:
        kind.__call__ = lambda self, shape, dtype=None, **_: np.zeros(shape, dtype)
    try:
        yield
    finally:
        for kind, own in zip(kinds, before, strict=True):
            kind.__call__ = own


def _built(folder: Path, file: str, card: dict) -> "keras.Model":
    """The network that a card describes, with the weights that lie beside it."""
    builder, options = card.get("builder"), card.get("options")
    if builder not in BUILDERS or not isinstance(options, dict):
        raise DataError(
            f"{folder / CARD}: builder should be one of {', '.join(BUILDERS)}, with options"
        )
    try:
        with _without_initial_values():
            model = getattr(import_module("cellaug.networks"), builder)(**options)
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CARD}: {builder} cannot be built: {error}") from error
    load_weights(model, folder / file, card.get("sha256", ""))
    return model


def generate(
    generator: Generator,
    labels: str | int | Sequence[str | int] | None,
    count: int,
    out: str | Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Write `count` images of each label as `<label>_<seed>_<index>.png` and a `manifest.csv`.

    `labels` are class names or numbers, one or several; None for an unconditional generator, whose
    images are labelled "cell". Returns the manifest: file, label, origin, seed, index, generator.
    The image of a row depends on nothing but the generator and the row: it is
    `generator.generate(label, index + 1, seed=(seed, class number))[index]`, and without classes
    `generator.generate(None, index + 1, seed)[index]`.

    Raises DataError where `out` holds files already, for an unknown class, for a label given to an
    unconditional generator and for none given to a conditional one.
    """
    out = _fresh(out)
    if count < 1:
        raise DataError(f"count: expected at least 1, got {count}")
    numbers = [None] if labels is None else list(dict.fromkeys(generator._numbers(labels).tolist()))
    rows = []
    part = _part_of(out)
    try:
        with tqdm(total=count * len(numbers), unit="image", disable=None) as progress:
            for number in numbers:
                label = "cell" if number is None else generator.class_names[number]
                for index, image in enumerate(_of_class(generator, number, count, seed)):
                    file = f"{_file_name(label)}_{seed}_{index:05d}.png"
                    write_png(part / file, image)
                    rows.append((file, label, "synthetic", seed, index, generator.source))
                    progress.update()
        columns = ["file", "label", "origin", "seed", "index", "generator"]
        manifest = pd.DataFrame(rows, columns=columns)
        _finish(part, out, manifest, generator.credit)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def augment(
    dataset: Dataset,
    generator: Generator,
    ratio: float,
    out: str | Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Write a training set: the real images, byte for byte, and generated ones beside them.

    Every class folder gets `ratio` times its number of real images, rounded up, from `generator`
    (the thesis: 0.5 for every class). The result opens like any folder of cells. `manifest.csv`
    and the returned table list every image: file (within `out`), label, origin (real or
    synthetic), source (the real image's place in the data set, or the generator), seed and
    index (of a synthetic one: see `generate`). The folder appears whole or not at all, and the
    input is left as it is.

    Raises DataError where `out` holds files or lies inside the data set, for classes that the
    generator does not know, for a data set that is itself the result of an augmentation, for an
    image that changed since the data set was opened, and for a ratio that is no share.
    """
    if not (math.isfinite(ratio) and ratio >= 0):
        raise DataError(f"ratio: expected a number from 0 up, such as 0.5 for half, got {ratio}")
    if not generator.conditional:
        raise DataError(
            "this generator draws no classes, so its images have no label to train on: "
            "use a conditional one"
        )
    unknown = [name for name in dataset.class_names if name not in generator.class_names]
    if unknown:
        raise DataError(
            f"the generator does not know {', '.join(map(repr, unknown))}; its classes are "
            f"{', '.join(map(repr, generator.class_names))}. Train one on this data set, or "
            "give the class folders its names"
        )
    out = _fresh(out)
    if out.is_relative_to(dataset.root.resolve()):
        raise DataError(f"{out} lies inside the data set {dataset.root}: choose a place beside it")
    if lists_origin(dataset.root, "synthetic"):
        raise DataError(
            f"{dataset.root} already holds generated images (see its {MANIFEST}): augment the real "
            "set that it was made from"
        )
    share = Fraction(str(ratio))
    extra = {name: math.ceil(share * int(n)) for name, n in dataset.counts().items()}
    rows: list[tuple] = []
    taken: set[str] = set()
    part = _part_of(out)
    try:
        total = len(dataset) + sum(extra.values())
        with tqdm(total=total, unit="image", disable=None) as progress:
            for path, number, digest in zip(
                dataset.paths, dataset.labels, dataset.digests, strict=True
            ):
                label = dataset.class_names[number]
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() != digest:
                    raise DataError(f"{path} changed since the data set was opened: open it again")
                file = f"{label}/{path.name}"
                if file.lower() in taken:
                    file = f"{label}/{path.stem}_{digest[:12]}{path.suffix}"
                taken.add(file.lower())
                (part / label).mkdir(exist_ok=True)
                (part / file).write_bytes(content)
                rows.append((file, label, "real", relative(path, dataset.root), None, None))
                progress.update()
            for label, count in extra.items():
                number = generator.class_names.index(label)
                for index, image in enumerate(_of_class(generator, number, count, seed)):
                    file = f"{label}/synthetic_{seed}_{index:05d}.png"
                    if file.lower() in taken:
                        raise DataError(
                            f"the data set has an image called {file}: choose another seed"
                        )
                    write_png(part / file, image)
                    rows.append((file, label, "synthetic", generator.source, seed, index))
                    progress.update()
        columns = ["file", "label", "origin", "source", "seed", "index"]
        manifest = pd.DataFrame(rows, columns=columns, dtype=object)
        manifest = manifest.astype({"seed": "Int64", "index": "Int64"})
        _finish(part, out, manifest, dataset.credit, generator.credit)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _of_class(
    generator: Generator, number: int | None, count: int, seed: int
) -> Iterator[np.ndarray]:
    """Images of one class from a stream of its own, so that no class's images hang on another's."""
    if number is None:
        return generator._draw(None, count, seed)
    return generator._draw(np.full(count, number), count, (seed, number))


def _read_card(path: Path) -> dict:
    try:
        card = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, but it does not parse: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise DataError(
            f"{path}: expected format {FORMAT}, found {found!r}; the generator was written by "
            "another version of cellaug: train it again, or use that version"
        )
    fields = {
        "class_names": list,
        "latent_dim": int,
        "image_size": int,
        "conditional": bool,
        "data_name": str,
        "data_hash": str,
        "credit": str,
        "created": str,
    }
    for key, kind in fields.items():
        if not isinstance(card.get(key), kind):
            raise DataError(
                f"{path}: field {key} should be a {kind.__name__}, found {card.get(key)!r}"
            )
    return card


def _fresh(out: str | Path) -> Path:
    """The output folder, if nothing would be overwritten in it."""
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: choose a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: choose a new folder, or empty this one")
    return out


def _part_of(folder: Path) -> Path:
    """An empty folder beside `folder` that takes the output until it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    return part


def _finish(part: Path, out: Path, manifest: pd.DataFrame, *credits: str) -> None:
    """Add manifest and credit to a finished folder and move it into place."""
    manifest.to_csv(part / MANIFEST, index=False, errors="surrogateescape")
    lines = dict.fromkeys(credit for credit in credits if credit)
    if lines:
        (part / CREDIT).write_text("\n".join(lines) + "\n", "utf-8")
    if out.is_dir():
        out.rmdir()
    part.replace(out)


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label)
