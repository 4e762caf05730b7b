"""The first page of the book and of the README: what was asked, what came out, for whom it is.

Every number is read from `book/thesis.yaml`, `book/results` and the shipped model card.
"""

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from cellaug.book import chapter
from cellaug.book.chapter import pages, thesis
from cellaug.book.claims import change, real_runs
from cellaug.evaluation.classifiers import FOR_A_VERDICT, points, verdict
from cellaug.evaluation.features import SIZES
from cellaug.evaluation.scorecard import scorecard

import numpy as np
import pandas as pd
import yaml

SHOWN = "pbc-fine-64"
"""The shipped generator that draws the picture."""

STUDY_PAGE = "record/augmentation"
"""The page on the study of augmentation, linked where there is one."""

KINDS = {"none": "no others", "duplicates": "copies of them", "generated": "generated ones",
         "selected": "selected generated ones", "real": "further real ones"}  # fmt: skip
"""What an arm of the study shows beside its real images."""

NO_STUDY = "The study of augmentation has no result for this yet."
TITLE = ("Asked", "Thesis", "On real cells", "Answer")


@dataclass(frozen=True)
class Answer:
    """A row of the first table, in Markdown."""

    asked: str
    thesis: str
    found: str
    answer: str


def studies() -> dict[str, pd.DataFrame]:
    """The comparisons of each recorded study on real cells, by its plan's name.

    The columns are those of `cellaug.study.results.contrasts`, for the set's own classes and test
    images, with `outcome`, the `verdict`, `sure`, whether it is clear after correction for all,
    `pool` and `extra`, the plan's choices for the arm, and `told`, what is compared, in words.
    """
    found = {}
    for path in sorted(chapter.result_file("augmentation").glob("*/contrasts.parquet")):
        plan = yaml.safe_load(path.with_name("plan.yaml").read_text("utf-8"))
        table = pd.read_parquet(path)
        if plan["data"] == "phantom" or table.empty:
            continue
        own = (table["taxonomy"] == "fine") & (table["class"] == "")
        table = table[own & (table["tested_on"] == "own test images")]
        arms = table["arm"].map(plan["arms"].get)
        found[path.parent.name] = table.assign(
            outcome=[verdict(row) for row in table.to_dict("records")],
            pool=[(arm or {}).get("pool", "one") for arm in arms],
            extra=[(arm or {}).get("extra", "none") for arm in arms],
            told=[_told(row, plan) for row in table.to_dict("records")],
            sure=lambda t: t["outcome"].isin(["gain", "loss"]) & (t["adjusted"] < 0.05),
        )
    return found


def _told(row: dict[str, Any], plan: dict[str, Any]) -> str:
    """The arms of a comparison and their real images, by name and in words."""
    said = []
    for name in (row["arm"], row["against"]):
        arm = {"extra": "none"} | (plan["arms"].get(name) or {})
        of = "rare class" if arm.get("only") == "scarce" else "class but the largest"
        part = f"of the images shown of each {of} {100 * arm.get('share', 0):g} % are"
        part = part if "share" in arm else "real images and"
        said.append(f"*{name}* ({part} {KINDS.get(arm['extra'], arm['extra'])})")
    subset = {"share": 1} | plan["scarcities"][row["scarcity"]]
    many = f"{100 * subset['share']:g} % of the real images"
    if "images" in subset:
        many = f"{subset['images']} real images of each {'rare ' * ('scarce' in subset)}class"
    return f"{' against '.join(said)}, with {many} (*{row['scarcity']}*)"


def planned(question: int, added: bool = False) -> int:
    """How many comparisons the plans of recorded studies on real cells have for a question.

    With `added` only those that came to the plan with some results known.
    """
    files = chapter.result_file("augmentation").glob("*/plan.yaml")
    plans = (yaml.safe_load(file.read_text("utf-8")) for file in files)
    rows = [row for plan in plans if plan["data"] != "phantom" for row in plan.get("contrasts", ())]
    return sum(len(row["at"]) for row in rows if row.get("question", 1) == question
               and row.get("added", False) >= added)  # fmt: skip


def runs(study: str) -> tuple[int, int]:
    """How many classifiers of a recorded study are finished, and how many its plan has."""
    place = chapter.result_file("augmentation") / study
    plan = yaml.safe_load((place / "plan.yaml").read_text("utf-8"))
    own = plan.get("classifier", {})
    found = {(where, arm, str(own | block.get("classifier", {})), seed) for block in plan["blocks"]
             for where in block["scarcities"] for arm in block["arms"]
             for seed in range(block["seeds"])}  # fmt: skip
    return pd.read_parquet(place / "runs.parquet")["run"].nunique(), len(found)


def comparisons(question: int) -> pd.DataFrame:
    """The planned comparisons of all recorded studies for a question of the plan."""
    found = [table[table["question"] == question] for table in studies().values()]
    return pd.concat(found) if found else pd.DataFrame(columns=["outcome", "pool", "extra"])


