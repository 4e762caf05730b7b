"""Train a conditional generator on one's own cells: the command ``cellaug train``."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from cellaug.book.chapter import device, versions
from cellaug.data import Dataset, open_dataset, split, stored
from cellaug.data.class_map import begun_as
from cellaug.data.splits import SEED
from cellaug.errors import DataError
from cellaug.evaluation.collapse import Diversity
from cellaug.files import atomic_folder, new_folder, require_same, write_atomically
from cellaug.generators import Generator, load_generator, save_generator
from cellaug.networks.dcgan import doublings
from cellaug.training import Adversarial, Recipe, SampleImages, load_samples
from cellaug.training.backends import leads, peak_memory, prompt
from cellaug.training.checkpoint import variables_of
from cellaug.training.devices import Team, agreed, together
from cellaug.training.finetune import RISE, begin, choices_of
from cellaug.training.progress import duration
from cellaug.training.runs import Trained, train_on

import keras
import numpy as np

IMAGES = 850_000
"""Real images that a generator is shown, as many as the shipped ones have seen."""

LARGER: Mapping[int, Mapping[str, Any]] = {
    128: {"latent_dim": 64, "narrowest": 32, "batch_size": 64, "gamma": 0.04},
    256: {"latent_dim": 64, "narrowest": 32, "batch_size": 64, "gamma": 0.16,
          "discriminator_depth": 16},
}  # fmt: skip
"""Other choices of `Recipe` for larger images, by size in pixels. R1's weight grows with the pixels
of an image and falls with the images of a batch (as in the published code of Karras et al. 2020);
the others keep files small and steps fast."""

CHECKPOINT, SETTINGS = "checkpoint.npz", "settings.json"

SAVE_SECONDS = 60.0

KINDS = {int: "a whole number from {} on", float: "a number from {} on", str: "a word"}

STEPS, UNTIL_THEN = 9, 1000
"""Steps by which the time of one is measured; length of a training for which only that is done."""


def train(
    data: str, out: Path, *, columns: Mapping[str, str] | None = None, size: int = 64,
    start_from: str = "", class_map: Mapping[str, str] | None = None, images: int | None = None,
    hours: float | None = None, seed: int = 1, choices: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Train a conditional generator on the training split of a set and write its directory `out`.

    Beside the generator lie `README.md`, cells by epoch (`samples.png`), `losses.png`,
    `diversity.png`, `history.csv` and the last checkpoint. Until then that is in
    ``<out>.training``, and the same call goes on from it. Test images and generated images of the
    set are never trained on.

    Args:
        data: a set as `open_dataset` takes it.
        columns: its option `columns`.
        out: a new folder.
        size: height and width of the images in pixels, a power of two.
        start_from: a generator to begin with.
        class_map: names for classes of the set those of that generator, which `start_from` gives.
        images: real images that it is shown, in whole epochs; by default `IMAGES`.
        hours: instead, how long it may take; what that allows is measured.
        seed: of everything that is drawn.
        choices: of `Recipe`, other than the usual ones for this size.

    Raises DataError for a set, a choice or a folder that does not fit, Mismatch for a checkpoint of
    other code.
    """
    if images is not None and hours is not None:
        raise DataError("--images and --hours both say how long to train: give one of them")
    if class_map and not start_from:
        raise DataError("--class-map names classes of the generator of --start-from: give both")
    out = new_folder(out)
    work = out.with_name(f"{out.name}.training")
    source = load_generator(start_from) if start_from else None
    recipe = recipe_for(size, seed, choices or {}, choices_of(source, size) if source else None)
    options = {"columns": dict(columns)} if columns else {}
    cells = training_side(stored(open_dataset(data, **options), size))
    settings = {"hash": cells.fingerprint, "size": size, "recipe": asdict(recipe)}
    settings |= {"start_from": source.digest if source else "", "asked": [images, hours]}
    settings |= {"class_map": started(source, cells, class_map or {}) if source else {}}
    with together() as team:
        build = partial(begin, recipe, size, cells.class_names, source=source, class_map=class_map)
        kept = require_same(work / SETTINGS, settings, write=leads())
        if "images" not in kept:
            images = images or IMAGES
            if hours is not None:
                seconds = rehearse(build(UNTIL_THEN), recipe, cells, size, team)
                images = max(1, int(hours * 3600 / seconds * recipe.batch_size))
            kept = require_same(work / SETTINGS, settings | {"images": images}, write=leads())
        del kept["class_map"]  # which earlier checkpoints have not
        done = train_on(
            cells, partial(announced, build, recipe, cells, size, team), size, recipe.batch_size,
            kept["images"], seed=seed, balance=True, team=team, checkpoint=work / CHECKPOINT,
            settings=kept, label=out.name, save_seconds=SAVE_SECONDS,
            callbacks=callbacks(recipe, cells, size, work),
        )  # fmt: skip
        if leads():
            write(out, done, recipe, cells, work)
            shutil.rmtree(work)
    return out


