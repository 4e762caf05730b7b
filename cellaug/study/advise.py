"""What a laboratory should do with its own cells: the augmentation study, small, and its advice."""

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cellaug.augmentation import TRIES
from cellaug.book.chapter import device, project_root, versions
from cellaug.book.source import commit
from cellaug.data import Dataset, open_dataset, split
from cellaug.data.class_map import begun_as
from cellaug.data.dataset import printable
from cellaug.errors import DataError
from cellaug.evaluation.classifiers import FOR_A_VERDICT
from cellaug.files import atomic_folder, require_same, write_atomically, write_json
from cellaug.generators import read_generator
from cellaug.study import answers
from cellaug.study.arms import extra_counts
from cellaug.study.cluster import at_once, carry_out
from cellaug.study.page import render
from cellaug.study.plan import CLASSIFIER, GENERATOR, Plan, Run, ordered, read_plan
from cellaug.study.results import read_run, record
from cellaug.study.statistics import worth
from cellaug.training.progress import duration

import numpy as np
import pandas as pd
import yaml

PLAN, ADVICE, PAGE = "plan.yaml", "advice.json", "advice.html"

LEAST = {"train": 20, "validation": 5, "test": 5}
"""Images of a class below which more of them should be collected first."""

UNEVEN = 1.5
"""The largest class over the smallest from which scarce classes are filled up to the largest."""

PLAIN, EVEN, COPIES = "as they are", "even, classical", "duplicates, classical"
REAL: dict[str, dict[str, Any]] = {
    PLAIN: {},
    EVEN: {"sampling": "balanced", "augment": "classical"},
    COPIES: {"extra": "duplicates", "augment": "classical"},
}
MADE: dict[str, dict[str, Any]] = {
    "quarter synthetic": {"extra": "generated", "share": 0.25},
    "half synthetic": {"extra": "generated", "share": 0.5},
    "half selected": {"extra": "selected", "share": 0.5},
}
"""Arms with generated cells; all are shown evenly and augmented classically."""

SIZES = ((10, 1.0), (5, 1.0), (5, 0.5), (3, 0.5), (3, 0.25), (3, 0.1))
"""Seeds and fraction of the usual training, the first that fits into the hours is taken."""

STEPS, OVERHEAD = 3000, 20.0
"""Steps of a classifier; seconds of a run besides its steps."""


