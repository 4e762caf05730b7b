"""Sets of generated cells: alone, or beside the real ones of a training set."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellaug.data import DataError, Dataset
from cellaug.data.class_map import drawn_as
from cellaug.data.export import export
from cellaug.data.images import fit_square, write_png
from cellaug.data.sets import MANIFEST, SMALLEST_SIDE
from cellaug.files import atomic_folder, inside, new_folder, progress, require_room
from cellaug.generators import CREDIT, Generator, Labels

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from cellaug.evaluation.selection import Selector

ORIGINAL = "original"  # the size that leaves real images as they are
JUDGED = "selection.csv"  # every image that was judged, and why it was refused
SECONDS_PER_PIXEL = 3e-7  # that drawing an image takes on two cores, measured at 64 to 256 pixels
TRIES = 4  # images drawn for each one that a selection is to keep, at most


def generate(
    generator: Generator, labels: Labels, count: int, out: str | Path, seed: int = 0,
    selector: "Selector | None" = None,
) -> pd.DataFrame:  # fmt: skip
    """Write `count` images of each label: `synthetic_<label>_<seed>_<index>.png`; and a manifest.

    Returns the manifest: path, label ("cell" without classes), origin, generator, seed, index. A
    row's image is `generator.generate(label, index + 1, seed=(seed, class number))[index]`, without
    classes `generator.generate(None, index + 1, seed)[index]`; every file holds the same facts (see
    `_draw_files`). A `selector` keeps the good ones, as for `augment`. Raises DataError where `out`
    holds files already, and as `Generator.generate`.
    """
    out = new_folder(out)
    if count < 1:
        raise DataError(f"count: expected at least 1, got {count}")
    numbers = generator.numbers(labels)
    names = ["cell"] if numbers is None else [generator.class_names[k] for k in numbers]
    wanted, stems = dict.fromkeys(names, count), {}
    for name in wanted:  # short, without what file systems do not take, and each another one
        stems[name] = re.sub(r"[^\w.-]+", "-", name)[:50].lstrip(".")
        while [x.casefold() for x in stems.values()].count(stems[name].casefold()) > 1:
            stems[name] += "-2"
    stems = {name: f"synthetic_{stem}" for name, stem in stems.items()}
    require_room(out, generator.image_size**2 * len(wanted) * count, "the set of images")
    with atomic_folder(out) as part:
        made = _draw_files(generator, wanted, seed, part, stems, selector=selector)
        _describe(part, made, generator.credit)
    return made


def augment(
    dataset: Dataset, generator: Generator, ratio: float, out: str | Path, seed: int = 0,
    size: int | str | None = None, class_map: Mapping[str, str] | None = None, *,
    fill: int | None = None, only: Collection[str] = (), selector: "Selector | None" = None,
    counts: pd.Series | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Write a training set: the real images of a set, and generated ones beside them.

    Every class folder gets `ratio` times its number of real training images, rounded up (the
    thesis: 0.5), or, with `fill`, as many as it lacks of that number; of a set with a published
    split only its training images count; `counts` gives other numbers by class to go by. `only`
    names the classes that get some, by default all.
    `class_map` gives the generator's class for a class of the set that is called differently, or
    "leave" for one that gets no generated images. A `selector` (`evaluation.selection`) keeps the
    good ones of up to `TRIES` as many; `selection.csv` lists all that it judged.

    All images get `size` pixels a side, by default the generator's, because a difference in
    sharpness would tell real from generated ones: real images of that size are copied byte for
    byte, others cropped, resized and written as PNG (`cellaug.data.export`). The size "original"
    copies all; their sharpness then shows their origin.

    Returns the `manifest.csv`, by which it also opens: path, label and origin (real or synthetic);
    of a real image its path in the data set (source), split, group, ...; of a synthetic one
    generator, seed and index (see `generate`; the numbers that are missing were refused), the split
    "train" if others have one, no group, and generator_class if the map names one. Raises DataError
    for a place, class or map that does not fit, generated images, and a changed image.
    """
    out, root = check_order(generator, ratio, out, size), dataset.root
    if unknown := ", ".join(sorted(set(only) - set(dataset.class_names))):
        raise DataError(f"{root} has no class {unknown}: {', '.join(dataset.class_names)}")
    named = [name for name in dataset.class_names if name in only] if only else dataset.class_names
    if generated := dataset.origins():
        raise DataError(f"{root} already holds generated images ({generated}): augment real ones")
    others = set(dataset.class_names) - set(named)  # which a map may name too
    mapped = {theirs: own for theirs, own in (class_map or {}).items() if theirs not in others}
    ours = drawn_as(named, generator.class_names, mapped)
    if out.is_relative_to(root.resolve()):
        raise DataError(f"{out} lies inside the data set {root}: choose a place beside it")
    if counts is None:
        counts = dataset.subset(dataset.table["side"].isin(["", "train"])).counts()
    extra = {name: math.ceil(Fraction(str(ratio)) * int(counts[name])) for name in ours}
    if fill is not None:
        extra = {name: max(0, fill - int(counts[name])) for name in ours}
    pixels = None if size == ORIGINAL else int(size or generator.image_size)
    room = (pixels or generator.image_size) ** 2 * sum(extra.values())
    require_room(out, room + (pixels or 0) ** 2 * len(dataset), "the set of images")
    with atomic_folder(out) as part:
        _ = generator.model  # if it is damaged, this says so before anything is copied
        real = export(dataset, part, pixels)
        stems = {name: f"{name}/synthetic" for name in extra}
        made = _draw_files(generator, extra, seed, part, stems, ours, pixels or 0, selector)
        if "split" in real:
            made["split"] = "train"
        manifest = pd.concat([real, made], ignore_index=True)
        manifest = manifest.astype({"seed": "Int64", "index": "Int64"})
        _describe(part, manifest, dataset.credit, generator.credit)
    return manifest