def started(source: Generator, cells: Dataset, class_map: Mapping[str, str]) -> dict[str, str]:
    """The class of `source` as which each class starts (see `begun_as`); it is printed."""
    begun = begun_as(cells.class_names, source.class_names, class_map)
    if leads():
        each = (f"{name} as {ours or 'the mean of all classes'}" for name, ours in begun.items())
        print(f"the classes start from {source.folder.name}: {', '.join(each)}")
    return begun


def recipe_for(
    size: int, seed: int, choices: Mapping[str, Any], like: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe for images of `size` pixels with other choices; `like` are those of a source.

    DataError for a choice that is unknown or of the wrong kind.
    """
    try:
        doublings(size)
    except ValueError as error:
        raise DataError(f"--size: {error}") from error
    known = {field.name: field for field in fields(Recipe)}
    if strange := ", ".join(sorted(set(choices) - set(known))):
        raise DataError(f"--set {strange}: no choice of the recipe. There are {', '.join(known)}")
    usual = {"decay": 0.3, **LARGER.get(size, {}), **({"rise": RISE, **like} if like else {})}
    typed: dict[str, Any] = {}
    for name, value in choices.items():
        kind = type(getattr(Recipe, name))
        if kind is float and isinstance(value, str):  # YAML takes 2e-4 for a text
            with suppress(ValueError):
                value = float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        number = number and math.isfinite(value)
        whole = number and float(value).is_integer()
        fits = {int: whole, float: number, str: isinstance(value, str)}
        least = int(name in ("batch_size", "penalty_every"))
        words = KINDS.get(kind, "true or false")
        if not fits.get(kind, isinstance(value, bool)) or (number and value < least):
            raise DataError(f"--set {name}={value!r}: expected {words.format(least)}")
        typed[name] = kind(value) if number else value
    return Recipe(**{**usual, "seed": seed, **typed})


def training_side(cells: Dataset) -> Dataset:
    """The real images of a set that belong to no test; of a set too small to divide all."""
    real = cells.subset(cells.table["origin"] == "real")
    try:
        found = split(real, seed=SEED)["train"]
    except DataError as error:
        found = real.subset(real.table["side"].isin(("", "train")))  # published sides stay
        print(f"trained on {len(found):,} images, and no other is kept for tests: {error}")
    if empty := ", ".join(found.counts()[found.counts() == 0].index):
        raise DataError(f"no image of {empty} in the training split of {cells.name}: add images of "
                        "it, or remove the class")  # fmt: skip
    return found


def callbacks(recipe: Recipe, cells: Dataset, size: int, work: Path) -> list:
    """What is kept by epoch: the diversity, and a cell of each class after epochs 0, 1, 2, 4, …"""
    epochs = [0, *(2**k for k in range(20))]
    samples = SampleImages(*asked(recipe, cells), epochs=epochs, folder=work / "samples")
    return [Diversity.beside(cells, size), samples]


def asked(recipe: Recipe, cells: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The latent vector of each class whose cell is drawn by epoch, and the classes' numbers."""
    classes = len(cells.class_names)
    latents = np.random.default_rng(0).standard_normal((classes, recipe.latent_dim))
    return latents, np.arange(classes)


def rehearse(gan: Adversarial, recipe: Recipe, cells: Dataset, size: int, team: Team) -> float:
    """Seconds of a training step here, measured; the GAN is afterwards as it was."""
    variables = [*variables_of(gan), *gan.metrics_variables]
    before = [keras.ops.convert_to_numpy(variable.value) for variable in variables]
    batch = _Batch(team.share(recipe.batch_size), size, len(cells.class_names))
    clock = _Clock()
    gan.fit(prompt(batch), shuffle=False, verbose=0, callbacks=[clock])
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return agreed(float(np.mean(np.diff(clock.ends))), team)


class _Batch(keras.utils.PyDataset):
    """The same images of noise again and again, for `STEPS` steps."""

    def __init__(self, count: int, size: int, classes: int):
        super().__init__()
        images = np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3))
        self.batch = images.astype("float32"), np.arange(count) % classes

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batch


