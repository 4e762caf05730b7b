"""The claims of the thesis, what a run found of each, and a verdict.

Chapter 06, the first page and the README read the same functions, so they cannot disagree. A *run*
is what `merge_metrics` keeps of one: the metrics by chapter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from cellaug.book.chapter import CHAPTERS, WORDS, recorded_results, thesis
from cellaug.evaluation.classifiers import FOR_A_VERDICT, points, verdict
from cellaug.evaluation.expert import score_confusion
from cellaug.evaluation.scorecard import TARGETS

import pandas as pd

Run = Mapping[str, Any]

VARIED = TARGETS["diversity_pixels_ratio"][0] or 0.0
"""The fraction of the diversity of real cells from which on generated cells count as varied."""

AS_REAL = TARGETS["agreement_gap"][0] or 0.0
"""By how much class accuracy on generated cells may be below that on real ones."""

UNEVEN, BALANCED, SMOOTH, LOCATED, NEARER = 2.0, (0.25, 0.75), 2.0, 0.5, 0.9
"""Bounds of the other verdicts, see `rules`."""


SINGLE = {"confirmed": "agrees", "refuted": "differs"}
"""What is said instead where all hangs on one training: no verdict."""


@dataclass(frozen=True)
class Claim:
    """One claim: its words, the thesis's evidence, and functions of a run."""

    text: str
    thesis: str
    found: Callable[[Run], str]
    judge: Callable[[Run], str]
    one_seed: bool = True  # whether the verdict hangs on one training


def real_runs() -> dict[str, Run]:
    """The recorded runs of all chapters on real cells, by profile: metrics by chapter."""
    found = {name: record["chapters"] for name, record in recorded_results().items()}
    whole = {name: run for name, run in found.items() if set(CHAPTERS[:-1]) <= set(run)}
    return {name: run for name, run in whole.items() if not run["01_data"]["phantom"]}


def _word(run: Run) -> str:
    """What the cells of a run's set are: real, or drawn."""
    return WORDS[run["01_data"]["phantom"]]


def _balance(run: Run) -> str:
    gan = run["02_vanilla_gan"]
    return f"D(x) is {gan['d_real']:.2f} for {_word(run)}, {gan['d_fake']:.2f} for generated images"


def _balanced(run: Run) -> str:
    gan = run["02_vanilla_gan"]
    low, high = BALANCED
    return "confirmed" if gan["d_real"] <= high and gan["d_fake"] >= low else "refuted"


def _reader(run: Run) -> tuple[str, Mapping, Mapping]:
    """Who took the trial of chapter 02, with recall and specificity."""
    gan = run["02_vanilla_gan"]
    if person := gan["person"]:
        return "person", person["recall"], person["specificity"]
    return "machine", gan["machine_recall"], gan["machine_specificity"]


def _told_apart(run: Run) -> str:
    who, recall, specificity = _reader(run)
    return f"{who}: recall {recall['value']:.2f}, specificity {specificity['value']:.2f}"


def _hard_to_tell(run: Run) -> str:
    who, _, specificity = _reader(run)
    said = "refuted" if specificity["low"] > 0.5 else "confirmed"
    return said + " for a machine; no person was asked" * (who == "machine")


def _varied_by(run: Run) -> float:
    gan = run["02_vanilla_gan"]
    return gan["diversity_generated"] / gan["diversity_real"]


def _kept(run: Run) -> float:
    """The diversity of the AC-GAN's cells within a class relative to real ones."""
    return run["03_ac_gan"]["diversity_of_real"]["AC-GAN"]


def _conditioning(run: Run) -> str:
    found = run["05_classifier"]
    return (
        f"{100 * found['class_agreement']['AC-GAN']:.0f} % recognised as the requested class "
        f"({_word(run)} cells: {100 * found['accuracy_on_real']:.0f} %)"
    )


def _recognised(run: Run) -> bool:
    """Whether a classifier sees anything of the requested classes in the AC-GAN's cells."""
    found = run["05_classifier"]
    agreement = found["class_agreement"]["AC-GAN"]
    # older records have no intervals
    low, _ = found.get("class_agreement_intervals", {}).get("AC-GAN", (agreement, 1))
    return low > _chance(run)


