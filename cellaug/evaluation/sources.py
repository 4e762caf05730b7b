"""Read the images of an evaluation, match their classes, and keep real and generated ones apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cellaug.data import Dataset, open_dataset
from cellaug.data.class_map import alike
from cellaug.data.copies import SURE, THUMBNAIL, near_duplicates
from cellaug.data.dataset import digest_numbers, printable
from cellaug.data.images import decode, fit_square
from cellaug.data.published import BY_NAME
from cellaug.data.sets import told
from cellaug.errors import DataError
from cellaug.evaluation.distances import reduced
from cellaug.evaluation.features import pixels
from cellaug.evaluation.measures import views
from cellaug.evaluation.memorisation import nearest_training
from cellaug.evaluation.scorecard import ROWS, scorecard, tidy
from cellaug.files import progress, write_json
from cellaug.generators import CARD, SHIPPED, Generator, read_generator, shipped_generators

import cv2
import numpy as np

NAMED = 3  # images that a message names
# Two images show the same cell if their grey levels at 16 pixels differ by less (root mean square,
# of eight turns the nearest); two cells of 2,500 of PBC differ by 12 or more. So many are refused.
SAME_CELL, MOST_SAME = 4, 0.05
LOOKED_AT = 200, 2000  # generated and real images among which turned and cropped ones are sought


def read_generated(
    source: str | Path,
    wanted: Mapping[str, int],
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Generated images in memory, unlabelled if their generator knows no classes.

    `source` is a generator's folder or name, an output of `cellaug generate` or `augment` (only its
    generated images are read), or what `open_dataset` opens. A generator draws the images of
    `cellaug generate` with that seed: `wanted` by class name (without classes their sum), or
    `count` of each class. `size` is pixels a side, by default the generator's or the first image's.

    Raises DataError for no generated images, and a generator that knows no class of `wanted`.
    """
    folder = Path(source).expanduser()
    if generator := _generator(folder):
        return _drawn(folder, generator, wanted, size, count, seed)
    if not folder.exists() and str(source) not in BY_NAME:
        known = f"the name of one that comes with cellaug: {', '.join(shipped_generators())}"
        give = f"Give generated images, a generator directory, or {known}"
        raise DataError(f"{source}: no such folder or manifest. {give}")
    cells = open_dataset(source)
    if (made := cells.table["origin"] == "synthetic").any():
        cells = cells.subset(made)
    elif (real := (listed := told(cells.root, cells.table["path"]))["origin"] == "real").any():
        by = listed["by"][int(real.argmax())]
        raise DataError(f"{by}: it lists no image of the origin synthetic")
    if size is None:
        size = cells.store.size if cells.store else min(decode(cells.paths[0])[0].shape[:2])
    return cells.in_memory(size)


def _generator(folder: Path) -> Generator | None:
    shipped = not folder.exists() and str(folder) in shipped_generators()
    return read_generator(folder) if shipped or (folder / CARD).is_file() else None


def training_digests(source: str | Path) -> np.ndarray | None:
    """The first 8 bytes of the SHA-256 of each image that a generator was trained on, uint64 (N,).

    They are big-endian numbers. None for what is no generator, or one that does not say.
    """
    return getattr(_generator(Path(source).expanduser()), "trained_on", None)


def keep_finding(source: str | Path, found: Mapping[str, Any]) -> str:
    """Write a finding (`Fidelity.card`) on the card of a generator of one's own; a sentence on it.

    `Generator.caution` reads it. "" for what is no generator, or comes with the package.
    """
    file = Path(source).expanduser() / CARD
    if not file.is_file() or file.resolve().is_relative_to(SHIPPED):
        return ""
    rows = tidy(found["table"]).set_index(["level", "measure"])
    frechet = rows.loc[("overall", "frechet")]
    card = json.loads(file.read_text("utf-8"))
    said = f"kept in {file}: augment warns where these images are far from real ones"
    if frechet["reason"] or not frechet["ratio"] > 0:
        why = frechet["reason"] or "there is none between real images"
        said = f"the Fréchet distance was not judged ({why}), so {file} keeps only the rest"
        if "fidelity" in card:  # of a comparison that may have judged it
            return said.replace("only the rest", "what it held")
        judged = scorecard(found["table"])
        missed = ", ".join(ROWS[name] for name in judged.index[judged["met"].eq(False)].unique())
        found = {**found, "missed": missed}
    write_json(file, card | {"fidelity": found})
    return said