def advise(
    data: str, out: Path, *, hours: float = 8.0, start_from: str = "", size: int = 64,
    class_map: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None,
    scheduler: str = "", workers: int | None = None,
    classifier: Mapping[str, Any] | None = None, generator: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Find out on a set of labelled cells which way to augment it helps, and write the advice.

    `out` gets `advice.json`, `advice.html`, the classifier of the recommended arm in `classifier`,
    its generator in `generator` if it has one, and all runs, with which a stopped study goes on.
    `start_from` is a trained generator that is also trained further, with its classes for those
    that `class_map` names. `classifier` and `generator` change the usual networks and training.
    Returns the content of `advice.json`. DataError for a set that cannot be divided, hours that are
    too few, a folder that holds the study of another set or with other settings, and a `class_map`
    that changes nothing.
    """
    options = {"columns": dict(columns)} if columns else {}
    cells = open_dataset(data, **options)
    real = cells.subset(cells.table["origin"] == "real")
    require_start(real.class_names, start_from, class_map or {})
    document: dict[str, Any]
    chosen = {**CLASSIFIER, "steps": STEPS, **(classifier or {})}
    trained = {**{"images": GENERATOR["images"]}, **(generator or {})}
    settings: dict[str, Any] = {"data": str(data), "options": options}
    settings |= {"hash": real.fingerprint, "image_size": size, "start_from": start_from}
    settings |= {"class_map": dict(class_map or {}), "classifier": chosen, "generator": trained}
    require_same(out / "study.json", settings, write=False)
    started = {"format": 1, "data": str(data)}  # more images may come until a study begins
    require_same(out / "study.json", started)
    try:
        parts = split(real)
    except DataError as error:  # some class has too few images for three sides
        counts = pd.DataFrame({"images": real.counts()})
        least, all_counts = sum(LEAST.values()), real.counts().items()
        lacking = {str(name): f"{n} of {least} images" for name, n in all_counts if n < least}
        document = {"set": describe(real, counts), "collect": lacking}
        return written(out, document | {"augment": False, "because": str(error)}, None)
    counts = pd.DataFrame({name: part.counts() for name, part in parts.items()})
    document = {"set": describe(real, counts), "collect": scarce(counts)}
    if (counts.min(axis=1) < 1).any() or (counts["train"] < 2).any():
        document |= {"augment": False, "because": "some classes have too few images to measure"}
        return written(out, document, None)
    require_same(out / "study.json", settings)
    many = at_once(scheduler, workers)
    times = step_times(settings, out / "runs", scheduler, workers, many)
    plan, seconds = sized(out, settings, counts, times, hours, many)
    print(f"{len(plan.runs())} classifiers and what they need take about {duration(seconds)}")
    if few := too_few(plan, settings, counts, times, many):
        print(few)
    carry_out(plan.runs(), out / "runs", scheduler, workers)
    tables = record(plan, out / "runs", out / "tables")
    results = answers.read_results(tables)
    document |= conclude(results, few) | {"settings": settings, "seconds": results.hours * 3600}
    document |= {"generators": compared(results, out / "runs", parts, start_from)}
    keep_best(results, document, out)
    if document["augment"]:
        arm, most = results.plan.arms[document["arm"]], int(counts["train"].max())
        document |= ordered_by(arm, most, data, out, columns or {})
    return written(out, document, results)


def require_start(names: Sequence[str], start_from: str, class_map: Mapping[str, str]) -> None:
    """DataError for a map of classes that changes nothing, or names a class that is not there."""
    if class_map and not start_from:
        raise DataError("--class-map says how --start-from is to begin: give both or none")
    if start_from:
        begun_as(names, read_generator(start_from).class_names, class_map)


def ordered_by(
    arm: Mapping[str, Any], most: int, data: str, out: Path, columns: Mapping[str, str]
) -> dict[str, Any]:
    """What `augment --advice` adds to the training images for an arm, and how to train then."""
    order = {"fill": most} if arm["ratio"] == "fill" else {"ratio": arm["ratio"]}
    order |= {"select": arm["extra"] == "selected"}
    part = f"{100 * arm['share']:.0f} % of the images shown are generated"
    words = f"show every class equally often; of a class with generated cells {part}; "
    words += "flip, turn and zoom images, and vary their colours"
    typed = ["cellaug", "augment", data, "--advice", str(out), "--out", "augmented"]
    typed += [f"--columns={name}={column}" for name, column in columns.items()]
    return {"order": order, "train": words, "command": shlex.join(typed)}


def describe(cells: Dataset, counts: pd.DataFrame) -> dict[str, Any]:
    """What the advice says about the set."""
    facts: dict[str, Any] = {"name": printable(cells.name), "hash": cells.fingerprint}
    facts |= {"images": len(cells)}
    return facts | {"classes": counts.T.to_dict(), "credit": cells.credit}


def scarce(counts: pd.DataFrame) -> dict[str, str]:
    """Classes with too few images on a side, and what they lack."""
    found = {}
    for name, row in counts.iterrows():
        lacks = [f"{row[side]} of {least} {side}" for side, least in LEAST.items()
                 if row[side] < least]  # fmt: skip
        if lacks:
            found[str(name)] = f"{', '.join(lacks)} images"
    return found


def step_times(
    settings: Mapping[str, Any], folder: Path, scheduler: str, workers: int | None, many: int
) -> dict[str, float]:
    """Seconds of a step of each network while all of `many` workers are busy, measured once."""
    made = {key: settings[key] for key in ("data", "options", "image_size", "classifier")}
    made |= {"task": "timing", "trained": settings["generator"]}
    runs = [Run({**made, "subset": {"scarcity": "all"}, "seed": k}) for k in range(1, many + 1)]
    carry_out(runs, folder, scheduler, workers)
    found = [known["found"] for run in runs if (known := read_run(folder, run.name))]
    return pd.DataFrame(found).max().to_dict()


def sized(
    out: Path, settings: Mapping[str, Any], counts: pd.DataFrame, times: Mapping[str, float],
    hours: float, many: int,
) -> tuple[Plan, float]:  # fmt: skip
    """The largest plan that fits into the hours, and the seconds that it takes."""
    if (file := out / PLAN).is_file():  # of a study that was stopped
        plan = read_plan(file)
        return plan, expected(plan, times, counts, many)
    for seeds, scale in SIZES:
        plan = plan_of(settings, counts, seeds, scale)
        if (seconds := expected(plan, times, counts, many)) <= 3600 * hours:
            write_atomically(file, plan.text.encode())
            return plan, seconds
    raise DataError(f"the smallest study of these cells takes about {duration(seconds)} here: give "
                    f"--hours {seconds / 3600:.1f} or more")  # fmt: skip


def too_few(
    plan: Plan, settings: Mapping[str, Any], counts: pd.DataFrame, times: Mapping[str, float],
    many: int,
) -> str:  # fmt: skip
    """Says if a plan has too few seeds for a verdict, and which hours bring enough; or ""."""
    if (seeds := max(block["seeds"] for block in plan.blocks)) >= FOR_A_VERDICT:
        return ""
    scale = min((scale for n, scale in SIZES if n >= FOR_A_VERDICT), default=1.0)
    seconds = expected(plan_of(settings, counts, FOR_A_VERDICT, scale), times, counts, many)
    enough = f"--hours {math.ceil(seconds / 360) / 10} and a new folder bring {FOR_A_VERDICT}"
    return f"{seeds} seeds are too few for a verdict; {enough}"


def plan_of(settings: Mapping[str, Any], counts: pd.DataFrame, seeds: int, scale: float) -> Plan:
    """`planned` as it is read from its file."""
    with TemporaryDirectory() as place:
        text = yaml.safe_dump(planned(settings, counts, seeds, scale), sort_keys=False)
        (file := Path(place, PLAN)).write_text(text, "utf-8")
        return read_plan(file)


def expected(plan: Plan, times: Mapping[str, float], counts: pd.DataFrame, many: int) -> float:
    """Seconds that a plan's runs take on so many workers."""
    train = counts["train"].to_numpy()
    extra = extra_counts(train, plan.arms["half selected, classical"]["ratio"])
    steps = {"classifier": plan.classifier["steps"], "select": TRIES * extra.sum()}
    steps["generator"] = plan.generator["images"] / plan.generator.get("batch_size", 32)
    steps["compare"] = train.sum() * (extra > 0).sum()  # all training images for each such class
    each = {kind: count * times.get(f"{kind}_step", 0) for kind, count in steps.items()}
    each["select"] += each["compare"]
    return sum(OVERHEAD + each[run.settings["task"]] for run in ordered(plan.runs())) / many


def planned(
    settings: Mapping[str, Any], counts: pd.DataFrame, seeds: int, scale: float
) -> dict[str, Any]:
    """A plan as YAML has it: all arms with all images, and the curve of real images."""
    uneven = counts["train"].max() / counts["train"].min() >= UNEVEN
    ratio = {"ratio": "fill" if uneven else 1.0}
    always = {"sampling": "balanced", "augment": "classical", **ratio}
    arms = {name: {**arm, **(ratio if "extra" in arm else {})} for name, arm in REAL.items()}
    arms |= {f"{name}, classical": {**always, **arm} for name, arm in MADE.items()}
    if source := settings["start_from"]:
        recipe = {"start_from": source, "class_map": settings["class_map"]}
        arms["half synthetic, trained further, classical"] = {
            **always, **MADE["half synthetic"], "recipe": recipe}  # fmt: skip
    made = [name for name in arms if name not in REAL]
    pairs = [(name, other) for name in made for other in REAL] + [(EVEN, PLAIN), (COPIES, PLAIN)]
    chosen, trained = dict(settings["classifier"]), dict(settings["generator"])
    chosen["steps"] = max(1, round(scale * chosen["steps"]))
    trained["images"] = max(1, round(scale * trained["images"]))
    return {
        **{key: settings[key] for key in ("data", "options", "image_size")},
        "scarcities": {"all": {}, "half": {"share": 0.5}, "quarter": {"share": 0.25}},
        "classifier": chosen, "generator": trained, "arms": arms,
        "blocks": [{"seeds": seeds, "scarcities": ["all"], "arms": list(arms)},
                   {"seeds": seeds, "scarcities": ["half", "quarter"], "arms": [EVEN]}],
        "contrasts": [{"arm": arm, "against": other, "at": ["all"]} for arm, other in pairs],
    }  # fmt: skip


def conclude(results: answers.Results, few: str = "") -> dict[str, Any]:
    """The arm to take, what it brings and what that is worth, from the tables of a study.

    Arms are chosen on validation images; the gain is measured on test images. An arm with generated
    cells is recommended only if its interval over the best one without lies above zero. `few` says
    why there are too few seeds to know. The worth in real images is that of the gain over `EVEN`.
    """
    table = answers.summary(answers.scores(results)).loc["all"]
    validated = answers.scores(results, tested_on=answers.VALIDATION)
    means = validated[validated["scarcity"] == "all"].groupby("arm")["value"].mean()
    without = [arm for arm in REAL if arm in table.index]
    real = answers.best_arm(results, "all", without)
    made = answers.best_arm(results, "all", [arm for arm in table.index if arm not in REAL])
    pairs = results.contrasts
    pairs = pairs[(pairs["class"] == "") & (pairs["tested_on"] == answers.OWN)]
    pairs = pairs.set_index(["arm", "against"])
    row = pairs.loc[(made, real)].to_dict()
    called = answers.verdict(row) or "too few seeds"
    arm = made if called == "better" else real
    found: dict[str, Any] = {"augment": called == "better", "arm": arm, "verdict": called}
    found |= {"best_with": made, "best_without": real, "gain": plain(row)}
    if real != PLAIN:
        found["gain_without"] = plain(pairs.loc[(real, PLAIN)].to_dict())
    images = results.runs.drop_duplicates("run")
    images = images[images["arm"] == EVEN].groupby("scarcity")["real_images"].first()
    at = answers.scores(results).set_index(["scarcity", "arm", "seed"])["value"].sort_index()
    curve = {int(images[name]): at[name, EVEN].tolist() for name in ("quarter", "half", "all")}
    gains = (at["all", made] - at["all", EVEN]).dropna().tolist()  # as the curve is that of EVEN
    found["worth"] = plain(worth(curve, int(images["all"]), gains, beyond=True)) | {"over": EVEN}
    found["because"] = {
        "better": f"{made} is better than {real} by {answers.points(row)}",
        "worse": f"generated cells do harm: {made} against {real}, {answers.points(row)}",
        "undecided": f"no gain is certain: {made} against {real}, {answers.points(row)}",
        "too few seeds": f"{few or 'too few seeds'}: {made} against {real}, {answers.points(row)}",
    }[called]
    names = ("mean", "low", "high", "sd", "n")
    found["arms"] = {
        name: {"validation": float(means[name]), **plain({key: values[key] for key in names})}
        for name, values in table.iterrows()
    }
    return found


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and words as JSON has them: None for what is not known or has no end."""
    kept = {key: value.item() if isinstance(value, np.generic) else value
            for key, value in row.items() if key != "by_seed"}  # fmt: skip
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in kept.items()}  # fmt: skip


def compared(
    results: answers.Results, folder: Path, parts: Mapping[str, Dataset], start_from: str
) -> dict[str, Any]:
    """`evaluate` of the first seed's generators on validation images: from nothing, and further."""
    if not start_from:
        return {}
    from cellaug.evaluation import evaluate
    from cellaug.generators import load_generator

    found: dict[str, Any] = {}
    for run in ordered(results.plan.runs()):
        if run.settings["task"] != "generator" or run.settings["seed"] != 1:
            continue
        generator = load_generator(folder / run.name / "generator")
        size, real = generator.image_size, parts["validation"]
        names = real.class_names
        made, labels = generator.generate_each(names, real.counts().to_numpy(), (1, 9))
        fake = Dataset.of_images(made, labels, names)
        further = f"trained further from {start_from}"
        name = further if run.settings["start_from"] else "from nothing"
        try:
            table = evaluate(real.in_memory(size), fake, cas=False).table
        except DataError as error:
            return {"problem": f"the generators cannot be compared: {error}"}
        rows = table[(table["level"] == "overall") & (table["measure"] == "kernel")]
        found[name] = plain(rows.iloc[0].to_dict()) if len(rows) else {}
    values = {name: row.get("value") for name, row in found.items()}
    if all(value is not None for value in values.values()):
        found["better"] = min(values, key=lambda name: values[name])
    return found


def keep_best(results: answers.Results, document: dict[str, Any], out: Path) -> None:
    """Copy the recommended arm's classifier, best on validation images, and its generator."""
    validated = answers.scores(results, tested_on=answers.VALIDATION)
    own = validated[(validated["scarcity"] == "all") & (validated["arm"] == document["arm"])]
    seed = int(own.loc[own["value"].idxmax(), "seed"])
    run = results.plan.run("all", document["arm"], seed, results.plan.classifier)
    document["seed"] = seed
    _copy(out / "runs" / run.name / "classifier", out / "classifier")
    if made := run.before.get("generator"):
        _copy(out / "runs" / made / "generator", out / "generator")


def _copy(source: Path, target: Path) -> None:
    with atomic_folder(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)


def written(out: Path, document: dict[str, Any], results: answers.Results | None) -> dict[str, Any]:
    """Write the advice as JSON and as a page; returns it."""
    out.mkdir(parents=True, exist_ok=True)
    document |= {"format": 1, "versions": versions(), "device": device()}
    document |= {"commit": commit(project_root())}
    write_json(out / ADVICE, document)
    write_atomically(out / PAGE, render(document, results).encode())
    return document
