"""The expert test of section 4.4 as one HTML page, for readers without this package; its score.

`write_test` makes the page and its key from two folders of images; the page works offline in a
browser and exports a file of answers, which `score_answers` scores against the key. What is in the
page depends on nothing but the shuffled images: no name, no key, and every image as an
uncompressed PNG of one size, so that neither the kind nor the length of a file tells them apart.
"""

import base64
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cellaug
from cellaug.augmentation import CREDIT
from cellaug.data import DataError
from cellaug.data.catalogue import SMALLEST_SIDE, printable
from cellaug.data.images import check_images, decode, fit_square
from cellaug.data.manifest import MANIFEST, lists_origin
from cellaug.data.scan import Record, scan
from cellaug.evaluation.expert import (
    FORMAT,
    against_guessing,
    complete_answers,
    detectable_accuracy,
    read_answers,
    score,
    trial_hash,
    trials_needed,
)

import cv2
import numpy as np

PAGE, KEY = "expert-test.html", "key.json"

POWER, ALPHA = 0.8, 0.05

REFERENCES = {
    0.63: "haematologists on marrow cells of StyleGAN2-ADA",
    0.71: "the thesis's expert",
}
"""Accuracies that readers have reached elsewhere."""


class _Side(NamedTuple):
    word: str  # real or fake
    root: Path
    usable: dict[str, Record]  # by file, relative to root
    left_out: list[tuple[str, str]]  # file and reason


