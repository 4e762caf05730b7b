"""The expert test of section 4.4 as one HTML page that works offline, and its score."""

import hashlib
import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cellaug
from cellaug.data import DataError, open_dataset
from cellaug.data.dataset import printable
from cellaug.data.images import check_images, decode, fit_square
from cellaug.data.published import MANIFEST, MANIFESTS
from cellaug.data.scan import scan
from cellaug.data.sets import SMALLEST_SIDE, told
from cellaug.evaluation import expert
from cellaug.files import atomic_folder, new_folder, write_json
from cellaug.generators import CREDIT

import cv2
import numpy as np
import pandas as pd

PAGE, KEY = "expert-test.html", "key.json"
UNCOMPRESSED = [cv2.IMWRITE_PNG_COMPRESSION, 0]  # a smooth, generated image would be shorter

# accuracies reached elsewhere
REFERENCES = {0.63: "haematologists on marrow cells of StyleGAN2-ADA", 0.71: "the thesis's expert"}


def write_test(
    real: Path, fake: Path, out: Path, count: int = 50, seed: int = 0, size: int | None = None
) -> dict:
    """Write the page `expert-test.html` and its key `key.json` into the new folder `out`.

    `count` images are drawn at random from each of the folders `real` and `fake` and their
    subfolders; where both have classes (subfolders, or labels in a manifest.csv), the same number
    of each class, so that the class does not give an image away. They are shown with a side of
    `size` pixels, by default the shortest of any of them.
    Returns the key: `trial` (`trial_hash`), for each image `real` and `files`, and `folders`,
    `seed`, `size`, `notes`, `left_out` (file and reason). DataError for what makes no trial.
    """
    limits = {"count": (count, 1), "seed": (seed, 0), "size": (size, SMALLEST_SIDE)}
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise DataError(f"{name}: expected a whole number from {least}, got {value}")
    out = new_folder(out)
    roots = {"real": Path(real).expanduser().resolve(), "fake": Path(fake).expanduser().resolve()}
    files = pd.concat([_look(kind, root) for kind, root in roots.items()], ignore_index=True)
    usable = files["problem"] == ""
    _refuse_shared(files[usable])
    wanted, matched = _matched(files[usable], count, seed)
    drawn = pd.concat(_draw(files, kind, wanted, [seed, k]) for k, kind in enumerate(roots))
    size = size or int(drawn["side"].min())
    images = np.stack([fit_square(decode(path)[0], size) for path in drawn["path"]])
    _refuse_shared(drawn.assign(digest=[image.tobytes() for image in images]))

    # With the images in it, so that two trials of one seed have orders of their own.
    order = np.random.default_rng([seed, int(expert.trial_hash(images), 16)]).permutation(2 * count)
    key = {"format": expert.FORMAT, "seed": seed, "size": size, "cellaug": cellaug.__version__}
    key |= {"trial": expert.trial_hash(images[order]), "real": (order < count).tolist()}
    key["files"] = drawn["name"].iloc[order].tolist()
    key["folders"] = {kind: printable(str(root)) for kind, root in roots.items()}
    key["notes"] = [*_notes(files["kind"][usable], drawn, size), matched]
    key["left_out"] = files.loc[~usable, ["name", "problem"]].to_numpy().tolist()
    with atomic_folder(out) as part:
        (part / PAGE).write_bytes(page(images[order], _credit(roots)).encode())
        write_json(part / KEY, key)
    return key


def summary(key: dict, out: Path) -> str:
    """The result of `write_test` in the folder `out`, for a person."""
    lines = [f"left out: {file}: {reason}" for file, reason in key["left_out"][:20]]
    if more := len(key["left_out"][20:]):
        lines += [f"left out: {more} more, see {out / KEY}"]
    lines += [*key["notes"], power_statement(len(key["real"]))]
    lines += [f"{out / PAGE}  for the readers, {(out / PAGE).stat().st_size / 1e6:.1f} MB"]
    return "\n".join([*lines, f"{out / KEY}  the key: keep it to yourself"])