class _Clock(keras.callbacks.Callback):
    """When each step ended; the first one compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        float(next(iter((logs or {}).values())))  # on JAX a step goes on until its result is read
        self.ends.append(time.monotonic())


def announced(
    build: Callable[[int], Adversarial], recipe: Recipe, cells: Dataset, size: int, team: Team,
    steps: int,
) -> Adversarial:  # fmt: skip
    """The GAN for so many steps; says how many, how much memory they take and about how long."""
    gan = build(steps)
    seconds = rehearse(gan, recipe, cells, size, team)
    if leads():
        many = f"{steps:,} steps of {recipe.batch_size} images, drawn from {len(cells):,} real ones"
        those = f"{team.processes} process{'es' * (team.processes > 1)}"
        where = f" on {team.devices} devices in {those}" * (team.devices > 1)
        lasting = f"{1000 * seconds:,.0f} ms a step, in all about {duration(steps * seconds)}"
        print(f"{many}{where}; {lasting}; {peak_memory() / 2**30:.1f} GiB of memory", flush=True)
    return gan


def write(out: Path, done: Trained, recipe: Recipe, cells: Dataset, work: Path) -> None:
    """Write the generator's directory, whole or not at all."""
    names, history = cells.class_names, done.history
    samples = load_samples(work / "samples")
    samples[len(history)] = done.gan.generate(*asked(recipe, cells))
    recorded = {"recipe": "cellaug.training.Recipe", **asdict(recipe)}
    training: dict[str, Any] = {"recipe": recorded}
    training |= {"images_seen": done.images_seen, "training_images": len(cells)}
    training |= {"split_seed": SEED, "seconds": round(float(history["seconds"].sum()))}
    training |= {"device": device(), "versions": versions()}
    from cellaug import figures  # takes seconds to load, and one process needs it

    figures.use_style()
    losses = {"g_loss": "generator", "d_loss": "discriminator"}
    drawn = {
        "samples.png": figures.image_rows(
            {f"epoch {epoch}": images for epoch, images in samples.items()}, list(names)
        ),
        "losses.png": figures.loss_curves(history, losses),
        "diversity.png": figures.loss_curves(
            history, {"diversity": "generated"}, "diversity relative to real cells"
        ),
    }
    with atomic_folder(out) as part:
        save_generator(
            done.gan.trained_generator, part, class_names=names, dataset=cells, training=training
        )
        for name, figure in drawn.items():
            figure.savefig(part / name)
        history.to_csv(part / "history.csv")
        shutil.copyfile(work / CHECKPOINT, part / CHECKPOINT)
        write_atomically(part / "README.md", readme(out.name, training, cells, drawn).encode())


def readme(name: str, training: Mapping[str, Any], cells: Dataset, drawn: Mapping[str, Any]) -> str:
    """The page about a generator, as Markdown."""
    pictures = "\n\n".join(f"![{figure.alt}]({file})" for file, figure in drawn.items())
    seen, seconds = training["images_seen"], training["seconds"]
    return f"""# {name}

A generator of {len(cells.class_names)} classes of blood cells, trained on {len(cells):,} images of
{cells.name}: {seen:,} were shown in {duration(seconds)} on {training["device"]}.
Nothing here says how good it is: `cellaug evaluate DATA {name}` measures that.
Not for diagnosis.

{pictures}

Cells of one latent vector for each class, by epoch, not selected; then the losses, and how much the
cells of a class differ, relative to real ones. `history.csv` has the numbers, `checkpoint.npz` the
state of both networks and optimizers, which no command needs any more. {cells.credit}
"""
