"""A trained generator on disk: save it, load it, draw cells with it.

A *generator directory* holds `generator.npz`, the weights as float16, and the card
`generator.json`: the function of `cellaug.networks` that builds the network and its arguments, its
classes, and the data that it was trained on.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellaug
from cellaug.data import DataError, Dataset, to_uint8
from cellaug.data.dataset import digest_numbers, printable, relative
from cellaug.data.splits import as_published
from cellaug.files import atomic_folder, write_atomically

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import keras

Labels = str | int | Sequence[str | int] | None  # classes by name or number; None without classes
FORMAT = 1  # version of the card
BATCH = 32
WEIGHTS, CARD, DISCRIMINATOR = "generator.npz", "generator.json", "discriminator.npz"
CREDIT = "CREDIT.txt"
LARGEST = {"kernel": 16, "layers": 64}  # numbers in cards; others up to 2048
LEAST_TRUNCATION = 0.1  # with less, all cells of a class would be the same
FAR = 10  # Fréchet distance over that between real cells, from which on there is a warning
TRAINED_ON = "trained_on.bin"
PARTS = {WEIGHTS, CARD, DISCRIMINATOR, TRAINED_ON, "README.md", "samples.png"}
FIELDS = {"class_names": list, "latent_dim": int, "image_size": int, "conditional": bool}
FIELDS |= dict.fromkeys(("data_name", "data_hash", "credit", "created"), str)
KINDS = {list: "a list", int: "a whole number", bool: "true or false", str: "a text"}
SHIPPED = Path(__file__).parent / "weights"  # generator directories, by name


@dataclass(frozen=True)
class Generator:
    """A generator's directory and its card; `digest` is the SHA-256 of the weights' file, in hex.

    `trained_on` holds the `short_digests` of the training images, None if the directory lacks them.
    With a `truncation` t no component of a latent vector is beyond ±t: those that are get drawn
    again (Brock, Donahue & Simonyan 2019). Fewer cells are broken, and cells vary less.
    """

    folder: Path
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
    trained_on: np.ndarray | None = field(repr=False, compare=False)
    truncation: float | None = None

    @cached_property
    def model(self) -> "keras.Model":
        """The network, built when it is first asked for; raises as `load_generator`."""
        model, file = load_network(self.folder / WEIGHTS, self.card), self.folder / CARD
        pixels = (self.image_size, self.image_size, 3)
        own = f"{1 + self.conditional} inputs, {self.latent_dim} latent numbers and images {pixels}"
        made = f"{len(model.inputs)} inputs, {model.inputs[0].shape[-1]} latent numbers and images "
        if own != (made := made + f"{tuple(model.output_shape[1:])}"):
            raise DataError(
                f"{file}: latent_dim, image_size and conditional say {own}, "
                f"but builder and options make a network with {made}"
            )
        return model

    @property
    def source(self) -> str:
        """Its name in manifests."""
        cut = "" if self.truncation is None else f", truncated at {self.truncation:g}"
        return f"{self.data_name} generator {self.digest[:16]}{cut}"

    def seen(self, cells: Dataset) -> int:
        """How many images of a set it was trained on, by their bytes; 0 if it does not say."""
        known = () if self.trained_on is None else self.trained_on
        return int(np.isin(digest_numbers(as_published(cells.table)), known).sum())

    @property
    def caution(self) -> str:
        """What its card says against training on its images; empty if they are near to real ones.

        That is a Fréchet distance to real cells of over `FAR` times that between real cells.
        """
        ratio, known = math.nan, isinstance(self.card.get("fidelity"), dict)
        with suppress(LookupError, TypeError, ValueError):  # no table, or none that can be read
            table = pd.read_csv(io.StringIO("\n".join(self.card["fidelity"]["table"])))
            rows = table[(table["level"] == "overall") & (table["measure"] == "frechet")]
            judged = rows.get("reason", pd.Series(index=rows.index)).isna()
            ratio = float(rows["ratio"].where(judged).iloc[0])
        if math.isnan(ratio):
            how = f"run `cellaug evaluate REAL {relative(self.folder, Path.cwd())}`"
            more = " with more of them, and without --split," * known
            why = "the comparison that was made could not judge" if known else "nobody has measured"
            why += f" how near this generator's images are to real cells: {how}{more} before you "
            why += "train on its images"
            missed = self.card["fidelity"].get("missed", "") if known else ""
            return why + f". Targets that were missed: {missed}" * bool(missed)
        far = f"their Fréchet distance is {ratio:.3g} times that between real cells"
        words = f"this generator's images are far from real cells: {far}. Do not train on them"
        return words if ratio > FAR else ""

    def generate(
        self, labels: Labels = None, count: int = 1, seed: int | Sequence[int] = 0
    ) -> np.ndarray:
        """Draw uint8 RGB images, N×size×size×3: `count` of them for each of `labels`, in order.

        The latent vectors are rows of `numpy.random.default_rng(seed).standard_normal`, but for a
        truncation: the first images of a longer call are those of a shorter one. Raises DataError
        for an unknown class, and for labels where it has no classes or none where it has.
        """
        numbers = self.numbers(labels)
        each = None if numbers is None else np.repeat(numbers, count)
        total = count if each is None else len(each)
        image = np.dtype((np.uint8, (self.image_size, self.image_size, 3)))
        return np.fromiter(self.draw(each, total, seed), image, total)

    def generate_each(
        self, names: Sequence[str], counts: np.ndarray, seed: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """So many images (classes,) of each class of `names`, in this order, and their numbers.

        Each class has a seed of its own, `seed` and its number, so that its images do not depend on
        how many others have.
        """
        none = np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        made = [self.generate([names[k]], int(n), (*seed, k)) for k, n in enumerate(counts) if n]
        return np.concatenate([none, *made]), np.repeat(np.arange(len(counts)), counts)

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
        if unknown := [x for x in dict.fromkeys(given) if x not in known]:
            folded = {name.casefold(): name for name in self.class_names}
            near = get_close_matches(str(unknown[0]).casefold(), folded, 1)
            like = f"; did you mean {folded[near[0]]!r}?" if near else ""
            what = f"the generator knows no class {', '.join(map(repr, unknown))}"
            raise DataError(f"{what}; its classes are {names}{like}")
        return np.array([known[x] for x in given], np.int32)

    def draw(
        self, numbers: np.ndarray | None, total: int, seed: int | Sequence[int]
    ) -> Iterator[np.ndarray]:
        """One uint8 image after another of these class numbers (N,); see `generate`."""
        rng = np.random.default_rng(seed)
        for start in range(0, total, BATCH):
            # whole batches: one shape to compile, and images do not depend on their number
            latents = rng.standard_normal((BATCH, self.latent_dim)).astype("f4")
            while self.truncation and (far := np.abs(latents) > self.truncation).any():
                latents[far] = rng.standard_normal(far.sum())
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
        "data_name": printable(dataset.name),
        "data_hash": dataset.fingerprint,
        "credit": dataset.credit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cellaug": cellaug.__version__,
    } | ({} if training is None else {"training": dict(training)})
    with atomic_folder(folder) as part:
        card |= save_network(model, part / WEIGHTS)
        if discriminator is not None:
            card["discriminator"] = save_network(discriminator, part / DISCRIMINATOR)
        digests = short_digests(dataset.digests).astype("<u8").tobytes()
        (part / TRAINED_ON).write_bytes(digests)
        card["trained_on"] = hashlib.sha256(digests).hexdigest()
        (part / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return folder


def save_network(model: "keras.Model", file: Path) -> dict:
    """Write a network's weights; returns the fields of the card from which it is built again.

    ValueError for a model that no function of `cellaug.networks` built.
    """
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


def short_digests(digests: Iterable[str]) -> np.ndarray:
    """The first 8 bytes of SHA-256 digests in hex as numbers, big-endian: uint64 (N,), sorted."""
    return np.unique(digest_numbers(digests))


def load_weights(model: "keras.Model", file: Path, digest: str) -> None:
    """Put saved weights into a network; DataError if the SHA-256 or the network is another."""
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        shipped = file.is_relative_to(SHIPPED)
        fix = "install cellaug again" if shipped else "train it again, or copy its folder again"
        raise DataError(f"{file} is not the file that its card describes: {fix}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values = [arrays[key].astype(np.float32) for key in sorted(arrays.files)]
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: expected plain arrays in an .npz file: {error}") from error
    if [v.shape for v in values] != [tuple(v.shape) for v in model.weights]:
        raise DataError(f"{file} holds weights of another network than its card describes")
    if not all(np.isfinite(value).all() for value in values):
        raise DataError(f"{file} holds weights that are no finite numbers: train it again")
    model.set_weights(values)


def shipped_generators() -> list[str]:
    """The names of the generators that come with the package."""
    return sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))


def load_generator(source: str | Path, truncation: float | None = None) -> Generator:
    """Read a generator directory, or the one of that name that comes with the package.

    No code from a file is run: the weights are plain arrays. Raises FileNotFoundError for a missing
    folder or file, DataError for a card or weights that cannot be read or of another format, and a
    `truncation` (see `Generator`) that is out of range.
    """
    generator = read_generator(source, truncation)
    _ = generator.model
    return generator


def read_generator(source: str | Path, truncation: float | None = None) -> Generator:
    """Like `load_generator`, but the network is built later, when the first image is drawn."""
    if truncation is not None and not truncation >= LEAST_TRUNCATION:
        expected = f"expected a number from {LEAST_TRUNCATION} up"
        raise DataError(f"truncation: {expected}, got {truncation}")
    folder, card = _read_card(source)
    fields = {key: card[key] for key in FIELDS} | {"class_names": tuple(card["class_names"])}
    trained_on = None
    if "trained_on" in card:
        data = (folder / TRAINED_ON).read_bytes()
        if hashlib.sha256(data).hexdigest() != card["trained_on"]:
            raise DataError(f"{folder / TRAINED_ON} is not the file that {CARD} describes")
        trained_on = np.frombuffer(data, "<u8").astype(np.uint64)
    digest = str(card.get("sha256", ""))
    fields |= {"trained_on": trained_on, "truncation": truncation}
    return Generator(folder=folder, digest=digest, card=card, **fields)


def load_discriminator(source: str | Path) -> "keras.Model":
    """The discriminator of a vanilla generator's directory, for an AC-GAN; see `load_generator`."""
    folder, card = _read_card(source)
    described, file = card.get("discriminator"), folder / DISCRIMINATOR
    if not isinstance(described, dict) or not file.is_file():
        raise FileNotFoundError(f"{folder} holds no discriminator; pbc-vanilla-64 does")
    return load_network(file, {"builder": "discriminator", **described})


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
        json.dumps(card, ensure_ascii=False).encode()  # UnicodeEncodeError if a text is none
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, an object: {error}") from error
    if card.get("format") != FORMAT:
        raise DataError(
            f"{path}: expected format {FORMAT}, found {card.get('format')!r}; the generator was "
            "written by another version of cellaug: train it again, or use that version"
        )
    _check_card(path, card)
    return folder, card