def page(images: np.ndarray, credit: str = "") -> str:
    """The page as HTML, for images uint8 N×H×W×3 in the order of the trial (`shuffle_trial`).

    It holds nothing else, and uncompressed PNGs of one size, so that no file tells them apart.
    """
    if not len(images := check_images(images, "images")):
        raise ValueError("images: expected at least one")
    pngs = [cv2.imencode(".png", i[..., ::-1], UNCOMPRESSED)[1].tobytes() for i in images]
    data = {"format": expert.FORMAT, "trial": expert.trial_hash(images), "credit": credit}
    data |= {"images": [f"data:image/png;base64,{b64encode(png).decode()}" for png in pngs]}
    html = Path(__file__).with_suffix(".html").read_text("utf-8")
    policy = "default-src 'none'; img-src data:"
    for tag in ("style", "script"):  # the page's own and no other
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy += f"; {tag}-src 'sha256-{digest}'"
    html = html.replace("%POLICY%", f"{policy}; base-uri 'none'; form-action 'none'")
    return html.replace("%DATA%", json.dumps(data).replace("<", "\\u003c"))


def read_key(path: str | Path) -> dict:
    """Read a key; `real` is bool (N,). FileNotFoundError or DataError if it is none."""
    key = expert.read_document(path, f"the key of an expert test, {KEY}")
    if "said_real" in key:
        raise DataError(f"{path} holds answers: give the key, {KEY}, as the last file")
    real = key.get("real")
    if not isinstance(real, list) or not real or any(not isinstance(x, bool) for x in real):
        raise DataError(f"{path}: real should be a list of true and false, one for each image")
    if not isinstance(key.get("trial"), str):
        raise DataError(f"{path}: trial should be a text, found {key.get('trial')!r}")
    return key | {"real": np.array(real)}


def score_answers(answers: Sequence[str | Path], key: str | Path) -> dict:
    """Score files of answers, one for each reader, against the key of their trial.

    Returns `trial`, `images` (numbers of real and fake ones), `readers` and `power`: what so many
    images can show. A reader has what `score_confusion` gives, `file`, `initials`, `started`,
    `finished`, `against_guessing` and `median_seconds` (or None). Raises as `read_answers` does.
    """
    truth = read_key(key)
    real, readers = truth["real"], []
    seen: dict[str, Path] = {}
    for path in map(Path, answers):
        given = expert.read_answers(path, truth["trial"])
        said, times = given["said_real"], given["milliseconds"]
        if len(said) != len(real):
            raise DataError(f"{path}: expected {len(real)} answers, found {len(said)}")
        same = seen.setdefault(str(given | {"said_real": said.tolist()}), path)
        if same is not path and times:  # equal to the millisecond: one reader's
            raise DataError(f"{path} holds the same answers as {same}: give each reader once")
        reader = expert.score(real, said) | {"file": printable(path.name)}
        reader["initials"] = "".join(filter(str.isprintable, given["initials"] or ""))[:40]
        reader["against_guessing"] = expert.against_guessing(reader["confusion"])
        reader["median_seconds"] = float(np.median(times)) / 1000 if times else None
        readers.append(reader | {name: given[name] for name in ("started", "finished")})
    power: dict = {"power": expert.POWER, "alpha": expert.ALPHA}
    power["detectable_accuracy"] = expert.detectable_accuracy(len(real))
    power["trials_needed"] = {str(a): expert.trials_needed(a) for a in REFERENCES}
    images = {"real": int(real.sum()), "fake": int((~real).sum())}
    return {"trial": truth["trial"], "images": images, "readers": readers, "power": power}


