"""Find images that show the same cell: near duplicates, and files that were named as copies."""

import re
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from cellaug.files import progress

import cv2
import numpy as np
import pandas as pd
import yaml
from scipy.fft import fft2, fftshift, irfft, rfft
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

HELD_OUT = ("validation", "test")  # the splits that training must not see
_RULES = yaml.safe_load(Path(__file__).with_name("inspection.yaml").read_text("utf-8"))
_NEAR = SimpleNamespace(**_RULES["near_duplicates"])
_NEAREST: float = _RULES["bounds"]["near"]
THUMBNAIL: int = _NEAR.thumbnail
_MIDDLE = (_NEAR.thumbnail - 1) / 2
_PLACES = np.hypot(*np.mgrid[-_MIDDLE : _MIDDLE + 1, -_MIDDLE : _MIDDLE + 1]) * 2 / _NEAR.thumbnail
_WINDOW = np.cos(np.pi / 2 * _PLACES.clip(0, 1)).astype(np.float32)
_DISC = (_PLACES <= _NEAR.disc).astype(np.uint8)
_ENOUGH = cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 30, 1e-4
_BLOCK = 1024  # images handled at once, which bounds the memory
_WORDS = "aug|augmented|copy|kopie|flip|flipped|mirror|mirrored|rot|rotated|crop|cropped|shifted"
_COPY_NAME = re.compile(
    rf"(?P<word>[ _-]*\(\d+\)|[ _-]+({_WORDS})[ _-]?\d*)$|_\d+_\d+$", re.IGNORECASE
)


def near_duplicates(thumbnails: np.ndarray) -> pd.DataFrame:
    """Pairs of thumbnails that show the same, however bright, shifted, turned, mirrored or cropped.

    Candidates have similar amplitude spectra, which shifts do not change, in rings, along which a
    turn only shifts them (Reddy & Chatterji 1996). They are laid on one another (ECC: Evangelidis &
    Psarakis 2008); their likeness is the correlation of the details then. Crops are found down to
    0.8 of the side. `thumbnails` are grey, uint8 (N, 32, 32). Returns columns first, second
    (places, first < second), likeness (0.95 to 1) and turn (what turns one back, in words).
    """
    starts = range(0, len(thumbnails), _BLOCK)
    clear = [_details(thumbnails[i : i + _BLOCK]).any(axis=(1, 2)) for i in starts]
    shown = np.flatnonzero(np.concatenate(clear))
    thumbnails = thumbnails[shown]
    found: dict[tuple[int, ...], tuple[float, str]] = {}
    if len(shown) > 1:
        rings, signs = _described(thumbnails, 1)
        count = min(_NEAR.neighbours + 1, len(shown))
        search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(signs)
        for scale in _NEAR.scales:
            own, signs = (rings, signs) if scale == 1 else _described(thumbnails, scale)
            for start in progress(range(0, len(shown), _BLOCK), f"comparing at scale {scale}"):
                rows = slice(start, start + _BLOCK)
                near = search.kneighbors(signs[rows])[1]
                alike, angles = _turns(own[rows], rings[near])
                for row, k in zip(*np.nonzero(alike >= _NEAR.alike), strict=True):
                    pair = tuple(sorted((start + int(row), int(near[row, k]))))
                    if pair[0] < pair[1] and found.get(pair, (0.0, ""))[0] < _NEAREST:
                        first = _cropped(thumbnails[start + row, None], scale)
                        both = _details(np.concatenate([first, thumbnails[near[row, k], None]]))
                        crop = ", cropped" * (scale < 1)
                        found[pair] = _likeness(both[0], both[1], angles[row, k], crop)
    pairs = [(*shown[list(pair)], *how) for pair, how in sorted(found.items())]
    table = pd.DataFrame(pairs, columns=["first", "second", "likeness", "turn"])
    return table[table["likeness"] >= _NEAREST]