def _summary(question: int) -> str:
    """What the comparisons for a question show, in a sentence or two."""
    table = comparisons(question)
    judged = table[table["outcome"] != "too few seeds"]
    many = f"of {max(planned(question), len(table))} planned comparisons"
    if later := planned(question, added=True):
        many += f" ({later} added when some results were known)"
    if table.empty:
        return NO_STUDY
    if judged.empty:
        return f"Study: so far {len(table)} {many} were run, none with {FOR_A_VERDICT} seeds."
    counts = judged["outcome"].value_counts()
    most = judged.iloc[int(judged["mean"].abs().to_numpy().argmax())]
    said = f"Study: {len(judged)} {many} were run with {FOR_A_VERDICT} seeds or more; of these "
    said += f"{counts.get('gain', 0)} show a gain and {counts.get('loss', 0)} a loss"
    some = f" ({judged['sure'].sum()} of them after Holm's correction for all)"
    said += some * bool({"gain", "loss"} & set(counts.index))
    return (
        f"{said}. Largest change: {most['told']}: {points(most, ' points')} of "
        f"{most['measure'].replace('_f1', ' F1')}."
    )


def answers() -> list[Answer]:
    """What was asked, what the thesis found, what real cells show here, and what follows."""
    return [_taken_for_real(), _improves(), _why()]


def _taken_for_real() -> Answer:
    (_, _), (fooled, caught) = thesis()["expert"]["confusion"]
    found, told = [], set()
    for name, run in real_runs().items():
        gan = run["02_vanilla_gan"]
        who, score = "an expert", (gan["person"] or {}).get("specificity")
        if score is None:
            who, score = "a classifier", gan["machine_specificity"]
        told.add((who, score["low"] > 0.5))
        found.append(
            f"Run *{name}*, a small version of the thesis's GAN: {who} recognised "
            f"{score['successes']} of {score['trials']} generated cells."
        )
    said = []
    for size, kind in zip(SIZES, ("fidelity", "enlarged"), strict=True):
        card = scorecard(_card()[kind]["table"])
        judged = card["value"].notna() & (card["reason"] == "")
        met, missed = (int(card["met"].eq(state)[judged].sum()) for state in (True, False))
        met_of = f"{met} of {judged.sum()} in the features for {size} px"
        said.append(f"{met_of} ({missed or 'none'} clearly missed)")
    found.append(f"Targets of likeness met by the shipped *{SHOWN}*: {', '.join(said)}.")
    experts = {apart for who, apart in told if who == "an expert"}
    if experts:
        answer = "**No.**" if all(experts) else "**Yes**, in some trials."
    else:
        seen = {apart for _, apart in told} == {True}
        answer = "**Not known:** no expert has been asked here."
        answer += " A classifier does tell the cells of the thesis's GAN from real ones." * seen
    return Answer(
        "Can a network generate blood cells that an expert takes for real?",
        f"Nearly: a technologist took {fooled} of {fooled + caught} generated cells for real.",
        " ".join(found),
        answer,
    )


def _improves() -> Answer:
    theirs = thesis()["classifier"]
    before, after = theirs["weighted_f1_baseline"], theirs["weighted_f1_synthetic"]
    changes = {name: change(run, "AC-GAN") for name, run in real_runs().items()}
    found = [
        f"Run *{name}*, cells of the thesis's AC-GAN: {points(one, ' points')} of weighted F1, "
        f"{one['n']} seeds."
        for name, one in changes.items()
    ]
    studied = comparisons(1)
    chapters = pd.Series([verdict(one) for one in changes.values()], dtype=object)
    outcomes = (chapters, None) if studied.empty else (studied["outcome"], studied["sure"].sum())
    return Answer(
        "Does a classifier improve when such cells are added to its training images?",
        f"Yes: weighted F1 rose from {100 * before:.1f} % to {100 * after:.1f} % "
        f"({100 * (after - before):+.1f} points), in one run.",
        " ".join([*found, _summary(1)]),
        _answer(*outcomes),
    )


def _answer(outcomes: pd.Series, sure: int | None = None) -> str:
    """What follows from outcomes of comparisons with training on real cells alone.

    While some of those that are planned are missing, a no is one so far; `sure` are clear after
    correction for all of them.
    """
    judged = outcomes[outcomes != "too few seeds"]
    of, counts = f"of {len(judged)} comparisons", judged.value_counts()
    gains, losses = (int(counts.get(each, 0)) for each in ("gain", "loss"))
    if judged.empty:
        return f"**Not shown:** a verdict needs at least {FOR_A_VERDICT} seeds."
    left = "" if sure is None else f" After correction for multiple comparisons: {sure or 'none'}."
    if gains and losses:
        return f"**It depends:** {gains} {of} show a gain, {losses} a loss.{left}"
    if gains:
        return f"**Yes, sometimes:** {gains} {of} show a gain, none a loss.{left}"
    if losses:
        no = "Not so far" if len(judged) < planned(1) else "No"
        return f"**{no}:** {losses} {of} show a loss, none a gain.{left}"
    return f"**Not shown:** 0 {of} show a gain or a loss."


