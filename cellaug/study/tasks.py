"""The runs of a study: train a generator, choose or vary its cells, train and test a classifier."""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from cellaug import latent, networks
from cellaug.augmentation import TRIES
from cellaug.book.chapter import device, project_root, versions
from cellaug.book.source import commit
from cellaug.classifiers import read_classifier, save_classifier
from cellaug.data import Dataset, open_dataset, split, stored
from cellaug.data.copies import near_duplicates
from cellaug.data.images import to_float
from cellaug.data.reader import Reader
from cellaug.errors import DataError
from cellaug.evaluation.classifiers import predicted_logits
from cellaug.evaluation.distances import (
    diversity,
    kernel_distance,
    precision_recall_density_coverage,
)
from cellaug.evaluation.features import load_extractor
from cellaug.evaluation.selection import learn_selector
from cellaug.files import atomic_folder, write_json, write_npz
from cellaug.generators import Generator, read_generator, save_generator, short_digests
from cellaug.study.arms import (
    Mixed,
    Stock,
    augmentation,
    draw_subset,
    duplicates,
    extra_counts,
    feed,
    others,
)
from cellaug.study.worker import RESULT, clear
from cellaug.training import (
    Adversarial,
    AuxiliaryClassifier,
    CrossEntropy,
    Recipe,
    generate_images,
    use_xla,
)
from cellaug.training.finetune import RISE, begin, choices_of
from cellaug.training.runs import train_on

import keras
import numpy as np
import pandas as pd

CALIBRATION, TIMED = 100, 128
"""Most batches that set BatchNorm's running averages after training; and images to time with."""


@dataclass(frozen=True)
class Material:
    """The real images that a run may see: of its scarcity, those left, and for validation."""

    train: Dataset
    rest: Dataset
    validation: Dataset


def perform(name: str, settings: Mapping[str, Any], folder: str, needs: Mapping[str, str]) -> dict:
    """Do one run and write ``<folder>/<name>``, which appears whole; returns its record.

    `needs` are the names of the runs that it reads, by task. A run that is there already is not
    done again. Raises DataError where a test image would be trained on.
    """
    out = Path(folder) / name
    if (out / RESULT).is_file():
        return json.loads((out / RESULT).read_text("utf-8"))
    clear(Path(folder), name)
    keras.backend.clear_session()
    began = monotonic()
    work: Callable[..., dict] = TASKS[settings["task"]]
    places = {task: Path(folder) / other for task, other in needs.items()}
    with atomic_folder(out) as part:
        found = work(settings, part, places, Path(folder) / f".{name}.checkpoint.npz")
        record: dict[str, Any] = {"name": name, "settings": settings, "needs": needs}
        record |= {"found": found, "seconds": monotonic() - began, "commit": commit(project_root())}
        write_json(part / RESULT, record | {"versions": versions(), "device": device()})
    for left in Path(folder).glob(f".{name}.checkpoint*"):
        left.unlink()
    return json.loads((out / RESULT).read_text("utf-8"))


@lru_cache(maxsize=2)
def _sides(data: str, options: str, size: int) -> dict[str, Dataset]:
    cells = stored(open_dataset(data, **json.loads(options)), size)
    parts = split(cells.subset(cells.table["origin"] == "real"))
    return {name: part.in_memory(size) for name, part in parts.items()}


def sides(settings: Mapping[str, Any]) -> dict[str, Dataset]:
    """The parts of a study's set, in memory; they are kept from run to run."""
    options = json.dumps(dict(settings["options"]), sort_keys=True)
    return _sides(settings["data"], options, settings["image_size"])


def material(settings: Mapping[str, Any]) -> Material:
    """What a run may see, which is no test image."""
    parts = sides(settings)
    train, rest = draw_subset(parts["train"], settings["subset"], settings["seed"])
    for part in (train, rest, parts["validation"]):
        refuse_test(part.digests, parts["test"])
    return Material(train, rest, parts["validation"])


def refuse_test(digests: Any, test: Dataset) -> None:
    """Raise DataError if one of some digests, in full or as 8 bytes, is that of a test image."""
    tested = short_digests(test.digests)
    known = digests if isinstance(digests, np.ndarray) else short_digests(digests)
    if shared := int(np.isin(known, tested).sum()):
        what = f"{shared} of the images to train on are test images of {test.name}"
        raise DataError(f"{what}: the result would mean nothing. Divide the set again")