def write_test(
    real: str | Path,
    fake: str | Path,
    out: str | Path,
    count: int = 50,
    seed: int = 0,
    size: int | None = None,
) -> dict:
    """Write the page `expert-test.html` and its key `key.json` into a new folder.

    Args:
        real: folder with real images, in it or in subfolders.
        fake: folder with generated images, likewise.
        out: folder to write to; it appears whole or not at all.
        count: images drawn from each side (50 in the thesis).
        seed: from 0; it decides which images are drawn and, with them, their order.
        size: side of every image of the page in pixels, from `SMALLEST_SIDE`; by default the
            shortest side of all drawn images, so that none is enlarged.

    Returns:
        The key: `trial` (the hash that page and answers carry too), `real` (for each image in the
        order of the page) and `files`, `folders`, `seed`, `size`, `notes` (what was done to the
        images of each side, one sentence each) and `left_out` (file and reason).

    Raises:
        DataError: for folders that cannot be read or hold too few usable images, images that are
            on both sides, real and generated images in one folder, an `out` that holds files, and
            numbers out of their range.
    """
    for name, value, least in (
        ("count", count, 1),
        ("seed", seed, 0),
        ("size", size, SMALLEST_SIDE),
    ):
        if value is not None and value < least:
            raise DataError(f"{name}: expected a whole number from {least}, got {value}")
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds files already: choose a new folder for page and key")
    sides = [_look(real, "real", "synthetic"), _look(fake, "fake", "real")]
    _refuse_shared(sides, {s.word: {f: r.digest for f, r in s.usable.items()} for s in sides})
    drawn = {side.word: _draw(side, count, [seed, number]) for number, side in enumerate(sides)}
    if size is None:
        size = min(_side_of(side.usable[f]) for side in sides for f in drawn[side.word])
    images = np.stack(
        [fit_square(decode(s.root / f)[0], size) for s in sides for f in drawn[s.word]]
    )
    pixels = iter([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    _refuse_shared(sides, {s.word: {f: next(pixels) for f in drawn[s.word]} for s in sides})

    # With the images in it, so that two trials of one seed have orders of their own.
    order = np.random.default_rng([seed, int(trial_hash(images), 16)]).permutation(2 * count)
    files = [f"{s.word}/{printable(f)}" for s in sides for f in drawn[s.word]]
    key = {
        "format": FORMAT,
        "trial": trial_hash(images[order]),
        "seed": seed,
        "size": size,
        "real": (order < count).tolist(),
        "files": [files[place] for place in order],
        "folders": {side.word: printable(str(side.root)) for side in sides},
        "notes": _notes(sides, drawn, size),
        "left_out": [
            [f"{side.word}/{printable(file)}", reason]
            for side in sides
            for file, reason in side.left_out
        ],
        "cellaug": cellaug.__version__,
    }
    html = page(images[order], _credit(sides))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        part = Path(temporary) / out.name
        part.mkdir()
        (part / PAGE).write_bytes(html.encode())
        (part / KEY).write_bytes((json.dumps(key, indent=1, ensure_ascii=False) + "\n").encode())
        if out.is_dir():
            out.rmdir()
        part.replace(out)
    return key


def page(images: np.ndarray, credit: str = "") -> str:
    """The page as HTML, for images uint8 N×H×W×3 in the order of the trial (`shuffle_trial`).

    It asks for nothing outside itself and does not know which images are real. What it exports,
    `answers-<trial>.json`, is also read by `answers` and taken up by `ExpertForm`. `credit` is
    shown below the images. Raises ValueError for other arrays.
    """
    images = check_images(images, "images")
    if not len(images):
        raise ValueError("images: expected at least one")
    data = {
        "format": FORMAT,
        "trial": trial_hash(images),
        "credit": credit,
        "images": [f"data:image/png;base64,{_png(image)}" for image in images],
    }
    html = Path(__file__).with_suffix(".html").read_text("utf-8")
    policy = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _hash_of("style", html),
        "script-src": _hash_of("script", html),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    html = html.replace("%POLICY%", "; ".join(f"{name} {value}" for name, value in policy.items()))
    return html.replace("%DATA%", json.dumps(data).replace("<", "\\u003c"))


def read_key(path: str | Path) -> dict:
    """Read a key; `real` is bool (N,). FileNotFoundError or DataError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such key; expert-test writes it as {KEY}")
    try:
        key = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected the key of an expert test, as JSON: {error}") from error
    if not isinstance(key, dict) or key.get("format") != FORMAT:
        raise DataError(f"{path}: expected the key of an expert test of format {FORMAT}")
    if "said_real" in key:
        raise DataError(f"{path} holds answers: give the key, {KEY}, as the last file")
    real, trial = key.get("real"), key.get("trial")
    if not isinstance(real, list) or not real or any(not isinstance(x, bool) for x in real):
        raise DataError(f"{path}: real should be a list of true and false, one for each image")
    if not isinstance(trial, str):
        raise DataError(f"{path}: trial should be a text, found {trial!r}")
    return key | {"real": np.array(real)}


def score_answers(answers: Sequence[str | Path], key: str | Path) -> dict:
    """Score files of answers, one for each reader, against the key of their trial.

    Gives `trial`, `images` (real and fake ones), `readers` and `power`. A reader has `file`,
    `initials`, what `score_confusion` gives, `against_guessing`, `median_seconds` (None where no
    times were taken), `started` and `finished`. `power` says what this number of images can show
    (`detectable_accuracy`, `trials_needed` for `REFERENCES`). Readers are not pooled: they saw the
    same images, so that their answers are not independent.

    Raises FileNotFoundError for a missing file; DataError for one that is damaged, incomplete or of
    another trial, and for the same answers given twice.
    """
    truth = read_key(key)
    readers, seen = [], {}
    for path in map(Path, answers):
        content = read_answers(path, truth["trial"])
        said = complete_answers(path, content)
        if len(said) != len(truth["real"]):
            raise DataError(f"{path}: expected {len(truth['real'])} answers, found {len(said)}")
        same = seen.setdefault(json.dumps(content), path)
        if same is not path and content["milliseconds"]:  # to the millisecond: one reader's
            raise DataError(f"{path} holds the same answers as {same}: give each reader once")
        result = score(truth["real"], said)
        times = content["milliseconds"]
        readers.append(
            {
                "file": printable(path.name),
                "initials": _plain(content["initials"] or ""),
                **result,
                "against_guessing": against_guessing(result["confusion"]),
                "median_seconds": float(np.median(times)) / 1000 if times else None,
                "started": content["started"],
                "finished": content["finished"],
            }
        )
    total = len(truth["real"])
    return {
        "trial": truth["trial"],
        "images": {"real": int(truth["real"].sum()), "fake": int((~truth["real"]).sum())},
        "readers": readers,
        "power": {
            "power": POWER,
            "alpha": ALPHA,
            "detectable_accuracy": detectable_accuracy(total, POWER, ALPHA),
            "trials_needed": {str(a): trials_needed(a, POWER, ALPHA) for a in REFERENCES},
        },
    }


def as_text(scores: dict) -> str:
    """The result of `score_answers` for a person: tables like Table 2, a row for each reader."""
    readers = scores["readers"]
    names = [reader["initials"] or reader["file"] for reader in readers]
    real, fake = scores["images"]["real"], scores["images"]["fake"]
    lines = [f"trial {scores['trial']}: {real} real and {fake} fake images"]
    for name, reader in zip(names, readers, strict=True):
        lines += ["", f"{name:<16}{'called real':>12}{'called fake':>13}"]
        for kind, (called_real, called_fake) in zip(
            ("real", "fake"), reader["confusion"], strict=True
        ):
            lines.append(f"{kind:<16}{called_real:>12}{called_fake:>13}")
    width = max(len("reader"), *map(len, names)) + 2
    columns = [f"{name:<20}" for name in ("recall", "specificity", "accuracy")]
    lines += ["", f"{'reader':<{width}}{''.join(columns)}{'p':<9}seconds"]
    for name, reader in zip(names, readers, strict=True):
        shares = [f"{_share(reader[m]):<20}" for m in ("recall", "specificity", "accuracy")]
        p, seconds = reader["against_guessing"]["p"], reader["median_seconds"]
        said = "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        waited = "-" if seconds is None else f"{seconds:.1f}"
        lines.append(f"{name:<{width}}{''.join(shares)}{said:<9}{waited}")
    lines += [
        "",
        "recall: real images called real; specificity: fake images called fake; in brackets exact",
        "95 % intervals. p: two-sided, against guessing,",
        f"{readers[0]['against_guessing']['test']}. seconds: median for an image.",
    ]
    if len(readers) > 1:
        lines += [
            "All readers saw the same images, so their answers are not independent: no pooled",
            "figure is given.",
        ]
    return "\n".join([*lines, "", power_statement(real + fake)])


def power_statement(images: int) -> str:
    """What a test with so many images, in equal halves, can show and what others would need."""
    least = detectable_accuracy(images, POWER, ALPHA)
    terms = f"(two-sided exact binomial test at level {ALPHA}, power {POWER * 100:.0f} %)"
    lines = [
        f"{images} images are too few to tell any accuracy from guessing {terms}."
        if least is None
        else f"{images} images tell a true accuracy of {math.ceil(least * 100) / 100:.2f} or more "
        f"from guessing {terms}."
    ]
    lines += [
        f"An accuracy of {accuracy} ({who}) would take {trials_needed(accuracy, POWER, ALPHA)}."
        for accuracy, who in REFERENCES.items()
    ]
    return "\n".join(lines)


def _look(folder: str | Path, word: str, unwanted: str) -> _Side:
    """List and check the images of one side."""
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {word} images")
    if lists_origin(root, unwanted):
        raise DataError(
            f"{root}: its {MANIFEST} lists images of origin {unwanted}; expected a folder with "
            f"{word} images only"
        )
    files, left_out = _list(root)
    usable: dict[str, Record] = {}
    first: dict[str, str] = {}
    for file, record in zip(files, scan(root, files), strict=True):
        if record.problem:
            left_out.append((file, record.problem))
        elif _side_of(record) < SMALLEST_SIDE:
            left_out.append((file, f"smaller than {SMALLEST_SIDE} pixels on a side"))
        elif first.setdefault(record.digest, file) != file:
            left_out.append((file, f"copy of {printable(first[record.digest])}"))
        else:
            usable[file] = record
    return _Side(word, root, usable, left_out)


def _list(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The files below a folder, hidden ones apart; and linked folders, which are not followed."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    files, left_out = [], []
    for place, folders, names in os.walk(root, onerror=stop):
        here = Path(place).relative_to(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (root / here / name).is_symlink():
                left_out.append(((here / name).as_posix(), "a link to a folder; not followed"))
        files += [(here / name).as_posix() for name in sorted(names) if not name.startswith(".")]
    return [file for file in files if file not in (MANIFEST, CREDIT)], left_out


def _refuse_shared(sides: list[_Side], digests: dict[str, dict[str, str]]) -> None:
    """No image may be on both sides; `digests` are by side and file."""
    real, fake = sides
    known = {digest: file for file, digest in digests[real.word].items()}
    shared = [
        f"{real.root / known[digest]} and {fake.root / file}"
        for file, digest in digests[fake.word].items()
        if digest in known
    ]
    if shared:
        raise DataError(
            f"{len(shared)} images are the same on both sides: "
            f"{'; '.join(map(printable, shared[:3]))}{'; …' if len(shared) > 3 else ''}. An image "
            "is either real or fake: take it out of one of the folders"
        )


def _draw(side: _Side, count: int, seed: Sequence[int]) -> list[str]:
    files = list(side.usable)
    if len(files) < count:
        some = [f"{printable(file)}: {reason}" for file, reason in side.left_out[:3]]
        raise DataError(
            f"{side.root}: {len(files)} usable images, but {count} {side.word} ones are asked for"
            f"{'; left out: ' if some else ''}{'; '.join(some)}"
        )
    return [files[place] for place in np.random.default_rng(seed).permutation(len(files))[:count]]


def _side_of(record: Record) -> int:
    return min(record.height, record.width)


def _notes(sides: list[_Side], drawn: dict[str, list[str]], size: int) -> list[str]:
    notes = [
        f"Every image is cut to its central square and brought to {size}×{size} pixels in the same "
        "way: averaged over areas where it is larger, cubic where smaller."
    ]
    for side in sides:
        lengths = [_side_of(side.usable[file]) for file in drawn[side.word]]
        span = (
            f"{min(lengths)}"
            if min(lengths) == max(lengths)
            else f"{min(lengths)} to {max(lengths)}"
        )
        shrunk = sum(length > size for length in lengths)
        enlarged = sum(length < size for length in lengths)
        notes.append(
            f"{side.word}: {len(lengths)} of {len(side.usable)} images, {span} pixels on the "
            f"shorter side; {shrunk} shrunk, {enlarged} enlarged."
        )
    endings = [{Path(file).suffix.lower() for file in files} for files in drawn.values()]
    if endings[0] != endings[1]:
        real, fake = (", ".join(sorted(ending)) or "none" for ending in endings)
        notes.append(
            f"The files end in {real} (real) and {fake} (fake): a compression that only one side "
            "has been through may leave traces that give it away."
        )
    return notes


def _credit(sides: list[_Side]) -> str:
    """The credit lines that stand beside the images, without a word of which side they are from."""
    lines: set[str] = set()
    for file in (side.root / CREDIT for side in sides):
        if file.is_file():
            text = file.read_text("utf-8", errors="replace")
            lines.update(filter(None, map(str.strip, text.splitlines())))
    return "; ".join(sorted(lines))


def _png(image: np.ndarray) -> str:
    # Uncompressed: a smooth image, as generators make them, would be a shorter text in the page.
    coded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
    return base64.b64encode(coded).decode()


def _hash_of(tag: str, html: str) -> str:
    """What allows the page's own style or script, and no other, in its security policy."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _share(share: dict) -> str:
    if share["value"] is None:
        return "-"
    return f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"


def _plain(text: str) -> str:
    """A reader's text without what could steer a terminal."""
    return "".join(character for character in text if character.isprintable())[:40]
