"""A trained generator on disk, and a labelled training set with generated cells added.

A *generator directory* holds `generator.npz`, the weights as float16, and the card
`generator.json`: the function of `cellaug.networks` that builds the network and its arguments, its
classes, and the data that it was trained on.
"""

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellaug
from cellaug.data import DataError, Dataset, to_uint8
from cellaug.data.images import write_png
from cellaug.data.sets import MANIFEST, lists_origin
from cellaug.files import atomic_folder, new_folder, progress, write_atomically

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import keras

Labels = str | int | Sequence[str | int] | None  # classes by name or number; None without classes
FORMAT = 1  # version of the card
BATCH = 32
WEIGHTS, CARD, DISCRIMINATOR = "generator.npz", "generator.json", "discriminator.npz"
CREDIT = "CREDIT.txt"
PARTS = {WEIGHTS, CARD, DISCRIMINATOR, "README.md", "samples.png"}
FIELDS = {"class_names": list, "latent_dim": int, "image_size": int, "conditional": bool}
FIELDS |= dict.fromkeys(("data_name", "data_hash", "credit", "created"), str)
SHIPPED = Path(__file__).parent / "weights"  # generator directories, by name


@dataclass(frozen=True)
class Generator:
    """A generator network and its card; `digest` is the SHA-256 of the weights' file, in hex."""

    model: "keras.Model"
    class_names: tuple[str, ...]
    latent_dim: int
    image_size: int  # pixels
    conditional: bool
    data_name: str
    data_hash: str
    credit: str
    created: str
    digest: str
    card: dict = field(repr=False)

    @property
    def source(self) -> str:
        """Its name in manifests."""
        return f"{self.data_name} generator {self.digest[:16]}"

    def generate(
        self, labels: Labels = None, count: int = 1, seed: int | Sequence[int] = 0
    ) -> np.ndarray:
        """Draw uint8 RGB images, N×size×size×3: `count` of them for each of `labels`, in order.

        The latent vectors are rows of `numpy.random.default_rng(seed).standard_normal`: the first
        images of a longer call are those of a shorter one. Raises DataError for an unknown class,
        and for labels where it has no classes or none where it has.
        """
        numbers = self.numbers(labels)
        each = None if numbers is None else np.repeat(numbers, count)
        total = count if each is None else len(each)
        image = np.dtype((np.uint8, (self.image_size, self.image_size, 3)))
        return np.fromiter(self.draw(each, total, seed), image, total)

    def numbers(self, labels: Labels) -> np.ndarray | None:
        """The int32 numbers of classes that are given by name or number; None without classes."""
        names = ", ".join(self.class_names)
        if labels is None and self.conditional:
            raise DataError(f"this generator draws classes: say which of {names}")
        if labels is None:
            return None
        if not self.conditional:
            raise DataError("this generator is unconditional and takes no label: leave it out")
        given = [labels] if isinstance(labels, str | int | np.integer) else list(labels)
        known = {x: k for k, name in enumerate(self.class_names) for x in (name, k)}
        if unknown := ", ".join(repr(x) for x in dict.fromkeys(given) if x not in known):
            raise DataError(f"the generator knows no class {unknown}; its classes are {names}")
        return np.array([known[x] for x in given], np.int32)

    def draw(
        self, numbers: np.ndarray | None, total: int, seed: int | Sequence[int]
    ) -> Iterator[np.ndarray]:
        """One uint8 image after another of these class numbers (N,); see `generate`."""
        rng = np.random.default_rng(seed)
        for start in range(0, total, BATCH):
            # whole batches: one shape to compile, and images do not depend on their number
            latents = rng.standard_normal((BATCH, self.latent_dim)).astype("f4")
            given: Any = latents
            if numbers is not None:
                given = [latents, np.resize(numbers[start : start + BATCH], BATCH).astype("i4")]
            yield from to_uint8(np.asarray(self.model.predict_on_batch(given))[: total - start])


