"""How a folder of labelled images is laid out: which of its folders are classes.

These layouts are read: CLASS/, PATIENT/CLASS/ and CLASS/PATIENT/ (the patient, or slide, is the
group), PART/CLASS/ (parts called fold1 or batch-2 are no groups), each also below the folders of a
published split, as train/CLASS/; CLASS/train/; and a set that lies in one more folder. Segmentation
masks and boxes beside the images are refused.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cellaug.data.published import MANIFESTS
from cellaug.data.store import INDEX
from cellaug.errors import DataError
from cellaug.files import name_problem

import pandas as pd

_INNER = "a folder inside a class folder; what it holds is not read"
CLUTTER, OUTSIDE = "hidden or system clutter", "outside the class folders"
_SIDE_OF = {name: name for name in ("train", "validation", "test")}
_SIDE_OF |= {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
_SIDE_OF |= {"dev": "validation", "development": "validation", "trainingsdaten": "train"}
_SIDE_OF |= {"testdaten": "test", "validierungsdaten": "validation", "validierung": "validation"}
SIDES = set(_SIDE_OF)
_SIDE = re.compile(rf"({'|'.join(_SIDE_OF)})([ _-]?(set|split|data|images?|imgs|cells))?")
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}
_OURS = {*MANIFESTS, "credit.txt", INDEX}
_NO_IMAGES = {".txt", ".csv", ".tsv", ".md", ".json", ".xml", ".html", ".pdf", ".xlsx", ".xls"}
_NO_IMAGES |= {".docx", ".yaml", ".yml", ".ini", ".parquet", ".zip", ".py"}
_BOXES = (".xml", ".txt", ".json")
_MASK = r"(masks?|ground[ _-]?truths?|segmentations?|gt|grth)"
_MASKS = re.compile(rf"(.*[ _.-])?{_MASK}|{_MASK}[ _.-].*", re.IGNORECASE)
_MASK_OF = re.compile(r"(.+)[ _.-](masks?|segmentation|seg|gt|labels?|binary|bin)", re.IGNORECASE)
_COCO = re.compile(r".*\.coco\.json|_?(annotations?|instances|coco)\w*\.json", re.IGNORECASE)
_ANNOTATIONS = {"annotation", "annotations", "labels", "boxes", "bboxes"}
_PLAIN = set("images image imgs img pictures bilder cells crops cropped photos raw".split())
_PLAIN |= set("original originals png jpg jpeg tif tiff bmp".split())  # they say nothing
_COLOURED = _PLAIN | {"rgb", "color", "colour"}  # of several versions of each image the photograph
_PART = re.compile(r"(cv[ _-]?)?(folds?|parts?|batch|chunk|set|subset)[ _.-]?\d+", re.IGNORECASE)
_CELLS = re.compile(r".*(phil|cyte|blast|platelet|phage)s?", re.IGNORECASE)
_Look = Callable[[str], tuple[list[str], list[str]]]  # a path: names of its files, of its folders


class Layout(NamedTuple):
    """A folder's images.

    `listed` has one row per file: path, class, reason to leave it out, side, group and origin ("").
    """

    listed: pd.DataFrame
    class_names: list[str]
    words: str  # how folders are read, "" if each is a class


def side_of(name: str) -> str:
    """The side of a published split that is called so, as in Train_set; "" for none."""
    found = _SIDE.fullmatch(name.strip().lower())
    return _SIDE_OF[found[1]] if found else ""


def sides_among(names: Iterable[str]) -> dict[str, str]:
    """Which folders beside each other are sides of a published split, and which one each is.

    Longer names count, as wbc_train and 1_test, if there are several sides, and no short names.
    """
    strict = {name: side for name in names if (side := side_of(name))}
    loose: dict[str, str] = {}
    for name in names:
        found = {_SIDE_OF[word] for word in words_of(name) if word in _SIDE_OF}
        if len(found) == 1:
            loose[name] = found.pop()
    return loose if not strict and len(set(loose.values())) > 1 else strict


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, also those of wbcTrain."""
    return [word.lower() for word in re.findall(r"[A-ZÄÖÜ]?[a-zäöü]+|[A-ZÄÖÜ]+", name)]


def clutter(name: str) -> bool:
    """Whether a file or folder is hidden or the system's."""
    return name.startswith(".") or name.lower() in _CLUTTER


