"""Grid texture: energy of images at the frequencies that upsampling by a stride leaves behind.

A transposed convolution whose kernel is no multiple of its stride covers some pixels more often
than others, in a pattern that repeats every `stride` pixels (Odena, Dumoulin & Olah 2016). The last
layer of a generator that doubles the side several times leaves a grid of period 2, the one before
it of period 4, then 8. In the spectrum a grid of period p is energy at the multiples of 1/p cycles
per pixel, in a line across or along the image or in both.
"""

from functools import cache

from cellaug.data.images import check_images

import numpy as np
from scipy import fft

PERIODS = (2, 4, 8)
"""Pixels after which a grid repeats: the last three doublings."""

CHUNK = 128
_NARROWEST = 8  # bins from one of a grid's frequencies to the next; fewer leave no room between
_DY, _DX = (part.ravel() for part in np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"))
_AWAY = np.maximum(abs(_DY), abs(_DX))
_FLOOR = 3 / 12  # variance of rounding to whole grey levels, in three colours


@cache
def _places(side: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By period the bins (B, 9) of a grid's frequencies and those around them (B, 56), flat.

    A window widens a line to its neighbours, and a grid that is not equally strong everywhere does
    so too: a frequency is taken as 3×3 bins. Around it lie the bins 3 and 4 away.
    """
    found = {}
    for period in PERIODS:
        step = side // period
        if side % period or step < _NARROWEST:
            continue
        y, x = (part.ravel() for part in np.meshgrid(*[np.arange(period)] * 2, indexing="ij"))
        new = (y % 2 == 1) | (x % 2 == 1)  # the others belong to half the period, or are the mean
        flat = (y[new, None] * step + _DY) % side * side + (x[new, None] * step + _DX) % side
        found[period] = flat[:, _AWAY <= 1], flat[:, _AWAY >= 3]
    return found


def _continuation() -> np.ndarray:
    """What takes 56 values around a frequency to the 9 that a smooth surface would have there.

    The surface is a quadratic one, fitted by least squares: the logarithm of a power law or of a
    blur bends little within nine bins.
    """
    terms = np.stack([np.ones_like(_DX), _DX, _DY, _DX**2, _DX * _DY, _DY**2], axis=1)
    return terms[_AWAY <= 1] @ np.linalg.pinv(terms[_AWAY >= 3].astype(float))


def periods(side: int) -> tuple[int, ...]:
    """The periods of `PERIODS` that can be told from their surroundings in images of this side."""
    return tuple(_places(side))


def mean_power(images: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean power of images by frequency, float32, summed over the colours.

    `images` is uint8 N×S×S×3. Returns (S, S), or (R, S, S) for R rows of `weights` (R, N) that each
    sum to 1. The mean of an image is taken out and a Hann window laid over, without which the jump
    from one edge to the other would put energy on the axes, where a grid has its own. White noise
    of variance σ² in each colour has 3σ² on average in every bin; bin (u, v) stands for u/S and v/S
    cycles per pixel down and across.
    """
    images = check_images(images, "images")
    side = images.shape[1]
    if images.shape[2] != side or not len(images):
        raise ValueError(f"images: expected at least one square, got {images.shape}")
    rows = np.full((1, len(images)), 1 / len(images)) if weights is None else np.asarray(weights)
    window = np.hanning(side + 1)[:-1].astype(np.float32)
    window = np.outer(window, window)
    total = np.zeros((len(rows), side * side), np.float32)
    for start in range(0, len(images), CHUNK):
        part = np.moveaxis(images[start : start + CHUNK].astype(np.float32), -1, 1)
        mean = (part * window).sum((2, 3), keepdims=True) / window.sum()
        power = (np.abs(fft.fft2((part - mean) * window)) ** 2).sum(1) / (window**2).sum()
        part_rows = rows[:, start : start + CHUNK].astype(np.float32)
        total += part_rows @ power.reshape(len(power), -1)
    return total.reshape(*(() if weights is None else (len(rows),)), side, side)


def grid_energy(power: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Energy at a grid's frequencies, by period: itself, and relative to what lies around them.

    `power` is (..., S, S), of `mean_power`. The first array (...) is the mean power at the grid's
    frequencies in grey levels²; the second (...) is that over what the power around them, continued
    smoothly in its logarithm, would be there. The second is near 1 without a grid, whether images
    are sharp or blurred; not quite, as spectra have bends of their own, so compare it with that of
    real images. Periods that the side is too small for are left out.
    """
    side = power.shape[-1]
    flat = power.reshape(*power.shape[:-2], side * side) + _FLOOR
    smooth = _continuation().T
    found = {}
    for period, (peaks, around) in _places(side).items():
        here = flat[..., peaks].mean((-1, -2))
        there = np.exp(np.log(flat[..., around]) @ smooth).mean((-1, -2))
        found[period] = here, here / there
    return found