def save_generator(
    model: "keras.Model", folder: str | Path, *, class_names: Sequence[str], dataset: Dataset,
    discriminator: "keras.Model | None" = None, training: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a generator directory, replacing one that is there; returns the folder.

    `model` was built by a function of `cellaug.networks` and trained on `dataset`; `training` goes
    into the card. Raises ValueError for another model, FileExistsError for a folder of other files.
    """
    folder, conditional, shape = Path(folder).resolve(), len(model.inputs) == 2, model.output_shape
    if len(shape) != 4:
        raise ValueError(f"model: expected square RGB images out, but its output is {shape}")
    if conditional and not class_names:
        raise ValueError("class_names: a conditional generator needs the names of its classes")
    if others := ", ".join(sorted({path.name for path in folder.glob("*")} - PARTS)[:3]):
        raise FileExistsError(f"{folder} holds other files ({others}); choose a new folder")
    card: dict[str, Any] = {
        "format": FORMAT,
        "class_names": list(class_names),
        "latent_dim": model.inputs[0].shape[-1],
        "image_size": shape[1],
        "conditional": conditional,
        "data_name": dataset.name,
        "data_hash": dataset.fingerprint,
        "credit": dataset.credit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cellaug": cellaug.__version__,
    } | ({} if training is None else {"training": dict(training)})
    with atomic_folder(folder) as part:
        card |= _save_network(model, part / WEIGHTS)
        if discriminator is not None:
            card["discriminator"] = _save_network(discriminator, part / DISCRIMINATOR)
        (part / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return folder


def _save_network(model: "keras.Model", file: Path) -> dict:
    """Write a network's weights; returns the fields of the card from which it is built again."""
    if not (description := getattr(model, "description", None)):
        raise ValueError(f"'{model.name}': expected one that a function of cellaug.networks built")
    return description | {"sha256": save_weights(model, file)}


def save_weights(model: "keras.Model", file: Path) -> str:
    """Write a network's weights as float16 to an .npz file; returns the file's SHA-256, in hex."""
    buffer = io.BytesIO()
    arrays = {f"{k:03d}": value.astype(np.float16) for k, value in enumerate(model.get_weights())}
    np.savez_compressed(buffer, **arrays)
    write_atomically(file, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def load_weights(model: "keras.Model", file: Path, digest: str) -> None:
    """Put saved weights into a network; DataError if the SHA-256 or the network is another."""
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{file} is not the file that its card describes: install cellaug again")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values = [arrays[key].astype(np.float32) for key in sorted(arrays.files)]
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: expected plain arrays in an .npz file: {error}") from error
    if [v.shape for v in values] != [tuple(v.shape) for v in model.weights]:
        raise DataError(f"{file} holds weights of another network than its card describes")
    model.set_weights(values)


def shipped_generators() -> list[str]:
    """The names of the generators that come with the package."""
    return sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))


def load_generator(source: str | Path) -> Generator:
    """Read a generator directory, or the one of that name that comes with the package.

    No code from a file is run: the weights are plain arrays. Raises FileNotFoundError for a missing
    folder or file, DataError for a card or weights that cannot be read or of another format.
    """
    folder, card = _read_card(source)
    model = _load_network(folder / WEIGHTS, card)
    said = f"{1 + card['conditional']} inputs and images {(*[card['image_size']] * 2, 3)}"
    made = f"{len(model.inputs)} inputs and images {tuple(model.output_shape[1:])}"
    if said != made:
        raise DataError(
            f"{folder / CARD}: image_size and conditional say {said}, "
            f"but builder and options make a network with {made}"
        )
    fields = {key: card[key] for key in FIELDS} | {"class_names": tuple(card["class_names"])}
    return Generator(model=model, digest=card["sha256"], card=card, **fields)


def load_discriminator(source: str | Path) -> "keras.Model":
    """The discriminator of a vanilla generator's directory, for an AC-GAN; see `load_generator`."""
    folder, card = _read_card(source)
    described, file = card.get("discriminator"), folder / DISCRIMINATOR
    if not isinstance(described, dict) or not file.is_file():
        raise FileNotFoundError(f"{folder} holds no discriminator; pbc-vanilla-64 does")
    return _load_network(file, {"builder": "discriminator", **described})


def _read_card(source: str | Path) -> tuple[Path, dict]:
    folder = next((path for path in (Path(source), SHIPPED / source) if path.is_dir()), None)
    if folder is None:
        shipped = ", ".join(shipped_generators())
        raise FileNotFoundError(f"{source}: no such generator directory; cellaug ships {shipped}")
    for path in (folder / WEIGHTS, folder / CARD):
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no generator directory: it lacks {path.name}")
    try:
        card = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: expected JSON, an object: {error}") from error
    if card.get("format") != FORMAT:
        raise DataError(
            f"{path}: expected format {FORMAT}, found {card.get('format')!r}; the generator was "
            "written by another version of cellaug: train it again, or use that version"
        )
    for key, kind in FIELDS.items():
        if not isinstance(found := card.get(key), kind):
            raise DataError(f"{path}: field {key} should be a {kind.__name__}, found {found!r}")
    return folder, card


def _load_network(file: Path, described: dict) -> "keras.Model":
    """The network that a card describes, with the weights that lie beside it."""
    from cellaug.networks.describe import BUILDERS, build_described
    from cellaug.training.backends import unfilled, use_xla

    card, builder, options = (
        file.with_name(CARD),
        described.get("builder"),
        described.get("options"),
    )
    if builder not in BUILDERS or not isinstance(options, dict):
        raise DataError(f"{card}: builder should be one of {', '.join(BUILDERS)}, with options")
    try:
        model = unfilled(lambda: build_described(builder, options))
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{card}: {builder} cannot be built: {error}") from error
    load_weights(model, file, described.get("sha256", ""))
    model.jit_compile = use_xla()
    return model