def _described(thumbnails: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Rings (N, rings, angles) of cropped thumbnails, and what describes these, of norm 1."""
    blocks = [thumbnails[i : i + _BLOCK] for i in range(0, len(thumbnails), _BLOCK)]
    rings = [_rings(_details(_cropped(block, scale))) for block in blocks]
    signs = np.concatenate([_signs(block) for block in rings])
    # of each scale on its own: enlarged crops have fewer details
    signs = (signs - signs.mean(axis=0)) / np.maximum(signs.std(axis=0), 1e-3)
    return np.concatenate(rings).astype(np.float16), _unit(signs)


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails without noise and the dark disc of a cell, float32; zeros without details."""
    images, look = thumbnails.astype(np.float32), {"axes": (1, 2), "mode": "mirror"}
    fine, coarse = (gaussian_filter(images, blur, **look) for blur in _NEAR.blurs)
    spread = (fine - coarse)[:, 3:-3, 3:-3].std(axis=(1, 2), keepdims=True)
    return np.where(spread >= _NEAR.flat, fine - coarse, 0)


def _cropped(thumbnails: np.ndarray, scale: float) -> np.ndarray:
    """Thumbnails cropped to a fraction of the side and enlarged again."""
    if scale == 1:
        return thumbnails
    warp = cv2.getRotationMatrix2D((_MIDDLE, _MIDDLE), 0, 1 / scale)
    side = thumbnails.shape[1:]
    return np.array([cv2.warpAffine(t, warp, side, flags=cv2.INTER_CUBIC) for t in thumbnails])


def _rings(details: np.ndarray) -> np.ndarray:
    """Amplitudes along half rings of the spectrum, float32 (N, rings, angles), of norm 1 or 0."""
    size, (low, high) = 2 * details.shape[1], _NEAR.rings
    mean = (details * _WINDOW).sum(axis=(1, 2), keepdims=True) / _WINDOW.sum()
    waves = np.abs(fftshift(fft2((details - mean) * _WINDOW, (size, size)), (1, 2)))
    shape, middle = (size // 4, 2 * _NEAR.angles), (size // 2, size // 2)
    rings = [cv2.warpPolar(wave, shape, middle, size / 2, cv2.INTER_LINEAR) for wave in waves]
    return _unit(np.array(rings)[:, : _NEAR.angles, low:high].transpose(0, 2, 1))


def _signs(rings: np.ndarray) -> np.ndarray:
    """What describes rings (N, rings, angles) whatever the turn: (N, rings × harmonics)."""
    waves = np.abs(rfft(rings.astype(np.float32), axis=2))[:, :, : _NEAR.harmonics]
    return waves.reshape(len(rings), -1)


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    return rows / np.maximum(norms, 1e-9).reshape(-1, *[1] * (rows.ndim - 1)).astype(rows.dtype)


def _turns(own: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each row of `own` with its others once turned, and the turns, in degrees.

    Shapes (N, K) and (N, K, 2): if it lies as the other does, and if it is mirrored.
    """

    def waves(rings: np.ndarray) -> np.ndarray:
        rings = rings.astype(np.float32)
        return rfft(_unit(rings - rings.mean(axis=-1, keepdims=True)), axis=-1)

    mine = waves(own)[:, None]
    theirs = waves(others.reshape(-1, *own.shape[1:])).reshape(*others.shape[:3], -1)
    both = (mine * theirs.conj()).sum(axis=2), (mine * theirs).sum(axis=2)
    match = irfft(np.stack(both, axis=2), axis=-1)  # (N, K, 2, angles)
    return match.max(axis=(2, 3)), match.argmax(axis=3) * 180 / _NEAR.angles


def _likeness(
    first: np.ndarray, second: np.ndarray, angles: np.ndarray, cropped: str
) -> tuple[float, str]:
    """The correlation of two images' details (32, 32) once laid on one another, and the turn."""
    shape, low = first.shape, (len(first) - _NEAR.centre) // 2
    centre, best = first[low:-low, low:-low], 0.0
    for mirrored, angle in enumerate(angles):
        view = np.ascontiguousarray(second[:, ::-1] if mirrored else second)
        for half in (0, 180):
            turn = cv2.getRotationMatrix2D((_MIDDLE, _MIDDLE), -angle - half, 1)
            match = cv2.matchTemplate(
                cv2.warpAffine(view, turn, shape), centre, cv2.TM_CCOEFF_NORMED
            )
            _, score, _, place = cv2.minMaxLoc(match)
            if score > best:
                turn[:, 2] -= np.array(place) - low
                best, laid, seen, back = score, view, mirrored, cv2.invertAffineTransform(turn)
    if best < _NEAR.promising:
        return 0.0, ""
    try:
        how = cv2.MOTION_AFFINE, _ENOUGH, _DISC, 1
        _, back = cv2.findTransformECC(first, laid, back.astype(np.float32), *how)
    except cv2.error:  # it does not converge
        return 0.0, ""
    there = cv2.WARP_INVERSE_MAP + cv2.INTER_LINEAR
    both = (cv2.warpAffine(_DISC.astype(np.float32), back, shape, flags=there) * _DISC) > 0.5
    sizes = np.linalg.svd(back[:, :2], compute_uv=False)  # how it is enlarged and distorted
    if both.sum() < _NEAR.overlap * _DISC.sum() or abs(np.log(sizes)).max() > _NEAR.distortion:
        return 0.0, ""
    likeness = np.corrcoef(cv2.warpAffine(laid, back, shape, flags=there)[both], first[both])[0, 1]
    across, down = cv2.invertAffineTransform(back)[0, :2]
    angle = round(np.degrees(np.arctan2(down, across)))
    angle = (angle if abs((angle + 45) % 90 - 45) > 2 else round(angle / 90) * 90) % 360
    words = ["mirrored"] * seen + [f"turned by {angle}°"] * (angle > 0)
    return min(float(likeness), 1.0), (" and ".join(words) + cropped).removeprefix(", ")


def leaked(duplicates: pd.DataFrame, statistics: pd.DataFrame) -> np.ndarray:
    """Places of the held-out images that have a copy or near duplicate on a training side."""
    first, second = duplicates[["index", "other_index"]].to_numpy(int).T
    side = statistics["side"].to_numpy()
    links = coo_array((np.ones(len(first)), (first, second)), shape=(len(side), len(side)))
    group = connected_components(links, directed=False)[1]
    held_out = np.isin(side, HELD_OUT)
    return np.flatnonzero(held_out & np.isin(group, group[~held_out & (side != "")]))


def families(statistics: pd.DataFrame) -> list[list[str]]:
    """Paths of files of one class that are named as copies of one image, such as a.png, a_aug3.png.

    A name that only ends in two numbers (a_12_3456.png) is one if its stem is there as well, or if
    most names of the class are so, with three or more files to each first number.
    """
    table = statistics[["class", "path"]].astype(object)
    table["stem"] = [PurePosixPath(path).stem for path in table["path"]]
    found = [_COPY_NAME.search(stem) for stem in table["stem"]]
    whole = set(zip(table["class"], table["stem"], strict=True))
    table["key"] = table["stem"]
    for row, end in zip(table.index, found, strict=True):
        kind, stem = table.at[row, "class"], table.at[row, "stem"]
        if end and (end["word"] or (kind, stem[: end.start()]) in whole):
            table.at[row, "key"] = stem[: end.start()]
    numbered = pd.Series([bool(end and not end["word"]) for end in found], table.index)
    for _, rows in table.groupby("class", sort=False):
        two = rows["stem"][numbered[rows.index]].map(lambda stem: stem.rpartition("_")[0])
        if 2 * len(two) > len(rows) and len(two) >= 3 * two.nunique() > 3:
            table.loc[two.index, "key"] = two
    named = table.groupby(["class", "key"], sort=False)["path"].agg(list)
    return [paths for paths in named if len(paths) > 1]