def _chance(run: Run) -> float:
    """How often what always names the largest class is right of the cells that were asked for."""
    # older records lack it
    return run["05_classifier"].get("chance", 1 / run["01_data"]["classes"])


def _conditioned(run: Run) -> str:
    found = run["05_classifier"]
    agreement, chance = found["class_agreement"]["AC-GAN"], _chance(run)
    if not _recognised(run):
        return f"refuted: no better than guessing ({100 * chance:.0f} %)"
    return "confirmed" if agreement - found["accuracy_on_real"] >= AS_REAL else "refuted"


def _largest_step(run: Run) -> float:
    return run["04_latent_space"]["interpolation_largest_over_mean_step"]


def _reconstruction(run: Run) -> str:
    found = run["04_latent_space"]
    return (
        f"{found['reconstruction_error_network']:.1f} grey levels; optimised "
        f"{found['reconstruction_error_optimised']:.1f}; another cell "
        f"{found['reconstruction_error_wrong_cell']:.1f}"
    )


def _smooth(run: Run) -> str:
    if not _recognised(run):
        return "not judged: its cells are not recognised"
    return "confirmed" if _largest_step(run) <= SMOOTH else "refuted"


def _reconstructed(run: Run) -> str:
    found = run["04_latent_space"]
    relative = found["reconstruction_error_network"] / found["reconstruction_error_wrong_cell"]
    return "confirmed" if relative <= LOCATED else "in part" if relative <= NEARER else "refuted"


def change(run: Run, arm: str, metric: str = "weighted_f1") -> Mapping[str, Any]:
    """The paired difference of an arm's F1 to that of training on the original images."""
    return run["05_classifier"]["change_against_original"][arm][metric]


def _gain(run: Run, arm: str = "AC-GAN", metric: str = "weighted_f1") -> str:
    found = change(run, arm, metric)
    seeds = f", {found['n']} seeds" * (found["n"] > 2)
    return f"{points(found, ' points')}{seeds}"


def _gained(run: Run, arm: str = "AC-GAN", metric: str = "weighted_f1", as_: str = "gain") -> str:
    """The verdict on the claim that an arm's change is a gain (or a loss)."""
    found = verdict(change(run, arm, metric))
    if found == "too few seeds":
        return f"no verdict from fewer than {FOR_A_VERDICT} seeds"
    return found if found == "undecided" else "confirmed" if found == as_ else "refuted"


def thesis_change() -> dict[str, dict[str, dict[str, Any]]]:
    """The thesis's change of F1 (Table 4) in the form of chapter 05's: one seed, no interval."""
    theirs = thesis()["classifier"]
    gain = theirs["weighted_f1_synthetic"] - theirs["weighted_f1_baseline"]
    return {"AC-GAN": {"weighted_f1": {"mean": gain, "low": None, "high": None, "n": 1}}}


def f1_sources(ours: Mapping[str, Any], drawn: bool) -> dict[str, Mapping[str, Any]]:
    """The changes of F1 by source, for `figures.forest`: thesis, this run, recorded runs."""
    runs = {f"recorded: {name}": run["05_classifier"] for name, run in real_runs().items()}
    recorded = {name: found["change_against_original"] for name, found in runs.items()}
    here = "this run (drawn cells)" if drawn else "this run"
    return {"thesis": thesis_change(), here: ours} | recorded


