"""Phantom cells: blood cells drawn from a seed, with known truth.

They stand in for real images in tests and on a machine without data. They are modelled on the look
of a May-Grünwald-Giemsa smear, but every outline is drawn by formula: nobody should learn blood
cells from them, and their class names say what they are.

A pixel's colour comes from optical densities that add up (Beer–Lambert), as stains do: crossing red
cells grow darker, granules show through cytoplasm. A nucleus is one thick arc; how far it sweeps,
how thick it is and how deeply it is constricted tells the granulocytes apart, as in ripening:
myelocyte (round), metamyelocyte (indented), band (bent), segmented (constricted).
"""

import hashlib
import math
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cellaug.data.errors import DataError
from cellaug.data.images import write_atomically, write_png
from cellaug.data.scan import cache_home

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

_SMALLEST_CLASS = 12
# The white cell is drawn in a square frame of its own, in which lengths are radii of the cell,
# counted from the middle; the radius is this fraction of the frame.
_RADIUS = 0.32
_WAVES = 5  # of an outline's unevenness

Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """How cells of one class are drawn; ranges are drawn from uniformly for each cell.

    The cell's radius is a fraction of the image's side, all other lengths are fractions of that
    radius; colours are what a layer of the material leaves of white light (RGB 0–255).
    """

    name: str
    radius: Range = (0.215, 0.245)
    outline: float = 0.04  # unevenness of the cell's outline
    cytoplasm: tuple[int, int, int] = (222, 190, 205)
    nucleus: tuple[int, int, int] = (92, 58, 140)
    sweep: Range = (0.0, 0.0)  # how far the nucleus bends, radians
    bend: Range = (0.4, 0.5)  # radius of the arc it is bent to
    thickness: Range = (0.6, 0.7)  # half the width of the nucleus
    lobes: tuple[int, int] = (1, 1)
    constriction: Range = (0.0, 0.0)  # how much of the width is lost between lobes
    shift: Range = (0.0, 0.1)  # of the nucleus from the centre
    chromatin: float = 0.2  # strength of the nucleus's texture
    granules: tuple[int, int] = (0, 0)
    granule: tuple[int, int, int] = (190, 120, 160)
    granule_radius: float = 0.03
    granules_over_nucleus: bool = False
    vacuoles: tuple[int, int] = (0, 0)
    nucleoli: tuple[int, int] = (0, 0)


RECIPES = (
    Recipe(
        "segmented neutrophil",
        sweep=(3.2, 4.6),
        bend=(0.42, 0.5),
        thickness=(0.24, 0.29),
        lobes=(3, 5),
        constriction=(0.72, 0.85),
        granules=(90, 140),
        granule=(196, 150, 185),
        granule_radius=0.022,
    ),
    Recipe(
        "band neutrophil",
        sweep=(3.2, 4.6),
        bend=(0.42, 0.5),
        thickness=(0.2, 0.25),
        granules=(90, 140),
        granule=(196, 150, 185),
        granule_radius=0.022,
    ),
    Recipe(
        "eosinophil",
        cytoplasm=(228, 176, 176),
        sweep=(2.0, 2.8),
        bend=(0.42, 0.5),
        thickness=(0.32, 0.38),
        lobes=(2, 2),
        constriction=(0.7, 0.85),
        granules=(170, 230),
        granule=(200, 98, 88),
        granule_radius=0.055,
    ),
    Recipe(
        "lymphocyte",
        radius=(0.16, 0.19),
        outline=0.05,
        cytoplasm=(158, 172, 222),
        nucleus=(82, 52, 128),
        thickness=(0.8, 0.86),
        chromatin=0.28,
    ),
    Recipe(
        "monocyte",
        radius=(0.25, 0.285),
        outline=0.08,
        cytoplasm=(172, 172, 206),
        nucleus=(122, 84, 158),
        sweep=(1.9, 2.8),
        bend=(0.34, 0.42),
        thickness=(0.36, 0.44),
        chromatin=0.16,
        granules=(20, 50),
        granule_radius=0.016,
        vacuoles=(3, 9),
    ),
    Recipe(
        "basophil",
        radius=(0.19, 0.22),
        cytoplasm=(206, 176, 204),
        nucleus=(120, 88, 160),
        sweep=(1.4, 2.4),
        bend=(0.35, 0.45),
        thickness=(0.38, 0.45),
        lobes=(2, 3),
        constriction=(0.3, 0.5),
        granules=(90, 140),
        granule=(48, 26, 92),
        granule_radius=0.062,
        granules_over_nucleus=True,
    ),
    Recipe(
        "metamyelocyte",
        radius=(0.23, 0.26),
        cytoplasm=(212, 184, 208),
        nucleus=(100, 64, 146),
        sweep=(1.7, 2.3),
        bend=(0.42, 0.5),
        thickness=(0.33, 0.39),
        shift=(0.1, 0.2),
        granules=(90, 140),
        granule=(180, 130, 180),
        granule_radius=0.022,
    ),
    Recipe(
        "myelocyte",
        radius=(0.23, 0.26),
        cytoplasm=(204, 180, 208),
        nucleus=(104, 68, 150),
        sweep=(0.5, 1.0),
        bend=(0.3, 0.4),
        thickness=(0.5, 0.57),
        shift=(0.18, 0.28),
        granules=(110, 160),
        granule=(168, 116, 172),
        granule_radius=0.024,
    ),
    Recipe(
        "promyelocyte",
        radius=(0.26, 0.295),
        cytoplasm=(160, 152, 206),
        nucleus=(122, 80, 160),
        sweep=(0.2, 0.6),
        bend=(0.3, 0.4),
        thickness=(0.68, 0.74),
        shift=(0.1, 0.16),
        chromatin=0.12,
        granules=(100, 160),
        granule=(124, 48, 118),
        granule_radius=0.026,
        granules_over_nucleus=True,
        nucleoli=(1, 3),
    ),
    Recipe(
        "erythroblast",
        radius=(0.135, 0.165),
        cytoplasm=(184, 172, 196),
        nucleus=(62, 36, 98),
        thickness=(0.58, 0.66),
        shift=(0.05, 0.2),
        chromatin=0.35,
    ),
    Recipe(
        "platelet",
        radius=(0.055, 0.085),
        outline=0.14,
        cytoplasm=(176, 158, 206),
        thickness=(0.0, 0.0),
        granules=(18, 34),
        granule=(110, 60, 140),
        granule_radius=0.1,
    ),
)
"""The hand-made classes; the order is the order of the phantom's class names."""

