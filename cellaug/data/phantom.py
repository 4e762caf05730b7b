"""Phantom cells: blood cells drawn from a seed, with known truth, where there are no real ones.

`phantom.yaml` describes each class. A pixel's colour comes from optical densities that add up
(Beer–Lambert), as stains do. A nucleus is one thick arc.
"""

import hashlib
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cellaug.data.images import write_png
from cellaug.errors import DataError
from cellaug.files import cache_home, progress, write_atomically

import cv2
import numpy as np
import pandas as pd
import yaml

_RADIUS = 0.32  # of the white cell in the square frame it is drawn in; there, lengths are radii
_SOURCES = (Path(__file__), Path(__file__).with_name("phantom.yaml"))
_DRAWING = yaml.safe_load(_SOURCES[1].read_text("utf-8"))
RECIPES = {name: _DRAWING["defaults"] | own for name, own in _DRAWING["classes"].items()}
"""How cells of each class are drawn; `phantom.yaml` explains the entries."""
VARIANTS: dict[str, float] = _DRAWING["variants"]  # prefix of a class name, factor of the radius
LABORATORIES = _DRAWING["laboratories"]
"""How a laboratory stains, lights and magnifies; the second is as a stranger to the first."""


def class_names(classes: int) -> tuple[str, ...]:
    """Return the names of the first `classes` phantom classes; `DataError` beyond the last."""
    names = [f"phantom {size}{name}" for size in VARIANTS for name in RECIPES]
    _check("classes", classes, 1, len(names))
    return tuple(names[:classes])


def class_counts(classes: int, images: int, imbalance: float) -> list[int]:
    """Images per class, geometric by `imbalance` in all, or less if the last got under 12."""
    weights = np.geomspace(imbalance, 1, classes)
    wanted = weights / weights.sum() * images
    smallest = min(12, images // classes)
    if wanted[-1] < smallest:
        above = (weights - 1) / max((weights - 1).sum(), 1e-9)
        wanted = smallest + (images - smallest * classes) * above
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: images - counts.sum()]] += 1
    return counts.tolist()


def phantom(
    classes: int = 11, images: int = 1320, size: int = 128, seed: int = 0, imbalance: float = 8.0,
    laboratory: int = 0,
) -> tuple[Path, tuple[str, ...], pd.DataFrame]:  # fmt: skip
    """Draw a set of phantom cells once, as PNG files under the cache home.

    `classes` (1–33), `images` in total, `size` in pixels (16–512), `imbalance` the largest class's
    number of images over the smallest's (1–1000), `laboratory` 0 or 1, of `LABORATORIES`; else
    `DataError`. Returns the folder, the class names and the truth: per image `path`, `class`,
    `index` and what was drawn. Image i of a class does not depend on the number of images.
    """
    names = class_names(classes)
    _check("images", images, classes, 1_000_000)
    _check("size", size, 16, 512)
    _check("seed", seed, 0, 2**63)
    _check("laboratory", laboratory, 0, len(LABORATORIES) - 1)
    if not 1 <= imbalance <= 1000:
        raise DataError(f"phantom: imbalance must lie between 1 and 1000, not {imbalance!r}")
    key = f"{classes} {images} {size} {seed} {float(imbalance)} {cv2.__version__}".encode()
    key += b" laboratory %d" % laboratory if laboratory else b""
    key += b"".join(file.read_bytes() for file in _SOURCES)  # if these change, they are drawn again
    root = cache_home() / "phantom" / hashlib.sha256(key).hexdigest()[:16]
    truth_file = root.with_name(f"{root.name}.csv")
    if not (root.is_dir() and truth_file.is_file()):
        counts = class_counts(classes, images, imbalance)
        if LABORATORIES[laboratory]["rarest"] == "first":
            counts.reverse()
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
            drawn = Path(folder) / "cells"
            truth = _draw_all(names, counts, seed, size, drawn, laboratory)
            write_atomically(truth_file, truth.to_csv(index=False).encode())
            if not root.is_dir():  # else another process has drawn the same cells
                drawn.rename(root)
    return root, names, pd.read_csv(truth_file, float_precision="round_trip")