def claims() -> list[Claim]:
    """The claims of the thesis in the order of its sections."""
    theirs = thesis()
    trial = score_confusion(theirs["expert"]["confusion"])
    gain = 100 * thesis_change()["AC-GAN"]["weighted_f1"]["mean"]
    recall, specificity = trial["recall"]["value"], trial["specificity"]["value"]
    imbalance = max(theirs["data"]["table_6"]) / min(theirs["data"]["table_6"])
    both = "AC-GAN and classical"
    return [
        Claim("Classes are uneven (4.1)",
              f"{imbalance:.1f} : 1 in {theirs['data']['classes']} classes",
              lambda run: "{imbalance:.1f} : 1 in {classes} classes".format(**run["01_data"]),
              lambda run: "confirmed" if run["01_data"]["imbalance"] >= UNEVEN else "refuted",
              one_seed=False),
        Claim("The losses reach a balance (5.1)",
              f"around epoch {theirs['vanilla_gan']['equilibrium_epoch']}", _balance, _balanced),
        Claim("Generated cells are hard to tell from real ones (5.1)",
              f"technologist: recall {recall:.2f}, specificity {specificity:.2f}",
              _told_apart, _hard_to_tell),
        Claim("Generated cells are varied (5.1)", "by eye",
              lambda run: f"{_varied_by(run):.2f} of the diversity of {_word(run)} cells",
              lambda run: "confirmed" if _varied_by(run) >= VARIED else "refuted"),
        Claim("The AC-GAN collapses within classes (5.2)", "three groups among nine cells",
              lambda run: f"{_kept(run):.2f} of the diversity of {_word(run)} cells",
              lambda run: "confirmed" if _kept(run) < VARIED else "refuted"),
        Claim("The AC-GAN generates the requested class (6)", "by eye",
              _conditioning, _conditioned),
        Claim("Interpolation is smooth (5.3)", "by eye, with small jumps",
              lambda run: f"largest step {_largest_step(run):.1f} times the mean",
              _smooth),
        Claim("A network finds latent vectors of real cells (5.3)", "by eye",
              _reconstruction, _reconstructed),
        Claim("Generated cells raise weighted F1 (5.4)", f"{gain:+.1f} points, one seed",
              _gain, _gained, one_seed=False),
        Claim("Classical augmentation lowers it (5.4)", "considerably; no figures",
              partial(_gain, arm="classical"), partial(_gained, arm="classical", as_="loss"),
              one_seed=False),
        Claim("Both together lower it (5.4)", "considerably; no figures",
              partial(_gain, arm=both), partial(_gained, arm=both, as_="loss"), one_seed=False),
        Claim("Rare classes gain most: macro F1 rises (6)", "not reported",
              partial(_gain, metric="macro_f1"), partial(_gained, metric="macro_f1"),
              one_seed=False),
    ]  # fmt: skip


def rules() -> str:
    """How the verdicts are reached, in words, as Markdown."""
    low, high = BALANCED
    return f"""When is a claim confirmed? Those of F1 and of the classes are *confirmed* or
*refuted*. All others hang on one training with one seed, from which there is no verdict: the run
*agrees* with the thesis or *differs*, and another may say otherwise.

- Classes are *uneven* if the largest has at least {UNEVEN:g} times the images of the smallest.
- Losses are *in balance* if D(x) is at most {high} for real and at least {low} for generated cells.
- Generated cells are *hard to tell* if half of them, or fewer, may be recognised as generated: the
  interval of the specificity reaches below ½. With few images intervals are wide.
- They are *varied* from {VARIED:g} of the diversity of real cells on, and *collapsed* below.
- The *requested class* is generated if a classifier recognises at most {-100 * AS_REAL:.0f} points
  fewer generated than real cells.
- Interpolation is *smooth* if no step is more than {SMOOTH:g} times the mean; it is not judged if a
  classifier recognises no classes in the cells of the AC-GAN that was built on this generator.
- A latent vector is *found* if the reconstruction differs from its cell at most {LOCATED:g} times
  as much as another cell does, and found *in part* if at most {NEARER:g} times as much.
- F1 *rises* or falls if the interval is wholly above or below zero, from {FOR_A_VERDICT} seeds."""


def claims_table(ours: Run) -> pd.DataFrame:
    """A row for each claim: thesis, this run, recorded runs on real cells, and a verdict.

    Verdicts are on real cells: on the last recorded run, and on this run if it has them.
    """

    def judge(claim: Claim, run: Run) -> str:
        found = claim.judge(run)
        for word, single in SINGLE.items() if claim.one_seed else ():
            found = found.replace(word, single)
        return f"no verdict from one training: {found}" if claim.one_seed else found

    runs = {"this run": ours} | {f"recorded: {name}": run for name, run in real_runs().items()}
    judged = ["this run"] * (not ours["01_data"]["phantom"]) + list(runs)[1:][-1:]
    rows = [
        {"claim of the thesis": claim.text, "thesis": claim.thesis}
        | {name: claim.found(run) for name, run in runs.items()}
        | {f"verdict ({name})": judge(claim, runs[name]) for name in judged}
        for claim in claims()
    ]
    return pd.DataFrame(rows)
