"""Find images that show the same cell: near duplicates, and files that were named as copies."""

import re
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from cellaug.files import in_parallel

import cv2
import numpy as np
import pandas as pd
import yaml
from scipy.fft import fftshift, irfft, rfft, rfft2
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

HELD_OUT = ("validation", "test")  # the splits that training must not see
_RULES = yaml.safe_load(Path(__file__).with_name("inspection.yaml").read_text("utf-8"))
_NEAR = SimpleNamespace(**_RULES["near_duplicates"])
_NEAREST: float = _RULES["bounds"]["near"]
SURE: float = _RULES["bounds"]["sure"]
THUMBNAIL: int = _NEAR.thumbnail
_MIDDLE = (_NEAR.thumbnail - 1) / 2
_PLACES = np.hypot(*np.mgrid[-_MIDDLE : _MIDDLE + 1, -_MIDDLE : _MIDDLE + 1]) * 2 / _NEAR.thumbnail
_WINDOW = np.cos(np.pi / 2 * _PLACES.clip(0, 1)).astype(np.float32)
_DISC = (_PLACES <= _NEAR.disc).astype(np.uint8)
_BLURS = [
    gaussian_filter1d(np.eye(_NEAR.thumbnail, dtype=np.float32), blur, axis=0, mode="mirror")
    for blur in _NEAR.blurs
]  # as matrices: of an image's rows and columns
_TURNS = np.arange(_NEAR.angles)[:, None] * np.pi / _NEAR.angles - np.pi / 2
_RINGS = 2 * np.arange(*_NEAR.rings)
_ALONG = (_RINGS * np.cos(_TURNS)).astype(np.float32)  # places of half rings in a half spectrum
_ACROSS = (_RINGS * np.sin(_TURNS) + _NEAR.thumbnail).astype(np.float32)
_ENOUGH = cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 30, 1e-4
_BLOCK = 512  # images handled at once, which bounds the memory
_PAIRS = 256
_WORDS = "aug|augmented|copy|kopie|[hv]?flip|flip(?:lr|ud|ped)|lr|ud|mirror|mirrored|rot|rotated"
_WORDS += "|crop|cropped|shifted"
_COPY_NAME = re.compile(
    rf"(?P<word>([ _-]*\(\d+\)|[ _-]+({_WORDS})[ _-]?\d*)+|\.rf\.\w+)$|_\d+_\d+$", re.IGNORECASE
)
# As Augmentor names them, and with the word in front.
_COPY_OF = re.compile(
    rf"^(?:.+_original_|(?:{_WORDS})[_-])(.+?)(\.\w+_[0-9a-f-]{{36}})?$", re.IGNORECASE
)


def near_duplicates(thumbnails: np.ndarray) -> pd.DataFrame:
    """Pairs of thumbnails that show the same, however bright, shifted, turned, mirrored or cropped.

    Candidates have similar amplitude spectra, which shifts do not change, in rings, along which a
    turn only shifts them (Reddy & Chatterji 1996). They are laid on one another (ECC: Evangelidis &
    Psarakis 2008); their likeness is the correlation of the details then. Crops are found down to
    0.8 of the side. An image is compared with the most similar of its neighbours, then with the
    others if all of these show the same. `thumbnails` are grey, uint8 (N, 32, 32). Returns columns
    first, second (places, first < second), likeness (0.95 to 1), turn (what turns one back).
    """
    starts = range(0, len(thumbnails), _BLOCK)
    clear = [_details(thumbnails[i : i + _BLOCK]).any(axis=(1, 2)) for i in starts]
    shown = np.flatnonzero(np.concatenate(clear))
    thumbnails = thumbnails[shown]
    kinds = {"first": int, "second": int, "likeness": float, "turn": str}
    found = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
    if len(shown) > 1:
        waves, signs = _described(thumbnails, 1)
        count = min(_NEAR.neighbours + 1, len(shown))
        search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(signs)
        for scale in _NEAR.scales:
            own, signs = (waves, signs) if scale == 1 else _described(thumbnails, scale)
            near, angles = _ranked(own, waves, search.kneighbors(signs)[1], scale)
            going_on = np.ones((len(shown), 1), bool)
            for ranks in (slice(0, _NEAR.tried), slice(_NEAR.tried, None)):
                rows, ks = np.nonzero((near[:, ranks] >= 0) & going_on)
                tried = rows, near[:, ranks][rows, ks], angles[:, ranks][rows, ks]
                found, failed = _laid(thumbnails, *tried, scale, found)
                going_on[failed] = False
    found[["first", "second"]] = shown[found[["first", "second"]]]
    return found.sort_values(["first", "second"], ignore_index=True)