def generator_run(
    settings: Mapping[str, Any], out: Path, places: Mapping[str, Path], checkpoint: Path
) -> dict[str, Any]:
    """Train a generator on the classifier's own images, or on those that it does not see."""
    seen = material(settings)
    cells = seen.train if settings["pool"] == "one" else seen.rest
    if (missing := cells.counts()[cells.counts() == 0].index).size:
        raise DataError(f"no image of {', '.join(missing)} is left to train a generator on")
    work = _ac_gan if settings["generator"] == "ac-gan" else _conditional
    model, count = work(settings, cells, checkpoint)
    training = {"settings": dict(settings), "images_seen": count, "training_images": len(cells)}
    save_generator(
        model, out / "generator", class_names=cells.class_names, dataset=cells, training=training
    )
    scarce = settings["subset"].get("scarce", cells.class_names)
    known = seen.validation.class_names
    rows = np.isin(seen.validation.labels, [known.index(name) for name in scarce])
    made = read_generator(out / "generator")
    good = quality(made, seen.validation.subset(rows), settings["seed"])
    return {"images_seen": count, "training_images": len(cells), "quality": good}


def quality(generator: Generator, cells: Dataset, seed: int) -> dict[str, float | None]:
    """How good a generator's cells are beside as many real ones that it has not seen.

    By the shipped features: the kernel distance (0 for cells of one distribution), precision and
    coverage (0–1), agreement (cells in which the features see the class that was asked for, as a
    multiple of real ones); and diversity, the mean distance of two cells of a class as a multiple
    of that of two real ones. A class with fewer than two images is left out; None stands for a
    multiple of nothing.
    """
    size, names = generator.image_size, cells.class_names
    rng = np.random.default_rng([seed, 8])
    by_class = [rng.permutation(np.flatnonzero(cells.labels == k))[:MOST_COMPARED]
                for k in range(len(names))]  # fmt: skip
    rows = np.concatenate([rows for rows in by_class if len(rows) > 1])
    labels, real = cells.labels[rows], cells.subset(rows).read(size)
    made, _ = generator.generate_each(names, np.bincount(labels, minlength=len(names)), (seed, 8))
    order = np.argsort(labels, kind="stable")
    labels, real = labels[order], real[order]
    extractor, strata = load_extractor(size), (labels, labels)
    (one, seen_real), (other, seen_made) = extractor(real), extractor(made)
    wanted = np.array(names, object)[labels]
    right = [(np.array(extractor.class_names, object)[seen.argmax(1)] == wanted).mean()
             for seen in (seen_made, seen_real)]  # fmt: skip
    k = min(5, len(rows) - 1)
    overlap = precision_recall_density_coverage(one, other, k)
    apart = [diversity(part, labels, names).mean() for part in (made, real)]
    return {"kernel_distance": kernel_distance(one, other, strata),
            "precision": overlap["precision"], "coverage": overlap["coverage"],
            "agreement": right[0] / right[1] if right[1] else None,
            "diversity": apart[0] / apart[1] if apart[1] else None}  # fmt: skip


MOST_COMPARED = 100
"""Real validation images of each class with which a generator's cells are compared."""


def _conditional(
    settings: Mapping[str, Any], cells: Dataset, checkpoint: Path
) -> tuple[keras.Model, int]:
    """Train the conditional recipe in balanced batches; its generator, and the images it saw."""
    choices = {k: v for k, v in settings.items() if k in Recipe.__dataclass_fields__}
    size, source = settings["image_size"], None
    if settings["start_from"]:
        source = _generator(settings["start_from"], settings)
        choices = {"rise": RISE, **choices, **choices_of(source, size)}
    recipe = Recipe(**{"decay": 0.3, **choices})
    given = {"source": source, "class_map": settings["class_map"]}
    build = partial(begin, recipe, size, cells.class_names, **given)
    done = train_on(
        cells, build, size, recipe.batch_size, settings["images"], seed=recipe.seed, balance=True,
        checkpoint=checkpoint, restart=True, label="generator", settings=settings, save_seconds=60,
    )  # fmt: skip
    return done.gan.trained_generator, done.images_seen