def _check_card(path: Path, card: dict) -> None:
    """Raise DataError for fields of the wrong kind, and for numbers that would fill the memory."""
    for key, kind in FIELDS.items():
        if type(found := card.get(key)) is not kind:  # nor True for a number
            raise DataError(f"{path}: field {key} should be {KINDS[kind]}, found {found!r:.80}")
    names, options = card["class_names"], card.get("options")
    if not all(isinstance(x, str) and x for x in names) or len(set(names)) < len(names):
        raise DataError(f"{path}: field class_names should be different names, found {names!r:.80}")
    in_network = options.get("classes", 0) if isinstance(options, dict) else 0
    if card["conditional"] and (not names or in_network not in (0, len(names))):
        raise DataError(f"{path}: {len(names)} class_names, but a network of {in_network} classes")
    parts: list[Any] = [{key: card[key] for key in ("latent_dim", "image_size")}]
    parts += [options, card.get("discriminator")]
    for part in parts:  # and networks inside of networks
        for key, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, dict):
                parts.append(value)
            most = LARGEST.get(key, 2048)
            if isinstance(value, int | float) and not 0 <= value <= most:
                raise DataError(f"{path}: {key} should be from 0 to {most}, found {value!r:.80}")


def load_network(file: Path, described: Mapping, card: str = CARD) -> "keras.Model":
    """The network that a card describes, with the weights that lie beside it; else DataError."""
    from cellaug.networks.describe import BUILDERS, build_described
    from cellaug.training.backends import unfilled, use_xla

    place, builder, options = file.with_name(card), *map(described.get, ("builder", "options"))
    if builder not in BUILDERS or not isinstance(options, dict):
        raise DataError(f"{place}: builder should be one of {', '.join(BUILDERS)}, with options")
    try:
        model = unfilled(lambda: build_described(builder, options))
    except Exception as error:  # Keras raises what it likes
        raise DataError(f"{place}: {builder} cannot be built: {error}") from error
    load_weights(model, file, described.get("sha256", ""))
    model.jit_compile = use_xla()
    return model