def check_label(label: str, source: str | Path, where: str) -> None:
    """Refuse a label that cannot be a class folder's name, which other commands make of it."""
    if "/" in label or "\\" in label:
        problem = "contains a slash or backslash"
    elif label.lower() in _OURS:
        problem = "is the name of a file that cellaug writes"
    elif clutter(label):
        problem = "is the name of a hidden or system folder"
    elif not (problem := name_problem(label)):
        return
    fix = "Labels become names of folders: write it in another way, as in neutrophil_band"
    raise DataError(f"{source}: the label {label[:99]!r} ({where}) {problem}. {fix}")


def in_folders(root: Path, folders: Sequence[str], kinds: Mapping | None = None) -> pd.DataFrame:
    """List class folders, as in `Layout`; `kinds` gives classes by file-name prefix."""
    look = _looking(root)
    files, others = look("")
    rows = _stray([*files, *set(others).difference(folders)])
    for folder in folders:
        rows += _rows(folder, look, folder, kinds=kinds)
    return _table(rows)


def wrapped(root: Path) -> Path | None:
    """Return the one folder within `root` that holds the whole set, as unpacking may leave it."""
    files, folders = _looking(root)("")
    if len(folders) != 1 or side_of(folders[0]) or _images(files):
        return None
    if set(MANIFESTS) & set(files):
        return None
    inner = root / folders[0]
    if _CELLS.fullmatch(inner.name) or root.is_relative_to(inner.resolve()):  # a link upwards
        return None
    files, folders = _looking(inner)("")
    whole = {INDEX, *MANIFESTS} & set(files) or (folders and not _images(files))
    return inner if whole else None


def read_layout(root: Path) -> Layout | None:
    """List the images of a folder; None if it holds no class folders; `DataError` as above."""
    look = _looking(root)
    files, top = look("")
    _refuse_annotated(root, look, ["", *top])
    side_of_top = sides_among(top)
    sides = [name for name in top if name in side_of_top]
    if any(look(side)[1] for side in sides):
        if odd := [name for name in top if name not in sides]:
            what = f"{', '.join(sides)} hold a published split, but {', '.join(odd)}"
            fix = "Expected train, validation (or val) and test. Rename or move it"
            raise DataError(f"{root}: {what} is no part of one. {fix}")
    elif sides == top:
        if len(top) > len(set(side_of_top.values())):
            what = f"its folders, such as {top[0]}, name a side of a split and a class in one"
            raise DataError(f"{root}: {what}. Expected train/CLASS, validation/CLASS, test/CLASS")
        return None
    else:
        sides = []
    parents = [(f"{side}/", side_of_top[side]) for side in sides] or [("", "")]
    rows = _stray([*files, *(side + name for side, _ in parents if side for name in look(side)[0])])
    first = [(parent + name, name, side) for parent, side in parents for name in look(parent)[1]]
    if not first:
        return None
    if sides:
        _refuse_annotated(root, look, [path for path, _, _ in first])
    words, names = "SPLIT/" * bool(sides), {name for _, name, _ in first}
    deep = not any(_images(look(path)[0]) for path, _, _ in first)
    if not (deep and any(look(path)[1] for path, _, _ in first)):
        for path, name, side in first:
            rows += _rows(path, look, name, side)
        return Layout(_table(rows), sorted(names), words and f"{words}CLASS")
    for path, _, _ in first:
        _refuse_annotated(root, look, [path, *(f"{path}/{name}" for name in look(path)[1])])
    held: dict[str, set[str]] = {name: set() for _, name, _ in first}
    for path, name, _ in first:
        held[name].update(look(path)[1])
    _refuse_deeper(root, look, [path for path, _, _ in first])
    inside = {inner.lower() for inners in held.values() for inner in inners}
    same = all({inner.lower() for inner in held[name]} == {name.lower()} for name in held)
    if same or inside <= _PLAIN:
        for path, name, side in first:  # each class in one folder more
            rows += _stray([f"{path}/{file}" for file in look(path)[0]])
            for inner in look(path)[1]:
                rows += _rows(f"{path}/{inner}", look, name, side)
        deeper = "CLASS" if same else " or ".join(sorted(inside))
        return Layout(_table(rows), sorted(names), f"{words}CLASS/{deeper}")
    if not sides and (split := _splits_of_classes(root, look, held)):
        return Layout(_table(rows + split), sorted(names), "CLASS/SPLIT")
    order = _order(root, held)
    if parts := order == "PATIENT/CLASS" and all(_PART.fullmatch(name) for name in held):
        words += "PART/CLASS"
    for path, name, side in first:
        rows += _stray([f"{path}/{file}" for file in look(path)[0]] or [path] * (not look(path)[1]))
        for inner in look(path)[1]:
            kind, group = (inner, name) if order == "PATIENT/CLASS" else (name, inner)
            rows += _rows(f"{path}/{inner}", look, kind, side, "" if parts else group)
    if order == "PATIENT/CLASS":
        names = set().union(*held.values())
    return Layout(_table(rows), sorted(names), words + order * (not parts))