def _ac_gan(
    settings: Mapping[str, Any], cells: Dataset, checkpoint: Path
) -> tuple[keras.Model, int]:
    """Train the thesis's AC-GAN: three quarters of the images for the GAN without classes."""
    size, seed, names = settings["image_size"], settings["seed"], cells.class_names
    keras.utils.set_random_seed(seed)
    pair = networks.generator(size, 64, 100, 5), networks.discriminator(size, 16, 5)
    seen = 0
    for stage, (batch, part, beta_1) in enumerate([(64, 0.75, 0.5), (32, 0.25, 0.9)]):
        if stage:
            pair = (networks.acgan_generator(pair[0], len(names)),
                    networks.acgan_discriminator(pair[1], len(names)))  # fmt: skip
        gan = Adversarial(*pair, AuxiliaryClassifier() if stage else CrossEntropy(), 100, seed)
        gan.compile(*(keras.optimizers.Adam(2e-4, beta_1) for _ in range(2)))
        done = train_on(
            cells, partial(_same, gan), size, batch, part * settings["images"], seed=seed,
            balance=False, checkpoint=checkpoint.with_suffix(f".{stage}.npz"), restart=True,
            label=f"AC-GAN, stage {stage + 1} of 2", settings=settings, save_seconds=60,
        )  # fmt: skip
        seen += done.images_seen
    return gan.trained_generator, seen


def _same(gan: Adversarial, steps: int) -> Adversarial:
    """A GAN that is built already, however many steps it will be trained."""
    return gan


def selection_run(
    settings: Mapping[str, Any], out: Path, places: Mapping[str, Path], checkpoint: Path
) -> dict[str, Any]:
    """Keep the good ones of a generator's cells, as many of each class as `ratio` asks for."""
    seen, size, seed = material(settings), settings["image_size"], settings["seed"]
    generator = _generator(places["generator"] / "generator", settings)
    names = seen.train.class_names
    classifier = read_classifier(places["classifier"] / "classifier").network
    selector = learn_selector(classifier, seen.train.in_memory(size), seen.validation)
    counts = extra_counts(seen.train.counts().to_numpy(), settings["ratio"])
    kept, labels, judged = [], [], []
    for kind, count in enumerate(counts):
        if not count:
            continue
        drawn = generator.generate([names[kind]], TRIES * int(count), (seed, kind))
        enough, found = selector.choose(drawn, kind, int(count))
        kept.append(drawn[enough])
        labels += [kind] * len(enough)
        judged.append(found.assign(label=names[kind]))
    table = pd.concat(judged, ignore_index=True)
    table.to_csv(out / "judged.csv", index=False)
    write_npz(out / "images.npz", images=np.concatenate(kept), labels=np.array(labels, int))
    reasons = table.groupby("label", sort=False)["reason"].value_counts().unstack(fill_value=0)
    wanted = {names[kind]: int(count) for kind, count in enumerate(counts) if count}
    return {"wanted": wanted, "reasons": reasons.rename(columns={"": "kept"}).T.to_dict(),
            "generator_sha256": generator.digest[:16]}  # fmt: skip