def generate(
    generator: Generator, labels: Labels, count: int, out: str | Path, seed: int = 0
) -> pd.DataFrame:
    """Write `count` images of each label as `<label>_<seed>_<index>.png` and a `manifest.csv`.

    Returns the manifest: path, label ("cell" without classes), origin, generator, seed, index. A
    row's image is `generator.generate(label, index + 1, seed=(seed, class number))[index]`, without
    classes `generator.generate(None, index + 1, seed)[index]`. Raises DataError where `out` holds
    files already, and as `Generator.generate`.
    """
    out = new_folder(out)
    if count < 1:
        raise DataError(f"count: expected at least 1, got {count}")
    numbers = generator.numbers(labels)
    names = ["cell"] if numbers is None else [generator.class_names[k] for k in numbers]
    wanted = dict.fromkeys(names, count)
    with atomic_folder(out) as part:
        made = _draw_files(generator, wanted, seed, part, lambda x: re.sub(r"[^\w.-]+", "-", x))
        _describe(part, made, generator.credit)
    return made


def augment(
    dataset: Dataset, generator: Generator, ratio: float, out: str | Path, seed: int = 0
) -> pd.DataFrame:
    """Write a training set: the real images, byte for byte, and generated ones beside them.

    Every class folder gets `ratio` times its number of real images, rounded up (the thesis: 0.5).
    Returns the `manifest.csv`, by which it also opens: path, label and origin (real or synthetic);
    of a real image its path in the data set (source), split, group, ...; of a synthetic one
    generator, seed and index (see `generate`), and the split "train" if others have one. Raises
    DataError for a place or class that does not fit, generated images, and a changed image.
    """
    out, root, known = new_folder(out), dataset.root, generator.class_names
    if not 0 <= ratio < math.inf:
        raise DataError(f"ratio: expected a number from 0 up, such as 0.5 for half, got {ratio}")
    if not generator.conditional:
        raise DataError("this generator draws no classes, no label to train on: give another one")
    if unknown := [name for name in dataset.class_names if name not in known]:
        raise DataError(
            f"the generator does not know {str(unknown)[1:-1]}; its classes are {str(known)[1:-1]}."
            " Train one on this data set, or give the class folders its names"
        )
    if out.is_relative_to(root.resolve()):
        raise DataError(f"{out} lies inside the data set {root}: choose a place beside it")
    if lists_origin(root, "synthetic"):
        raise DataError(f"{root} already holds generated images ({MANIFEST}): augment real ones")
    extra = {name: math.ceil(Fraction(str(ratio)) * int(n)) for name, n in dataset.counts().items()}
    with atomic_folder(out) as part:
        real = _copy_files(dataset, part)
        made = _draw_files(generator, extra, seed, part, "{}/synthetic".format)
        if "split" in real:
            made["split"] = "train"
        manifest = pd.concat([real, made], ignore_index=True)
        manifest = manifest.astype({"seed": "Int64", "index": "Int64"})
        _describe(part, manifest, dataset.credit, generator.credit)
    return manifest


def _copy_files(dataset: Dataset, folder: Path) -> pd.DataFrame:
    """Copy a data set's images into folders of their classes; returns their rows of a manifest."""
    table = dataset.table
    copies: dict[str, str] = {}
    images = zip(dataset.paths, table["class"], table["digest"], strict=True)
    for path, label, digest in progress(images, "copying", total=len(table)):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(f"{path} changed since the data set was opened: open it again")
        name = f"{label}/{path.name}"
        if name.lower() in copies:
            name = f"{label}/{path.stem}_{digest[:12]}{path.suffix}"
        copies[name.lower()] = name
        (folder / label).mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    real = {"path": copies.values(), "label": table["class"].astype(object), "origin": "real"}
    known = table.drop(columns=["path", "class", "digest", "origin"], errors="ignore")
    known = known.loc[:, (known != "").any()].rename(columns={"side": "split"})
    return pd.DataFrame(real).join(known).assign(source=table["path"])


def _draw_files(
    generator: Generator, wanted: dict, seed: int, folder: Path, stem: Callable[[str], str]
) -> pd.DataFrame:
    """Write images as `<stem(class)>_<seed>_<index>.png`; returns their rows of a manifest."""
    rows = []
    for label, count in wanted.items():
        if generator.conditional:  # own random streams, so that no class depends on the others
            number = generator.class_names.index(label)
            images = generator.draw(np.full(count, number), count, (seed, number))
        else:
            images = generator.draw(None, count, seed)
        for index, image in enumerate(progress(images, f"generating {label}", total=count)):
            path = f"{stem(label)}_{seed}_{index:05d}.png"
            if (folder / path).exists():
                raise DataError(f"the data set has an image {path}: choose another seed")
            write_png(folder / path, image)
            rows.append((path, label, "synthetic", generator.source, seed, index))
    return pd.DataFrame(rows, columns=["path", "label", "origin", "generator", "seed", "index"])


def _describe(folder: Path, manifest: pd.DataFrame, *credits: str) -> None:
    manifest.to_csv(folder / MANIFEST, index=False, errors="surrogateescape")
    if lines := dict.fromkeys(filter(None, credits)):
        (folder / CREDIT).write_text("\n".join(lines) + "\n", "utf-8")