def as_text(scores: dict) -> str:
    """The result of `score_answers` for a person: tables like Table 2, a row for each reader."""
    real, fake = scores["images"]["real"], scores["images"]["fake"]
    lines, rows = [f"trial {scores['trial']}: {real} real and {fake} fake images"], []
    for reader in scores["readers"]:
        name = reader["initials"] or reader["file"]
        columns = pd.Index(["called real", "called fake"], name=name)
        lines += ["", pd.DataFrame(reader["confusion"], ["real", "fake"], columns).to_string()]
        row = {"reader": name}
        for measure in ("recall", "specificity", "accuracy"):
            words = "{value:.2f} [{low:.2f}, {high:.2f}]" if reader[measure]["trials"] else "-"
            row[measure] = words.format(**reader[measure])
        p, seconds = reader["against_guessing"]["p"], reader["median_seconds"]
        row["p"] = "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        rows.append(row | {"seconds": "-" if seconds is None else f"{seconds:.1f}"})
    test = scores["readers"][0]["against_guessing"]["test"]
    lines += ["", pd.DataFrame(rows).to_string(index=False), ""]
    lines += ["recall: real images called real; specificity: fake images called fake; in brackets:"]
    lines += [f"exact 95 % intervals. p: two-sided {test}.", "seconds: median per image."]
    pooled = "All readers saw the same images: their answers are not independent, no pooled"
    lines += [pooled, "result is given."] * (len(rows) > 1)
    return "\n".join([*lines, "", power_statement(real + fake)])


def power_statement(images: int) -> str:
    """What a test with so many images, half of them real, can show and what others would need."""
    least = expert.detectable_accuracy(images)
    found = "are too few to tell any accuracy from guessing"
    if least is not None:
        found = f"tell a true accuracy of {math.ceil(least * 100) / 100:.2f} or more from guessing"
    terms = f"level {expert.ALPHA}, power {expert.POWER * 100:.0f} %"
    lines = [f"{images} images {found} (two-sided exact binomial test at {terms})."]
    for accuracy, who in REFERENCES.items():
        lines += [f"An accuracy of {accuracy} ({who}) would take {expert.trials_needed(accuracy)}."]
    return "\n".join(lines)


def _look(kind: str, root: Path) -> pd.DataFrame:
    """The files of one kind: kind, path, name, side (pixels), digest and problem."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with {kind} images")

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    names = []
    for place, folders, files in os.walk(root, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(place, name).is_symlink()]  # not followed
        names += [Path(place, name).relative_to(root).as_posix() for name in links + sorted(files)]
    ours = (*MANIFESTS, CREDIT)
    names = [name for name in names if Path(name).name not in ours and "/." not in f"/{name}"]
    unwanted, listed = {"real": "synthetic", "fake": "real"}[kind], told(root, names)
    if (wrong := listed["origin"] == unwanted).any():
        by = printable(listed["by"][int(wrong.argmax())])
        raise DataError(f"{root}: {by} lists images of origin {unwanted}, not {kind}")
    table = scan(root, names)
    if kind == "real" and (made := table["generated"] != "").any():
        many = f"{made.sum():,} of {len(made):,} images are generated"
        such = printable(names[int(made.argmax())])
        raise DataError(f"{root}: {many}, such as {such} (the files say so). Give real ones")
    labels = _labels(root)
    known = [labels.get(name, Path(name).parent.name) for name in names]
    table["class"] = pd.Series(known, dtype=object)
    table["kind"], table["side"] = kind, table[["height", "width"]].min(axis=1)
    table["path"] = pd.Series([root / name for name in names], dtype=object)
    table["name"] = [f"{kind}/{printable(name)}" for name in names]
    small = (table["problem"] == "") & (table["side"] < SMALLEST_SIDE)
    table.loc[small, "problem"] = f"smaller than {SMALLEST_SIDE} pixels on a side"
    usable = table[table["problem"] == ""]
    copies = usable[usable.duplicated("digest")]
    first = usable.drop_duplicates("digest").set_index("digest")["name"][copies["digest"]]
    table.loc[copies.index, "problem"] = [f"copy of {name.partition('/')[2]}" for name in first]
    return table


def _labels(root: Path) -> dict[str, str]:
    """The class of each file that a folder's manifest.csv lists, if it has a usable one."""
    with suppress(DataError):
        if (root / MANIFEST).is_file() and not (cells := open_dataset(root / MANIFEST)).unlabelled:
            return dict(zip(cells.table["path"], cells.table["class"].astype(str), strict=True))
    return {}