def _splits_of_classes(root: Path, look: _Look, held: Mapping[str, set[str]]) -> list[tuple]:
    """The rows of a set whose class folders hold the sides of a split; `DataError` if only some."""
    inners = sorted({name for inner in held.values() for name in inner})
    if not (published := sides_among(inners)):
        return []
    if odd := [name for name in inners if name not in published]:
        what = f"{', '.join(published)} below its folders are sides of a published split, but "
        fix = "Expected train, validation (or val) and test in each class. Rename or move them"
        raise DataError(f"{root}: {what}{', '.join(odd[:9])} is none. {fix}")
    rows = []
    for kind in held:
        rows += _stray(f"{kind}/{file}" for file in look(kind)[0])
        for inner in look(kind)[1]:
            rows += _rows(f"{kind}/{inner}", look, kind, published[inner])
    return rows


def _refuse_deeper(root: Path, look: _Look, places: Sequence[str]) -> None:
    """DataError where all images lie a folder deeper than two levels."""
    second = [f"{path}/{inner}" for path in places for inner in look(path)[1]]
    third = [f"{path}/{inner}" for path in second for inner in look(path)[1]]
    if any(_images(look(path)[0]) for path in second):
        return
    if deep := next((path for path in third if _images(look(path)[0])), ""):
        fix = "Write a table (.csv) with the columns path, label and group, and open that"
        raise DataError(f"{root}: its images lie deeper than two folders, as in {deep}. {fix}")


def files_in(place: str | Path) -> list[Path]:
    """A file itself, or all that may be images below a folder; `DataError` if there are none."""
    place = Path(place)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place}: no such file or folder")
    below = (Path(folder, name) for folder, _, names in os.walk(place) for name in _images(names))
    found = sorted(path for path in below if not any(map(clutter, path.parts[len(place.parts) :])))
    if not found:
        raise DataError(f"{place} holds no images")
    return found


def _looking(root: Path) -> _Look:
    @cache
    def look(path: str) -> tuple[list[str], list[str]]:
        files: list[str] = []
        folders: list[str] = []
        for entry in sorted(os.scandir(root / path), key=lambda entry: entry.name):
            folder = entry.is_dir(follow_symlinks=False)
            if entry.is_symlink():  # it may lead to a folder
                folder = os.path.isdir(entry)  # noqa: PTH112 - no error where it leads nowhere
            (folders if folder and not clutter(entry.name) else files).append(entry.name)
        return files, folders

    return look


def _stray(paths: Iterable[str]) -> list[tuple]:
    named = ((path, path.rpartition("/")[2]) for path in paths)
    return [(path, "", CLUTTER if clutter(name) else OUTSIDE, "", "") for path, name in named]


def _rows(
    path: str, look: _Look, kind: str, side: str = "", group: str = "", kinds: Mapping | None = None
) -> list[tuple]:
    rows = []
    files, folders = look(path)
    for name in files:
        own = kind if kinds is None else kinds.get(name.split("_")[0], "")
        reason = CLUTTER if clutter(name) else "" if own else "finer label not specified"
        rows.append((f"{path}/{name}", own or kind, reason, side, group))
    for name in folders:
        many = len(_images(look(f"{path}/{name}")[0]))
        why = _INNER + f": {many:,} images" * (many > 0)
        rows.append((f"{path}/{name}", kind, why, side, group))
    return rows


def _table(rows: list[tuple]) -> pd.DataFrame:
    columns = ["path", "class", "reason", "side", "group"]
    return pd.DataFrame(rows, columns=columns, dtype=object).assign(origin="")


def _images(files: Iterable[str]) -> list[str]:
    """Names that may be those of images."""
    return [f for f in files if not clutter(f) and f[len(_stem(f)) :].lower() not in _NO_IMAGES]