def _check(option: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not (hasattr(value, "__index__") and low <= value <= high):
        raise DataError(f"phantom: {option} must be a whole number {low}–{high}, not {value!r}")


def _draw_all(names, counts, seed, size, folder, laboratory) -> pd.DataFrame:
    def draw(job: tuple[int, int]) -> dict[str, Any]:
        rng = np.random.default_rng([seed, *job, *([laboratory] if laboratory else [])])
        image, truth = draw_cell(job[0], rng, size, laboratory)
        file = f"{names[job[0]]}/{job[1]:05d}.png"
        write_png(folder / file, image)
        return {"path": file, "class": names[job[0]], "index": job[1], **truth}

    jobs = [(k, index) for k, count in enumerate(counts) for index in range(count)]
    for name in names:
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        return pd.DataFrame(progress(pool.map(draw, jobs), "drawing cells", total=len(jobs)))


def draw_cell(
    kind: int, rng: np.random.Generator, size: int, laboratory: int = 0
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw one cell of class `kind`: uint8 RGB (size, size, 3); lengths are fractions of a side."""
    recipe, own = list(RECIPES.values())[kind % len(RECIPES)], LABORATORIES[laboratory]
    radius = rng.uniform(*recipe["radius"]) * list(VARIANTS.values())[kind // len(RECIPES)]
    radius *= own["magnification"]
    centre = 0.5 + rng.uniform(-0.045, 0.045, 2)
    stain = _Stain(rng, own)
    density = np.zeros((4 * size, 4 * size, 3), np.float32)  # at twice the scale, with margins
    red_cells = _red_cells(density, rng, centre, radius, stain, own["magnification"])
    drawn = _white_cell(density, rng, recipe, centre, radius, stain)
    density = density[size:-size, size:-size]
    image = cv2.resize(np.exp(-density), (size, size), interpolation=cv2.INTER_AREA)
    light, tilt = rng.uniform(0.95, 1.02), rng.uniform(-0.05, 0.05, 2)
    ys, xs = np.mgrid[0:size, 0:size] / size - 0.5
    shade = light * (1 - 0.12 * (xs**2 + ys**2) + tilt[0] * xs + tilt[1] * ys)
    image = image * stain.background * shade[..., None]
    image += rng.normal(0, 1.6, (size, size, 1)) + rng.normal(0, 0.9, (size, size, 3))
    truth = {"radius": radius, "x": centre[0], "y": centre[1], **drawn, "red_cells": red_cells}
    truth |= {"stain": stain.strength, "tint": stain.tint, "light": light}
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), truth


class _Stain:
    """How strongly and in what tint one slide is stained."""

    def __init__(self, rng: np.random.Generator, laboratory: dict[str, Any]):
        self.strength = rng.uniform(*laboratory["strength"])
        # one slide in thirty is bluish, like a rare group of images in the real set
        self.tint = rng.uniform(0.8, 1.0) if rng.random() < 1 / 30 else rng.uniform(-0.15, 0.15)
        warm, blue = np.array(laboratory["glass"]), np.array([214, 216, 236])
        mix = max(self.tint, 0.0)
        self.background = warm * (1 - mix) + blue * mix + rng.normal(0, 1.5, 3)
        self._shift = np.array([0.15, 0.0, -0.15]) * self.tint + rng.normal(0, 0.04, 3)
        self._shift += laboratory["shift"]

    def density(self, colour: list[int] | np.ndarray) -> np.ndarray:
        """The optical density (3,) of a material that leaves `colour` of white light."""
        bare = -np.log(np.array(colour) / 255)
        return np.maximum((bare + self._shift * bare.mean()) * self.strength, 0).astype(np.float32)


def _red_cells(density, rng, centre, radius, stain, magnification) -> int:
    colour = stain.density(np.array([206, 170, 168]) + rng.integers(-8, 9, 3))
    pallor, crowding = rng.uniform(0.35, 0.85), rng.uniform(0.0, 0.4)  # how far they may overlap
    usual = rng.uniform(0.105, 0.13) * magnification
    placed: list[tuple[list[float], float]] = []
    for _ in range(rng.integers(25, 60)):
        place, own = rng.uniform(-0.12, 1.12, 2).tolist(), usual * rng.uniform(0.9, 1.1)
        turn, flatness, waves = rng.uniform(0, np.pi), rng.uniform(0.82, 1), rng.normal(size=(2, 5))
        if math.dist(place, centre) < radius + 0.85 * own or any(
            math.dist(place, other) < (own + size) * (1 - crowding) for other, size in placed
        ):
            continue
        placed.append((place, own))
        frame = round(2.6 * own * len(density) / 2)
        mask = _blob(frame, 1 / 2.6, waves, 0.012, turn, flatness)
        along = (np.arange(frame, dtype=np.float32) + 0.5) / frame * 2.6 - 1.3
        distance = np.hypot(along, along[:, None])
        profile = 1 - pallor * np.exp(-((distance / 0.48) ** 4))
        profile += 0.15 * np.exp(-(((distance - 0.85) / 0.12) ** 2))
        _window(density, place, frame)[...] += (mask * profile)[..., None] * colour
    return len(placed)


def _white_cell(density, rng, recipe, centre, radius, stain) -> dict[str, Any]:
    frame = round(radius / _RADIUS * len(density) / 2)
    waves, (ys, xs) = rng.normal(size=(2, 5)), np.mgrid[0:frame, 0:frame].astype(np.float32)
    reach = np.float32(0.035 * _RADIUS * frame)
    warp = xs + reach * _noise(frame, rng, 0.5), ys + reach * _noise(frame, rng, 0.5)
    cell = _blob(frame, _RADIUS, waves, recipe["outline"], rng.uniform(0, np.pi), 0.95)
    cell = cv2.remap(cell, *warp, cv2.INTER_LINEAR)
    nucleus, drawn = _nucleus(frame, rng, recipe)
    nucleus = cv2.remap(nucleus, *warp, cv2.INTER_LINEAR) * cell
    body = cell * (1 + 0.12 * _noise(frame, rng, 0.25)) + cell * (1 - _soften(cell, 0.1))
    layer = body[..., None] * stain.density(recipe["cytoplasm"])
    vacuoles = _whole(rng, recipe["vacuoles"])
    holes = _dots(frame, rng, 1.0, vacuoles, 0.07) * (1 - 0.7 * nucleus)
    layer *= (1 - 0.8 * _soften(holes, 0.02))[..., None]
    texture = 0.65 * _noise(frame, rng, 0.13) + 0.35 * _noise(frame, rng, 0.06)
    body = nucleus * (1 + recipe["chromatin"] * texture + 0.25 * (1 - _soften(nucleus, 0.08)))
    pale = _dots(frame, rng, 0.5, _whole(rng, recipe["nucleoli"]), 0.2)
    body *= 1 - 0.3 * _soften(pale, 0.04)
    layer *= (1 - 0.6 * nucleus)[..., None]
    layer += body[..., None] * stain.density(recipe["nucleus"])
    granules, size = _whole(rng, recipe["granules"]), recipe["granule_radius"]
    shown = 1 - (0.35 if recipe["granules_over_nucleus"] else 0.92) * nucleus
    dots = _soften(_dots(frame, rng, 0.93, granules, size), 0.4 * size) * cell * shown
    layer += dots[..., None] * (0.75 * stain.density(recipe["granule"]))
    here = _window(density, centre, frame)
    here *= (1 - cell)[..., None]  # the cell pushes red cells aside: none is seen through it
    here += layer
    fraction = float(nucleus.sum() / cell.sum())
    return {"nucleus_fraction": fraction, **drawn, "granules": granules, "vacuoles": vacuoles}


def _nucleus(frame, rng, recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw the nucleus as discs along an arc, thinner between lobes."""
    sweep, bend = rng.uniform(*recipe["sweep"]), rng.uniform(*recipe["bend"])
    thickness, lobes = rng.uniform(*recipe["thickness"]), _whole(rng, recipe["lobes"])
    constriction = rng.uniform(*recipe["constriction"])
    turn, shift = rng.uniform(0, 2 * np.pi), rng.uniform(*recipe["shift"])
    uneven = rng.uniform(0.85, 1.1, lobes)
    along = np.linspace(0, 1, 61)
    angles = turn + (along - 0.5) * sweep
    spine = bend * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    spine += shift * np.array([np.cos(turn), np.sin(turn)]) - 0.75 * spine.mean(axis=0)
    bulge = 0.5 - 0.5 * np.cos(2 * np.pi * lobes * along)  # 1 amid each lobe, 0 between two
    widths = thickness * (1 - constriction * (1 - bulge) ** 0.7)
    widths *= np.repeat(uneven, -(-len(along) // lobes))[: len(along)]
    lobes = lobes if thickness > 0 else 0  # a platelet has no nucleus
    drawn = {"lobes": lobes, "sweep": sweep, "constriction": constriction}
    return _soften(_discs(frame, spine, widths), 0.02), drawn


def _whole(rng, ends) -> int:
    return int(rng.integers(*ends, endpoint=True))


def _window(density, place, frame) -> np.ndarray:
    """Return the square centred at `place` (x, y; fractions of the image without its margins)."""
    size = len(density) // 4
    left, top = (round(middle * 2 * size - frame / 2) + size for middle in place)
    return density[top : top + frame, left : left + frame]


def _discs(frame, points, radii) -> np.ndarray:
    """Return filled discs, 0 to 1, drawn to a sixteenth of a pixel."""
    mask, scale = np.zeros((frame, frame), np.uint8), frame * 16
    for *middle, radius in np.column_stack([points, radii])[radii > 0].tolist():
        place = [round((0.5 + _RADIUS * value) * scale) for value in middle]
        cv2.circle(mask, place, round(_RADIUS * radius * scale), 255, cv2.FILLED, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _dots(frame, rng, reach, count, size) -> np.ndarray:
    distances, angles = reach * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    points = np.stack([distances * np.cos(angles), distances * np.sin(angles)], axis=1)
    return _discs(frame, points, size * rng.uniform(0.7, 1.3, count))


def _blob(frame, radius, waves, uneven, turn, flatness) -> np.ndarray:
    """Return a filled, slightly uneven ellipse (its radius a fraction of the frame), 0 to 1."""
    angles = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    reach = np.ones_like(angles)
    for wave, (cosine, sine) in enumerate(waves.T, start=2):
        reach += uneven / wave * (cosine * np.cos(wave * angles) + sine * np.sin(wave * angles))
    x, y = radius * reach * np.cos(angles), radius * flatness * reach * np.sin(angles)
    xs, ys = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    corners = np.rint((np.stack([xs, ys], axis=1) + 0.5) * frame * 16).astype(np.int32)
    mask = np.zeros((frame, frame), np.uint8)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _soften(mask, width) -> np.ndarray:
    return cv2.GaussianBlur(mask, (0, 0), max(width * _RADIUS * len(mask), 0.5))


def _noise(frame, rng, grain) -> np.ndarray:
    cells = max(4, round(1 / (grain * _RADIUS)))
    rough = rng.normal(0, 1.3, (cells, cells)).astype(np.float32)
    return cv2.resize(rough, (frame, frame), interpolation=cv2.INTER_CUBIC)