def _matched(usable: pd.DataFrame, count: int, seed: int) -> tuple[dict[str, int], str]:
    """How many images of each class to draw from both sides ("" for any), and a note on it."""
    spare = pd.crosstab(usable["class"].str.casefold(), usable["kind"])
    spare = spare.reindex(columns=["real", "fake"], fill_value=0)
    known = spare[(spare > 0).any(axis=1)].drop("", errors="ignore")
    both = known.min(axis=1)
    both = both[both > 0]
    if "" in spare.index or both.empty:
        gap = (
            "Classes were not matched: not all images are in subfolders of their class (or listed "
        )
        gap += "in a manifest.csv), or no class is on both sides. A reader may tell real from fake "
        return {"": count}, f"{gap}images by how often a class comes up."
    if both.sum() < count:
        have = ", ".join(f"{n} {name}" for name, n in both.items())
        raise DataError(
            f"only {both.sum()} images of each side match by class ({have}), but {count} are asked "
            "for. Ask for fewer, or add images of the classes that are rarer on one side"
        )
    pool = np.random.default_rng([seed, 2]).permutation(np.repeat(both.index.to_numpy(), both))
    wanted = pd.Series(pool[:count]).value_counts(sort=False).sort_index()
    many = ", ".join(f"{n} {name}" for name, n in wanted.items())
    return wanted.to_dict(), f"Each side has the same number of images of a class: {many}."


def _draw(
    files: pd.DataFrame, kind: str, wanted: dict[str, int], seed: Sequence[int]
) -> pd.DataFrame:
    """Usable files of one side at random, so many of each class ("" for any)."""
    files, count = files[files["kind"] == kind], sum(wanted.values())
    usable, left_out = files[files["problem"] == ""], files[files["problem"] != ""]
    if len(usable) < count:
        why = "; ".join(["", *(left_out["name"] + ": " + left_out["problem"])[:3]])
        raise DataError(f"{len(usable)} usable {kind} images, but {count} are asked for{why}")
    order = usable.iloc[np.random.default_rng(seed).permutation(len(usable))]
    looks = order["class"].str.casefold()
    parts = [order[looks == name] if name else order for name in wanted]
    return pd.concat([part[:many] for part, many in zip(parts, wanted.values(), strict=True)])


def _refuse_shared(files: pd.DataFrame) -> None:
    """No image may be on both sides; `files` has the columns kind, path and digest."""
    real = files[files["kind"] == "real"].drop_duplicates("digest")
    shared = real.merge(files[files["kind"] == "fake"], on="digest")
    if len(shared):
        pairs = "; ".join(f"{row.path_x} and {row.path_y}" for row in shared[:3].itertuples())
        more = "; …" * (len(shared) > 3)
        same = f"{len(shared)} images are the same on both sides: {printable(pairs)}{more}"
        raise DataError(f"{same}. An image is real or fake: remove it from one of the folders")


def _notes(usable: pd.Series, drawn: pd.DataFrame, size: int) -> list[str]:
    """How images were prepared, and what could give a side away; `usable` is each file's kind."""
    notes = [f"Every image is cut to its central square and brought to {size}×{size} pixels: "]
    notes[0] += "averaged over areas where it is larger, cubic where smaller."
    for kind, side in drawn.groupby("kind", sort=False)["side"]:
        span = " to ".join(map(str, sorted({side.min(), side.max()})))
        many = f"{kind}: {len(side)} of {(usable == kind).sum()} images, {span} pixels"
        changed = f"{(side > size).sum()} shrunk, {(side < size).sum()} enlarged"
        notes.append(f"{many} on the shorter side; {changed}.")
    endings = drawn["path"].map(lambda path: path.suffix.lower() or "none").groupby(drawn["kind"])
    fake, real = (", ".join(sorted(set(found))) for _, found in endings)
    if real != fake:
        trace = "traces of a compression that only one side has been through may give it away"
        notes += [f"The files end in {real} (real) and {fake} (fake): {trace}."]
    return notes


def _credit(roots: dict[str, Path]) -> str:
    """The credit lines shown beside the images, without a word of which side they are from."""
    files = [root / CREDIT for root in roots.values() if (root / CREDIT).is_file()]
    lines = [line for f in files for line in f.read_text("utf-8", errors="replace").splitlines()]
    return "; ".join(sorted({line.strip() for line in lines} - {""}))
