"""Which class of a generator is drawn for a class of a data set that calls it differently."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cellaug.errors import DataError

import yaml

Names = Sequence[str]
LEAVE = "leave"  # in a class map: no generated images for this class


def read_class_map(file: str | Path) -> dict[str, str]:
    """Read a class map: YAML, on each line a class of a set and the generator's, or "leave"."""
    try:
        node: Any = yaml.compose(Path(file).read_text("utf-8"), yaml.BaseLoader)
        if node is None:
            raise ValueError("it is empty")
        pairs = [(theirs.value, ours.value) for theirs, ours in node.value]
        if not all(isinstance(name, str) for pair in pairs for name in pair):
            raise ValueError("a list or an object in place of a name")
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        lines = f"lines such as 'Basophil: basophil' or 'Smudge: {LEAVE}'"
        raise DataError(f"{file}: expected a class map in YAML, {lines} ({error})") from error
    if len(mapped := dict(pairs)) < len(pairs):
        raise DataError(f"{file}: a class of the data set has two lines; remove one")
    return mapped


def folded(name: str) -> str:
    """A class's name without the case, and with one blank for blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def alike(names: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """By name the one of `wanted` that differs at most by case, blanks and underscores, or itself.

    All stay as they are where two names would become one.
    """
    names, looks = list(names), {folded(name): name for name in wanted}
    found = {name: looks.get(folded(name), name) for name in names}
    return found if len(set(found.values())) == len(found) else {name: name for name in names}


def _mapped(names: Names, known: Names, class_map: Mapping[str, str]) -> dict[str, str]:
    if strange := ", ".join(name for name in class_map if name not in names):
        are = ", ".join(names)
        raise DataError(f"class map: the data set has no class {strange}; its classes are {are}")
    return alike(names, known) | dict(class_map)


def begun_as(names: Names, known: Names, class_map: Mapping[str, str]) -> dict[str, str]:
    """The class of `known` as which each one starts, "" if new; DataError for strange names."""
    given = _mapped(names, known, class_map)
    if strange := ", ".join(ours for ours in class_map.values() if ours not in known):
        are = ", ".join(known)
        raise DataError(f"class map: the generator has no class {strange}; its classes are {are}")
    return {name: ours if ours in known else "" for name, ours in given.items()}


def drawn_as(names: Names, known: Names, class_map: Mapping[str, str]) -> dict[str, str]:
    """The generator's class (of `known`) for each class of a set that gets generated images.

    A class is drawn as the one that the map names, else as the one of its own name (`alike`).
    DataError for one that the generator does not know, with a map to be completed, and for strange
    names in it.
    """
    given = _mapped(names, known, class_map)
    drawn = {name: ours for name, ours in given.items() if ours != LEAVE}
    if unknown := {name: ours for name, ours in drawn.items() if ours not in known}:
        folded = {name.casefold(): name for name in known}
        near = {x: get_close_matches(ours.casefold(), folded, 1) for x, ours in unknown.items()}
        lines = {name: folded[close[0]] if close else LEAVE for name, close in near.items()}
        lines = {name: ours for name, ours in given.items() if name in class_map} | lines
        raise DataError(
            f"the generator does not know {str([*unknown.values()])[1:-1]}; its classes are "
            f"{str([*known])[1:-1]}. Train one on this data set, or give a class map "
            f"(--class-map FILE) such as this one, in which '{LEAVE}' means no generated images:\n"
            + yaml.safe_dump(lines, allow_unicode=True, sort_keys=False, width=1000).rstrip()
        )
    if not drawn:
        raise DataError(f"class map: it says '{LEAVE}' for every class, so nothing is generated")
    return drawn
