"""The expert test of section 4.4 as one HTML page that works offline."""

import hashlib
import json
import os
import re
import shlex
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings

import cellaug
from cellaug.data import DataError, Dataset, open_dataset
from cellaug.data.class_map import folded
from cellaug.data.dataset import printable
from cellaug.data.images import check_images, decode, fit_square
from cellaug.data.published import MANIFEST, MANIFESTS
from cellaug.data.scan import scan
from cellaug.data.sets import MANIFEST_SUFFIXES, SMALLEST_SIDE, generated_names, told
from cellaug.evaluation import expert
from cellaug.evaluation.expert_score import KEY, PAGE, power_statement
from cellaug.files import atomic_folder, new_folder, require_room, write_json
from cellaug.generators import CARD, CREDIT

import cv2
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from IPython.display import IFrame

UNCOMPRESSED = [cv2.IMWRITE_PNG_COMPRESSION, 0]  # a smooth, generated image would be shorter
PRACTICE = 2  # images of each kind before the trial, if there are more than it takes


def write_test(
    real: Path, fake: Path, out: Path, count: int = 50, seed: int = 0, size: int | None = None,
    ask: str = "real",
) -> dict:  # fmt: skip
    """Write the page `expert-test.html` and its key `key.json` into the new folder `out`.

    `count` images are drawn at random from each of the folders `real` and `fake` and their
    subfolders; where both have classes (subfolders, or labels in a manifest.csv), the same number
    of each class, so that the class does not give an image away. They are shown with a side of
    `size` pixels, by default the shortest of any of them. The page asks whether an image is real,
    or with `ask` "class", which class it is; up to `PRACTICE` more of each kind come before.
    Returns the key: `trial` (`trial_hash`), `ask`, for each image `real`, `files` and `classes`
    ("" if unknown), and `practice` (files), `folders`, `seed`, `size`, `notes`, `left_out` (file
    and reason). DataError for what makes no trial.
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
    wanted, names, matched = _matched(files[usable], count, seed)
    if ask == "class" and len(names) < 2:
        raise DataError(f"--ask class needs two classes or more on both sides. {matched}")
    drawn = pd.concat(_draw(files, kind, wanted, [seed, k]) for k, kind in enumerate(roots))
    size = size or int(drawn["side"].min())
    more = _practice(files[usable].drop(drawn.index), names, seed)
    both = pd.concat([drawn, more])
    pixels = np.stack([fit_square(decode(path)[0], size) for path in both["path"]])
    _refuse_shared(both.assign(digest=[image.tobytes() for image in pixels]))
    images, practice = np.split(pixels, [len(drawn)])
    classes = both["class"].map(folded).map(names).fillna("").to_numpy()

    # With the images in it, so that two trials of one seed have orders of their own.
    order = np.random.default_rng([seed, int(expert.trial_hash(images), 16)]).permutation(2 * count)
    key = {"format": expert.FORMAT, "seed": seed, "size": size, "cellaug": cellaug.__version__}
    key |= {"trial": expert.trial_hash(images[order]), "real": (order < count).tolist()}
    key |= {"ask": ask, "files": drawn["name"].iloc[order].tolist()}
    key |= {"classes": classes[order].tolist(), "practice": more["name"].tolist()}
    key["folders"] = {kind: printable(str(root)) for kind, root in roots.items()}
    key["notes"] = [*_notes(files["kind"][usable], drawn, size), matched]
    key["left_out"] = files.loc[~usable, ["name", "problem"]].to_numpy().tolist()
    known = [*names.values()] if ask == "class" else []
    truth = (more["kind"] == "real").tolist()
    truth = [known.index(name) for name in classes[len(drawn) :]] if known else truth
    html = page(images[order], _credit(roots), known, practice=(practice, truth))
    require_room(out, len(html), "the test")
    with atomic_folder(out) as part:
        (part / PAGE).write_bytes(html.encode())
        write_json(part / KEY, key)
    return key


def summary(key: dict, out: Path) -> str:
    """The result of `write_test` in the folder `out`, for a person."""
    lines = [f"left out: {file}: {reason}" for file, reason in key["left_out"][:20]]
    if more := len(key["left_out"][20:]):
        lines += [f"left out: {more} more, see {out / KEY}"]
    lines += [*key["notes"], power_statement(len(key["real"]))]
    lines += [f"{out / PAGE}  for the participants, {(out / PAGE).stat().st_size / 1e6:.1f} MB"]
    return "\n".join([*lines, f"{out / KEY}  the key: keep it to yourself"])


def page(
    images: np.ndarray, credit: str = "", classes: Sequence[str] = (), *,
    practice: tuple[np.ndarray, Sequence[int]] | None = None, answers: Sequence[int] | None = None,
    drawn: bool = False, more: str = "",
) -> str:  # fmt: skip
    """The page as HTML, for images uint8 N×H×W×3 in the order of the trial (`shuffle_trial`).

    It asks whether an image is real, or with `classes` for its class. `practice` are images and
    their answers (whether real, or the number of the class) that come before the trial. With
    `answers` to all images it is a taste, which tells each answer at once and exports nothing;
    `more` is the address of the whole test. `drawn` says that the real cells are drawings. It holds
    nothing else, and uncompressed PNGs of one size, so that no file tells them apart.
    """
    if not len(images := check_images(images, "images")):
        raise ValueError("images: expected at least one")
    warm, told = practice if practice is not None else (images[:0], [])
    if len(warm) != len(told) or (answers is not None and len(answers) != len(images)):
        raise ValueError("expected one answer for each image of the practice, and of a taste")
    data = {"format": expert.FORMAT, "trial": expert.trial_hash(images), "credit": credit}
    data |= {"classes": list(classes), "images": _uris(images), "drawn": drawn, "more": more}
    data |= {"warm_up": {"images": _uris(warm), "answers": _truth(told, classes)}}
    data |= {"answers": None if answers is None else _truth(answers, classes)}
    html = Path(__file__).with_suffix(".html").read_text("utf-8")
    policy = "default-src 'none'; img-src data:"
    for tag in ("style", "script"):  # the page's own and no other
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy += f"; {tag}-src 'sha256-{digest}'"
    html = html.replace("%POLICY%", f"{policy}; base-uri 'none'; form-action 'none'")
    return html.replace("%DATA%", json.dumps(data).replace("<", "\\u003c"))


def frame(html: str) -> "IFrame":
    """A page in a frame for JupyterLab, which gets no key that is meant for the page."""
    from IPython.display import IFrame

    return IFrame("about:blank", "100%", 760, [f'srcdoc="{escape(html)}"'])


def _uris(images: np.ndarray) -> list[str]:
    pngs = [cv2.imencode(".png", i[..., ::-1], UNCOMPRESSED)[1].tobytes() for i in images]
    return [f"data:image/png;base64,{b64encode(png).decode()}" for png in pngs]


def _truth(answers: Sequence[int], classes: Sequence[str]) -> list[int | bool]:
    return [int(x) if classes else bool(x) for x in answers]


def _look(kind: str, root: Path) -> pd.DataFrame:
    """The files of one kind: kind, path, name, side (pixels), digest and problem."""
    cells = open_dataset(root) if root.suffix.lower() in MANIFEST_SUFFIXES else None
    root = root.parent if cells else root
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with {kind} images")
    if (root / CARD).is_file():
        draw = f"draw images first: cellaug generate --generator {shlex.quote(str(root))} "
        draw += "--count 60 --out FOLDER"
        raise DataError(f"{root} is a generator, not a folder of images; {draw}")
    names = list(cells.table["path"]) if cells else _below(root)
    ours = (*MANIFESTS, CREDIT)
    names = [name for name in names if Path(name).name not in ours and "/." not in f"/{name}"]
    unwanted, listed = {"real": "synthetic", "fake": "real"}[kind], told(root, names)
    if (wrong := listed["origin"] == unwanted).any():
        by = printable(listed["by"][int(wrong.argmax())])
        raise DataError(f"{root}: {by} lists images of origin {unwanted}, not {kind}")
    table = scan(root, names)
    called = generated_names(pd.Series(names, dtype=object))[0].notna()
    if kind == "real" and (made := (table["generated"] != "") | called).any():
        many = f"{made.sum():,} of {len(made):,} images are generated"
        such = printable(names[int(made.argmax())])
        raise DataError(
            f"{root}: {many}, such as {such} (the files or their names say so). Give real ones"
        )
    labels = _labels(root, cells)
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


def _below(root: Path) -> list[str]:
    """The paths in a folder of all files below it, and of links to folders: not followed."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    names = []
    for place, folders, files in os.walk(root, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(place, name).is_symlink()]
        names += [Path(place, name).relative_to(root).as_posix() for name in links + sorted(files)]
    return names