VARIANTS = (("", 1.0), ("large ", 1.22), ("small ", 0.8))
"""Past the hand-made classes, the same ones again in other sizes (name, factor of the radius)."""


def class_names(classes: int) -> tuple[str, ...]:
    """Return the names of the first `classes` phantom classes; `DataError` beyond the last."""
    most = len(RECIPES) * len(VARIANTS)
    _check("classes", classes, 1, most)
    return tuple(
        f"phantom {VARIANTS[k // len(RECIPES)][0]}{RECIPES[k % len(RECIPES)].name}"
        for k in range(classes)
    )


def class_counts(classes: int, images: int, imbalance: float) -> list[int]:
    """Return how many images each class gets, falling from class to class.

    The first gets about `imbalance` times as many as the last, the others lie between (a geometric
    row); no class gets fewer than 12 while `images` allow.
    """
    weights = np.geomspace(imbalance, 1, classes)
    share = weights / weights.sum() * images
    smallest = min(_SMALLEST_CLASS, images // classes)
    if share[-1] < smallest:
        above = (weights - 1) / max((weights - 1).sum(), 1e-9)
        share = smallest + (images - smallest * classes) * above
    counts = np.floor(share).astype(int)
    for k in np.argsort(counts - share, kind="stable")[: images - counts.sum()]:
        counts[k] += 1
    return counts.tolist()


def phantom(
    classes: int = 11,
    images: int = 1320,
    size: int = 128,
    seed: int = 0,
    imbalance: float = 8.0,
) -> tuple[Path, tuple[str, ...], pd.DataFrame]:
    """Draw a set of phantom cells once, as PNG files under the cache home.

    `classes` (1–33), `images` in all, `size` in pixels (16–512), `imbalance` the largest class's
    number of images over the smallest's (1–1000). Returns the folder (one subfolder per class), the
    class names in order and the truth: one row per image with its `file`, `class`, `index` and
    everything that was drawn for it. Image i of a class is the same however many others there are.
    Raises `DataError` for an option out of range.
    """
    names = class_names(classes)
    _check("images", images, classes, 1_000_000)
    _check("size", size, 16, 512)
    _check("seed", seed, 0, 2**63)
    if not 1 <= imbalance <= 1000:
        raise DataError(f"phantom: imbalance must lie between 1 and 1000, not {imbalance!r}")
    # The drawing code is part of the key: after a change of it the cells are drawn anew.
    drawing = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    key = f"{classes} {images} {size} {seed} {float(imbalance)} {drawing} {cv2.__version__}"
    root = cache_home() / "phantom" / hashlib.sha256(key.encode()).hexdigest()[:16]
    truth_file = root.with_name(f"{root.name}.csv")
    if not (root.is_dir() and truth_file.is_file()):
        counts = class_counts(classes, images, float(imbalance))
        root.parent.mkdir(parents=True, exist_ok=True)
        _draw_all(names, counts, seed, size, root, truth_file)
    return root, names, pd.read_csv(truth_file, float_precision="round_trip")


def _check(option: str, value: int, low: int, high: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise DataError(
            f"phantom: {option} must be a whole number from {low} to {high}, not {value!r}"
        )


def _draw_all(names, counts, seed, size, root, truth_file) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    temporary.chmod(0o755)
    try:
        for name in names:
            (temporary / name).mkdir()

        def draw(job: tuple[int, int]) -> dict:
            k, index = job
            image, truth = draw_cell(k, np.random.default_rng([seed, k, index]), size)
            file = f"{names[k]}/{index:05d}.png"
            write_png(temporary / file, image)
            return {"file": file, "class": names[k], "index": index, **truth}

        jobs = [(k, index) for k, count in enumerate(counts) for index in range(count)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            drawn = pool.map(draw, jobs)
            bar = tqdm(drawn, "drawing cells", len(jobs), leave=False, delay=2, disable=None)
            rows = pd.DataFrame(list(bar))
        write_atomically(truth_file, rows.to_csv(index=False).encode())
        try:
            temporary.rename(root)
        except OSError:
            if not root.is_dir():  # else another process drew the same cells meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def draw_cell(kind: int, rng: np.random.Generator, size: int) -> tuple[np.ndarray, dict]:
    """Draw one cell of class number `kind`: a uint8 RGB image (size, size, 3) and its truth.

    The truth names what was drawn: the cell's radius and place (fractions of the image's side), the
    nucleus's area over the cell's, its lobes, sweep (radians) and constriction, the numbers of
    granules, vacuoles and red cells, the stain's strength and tint and the light.
    """
    recipe = RECIPES[kind % len(RECIPES)]
    radius = rng.uniform(*recipe.radius) * VARIANTS[kind // len(RECIPES)][1]
    centre = 0.5 + rng.uniform(-0.045, 0.045, 2)
    stain = _Stain(rng)
    side = 2 * size  # drawn larger, then averaged; edges are smooth already
    density = np.zeros((side, side, 3), np.float32)
    red_cells = _red_cells(density, rng, centre, radius, stain)
    drawn = _white_cell(density, rng, recipe, centre, radius, stain)
    image = cv2.resize(np.exp(-density), (size, size), interpolation=cv2.INTER_AREA)

    light, tilt = rng.uniform(0.95, 1.02), rng.uniform(-0.05, 0.05, 2)
    ys, xs = np.mgrid[0:size, 0:size] / size - 0.5
    shade = light * (1 - 0.12 * (xs**2 + ys**2) + tilt[0] * xs + tilt[1] * ys)
    image = image * stain.background * shade[..., None]
    image += rng.normal(0, 1.6, (size, size, 1)) + rng.normal(0, 0.9, (size, size, 3))
    truth = {
        "radius": radius,
        "x": centre[0],
        "y": centre[1],
        **drawn,
        "red_cells": red_cells,
        "stain": stain.strength,
        "tint": stain.tint,
        "light": light,
    }
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), truth


class _Stain:
    """How strongly and in what tint one slide came out."""

    def __init__(self, rng: np.random.Generator):
        self.strength = rng.uniform(0.85, 1.2)
        # one slide in thirty is bluish, like the odd group in the real set
        self.tint = rng.uniform(0.8, 1.0) if rng.random() < 1 / 30 else rng.uniform(-0.15, 0.15)
        warm, blue = np.array([252, 232, 208]), np.array([214, 216, 236])
        mix = max(self.tint, 0.0)
        self.background = warm * (1 - mix) + blue * mix + rng.normal(0, 1.5, 3)
        self._shift = np.array([0.15, 0.0, -0.15]) * self.tint + rng.normal(0, 0.04, 3)

    def density(self, colour: tuple[int, int, int]) -> np.ndarray:
        """Return the optical density (3,) of a material that leaves `colour` of white light."""
        bare = -np.log(np.array(colour) / 255)
        return np.maximum((bare + self._shift * bare.mean()) * self.strength, 0).astype(np.float32)


def _red_cells(density, rng, centre, radius, stain) -> int:
    """Scatter red cells around the white one; return their number."""
    colour = stain.density(tuple(np.array([206, 170, 168]) + rng.integers(-8, 9, 3)))
    pallor = rng.uniform(0.35, 0.85)
    crowding = rng.uniform(0.0, 0.4)  # how far red cells may lie over each other
    usual = rng.uniform(0.105, 0.13)
    placed: list[tuple[list[float], float]] = []
    for _ in range(rng.integers(25, 60)):
        place, own = rng.uniform(-0.12, 1.12, 2).tolist(), usual * rng.uniform(0.9, 1.1)
        turn, flatness = rng.uniform(0, np.pi), rng.uniform(0.82, 1.0)
        waves = rng.normal(size=(2, _WAVES))
        if math.dist(place, centre) < radius + 0.85 * own:
            continue
        if any(math.dist(place, p) < (own + o) * (1 - crowding) for p, o in placed):
            continue
        placed.append((place, own))
        frame = round(2.6 * own * len(density))
        mask = _blob(frame, 1 / 2.6, waves, 0.012, turn, flatness)
        along = (np.arange(frame, dtype=np.float32) + 0.5) / frame * 2.6 - 1.3
        distance = np.hypot(along, along[:, None])
        profile = 1 - pallor * np.exp(-((distance / 0.48) ** 4))
        profile += 0.15 * np.exp(-(((distance - 0.85) / 0.12) ** 2))
        here, there = _overlap(len(density), place, frame)
        density[here] += (mask * profile)[there][..., None] * colour
    return len(placed)


def _white_cell(density, rng, recipe, centre, radius, stain) -> dict:
    """Draw the white cell in a square frame of its own and lay that over the image."""
    frame = round(radius / _RADIUS * len(density))
    waves = rng.normal(size=(2, _WAVES))
    warp = _warp(frame, rng, 0.035 * _RADIUS)
    cell = _blob(frame, _RADIUS, waves, recipe.outline, rng.uniform(0, np.pi), 0.95)
    cell = cv2.remap(cell, *warp, cv2.INTER_LINEAR)
    nucleus, drawn = _nucleus(frame, rng, recipe)
    nucleus = cv2.remap(nucleus, *warp, cv2.INTER_LINEAR) * cell

    cloud = _noise(frame, rng, 0.25)
    rim = cell * (1 - _soften(cell, 0.1)) * 2
    body = cell * (1 + 0.12 * cloud) + 0.5 * rim
    layer = body[..., None] * stain.density(recipe.cytoplasm)

    vacuoles = _whole(rng, recipe.vacuoles)
    holes = _dots(frame, rng, 1.0, vacuoles, 0.07) * (1 - 0.7 * nucleus)
    layer *= (1 - 0.8 * _soften(holes, 0.02))[..., None]

    texture = 0.65 * _noise(frame, rng, 0.13) + 0.35 * _noise(frame, rng, 0.06)
    body = nucleus * (1 + recipe.chromatin * texture + 0.25 * (1 - _soften(nucleus, 0.08)))
    pale = _dots(frame, rng, 0.5, _whole(rng, recipe.nucleoli), 0.2)
    body *= 1 - 0.3 * _soften(pale, 0.04)
    layer *= (1 - 0.6 * nucleus)[..., None]
    layer += body[..., None] * stain.density(recipe.nucleus)

    granules = _whole(rng, recipe.granules)
    dots = _dots(frame, rng, 0.93, granules, recipe.granule_radius)
    dots = _soften(dots, 0.4 * recipe.granule_radius) * cell
    dots *= 1 - (0.35 if recipe.granules_over_nucleus else 0.92) * nucleus
    layer += dots[..., None] * (0.75 * stain.density(recipe.granule))

    here, there = _overlap(len(density), centre, frame)
    # the cell pushes red cells aside: nothing of them is seen through it
    density[here] *= (1 - cell)[there][..., None]
    density[here] += layer[there]
    fraction = float(nucleus.sum() / cell.sum())
    return {"nucleus_fraction": fraction, **drawn, "granules": granules, "vacuoles": vacuoles}


def _nucleus(frame, rng, recipe) -> tuple[np.ndarray, dict]:
    """Draw the nucleus as discs along an arc, thinner between lobes."""
    sweep, bend = rng.uniform(*recipe.sweep), rng.uniform(*recipe.bend)
    thickness, lobes = rng.uniform(*recipe.thickness), _whole(rng, recipe.lobes)
    constriction = rng.uniform(*recipe.constriction)
    turn, shift = rng.uniform(0, 2 * np.pi), rng.uniform(*recipe.shift)
    uneven = rng.uniform(0.85, 1.1, lobes)
    mask = np.zeros((frame, frame), np.uint8)
    if thickness > 0:
        along = np.linspace(0, 1, 61)
        angles = turn + (along - 0.5) * sweep
        spine = bend * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        spine += shift * np.array([np.cos(turn), np.sin(turn)]) - 0.75 * spine.mean(axis=0)
        # the bulge is 1 in the middle of each lobe and 0 between two (and at the ends)
        bulge = 0.5 - 0.5 * np.cos(2 * np.pi * lobes * along)
        widths = thickness * (1 - constriction * (1 - bulge) ** 0.7)
        widths *= np.repeat(uneven, -(-len(along) // lobes))[: len(along)]
        for (x, y), width in zip(spine.tolist(), widths.tolist(), strict=True):
            _disc(mask, x, y, width)
    drawn = {"lobes": lobes if thickness > 0 else 0, "sweep": sweep, "constriction": constriction}
    return _soften(mask.astype(np.float32) / 255, 0.02), drawn


def _whole(rng: np.random.Generator, ends: tuple[int, int]) -> int:
    return int(rng.integers(ends[0], ends[1] + 1))


def _overlap(side: int, place: np.ndarray, frame: int) -> tuple[tuple, tuple]:
    """Return where a frame centred at `place` (x, y) meets an image: slices of image and frame."""
    here, there = [], []
    for middle in place[::-1]:
        start = round(middle * side - frame / 2)
        low, high = max(start, 0), max(min(start + frame, side), 0)
        here.append(slice(low, high))
        there.append(slice(low - start, high - start))
    return tuple(here), tuple(there)


def _disc(mask: np.ndarray, x: float, y: float, radius: float) -> None:
    """Fill a disc, to a sixteenth of a pixel."""
    scale = len(mask) * 16
    place = tuple(round((0.5 + _RADIUS * value) * scale) for value in (x, y))
    cv2.circle(mask, place, round(_RADIUS * radius * scale), 255, cv2.FILLED, cv2.LINE_AA, 4)


def _dots(frame, rng, reach, count, size) -> np.ndarray:
    """Return `count` discs of radius about `size` at random places within `reach`."""
    mask = np.zeros((frame, frame), np.uint8)
    distances, angles = reach * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    xs, ys, sizes = (
        distances * np.cos(angles),
        distances * np.sin(angles),
        rng.uniform(0.7, 1.3, count),
    )
    for x, y, own in zip(xs.tolist(), ys.tolist(), (size * sizes).tolist(), strict=True):
        _disc(mask, x, y, own)
    return mask.astype(np.float32) / 255


def _blob(frame, radius, waves, uneven, turn, flatness) -> np.ndarray:
    """Return a filled, slightly uneven ellipse (its radius a fraction of the frame), 0 to 1."""
    angles = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    reach = np.ones_like(angles)
    for wave, (cosine, sine) in enumerate(waves.T, start=2):
        reach += uneven / wave * (cosine * np.cos(wave * angles) + sine * np.sin(wave * angles))
    x, y = radius * reach * np.cos(angles), radius * flatness * reach * np.sin(angles)
    points = np.stack(
        [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1
    )
    mask = np.zeros((frame, frame), np.uint8)
    corners = np.rint((points + 0.5) * frame * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _soften(mask: np.ndarray, width: float) -> np.ndarray:
    """Blur with a Gaussian of this standard deviation."""
    return cv2.GaussianBlur(mask, (0, 0), max(width * _RADIUS * len(mask), 0.5))


def _noise(frame: int, rng: np.random.Generator, grain: float) -> np.ndarray:
    """Return smooth noise (mean 0, deviation about 1)."""
    cells = max(4, round(1 / (grain * _RADIUS)))
    rough = rng.normal(0, 1.3, (cells, cells)).astype(np.float32)
    return cv2.resize(rough, (frame, frame), interpolation=cv2.INTER_CUBIC)


def _warp(frame: int, rng: np.random.Generator, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth random displacement of all pixels, as `cv2.remap` wants it."""
    ys, xs = np.mgrid[0:frame, 0:frame].astype(np.float32)
    scale = np.float32(reach * frame)
    return xs + scale * _noise(frame, rng, 0.5), ys + scale * _noise(frame, rng, 0.5)
