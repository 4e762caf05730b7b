"""The plan of a study: a YAML file that says which runs there are, before the first of them.

A run is plain values: what is trained, on which images, with which seed. Its name is a hash of
them, so that a run is done once, whoever asks for it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellaug.errors import DataError

import pandas as pd
import yaml

ARM: Mapping[str, Any] = {
    "sampling": ("natural", "balanced", "weighted"),
    "augment": ("none", "classical", "randaugment", "mixup"),
    "extra": (
        "none", "duplicates", "generated", "selected", "reconstructions", "interpolations", "real",
    ),
    "ratio": "fill",
    "only": ("every class", "scarce"),
    "pool": ("one", "disjoint"),
    "generator": ("recipe", "ac-gan"),
    "share": None,
    "pretrain": False,
    "recipe": {},
}  # fmt: skip
"""The choices of an arm, the first of each its default.

sampling: real images as often as they occur, every class alike, or as they occur with a loss that
is weighted by class. augment: what changes every training image. extra: images beside the real
ones, `ratio` of each class's (1.0 for as many again, "fill" for every class up to the largest);
only: of every class, or of those alone that the scarcity names as scarce.
pool: the generator has the classifier's own images, or others (the thesis's protocol). generator:
the conditional recipe, or the thesis's. share: where every class is sampled alike, the probability
that an image of a class with extra ones is such a one; by default they come as often as there are.
pretrain: the first half of the steps on extra images alone, the second on real ones alone. recipe:
choices of the generator other than the plan's.
"""

CLASSIFIER: Mapping[str, Any] = {
    "network": "residual", "width": 24, "norm": "batch", "steps": 1800, "batch_size": 32,
    "learning_rate": 2e-3, "mixed_precision": False,
}  # fmt: skip
GENERATOR: Mapping[str, Any] = {"images": 60_000, "start_from": "", "class_map": {}}
"""The images that a generator sees, and the trained one that it starts from ("" for none), with its
class for a class that is called differently; its other choices are those of `Recipe`."""

WORDS = {"network": ("residual", "compact", "xception"), "norm": ("batch", "group")}
PLAN: Mapping[str, Any] = {
    "data": "", "image_size": 64, "scarcities": {}, "arms": {}, "blocks": [], "contrasts": [],
    "classifier": {}, "generator": {}, "taxonomies": {}, "options": {},
}  # fmt: skip
SUBSET: Mapping[str, Any] = {"images": 1, "share": 1.0, "scarce": []}
BLOCK: Mapping[str, Any] = {"seeds": 1, "scarcities": [], "arms": [], "classifier": {}}
MEASURES = ("macro_f1", "accuracy", "balanced_accuracy", "weighted_f1")
CONTRAST = {"arm": "", "against": "", "at": [], "question": 1, "measure": MEASURES, "added": False}
KINDS = {dict: "'key: value'", list: "a list", str: "words", int: "a number", bool: "true or false"}
"""What a plan and its parts may say: words, or a value of the kind that is expected."""

COMMON = ("data", "options", "image_size", "subset", "seed")
"""What every run has."""

SELECTS: Mapping[str, Any] = {"sampling": "balanced", "augment": "classical"}
"""The arm, without extra images, whose classifier selects generated ones."""

FINE = "fine"
"""The taxonomy of the set itself."""

OWN, VALIDATION = "own test images", "validation images"
"""What a study's classifiers are tested on besides other laboratories' cells, in its tables."""

_MADE = ("generated", "selected", "reconstructions", "interpolations")
_FROM_GENERATOR = {"selected": "select", "reconstructions": "vary", "interpolations": "vary"}


@dataclass(frozen=True)
class Run:
    """One piece of work: plain settings, and the runs whose results it reads."""

    settings: Mapping[str, Any]
    needs: tuple["Run", ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """What it is, and 12 digits of a hash of its settings and of all that it needs.

        Choices that are the usual ones do not count: a choice that is new changes no old name.
        Nor does what an arm is called.
        """
        parts = (ARM, GENERATOR if self.settings["task"] == "generator" else CLASSIFIER)
        usual = {key: _first(value) for part in parts for key, value in part.items()}
        flat = {**self.settings, **self.settings.get("classifier", {})}
        named = ("arm", "classifier")
        changed = {k: v for k, v in flat.items() if k not in named and usual.get(k, ...) != v}
        text = json.dumps([changed, [run.name for run in self.needs]], sort_keys=True)
        return f"{self.settings['task']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def before(self) -> dict[str, str]:
        """The names of all runs that it reads, by task: its own needs', and those of the first."""
        return {run.settings["task"]: run.name for run in ordered(self.needs)}