def _labels(root: Path, cells: Dataset | None) -> dict[str, str]:
    """The class of each file of a set, or of a folder if it can be opened as one."""
    with suppress(DataError), catch_warnings(action="ignore"):
        listed = (root / MANIFEST).is_file()
        cells = cells or open_dataset(root / MANIFEST if listed else root)
        if not cells.unlabelled:
            return dict(zip(cells.table["path"], cells.table["class"].astype(str), strict=True))
    return {}


def _matched(
    usable: pd.DataFrame, count: int, seed: int
) -> tuple[dict[str, int], dict[str, str], str]:
    """How many images of each class to draw from both sides ("" for any), and a note on it.

    Between them, the classes that both sides have: as they are spelled, by their `folded` name.
    """
    spare = pd.crosstab(usable["class"].map(folded), usable["kind"])
    spare = spare.reindex(columns=["real", "fake"], fill_value=0)
    known = spare[(spare > 0).any(axis=1)].drop("", errors="ignore")
    both = known.min(axis=1)
    both = both[both > 0]
    if "" in spare.index or both.empty:
        gap = "Classes were not matched: not all images are in subfolders of their class (or in a "
        gap += "manifest.csv), or no class is on both sides. A participant may tell real from fake "
        return {"": count}, {}, f"{gap}images by how often a class comes up."
    if both.sum() < count:
        have = ", ".join(f"{n} {name}" for name, n in both.items())
        raise DataError(
            f"only {both.sum()} images of each side match by class ({have}), but {count} are asked "
            "for. Ask for fewer, or add images of the classes that are rarer on one side"
        )
    pool = np.random.default_rng([seed, 2]).permutation(np.repeat(both.index.to_numpy(), both))
    wanted = pd.Series(pool[:count]).value_counts(sort=False).sort_index()
    many = ", ".join(f"{n} {name}" for name, n in wanted.items())
    spelled = usable["class"].groupby(usable["class"].map(folded)).first()
    names = spelled[both.index].to_dict()
    note = f"Each side has the same number of images of a class: {many}."
    if alone := ", ".join(spelled[known.index.difference(both.index)]):
        note += f" Left out, since one side lacks them: {alone}."
    return wanted.to_dict(), names, note


def _practice(spare: pd.DataFrame, names: dict[str, str], seed: int) -> pd.DataFrame:
    """Images that the trial does not use, as many of each kind, up to `PRACTICE`, shuffled."""
    spare = spare[spare["class"].map(folded).isin(names)] if names else spare
    rng = np.random.default_rng([seed, 3])
    mixed = spare.iloc[rng.permutation(len(spare))]
    few = min(PRACTICE, *((mixed["kind"] == kind).sum() for kind in ("real", "fake")))
    chosen = mixed.groupby("kind").head(few)
    return chosen.iloc[rng.permutation(len(chosen))]


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
    looks = order["class"].map(folded)
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
    files = [(root.parent if root.is_file() else root) / CREDIT for root in roots.values()]
    texts = [file.read_text("utf-8", errors="replace") for file in files if file.is_file()]
    return "; ".join(sorted({line.strip() for line in "\n".join(texts).splitlines()} - {""}))