def variation_run(
    settings: Mapping[str, Any], out: Path, places: Mapping[str, Path], checkpoint: Path
) -> dict[str, Any]:
    """Cells near the real ones in latent space: perturbed (Eq. 42), or between two of a class."""
    seen, size, seed = material(settings), settings["image_size"], settings["seed"]
    generator = _generator(places["generator"] / "generator", settings)
    images, labels = seen.train.read(size), seen.train.labels
    counts = extra_counts(seen.train.counts().to_numpy(), settings["ratio"])
    rng, made, kinds = np.random.default_rng([seed, 6]), [], []
    for kind, count in enumerate(counts):
        if not count:
            continue
        own = rng.permutation(np.flatnonzero(labels == kind))[:MOST_INVERTED]
        latents, _ = latent.optimise(
            generator.model, images[own], INVERSION_STEPS, seed=seed, labels=labels[own]
        )
        if settings["how"] == "reconstructions":
            each = -(-int(count) // len(latents))
            rows = [latent.perturb(z, VARIANCE, each, rng) for z in latents]
            new = np.concatenate(rows)[rng.permutation(each * len(latents))[:count]]
        else:
            one, other = (latents[rng.integers(len(latents), size=count)] for _ in range(2))
            new = one + (other - one) * rng.random((int(count), 1))
        made.append(generate_images(generator.model, new, np.full(len(new), kind)))
        kinds += [kind] * int(count)
    write_npz(out / "images.npz", images=np.concatenate(made), labels=np.array(kinds, int))
    return {"images": len(kinds), "generator_sha256": generator.digest[:16]}


VARIANCE, MOST_INVERTED, INVERSION_STEPS = 0.04, 100, 200
"""Of Eq. 42, as the thesis shows it; real images of a class that are looked for in latent space."""


def classifier_run(
    settings: Mapping[str, Any], out: Path, places: Mapping[str, Path], checkpoint: Path
) -> dict[str, Any]:
    """Train a classifier in one arm; then, once, name the validation and the test images."""
    seen, size, seed = material(settings), settings["image_size"], settings["seed"]
    images, labels = seen.train.read(size), seen.train.labels
    names = seen.train.class_names
    counts = extra_counts(seen.train.counts().to_numpy(), settings["ratio"])
    if settings["only"] == "scarce":
        counts *= np.isin(names, settings["subset"].get("scarce", names))
    extra = extra_images(settings, seen, images, counts, places)
    model = learn(Stock(images, labels, *extra), size, len(names), settings,
                  settings["classifier"], seed)  # fmt: skip
    parts = {"validation": seen.validation, "test": sides(settings)["test"]}
    found = {name: predicted_logits(model, part.read(size)) for name, part in parts.items()}
    write_npz(out / "logits.npz", **found)
    save_classifier(
        model, out / "classifier", train=seen.train.in_memory(size), **parts,
        training=dict(settings),
    )  # fmt: skip
    added = np.bincount(extra[1], minlength=len(names))
    return {"class_names": list(names), "real": seen.train.counts().to_dict(),
            "extra": dict(zip(names, added.tolist(), strict=True)),
            "generator_sha256": drawn_by(places)}  # fmt: skip


def drawn_by(places: Mapping[str, Path]) -> str:
    """16 digits of the SHA-256 of the weights that drew the cells which are read; "" for none."""
    if before := places.get("select", places.get("vary")):  # perhaps drawn by other weights
        record = json.loads((before / RESULT).read_text("utf-8"))
        return record["found"].get("generator_sha256", "")
    return read_generator(places["generator"] / "generator").digest[:16] if places else ""


def extra_images(
    settings: Mapping[str, Any], seen: Material, images: np.ndarray, counts: np.ndarray,
    places: Mapping[str, Path],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The images that an arm adds to the real ones, with their class numbers."""
    size, seed, kind = settings["image_size"], settings["seed"], settings["extra"]
    if kind == "duplicates":
        return duplicates(seen.train, images, counts, seed)
    if kind == "real":
        return others(seen.rest, counts, size, seed)
    if kind == "generated":
        generator = _generator(places["generator"] / "generator", settings)
        return generator.generate_each(seen.train.class_names, counts, (seed,))
    if kind == "none":
        return images[:0], np.zeros(0, int)
    (place,) = (places[task] for task in ("select", "vary") if task in places)
    with np.load(place / "images.npz", allow_pickle=False) as file:
        wanted = counts[file["labels"]] > 0
        return file["images"][wanted], file["labels"][wanted]


def _generator(place: Path | str, settings: Mapping[str, Any]) -> Generator:
    """A generator, by its folder or shipped name; DataError if it has seen a test image."""
    generator = read_generator(place)
    if generator.trained_on is None:
        raise DataError(f"{place} does not say on which images it was trained: so nobody knows "
                        "whether test images are among them")  # fmt: skip
    refuse_test(generator.trained_on, sides(settings)["test"])
    return generator


def network(size: int, classes: int, chosen: Mapping[str, Any], seed: int = 0) -> keras.Model:
    """A fresh classifier as a plan chooses it: images in [-1, 1] to logits."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if chosen["mixed_precision"] else "float32")
    try:
        known = ("width", "norm") if chosen["network"] == "residual" else ()
        options = {key: chosen[key] for key in known}
        return networks.classifier(chosen["network"], size, classes, seed=seed, **options)
    finally:
        keras.config.set_dtype_policy(before)


def learn(
    stock: Stock, size: int, classes: int, arm: Mapping[str, Any], chosen: Mapping[str, Any],
    seed: int,
) -> keras.Model:  # fmt: skip
    """Train a classifier, images in [-1, 1] to logits, for the same steps whatever the arm."""
    body = network(size, classes, chosen, seed)
    change, model = augmentation(arm["augment"], seed), body
    if change is not None:
        image = keras.Input((size, size, 3))
        model = keras.Model(image, body(change(image)))
    steps, batch = chosen["steps"], chosen["batch_size"]
    rate = keras.optimizers.schedules.CosineDecay(chosen["learning_rate"], steps)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=use_xla())
    model.optimizer.build(model.trainable_variables)  # else the first step compiles twice
    mix = Mixed(seed) if arm["augment"] == "mixup" else None
    parts: list[tuple[int, float | None]] = [(steps, arm["share"])]
    if arm["pretrain"]:
        parts = [(steps // 2, 1.0), (steps - steps // 2, 0.0)]
    for count, share in parts:
        batches = stock.batches(batch, seed, classes, arm["sampling"], share)
        for given in islice(feed(batches, classes, mix), count):
            model.train_on_batch(*given)
    again = stock.batches(batch, seed + 1, classes, arm["sampling"], share)
    count = min(CALIBRATION, -(-(len(stock.real) + len(stock.extra)) // batch))
    networks.recalibrate(model, (to_float(images) for images, *_ in islice(again, count)))
    return body


def timing_run(
    settings: Mapping[str, Any], out: Path, places: Mapping[str, Path], checkpoint: Path
) -> dict[str, Any]:
    """Seconds of a step of each network, and of an image that is drawn and judged, or compared."""
    cells, size, chosen = material(settings).train, settings["image_size"], settings["classifier"]
    choices = {k: v for k, v in settings["trained"].items() if k in Recipe.__dataclass_fields__}
    recipe, names, found = Recipe(**choices), cells.class_names, {}
    with Reader(cells, size, recipe.batch_size, balance=True, drop_last=True) as reader:
        batch = reader[0]
    gan = recipe.build(size, len(names))
    found["generator_step"] = _seconds(lambda: gan.train_on_batch(*batch))
    image, body = keras.Input((size, size, 3)), network(size, len(names), chosen)
    change = augmentation("classical", 0)
    assert change is not None
    model = keras.Model(image, body(change(image)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=use_xla())
    part = [np.resize(np.asarray(x), (chosen["batch_size"], *np.shape(x)[1:])) for x in batch]
    found["classifier_step"] = _seconds(lambda: model.train_on_batch(*part))
    few = cells.subset(np.linspace(0, len(cells) - 1, min(len(cells), TIMED)).astype(int))
    images = few.read(size)
    kinds = predicted_logits(model, images).argmax(1)
    # all that are judged get as far as the search for copies, as cells of a good generator do
    easy = replace(learn_selector(body, few, few), surest=np.zeros(len(names)), farthest=np.inf)
    latents = np.zeros((len(few), recipe.latent_dim), np.float32)

    def select() -> None:
        generate_images(gan.trained_generator, latents, kinds)
        easy.judge(images, kinds)

    found["select_step"] = _seconds(select, 1, 2) / len(few)
    found["compare_step"] = _seconds(lambda: near_duplicates(easy.thumbnails), 1, 2) / len(few)
    return found


def _seconds(step: Callable[[], Any], warm: int = 2, timed: int = 5) -> float:
    for k in range(warm + timed):
        if k == warm:
            began = monotonic()
        step()
    return (monotonic() - began) / timed


TASKS: dict[str, Callable[..., dict]] = {
    "timing": timing_run,
    "generator": generator_run,
    "select": selection_run,
    "vary": variation_run,
    "classifier": classifier_run,
}


def main() -> None:
    """Do the runs that come as lines of JSON, answer each with one; end when no more can come."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the runs print is no answer
    jobs: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(1)  # the worker has ended, perhaps in the middle of a run

    threading.Thread(target=read, daemon=True).start()
    while True:
        job = json.loads(jobs.get())
        try:
            perform(**job)
            answer = {"done": job["name"]}
        except DataError as error:
            answer = {"refused": str(error)}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