def refuse_generated(dataset: Dataset) -> None:
    """Raise DataError if a set that should be real holds generated images."""
    if made := dataset.origins():
        give = "give real ones only, such as the set that it was made from"
        place = dataset.root if dataset.table["path"].ne("").any() else dataset.name
        raise DataError(f"{place} holds generated images ({made}): {give}")


def separated(
    sets: Mapping[str, Dataset], size: int, trained_on: np.ndarray | None = None
) -> tuple[dict[str, Dataset], dict[str, str], list[str]]:
    """The sets of an evaluation in memory, kept apart: real, generated and perhaps reference.

    Classes whose names are `alike` get the name among the real ones. Real images
    that are training images too, by their pixels at this `size` or by `trained_on` (see
    `training_digests`), are left out. Returns the sets, what was left out and why, and notes.
    Raises DataError for real images without classes, generated images among the real ones, real
    images among the generated ones, and if no real image is left.
    """
    real = sets["real"]
    if real.unlabelled:
        raise DataError(f"{real.name}: the real images have no classes; give them labels")
    found, notes = {}, []
    for role, cells in sets.items():
        if role != "generated":
            refuse_generated(cells)
        same = {} if cells.unlabelled else alike(cells.class_names, real.class_names)
        if changed := {old: new for old, new in same.items() if old != new}:
            column = cells.table["class"].cat.rename_categories(changed)
            names = tuple(column.cat.categories)
            cells = replace(cells, class_names=names, table=cells.table.assign(**{"class": column}))
            pairs = ", ".join(f"{old} as {new}" for old, new in changed.items())
            notes.append(f"{cells.name}: classes were matched by similar names: {pairs}.")
        found[role] = cells.in_memory(size)
    notes += _refuse_real(found["real"], found["generated"])
    known = _first(found["reference"]) if "reference" in found else {}
    seen = [image.tobytes() in known for image in pixels(found["real"])]
    numbers = digest_numbers(real.digests)
    shared = np.array(seen) | np.isin(
        numbers, np.array(() if trained_on is None else trained_on, "u8")
    )
    left_out = {}
    if shared.any():
        which = _listed([_name(real, k) for k in np.flatnonzero(shared).tolist()])
        what = f"{shared.sum():,} of the {len(real):,} real images of {real.name}"
        if shared.all():
            other = "compare with images that the generator was not trained on"
            raise DataError(f"{what} are among the training images too ({which}): {other}")
        left_out[what] = f"they are training images of the generator ({which})"
        found["real"] = found["real"].subset(~shared)
    return found, left_out, notes


def suggestion(name: str, others: Sequence[str]) -> str:
    """A question whether a class is one of the other set's, to put behind a reason, or ""."""
    looks = {other.casefold(): other for other in others}
    near = get_close_matches(name.casefold(), looks, 1)
    return f"; is it their class '{looks[near[0]]}'? Then give both the same name" if near else ""


