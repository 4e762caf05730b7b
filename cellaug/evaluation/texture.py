"""Grid texture: energy of images at the frequencies that upsampling by a stride leaves behind.

A transposed convolution whose kernel is no multiple of its stride covers some pixels more often
than others (Odena, Dumoulin & Olah 2016). The last doubling of a generator leaves a grid of period
2, those before it 4 and 8: energy at the multiples of 1/p cycles per pixel, across, along or both.
"""

from functools import cache

import numpy as np
from scipy import fft

PERIODS = (2, 4, 8)  # pixels after which a grid repeats: the last three doublings
CHUNK = 128

_DY, _DX = np.indices((9, 9)).reshape(2, -1) - 4
_AWAY = np.maximum(abs(_DY), abs(_DX))  # the window widens a line: it is taken as 3×3 bins
_TERMS = np.stack([np.ones_like(_DX), _DX, _DY, _DX**2, _DX * _DY, _DY**2], axis=1)
# From the 56 bins around a frequency to the 9 of it, by a quadratic fitted to the logarithm.
_SMOOTH = (_TERMS[_AWAY <= 1] @ np.linalg.pinv(_TERMS[_AWAY >= 3].astype(float))).T
_FLOOR = 3 / 12  # variance of rounding to whole grey levels, in three colours


@cache
def _places(side: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By period the flat bins (B, 9) of a grid's frequencies, and those 3 and 4 away (B, 56)."""
    found = {}
    for period in PERIODS:
        step = side // period
        if side % period or step < 8:  # fewer bins leave no room between a grid's frequencies
            continue
        y, x = np.indices((period, period)).reshape(2, -1)
        new = (y % 2 == 1) | (x % 2 == 1)  # the others belong to half the period, or are the mean
        flat = (y[new, None] * step + _DY) % side * side + (x[new, None] * step + _DX) % side
        found[period] = flat[:, _AWAY <= 1], flat[:, _AWAY >= 3]
    return found


def mean_power(images: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean power of images by frequency, float32, summed over the colours.

    `images` is uint8 N×S×S×3. Returns (S, S), or (R, S, S) for `weights` (R, N), each row's sum 1;
    bin (u, v) is u/S and v/S cycles per pixel down and across. White noise of variance σ² has 3σ².
    """
    side = images.shape[1]
    rows = np.full((1, len(images)), 1 / len(images)) if weights is None else weights
    window = np.hanning(side + 1)[:-1].astype(np.float32)
    # without a window the jump from edge to edge puts energy on the axes, where a grid has its own
    window = np.outer(window, window)
    total = np.zeros((len(rows), side * side), np.float32)
    for start in range(0, len(images), CHUNK):
        part = np.moveaxis(images[start : start + CHUNK].astype(np.float32), -1, 1)
        mean = (part * window).sum((2, 3), keepdims=True) / window.sum()
        power = (np.abs(fft.fft2((part - mean) * window)) ** 2).sum(1) / (window**2).sum()
        share = rows[:, start : start + CHUNK].astype(np.float32)
        total += share @ power.reshape(len(power), -1)
    total = total.reshape(-1, side, side)
    return total[0] if weights is None else total


def grid_energy(power: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Energy at a grid's frequencies, by period: itself, and relative to what lies around them.

    `power` (..., S, S) is of `mean_power`. The first array (...) is in grey levels²; the second is
    that over the power around, continued smoothly in its logarithm: near 1 without a grid. Compare
    it with that of real images. Periods that the side is too small for are left out.
    """
    flat = power.reshape(*power.shape[:-2], -1) + _FLOOR
    found = {}
    for period, (peaks, around) in _places(power.shape[-1]).items():
        here = flat[..., peaks].mean((-1, -2))
        found[period] = here, here / np.exp(np.log(flat[..., around]) @ _SMOOTH).mean((-1, -2))
    return found