def _why() -> Answer:
    images = thesis()["data"]["gan_images"]
    studied = comparisons(2)
    made = studied[~studied["extra"].isin(["none", "real", "duplicates"])]
    gained = {pool: "gain" in set(rows["outcome"]) for pool, rows in made.groupby("pool")}
    answer = "**Nothing to explain yet:** neither kind of generated cells shows a gain."
    if not (made["outcome"] != "too few seeds").any():
        answer = "**Open.**"
    elif gained.get("one"):
        answer = "**The generated images:** the generator had no images of its own."
    elif gained.get("disjoint"):
        answer = "**The extra real images:** without them there is no gain."
    return Answer(
        "If it improves, is it the generated images, or the extra real images that the generator "
        "was trained on?",
        f"Not asked: its generator saw {images:,} labelled images that its classifier never did.",
        _summary(2),
        answer,
    )


def answers_table() -> str:
    """The answers as a MyST table, which a phone shows as cards (`book.css`)."""
    lines = ["::::{list-table}", ":header-rows: 1", ":class: answers", ""]
    for row in (TITLE, *map(astuple, answers())):
        lines += [f"{'*' if not k else ' '} - {text}" for k, text in enumerate(row)]
    return "\n".join([*lines, "::::"])


def advice() -> dict[str, str]:
    """Whether a lab, a student and a researcher should use this, by reader."""
    helps = (comparisons(1)["outcome"] == "gain").any()
    lab = (
        "Perhaps. Generated cells helped in some comparisons on real cells. Whether they help with "
        "yours, find out with `cellaug run` on your own images."
        if helps
        else "Not to improve a classifier: no recorded result on real cells shows a gain yet. But "
        "yes to check a set of images (`cellaug inspect`), to measure how close generated cells "
        "come to real ones (`cellaug evaluate`), or to try it on your own cells (`cellaug run`)."
    )
    return {
        "lab": lab,
        "student": "Yes. The chapters go from a single neuron to a classifier that is compared "
        "fairly. They run on a laptop without a download of images, and every cell can be changed.",
        "researcher": "Yes, to check the thesis or to try a generator of your own, with open data, "
        "fixed splits, paired seeds, intervals, and planned comparisons, later ones marked.",
    }


def readme_block() -> str:
    """The part of the README that results decide: the answers, and what a lab should do."""
    rows = [TITLE, ("---",) * len(TITLE), *map(astuple, answers())]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{table}\n\n**Should a lab use it?** {advice()['lab']}"


def substitutions() -> dict[str, str]:
    """What the first page, ``book/intro.md``, gets from results, by the name it has there."""
    found = {"answers": answers_table(), "cells": cells_html()}
    link = f"[]({STUDY_PAGE}.ipynb) is the study of augmentation"
    said = [f"{done:,} of its {of:,} classifiers are finished" for done, of in map(runs, studies())]
    link += f": {', '.join(said) or 'not finished yet'}."
    planned = "A larger study is planned: `cellaug study augmentation`."
    found["study"] = link if STUDY_PAGE in pages() else planned
    return found | advice()


def one_vector(seed: int = 0) -> dict[str, np.ndarray]:
    """One latent vector drawn as every class by `SHOWN`: uint8 images S×S×3 by class.

    The vector is the first of `numpy.random.default_rng(seed).standard_normal`.
    """
    from cellaug.data import to_uint8
    from cellaug.generators import load_generator

    generator = load_generator(SHOWN)
    names, rng = generator.class_names, np.random.default_rng(seed)
    latents = np.repeat(rng.standard_normal((1, generator.latent_dim)), len(names), 0)
    given = [latents.astype("f4"), np.arange(len(names), dtype="i4")]
    images = to_uint8(np.asarray(generator.model.predict_on_batch(given)))
    return dict(zip(names, images, strict=True))


def _card() -> dict[str, Any]:
    from cellaug.generators import load_generator

    return load_generator(SHOWN).card


def _file(name: str) -> str:
    return f"one-vector/{name.replace(' ', '-')}.png"


def draw_cells(static: Path) -> None:
    """Write the picture of the first page below the book's folder ``_static``, a file a class."""
    from cellaug.data.images import write_png

    for name, image in one_vector().items():
        (static / _file(name)).parent.mkdir(exist_ok=True)
        write_png(static / _file(name), image)


def cells_html() -> str:
    """The picture of the first page: a labelled cell for each class, in as many rows as fit."""
    names = _card()["class_names"]
    cells = "\n".join(
        f'<figure><img src="_static/{_file(name)}" alt="Generated {name}: the one latent '
        'vector, drawn as this class." width="64" height="64">'
        f"<figcaption>{name}</figcaption></figure>"
        for name in names
    )
    label = f"One latent vector drawn as {len(names)} classes of blood cells; none is real."
    return f'<div class="one-vector" role="group" aria-label="{label}">\n{cells}\n</div>'