def _refuse_real(real: Dataset, fake: Dataset) -> list[str]:
    """Raise DataError for real images among generated ones; a sentence if only a few are alike."""
    known = _first(real)
    content = [image.tobytes() for image in pixels(fake)]
    if pairs := [(known[each], k) for k, each in enumerate(content) if each in known]:
        which = _listed([f"{_name(fake, k)} is {_name(real, own)}" for own, k in pairs])
        same = f"{len(pairs):,} of the {len(fake):,} generated images of {fake.name} are real"
        give = "give images that a generator drew"
        raise DataError(f"{same} images of {real.name}, pixel by pixel ({which}): {give}")
    small = [np.stack([fit_square(image, 16) for image in pixels(cells)]) for cells in (fake, real)]
    rows = [reduced(images) / np.sqrt(3) / 16 for images in small]
    own, near, _ = nearest_training(rows[0], rows[1], 1, views)
    if not (same_cell := near < SAME_CELL).any():
        return _turned_or_cropped(real, fake)
    same_cells = np.flatnonzero(same_cell).tolist()
    which = _listed([f"{_name(fake, k)} is {_name(real, int(own[k]))}" for k in same_cells])
    what = (
        f"{len(same_cells):,} of the {len(fake):,} generated images of {fake.name} are real images "
    )
    what += f"of {real.name}, at most mirrored, turned or changed by a few grey levels"
    return _said_of(f"{what} ({which})", same_cell.mean())


def _turned_or_cropped(real: Dataset, fake: Dataset) -> list[str]:
    """The same for turned, shifted and cropped real images, looked for in a part of both sets."""
    rng, chosen = np.random.default_rng(0), []
    for cells, most in ((fake, LOOKED_AT[0]), (real, LOOKED_AT[1])):
        chosen.append(np.sort(rng.permutation(len(cells))[:most]))
    images = (pixels(cells.subset(rows)) for cells, rows in zip((fake, real), chosen, strict=True))
    grey = [cv2.cvtColor(fit_square(image, THUMBNAIL), cv2.COLOR_RGB2GRAY)
            for part in images for image in part]  # fmt: skip
    pairs, many = near_duplicates(np.stack(grey)), len(chosen[0])
    pairs = pairs[(pairs["first"] < many) & (pairs["second"] >= many)]
    pairs = pairs[pairs["likeness"] >= SURE].drop_duplicates("first")
    if pairs.empty:
        return []
    both = zip(chosen[0][pairs["first"]], chosen[1][pairs["second"] - many], strict=True)
    which = _listed([f"{_name(fake, int(k))} of {_name(real, int(own))}" for k, own in both])
    what = f"{len(pairs):,} of {many:,} generated images of {fake.name} show the same as one of "
    what += f"{len(chosen[1]):,} real images of {real.name}, turned, shifted or cropped ({which})"
    return _said_of(what, len(pairs) / many)


def _said_of(what: str, share: float) -> list[str]:
    """A note on generated images that are real ones; DataError if their share is too large."""
    if share > MOST_SAME:
        raise DataError(f"{what}: give images that a generator drew, and real ones it has not seen")
    return [f"{what}."]


def _first(cells: Dataset) -> dict[bytes, int]:
    """By its pixels the number of each image."""
    return {image.tobytes(): k for k, image in enumerate(pixels(cells))}


def _name(cells: Dataset, number: int) -> str:
    return printable(cells.table["path"].iloc[number]) or f"image {number}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:NAMED], *["…"] * (len(names) > NAMED)])


def _drawn(
    folder: Path,
    generator: Generator,
    wanted: Mapping[str, int],
    size: int | None,
    count: int | None,
    seed: int,
) -> Dataset:
    same = alike(generator.class_names, wanted)
    names = [name for name in generator.class_names if same[name] in wanted]
    names.sort(key=lambda name: [*wanted].index(same[name]))
    if not generator.conditional:
        images, labels = generator.generate(None, count or sum(wanted.values()), seed), None
    elif names:
        many = [count or wanted[same[name]] for name in names]
        seeds = [(seed, generator.class_names.index(name)) for name in names]
        drawn = map(generator.generate, progress(names, "generating"), many, seeds)
        images, labels = np.concatenate(list(drawn)), np.repeat(np.arange(len(names)), many)
    else:
        none = f"the generator knows none of the classes {', '.join(wanted)}"
        raise DataError(f"{folder}: {none}; its classes are {', '.join(generator.class_names)}")
    more = {"credit": generator.credit, "origin": "synthetic"}
    cells = Dataset.of_images(images, labels, names, folder.name, **more)
    cells = cells.in_memory(size or generator.image_size)
    return replace(cells, table=cells.table.assign(generator=generator.source, seed=seed))