def read_advice(folder: Path) -> dict[str, Any]:
    """What an advice of `cellaug advise` says to add: ratio or fill, select; how to train (words).

    DataError where it advises against, or where the folder holds none.
    """
    file = folder / "advice.json"
    try:
        advice = json.loads(file.read_text("utf-8"))
        augment, why, order = advice["augment"], advice["because"], advice.get("order", {})
        told = {key: order.get(key) for key in ("ratio", "fill", "select")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: expected what 'cellaug advise' writes ({error})") from error
    if not augment:
        how = "To add some all the same, give a generator with --generator DIR"
        raise DataError(f"{folder} advises against generated cells: {why}. {how}")
    return told | {"select": bool(told["select"]), "train": advice.get("train", "")}


def check_order(
    generator: Generator, ratio: float, out: str | Path, size: int | str | None = None
) -> Path:
    """Look at what `augment` is asked for, before a set is opened; returns the folder `out`."""
    out = new_folder(out)
    if not 0 <= ratio < math.inf:
        raise DataError(f"ratio: expected a number from 0 up, such as 0.5 for half, got {ratio}")
    if size not in (None, ORIGINAL) and not (isinstance(size, int) and size >= SMALLEST_SIDE):
        raise DataError(f"size: expected pixels from {SMALLEST_SIDE} on, or original, got {size}")
    if not generator.conditional:
        raise DataError("this generator draws no classes, no label to train on: give another one")
    return out


def _draw_files(
    generator: Generator, wanted: dict[str, int], seed: int, folder: Path, stems: dict[str, str],
    classes: Mapping[str, str] | None = None, size: int = 0, selector: "Selector | None" = None,
) -> pd.DataFrame:  # fmt: skip
    """Write images as `<stem of the class>_<seed>_<index>.png`; returns their rows of a manifest.

    The text "cellaug" of each file is a JSON object of its generator, class, seed and index.
    """
    rows, judged = [], list[pd.DataFrame]()
    ours = {label: (classes or {}).get(label, label) for label in wanted}
    totals: Counter[str] = Counter()
    for label, count in wanted.items():
        totals[ours[label]] += count * (TRIES if selector else 1)
    streams = {x: enumerate(_stream(generator, x, total, seed)) for x, total in totals.items()}
    for label, count in wanted.items():
        # classes that are drawn as the same one go on in its images, so that they share none
        chosen = _chosen(streams[ours[label]], label, count, selector, judged)
        for index, image in progress(chosen, f"generating {label}", total=count):
            place = inside(folder, f"{stems[label]}_{seed}_{index:05d}.png")
            path = place.relative_to(folder).as_posix()
            if place.exists():
                raise DataError(f"the data set has an image {path}: choose another seed")
            facts = {"generator": generator.source, "class": label, "seed": seed, "index": index}
            if ours[label] != label:
                facts["generator_class"] = ours[label]
            fitted = image if size in (0, len(image)) else fit_square(image, size)
            write_png(place, fitted, cellaug=json.dumps(facts))
            rows.append({"path": path, "origin": "synthetic", **facts})
    if judged:
        table = pd.concat(judged)
        table = table.assign(generator_class=table["label"].map(ours))
        table.to_csv(folder / JUDGED, index=False)
    columns = ["path", "class", "origin", "generator", "seed", "index"]
    columns += ["generator_class"] * any(x != label for label, x in ours.items())
    return pd.DataFrame(rows, columns=columns).rename(columns={"class": "label"})


def _chosen(
    stream: Iterator[tuple[int, np.ndarray]], label: str, count: int, selector: "Selector | None",
    judged: list[pd.DataFrame],
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """The next `count` images of a stream, or those that a selector keeps of `TRIES` as many.

    What it judged is appended to `judged`: label, index and the columns of `Selector.judge`.
    """
    if selector is None:
        yield from islice(stream, count)
    elif count:
        drawn = list(islice(stream, TRIES * count))
        images = np.stack([image for _, image in drawn])
        kept, found = selector.choose(images, selector.number(label), count)
        found.insert(0, "index", [index for index, _ in drawn[: len(found)]])
        found.insert(0, "label", label)
        judged.append(found)
        yield from (drawn[k] for k in kept)


def selection(folder: str | Path) -> pd.DataFrame:
    """How many images a selection kept and refused, by class (index) and reason (columns)."""
    from cellaug.evaluation.selection import refused

    judged = _judged(folder)
    return refused(judged, judged["label"])


def _judged(folder: str | Path) -> pd.DataFrame:
    kinds = {"label": str, "generator_class": str}  # a class may be called 0
    return pd.read_csv(Path(folder) / JUDGED, keep_default_na=False, dtype=kinds)


def refused_images(
    folder: str | Path, generator: Generator, seed: int, each: int = 8
) -> dict[str, np.ndarray]:
    """The first images that were refused for each reason, uint8 (N, S, S, 3), drawn again."""
    from cellaug.evaluation.selection import REASONS

    judged = _judged(folder)
    found = {}
    for reason, rows in judged[judged["reason"] != ""].groupby("reason"):
        images, drawn = [], rows[["generator_class", "index"]].head(each)
        for label, index in drawn.itertuples(index=False, name=None):
            stream = _stream(generator, label, index + 1, seed)
            images.append(next(islice(stream, index, None)))
        found[REASONS[str(reason)]] = np.stack(images)
    return found


def _stream(generator: Generator, label: str, count: int, seed: int) -> Iterator[np.ndarray]:
    """Images of one class: each has its own random stream, so that none depends on the others."""
    if not generator.conditional:
        return generator.draw(None, count, seed)
    number = generator.class_names.index(label)
    return generator.draw(np.full(count, number), count, (seed, number))


def _describe(folder: Path, manifest: pd.DataFrame, *credits: str) -> None:
    manifest.to_csv(folder / MANIFEST, index=False, errors="surrogateescape")
    if lines := dict.fromkeys(filter(None, credits)):
        (folder / CREDIT).write_text("\n".join(lines) + "\n", "utf-8")