def _described(thumbnails: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """`_waves` of cropped thumbnails, and what describes these whatever the turn, of norm 1."""
    blocks = (thumbnails[i : i + _BLOCK] for i in range(0, len(thumbnails), _BLOCK))
    look, words = partial(_waves, scale=scale), f"describing at scale {scale}"
    found = in_parallel(look, blocks, words, len(thumbnails), _BLOCK, threads=True)
    waves, signs = (np.concatenate(part) for part in zip(*found, strict=True))
    # of each scale on its own: enlarged crops have fewer details
    signs = (signs - signs.mean(axis=0)) / np.maximum(signs.std(axis=0), 1e-3)
    return waves, _unit(signs)


def _waves(thumbnails: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Harmonics of the rings of a spectrum, complex64 (N, rings, angles // 2 + 1), of norm 1.

    The second are the amplitudes of the lowest ones, (N, rings × harmonics).
    """
    waves = rfft(_rings(_details(_cropped(thumbnails, scale))), axis=2)
    signs = np.abs(waves[:, :, : _NEAR.harmonics]).reshape(len(waves), -1)
    waves[:, :, 0] = 0  # the mean of a ring says nothing of a turn
    twice = np.where(np.arange(waves.shape[2]) % (_NEAR.angles // 2), 2, 1)  # Parseval
    power = (np.abs(waves) ** 2 * twice).sum(axis=(1, 2), keepdims=True) / _NEAR.angles
    return waves / np.maximum(np.sqrt(power), 1e-9).astype(np.float32), signs


def _ranked(
    own: np.ndarray, waves: np.ndarray, near: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of each row (N, K), the most similar first, -1 for none; the turns (N, K, 2)."""
    parts = (slice(i, i + _BLOCK) for i in range(0, len(own), _BLOCK))
    blocks = ((own[part], waves[near[part]]) for part in parts)
    words = f"comparing at scale {scale}"
    turns = in_parallel(_turns, blocks, words, len(own), _BLOCK, threads=True)
    alike, angles = (np.concatenate(part) for part in zip(*turns, strict=True))
    near = np.where((alike >= _NEAR.alike) & (near != np.arange(len(own))[:, None]), near, -1)
    order = np.argsort(np.where(near < 0, np.inf, -alike), axis=1, kind="stable")
    return np.take_along_axis(near, order, 1), np.take_along_axis(angles, order[..., None], 1)


def _laid(
    thumbnails: np.ndarray,
    rows: np.ndarray,
    others: np.ndarray,
    angles: np.ndarray,
    scale: float,
    found: pd.DataFrame,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Add the pairs of `rows` and `others` that show the same; which rows had one that did not."""
    pairs = pd.DataFrame(np.sort([rows, others], axis=0).T, columns=["first", "second"])
    # of two images either may be the crop
    again = pairs.merge(found, "left")["likeness"].notna() | (pairs.duplicated() & (scale == 1))
    mine, theirs, turns = rows[~again], others[~again], angles[~again]
    parts = (slice(i, i + _PAIRS) for i in range(0, len(mine), _PAIRS))
    images = ((thumbnails[mine[part]], thumbnails[theirs[part]], turns[part]) for part in parts)
    lay, words = partial(_likenesses, scale=scale), f"laying on one another at scale {scale}"
    laid = pd.DataFrame(
        [pair for part in in_parallel(lay, images, words, len(mine), _PAIRS) for pair in part],
        index=pairs.index[~again],
        columns=["likeness", "turn"],
    )
    laid = pairs.join(laid, how="inner").sort_values("likeness", ascending=False)
    laid = pd.concat([found, laid[laid["likeness"] >= _NEAREST]])
    found = laid.drop_duplicates(["first", "second"])
    return found, rows[pairs.merge(found, "left")["likeness"].isna()]


def _likenesses(
    images: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float
) -> list[tuple[float, str]]:
    """`_likeness` of each of some thumbnails, cropped, and another, at the angles between them."""
    first, second, angles = images
    pairs = zip(_details(_cropped(first, scale)), _details(second), angles, strict=True)
    return [_likeness(*pair, ", cropped" * (scale < 1)) for pair in pairs]


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails without noise and the dark disc of a cell, float32; zeros without details."""
    images = thumbnails.astype(np.float32)
    fine, coarse = (blur @ images @ blur.T for blur in _BLURS)
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
    mean = (details * _WINDOW).sum(axis=(1, 2), keepdims=True) / _WINDOW.sum()
    size = (2 * _NEAR.thumbnail,) * 2
    waves = np.abs(fftshift(rfft2((details - mean) * _WINDOW, size), axes=1))
    rings = [cv2.remap(wave, _ALONG, _ACROSS, cv2.INTER_LINEAR) for wave in waves]
    return _unit(np.array(rings).transpose(0, 2, 1))


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    return rows / np.maximum(norms, 1e-9).reshape(-1, *[1] * (rows.ndim - 1)).astype(rows.dtype)


def _turns(waves: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each image's rings with its others' once turned, and the turns, in degrees.

    Shapes (N, K) and (N, K, 2): if it lies as the other does, and if it is mirrored.
    """
    own, others = waves
    both = [np.einsum("nrf,nkrf->nkf", own, theirs) for theirs in (others.conj(), others)]
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
    stems = (PurePosixPath(path).stem for path in table["path"])
    table["stem"] = [_COPY_OF.sub(r"\1 aug", stem) for stem in stems]
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