def _stem(name: str) -> str:
    """A file's name without its ending: as Path has it, in a tenth of the time."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and dot and ending else name


def _order(root: Path, held: Mapping[str, set[str]]) -> str:
    """Which of two levels of folders are the classes, by their names and which of them repeat."""
    inner = Counter(name for names in held.values() for name in names)

    def kind(names: Iterable[str]) -> str:
        cells = [bool(_CELLS.fullmatch(name)) for name in names]
        if sum(cells) > len(cells) / 2:
            return "cells"
        return "numbered" if all(re.search(r"\d", name) for name in names) else ""

    above, below = kind(held), kind(inner)
    repeated, once = max(inner.values()) > 1, max(inner.values()) == 1
    # As many patients have all classes, but not as many classes all patients.
    common = repeated and 1 < len(inner) < len(held) and min(inner.values()) == len(held)
    if (above, below) == ("numbered", "cells"):
        return "PATIENT/CLASS"
    named = (above, below) == ("", "numbered") and not common
    if below != "cells" and (above == "cells" or named):
        return "CLASS/PATIENT"
    if repeated and (above, below) in (("", "cells"), ("numbered", "")):
        return "PATIENT/CLASS"
    if above == below != "cells" and (common or once):
        return "PATIENT/CLASS" if common else "CLASS/PATIENT"
    a, b = next((name, min(names)) for name, names in held.items() if names)
    both = f"PATIENT/CLASS ({a} a patient, {b} a class) or CLASS/PATIENT ({a} a class, {b} one)"
    fix = "Write a table (.csv) with the columns path, label and group, and open that"
    raise DataError(f"{root}: its folders {a}/{b}, … can be read as {both}. {fix}")


def _same_names(look: _Look, one: str, other: str) -> bool:
    """Whether nearly all images in or below two folders have the same names."""
    both = []
    for path in (one, other):
        below = [("", look(path)[0]), *((x, look(f"{path}/{x}")[0]) for x in look(path)[1])]
        both.append({(x, _stem(name)) for x, files in below for name in _images(files)})
    return len(both[0] & both[1]) > 0.9 * max(1, *map(len, both))


def _refuse_annotated(root: Path, look: _Look, paths: Sequence[str]) -> None:
    """Refuse segmentation masks, and boxes of cells in larger fields, in or among these folders."""
    for path in paths:
        files, folders = look(path)
        below = {name: f"{path}/{name}".lstrip("/") for name in folders}
        masks = [place for name, place in below.items() if _MASKS.fullmatch(name)]
        boxes = [f"{path}/{name}" for name in files if _COCO.fullmatch(name)]
        for name, place in below.items():
            deeper = [f"{x}/{f}" for x in look(place)[1] for f in look(f"{place}/{x}")[0]]
            if name.lower() in _ANNOTATIONS and (held := look(place)[0] or deeper):
                about = [file for file in held if file.lower().endswith(_BOXES)]
                boxes += [f"{place}/{file}" for file in about[:1]]
                masks += [place] if _images(held) and not about else []
        images = _images(files)
        stems = Counter(_stem(name) for name in images)
        pairs = ((name, _MASK_OF.fullmatch(_stem(name))) for name in images)
        masks += [f"{path}/{name}" for name, found in pairs if found and found[1] in stems]
        if len(images) > 3 and set(stems.values()) == {2}:
            masks.append(f"{path}/{images[0]}, or a copy, beside {images[1]}")
        told = [name for name in files if name.lower().endswith(_BOXES) and _stem(name) in stems]
        if len(told) > len(images) / 2:
            boxes.append(f"{path}/{told[0]}")
        expected = "Expected one image per cell, in one folder per class"
        if masks:
            fix = "Move the masks out of the set, or list the images in a table (path, label)"
            what = f"it holds segmentation masks ({masks[0].lstrip('/')}), which are no cells"
            raise DataError(f"{root}: {what}. {expected}. {fix}")
        if boxes:
            fix = "Cut every box out into an image of its own"
            what = f"it holds fields with boxes ({boxes[0].lstrip('/')}), not one cell an image"
            raise DataError(f"{root}: {what}. {expected}. {fix}")
        for name in (name for name in folders if name.lower() in _COLOURED):
            same = [x for x in folders if x != name and _same_names(look, below[name], below[x])]
            if same := [x for x in same if x.lower() not in SIDES]:
                what = f"{below[name]} and {below[same[0]]} hold images of the same names, which"
                fix = f"Take {same[0]} out of the set, or list the cells in a table (path, label)"
                raise DataError(f"{root}: {what} may be masks or changed copies. {fix}")