def require_choices(runs: Iterable[Run]) -> None:
    """DataError for a generator with a choice that `Recipe` does not have, before the first run."""
    from cellaug.training import Recipe  # here, since a page of results needs no Keras

    known = {*GENERATOR, *Recipe.__dataclass_fields__, "task", *COMMON, "pool", "generator"}
    for run in runs:
        made = run.settings if run.settings["task"] == "generator" else {}
        if unknown := ", ".join(set(made) - known):
            raise DataError(
                f"generator: no choice {unknown}: {', '.join(Recipe.__dataclass_fields__)}"
            )


def ordered(runs: Iterable[Run]) -> list[Run]:
    """All runs and those that they need, which come first; each once."""
    found: dict[str, Run] = {}

    def add(run: Run) -> None:
        for other in run.needs:
            add(other)
        found.setdefault(run.name, run)

    for run in runs:
        add(run)
    return list(found.values())


@dataclass(frozen=True)
class Contrast:
    """A comparison of two arms at a scarcity, for one of the page's questions.

    Planned before the first run, or `added` with some results known.
    """

    arm: str
    against: str
    scarcity: str
    question: int = 1
    measure: str = "macro_f1"
    added: bool = False


@dataclass(frozen=True)
class Plan:
    """A study's runs, as `read_plan` found them."""

    data: str
    image_size: int
    scarcities: Mapping[str, Mapping[str, Any]]
    arms: Mapping[str, Mapping[str, Any]]
    blocks: tuple[Mapping[str, Any], ...]
    contrasts: tuple[Contrast, ...]
    classifier: Mapping[str, Any]
    generator: Mapping[str, Any]
    taxonomies: Mapping[str, Mapping[str, str]]
    options: Mapping[str, Any]  # of open_dataset
    text: str

    def runs(self) -> list[Run]:
        """The classifiers' runs, block after block; a run that two blocks ask for comes once."""
        found: dict[str, Run] = {}
        for block in self.blocks:
            for seed in range(1, block["seeds"] + 1):
                for run in self._of_block(block, seed):
                    found.setdefault(run.name, run)
        return list(found.values())

    def _of_block(self, block: Mapping[str, Any], seed: int) -> Iterator[Run]:
        trained = self.classifier | block.get("classifier", {})
        for scarcity in block["scarcities"]:
            for arm in block["arms"]:
                yield self.run(scarcity, arm, seed, trained)

    def run(self, scarcity: str, arm: str, seed: int, classifier: Mapping[str, Any]) -> Run:
        """A classifier's run, with the generator's and the selection's that it needs."""
        chosen = choices(self.arms[arm])
        subset = {"scarcity": scarcity, **self.scarcities[scarcity]}
        values = (self.data, self.options, self.image_size, subset, seed)
        common = dict(zip(COMMON, values, strict=True))

        def trained_in(arm: str, how: Mapping[str, Any], *needs: Run) -> Run:
            named = {"task": "classifier", **common, "arm": arm, **how}
            return Run(named | {"classifier": dict(classifier)}, needs)

        needs: tuple[Run, ...] = ()
        if chosen["extra"] in _MADE:
            made = {**common, "pool": chosen["pool"], "generator": chosen["generator"]}
            trained = {**self.generator, **chosen["recipe"]}
            needs = (Run({"task": "generator", **made, **trained}),)
            if chosen["extra"] in _FROM_GENERATOR:
                task = {"task": _FROM_GENERATOR[chosen["extra"]], **common}
                if task["task"] == "select":
                    needs = (*needs, trained_in("selects", choices(SELECTS)))
                else:
                    task |= {"how": chosen["extra"]}
                needs = (Run(task | {"ratio": chosen["ratio"]}, needs),)
        return trained_in(arm, chosen, *needs)


def choices(arm: Mapping[str, Any]) -> dict[str, Any]:
    """All choices of an arm, with the usual ones where a plan says nothing."""
    return {**{key: _first(value) for key, value in ARM.items()}, **arm}


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, tuple) else values


def read_plan(path: Path) -> Plan:
    """Read a plan; `DataError` names what is wrong in it."""
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise DataError(f"no plan {path.stem} in {path.parent.name}: there are {there}")
    text = path.read_text("utf-8")
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({error})") from error
    given = {**PLAN, **_checked(path, "", given, PLAN, 5)}
    for part, known in (("arms", ARM), ("scarcities", SUBSET)):
        given[part] = {name: _checked(path, f"{part}: {name}: ", its, known)
                       for name, its in given[part].items()}  # fmt: skip
    same = [name for name, arm in given["arms"].items() for other, its in given["arms"].items()
            if name != other and choices(arm) == choices(its)]  # fmt: skip
    if same:
        raise DataError(f"{path}: arms: {' and '.join(same)} are the same")
    blocks = [_checked(path, "blocks: ", block, BLOCK, 3) for block in given["blocks"]]
    for block in blocks:
        for kind in ("scarcities", "arms"):
            if unknown := ", ".join(str(name) for name in block[kind] if name not in given[kind]):
                raise DataError(f"{path}: blocks: no {kind} {unknown}")
    for own in (given, *blocks):
        told = _checked(path, "classifier: ", own.get("classifier"), {**CLASSIFIER, **WORDS})
        own["classifier"] = told
    rows = [_checked(path, "contrasts: ", row, CONTRAST, 3) for row in given["contrasts"]]
    contrasts = tuple(Contrast(scarcity=at, **row) for row in rows for at in row.pop("at"))
    for contrast in contrasts:
        for arm in (contrast.arm, contrast.against):
            if not any(contrast.scarcity in b["scarcities"] and arm in b["arms"] for b in blocks):
                raise DataError(f"{path}: contrasts: no block has {arm} at {contrast.scarcity}")
    for name, merged in given["taxonomies"].items():
        if not merged or not isinstance(merged, dict):
            raise DataError(f"{path}: taxonomies: {name}: expected lines 'class: class of {name}'")
    given |= {"blocks": tuple(blocks), "contrasts": contrasts, "text": text}
    given["classifier"] = {**CLASSIFIER, **given["classifier"]}
    return Plan(**{**given, "generator": {**GENERATOR, **given["generator"]}})


def of_plan(plan: Plan, table: pd.DataFrame) -> pd.Series:
    """Which rows are of the plan's own classifier, and not of a block's variant of it."""
    same = [table[key] == value for key, value in plan.classifier.items()]
    return pd.concat(same, axis=1).all(axis=1)


def _checked(
    path: Path, where: str, given: Any, known: Mapping[str, Any], needed: int = 0
) -> dict[str, Any]:
    """What is given and not left empty, of what is `known`, whose first `needed` have to be."""
    if not isinstance(given or {}, dict):
        raise DataError(f"{path}: {where}expected {KINDS[dict]}, found {given!r:.60}")
    found = {key: value for key, value in (given or {}).items() if value is not None}
    if unknown := ", ".join(str(key) for key in found if key not in known):
        raise DataError(f"{path}: {where}no choice {unknown}: {', '.join(known)}")
    if missing := ", ".join(key for key in [*known][:needed] if key not in found):
        raise DataError(f"{path}: {where}{missing} is missing or empty")
    for key, value in found.items():
        if expected := _expected(known[key], value):
            raise DataError(f"{path}: {where}{key} {value!r:.60}: expected {expected}")
    return found


def _expected(usual: Any, value: Any) -> str:
    """What a value should be, by the words for it or by the usual one; "" if it is so."""
    if isinstance(usual, tuple):
        return "" if value in usual else ", ".join(usual)
    if usual == "fill" != value:
        return "" if type(value) in (int, float) else "fill or a number"
    kinds = (int, float) if usual is None or isinstance(usual, float) else (type(usual),)
    return "" if type(value) in kinds else KINDS[kinds[0]]
