"""The first page, the claims and the README say what the recorded results say, and no more."""

import copy
import json
import re
from pathlib import Path

import cellaug
from cellaug.book import chapter, front
from cellaug.book.chapter import project_root, thesis
from cellaug.book.claims import claims, claims_table
from cellaug.data.images import decode
from cellaug.evaluation.scorecard import scorecard
from cellaug.generators import load_generator
from cellaug.study.answers import read_results

import cv2
import make_readme
import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = project_root()
README = (ROOT / "README.md").read_text("utf-8")
RECORDED = json.loads((ROOT / "book/results/pbc/metrics.json").read_text("utf-8"))["chapters"]
PLAN = {
    "data": "pbc-fine",
    "arms": {
        "real": {},
        "generated": {"extra": "generated"},
        "half": {"extra": "selected", "share": 0.5},
        "other pool": {"extra": "generated", "pool": "disjoint"},
    },
    "scarcities": {"tail-10": {"images": 10, "scarce": ["basophil"]}, "half": {"share": 0.5}},
}


def comparison(arm, question=1, mean=0.02, n=5, adjusted=0.01, **more):
    """A planned comparison whose interval is its mean ± 1 point."""
    row = {"arm": arm, "against": "real", "scarcity": "tail-10", "question": question, "n": n}
    row |= {"measure": "macro_f1", "taxonomy": "fine", "class": "", "adjusted": adjusted}
    row |= {"tested_on": "own test images"}
    return row | {"mean": mean, "low": mean - 0.01, "high": mean + 0.01} | more


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """Writes a recorded study, in place of all recorded results."""
    monkeypatch.setattr(chapter, "result_file", lambda name: tmp_path / name)

    def write(*rows, name="pbc", **plan):
        folder = tmp_path / "augmentation" / name
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(folder / "contrasts.parquet")
        (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN | plan))

    return write


def test_the_readme_has_the_answers_that_the_results_give():
    fix = "'make readme' brings it up to date"
    assert make_readme.answers(README) == README, fix


def test_numbers_of_the_first_page_are_those_of_the_files():
    expert, improves, why = front.answers()
    (_, _), (fooled, caught) = thesis()["expert"]["confusion"]
    assert f"{fooled} of {fooled + caught} generated" in expert.thesis
    machine = RECORDED["02_vanilla_gan"]["machine_specificity"]
    assert f"recognised {machine['successes']} of {machine['trials']} generated" in expert.found
    for table, size in (("fidelity", 64), ("enlarged", 128)):
        met = scorecard(load_generator(front.SHOWN).card[table]["table"])["met"]
        missed = f"({met.eq(False).sum() or 'none'} clearly missed)"
        assert f"{met.eq(True).sum()} of 8 in the features for {size} px {missed}" in expert.found
    weighted = RECORDED["05_classifier"]["change_against_original"]["AC-GAN"]["weighted_f1"]
    numbers = (f"{100 * weighted[key]:+.2f}" for key in ("mean", "low", "high"))
    said = "{} points ({} to {}) of weighted F1, ".format(*numbers).replace("-", "−")
    assert f"{said}{weighted['n']} seeds" in improves.found
    assert f"{thesis()['data']['gan_images']:,} labelled images" in why.thesis
    rows = front.comparisons(1)
    lost = rows[(rows["n"] >= 5) & (rows["high"] < 0)]  # none gains so far
    words = f"**Not so far:** {len(lost)} of {(rows['n'] >= 5).sum()} comparisons show a loss"
    assert improves.answer.startswith(words) and front.advice()["lab"].startswith("Not to improve")


def test_without_a_study_the_page_says_so(studied):
    assert front.NO_STUDY in front.answers()[1].found
    assert front.answers()[2].answer == "**Open.**"
    assert front.substitutions()["study"].endswith(
        "is the study of augmentation: not finished yet."
    )


def test_the_page_says_how_much_of_the_study_is_done():
    done, planned = read_results(ROOT / "book/results/augmentation/pbc").done
    assert front.runs("pbc") == (done, planned)
    assert f": {done} of its {planned} classifiers are finished." in front.substitutions()["study"]


def test_a_gain_needs_five_seeds_and_an_interval_above_zero(studied):
    few = comparison("generated", n=4)
    wide = comparison("generated", mean=0.005)
    elsewhere = comparison("generated", tested_on="another laboratory")
    contrasts = [{"at": ["a"] * 3}, {"question": 1, "at": ["a"] * 4}, {"question": 2, "at": ["a"]}]
    contrasts[1]["added"] = True
    studied(few, wide, elsewhere, comparison("generated", mean=-0.03), contrasts=contrasts)
    answer = front.answers()[1]
    told = "2 of 7 planned comparisons (4 added when some results were known) were run with 5 seeds"
    assert f"{told} or more; of these 0 show a gain and 1" in answer.found
    words = (
        "*generated* (real images and generated ones) against *real* (real images and no others)"
    )
    largest = f"{words}, with 10 real images of each rare class (*tail-10*): −3.00 points"
    assert f"Largest change: {largest}" in answer.found
    words = "**Not so far:** 1 of 2 comparisons show a loss, none a gain. "
    assert answer.answer == f"{words}After correction for multiple comparisons: 1."
    assert front.advice()["lab"].startswith("Not to improve")


def test_comparisons_of_few_seeds_have_no_size(studied):
    studied(comparison("generated", n=2), contrasts=[{"at": ["tail-10", "tail-20"]}])
    found = front.answers()[1].found
    assert found.endswith("Study: so far 1 of 2 planned comparisons were run, none with 5 seeds.")


def test_a_gain_is_told_with_its_size(studied):
    bigger = comparison("half", mean=0.0345, adjusted=0.2, scarcity="half")
    studied(comparison("generated"), bigger, comparison("generated", **{"class": "basophil"}))
    answer = front.answers()[1]
    words = "**Yes, sometimes:** 2 of 2 comparisons show a gain, none a loss. "
    assert answer.answer == f"{words}After correction for multiple comparisons: 1."
    assert "(1 of them after Holm's correction for all)" in answer.found
    half = (
        "*half* (of the images shown of each class but the largest 50 % are selected generated "
        "ones) against *real* (real images"
    )
    assert f"Largest change: {half} and no others), with 50 % of the real images" in answer.found
    assert "(*half*): +3.45 points (+2.45 to +4.45)" in answer.found
    assert "macro F1" in answer.found and front.advice()["lab"].startswith("Perhaps")


def test_a_loss_that_correction_leaves_uncertain_is_told_as_such(studied):
    studied(comparison("generated", mean=-0.03, adjusted=0.2))
    said = "**No:** 1 of 1 comparisons show a loss, none a gain. "
    assert front.answers()[1].answer == f"{said}After correction for multiple comparisons: none."


@pytest.mark.parametrize(
    ("own", "other", "answer"),
    [
        (0.02, 0.02, "**The generated images:**"),
        (0.0, 0.02, "**The extra real images:**"),
        (0.0, 0.0, "**Nothing to explain yet:**"),
    ],
)
def test_where_a_gain_comes_from(studied, own, other, answer):
    studied(comparison("generated", 2, own), comparison("other pool", 2, other))
    assert front.answers()[2].answer.startswith(answer)


def test_a_study_of_drawn_cells_and_other_taxonomies_count_for_nothing(studied):
    studied(comparison("generated"), name="smoke", data="phantom")
    studied(comparison("generated", taxonomy="coarse"), comparison("generated", mean=0), name="pbc")
    assert front.comparisons(1)["outcome"].tolist() == ["undecided"]


def test_verdicts_of_the_claims_follow_the_numbers():
    run = copy.deepcopy(RECORDED)
    found = run["05_classifier"]
    changes = found["change_against_original"]
    changes["AC-GAN"]["weighted_f1"] = {"mean": 0.02, "low": 0.01, "high": 0.03, "n": 5}
    changes["classical"]["weighted_f1"] = {"mean": 0.02, "low": 0.01, "high": 0.03, "n": 5}
    changes["AC-GAN"]["macro_f1"] = {"mean": 0.02, "low": -0.01, "high": 0.05, "n": 5}
    found["class_agreement"]["AC-GAN"] = 0.08  # of eleven classes
    run["02_vanilla_gan"]["person"] = {
        "recall": {"value": 0.9, "low": 0.8, "high": 0.95},
        "specificity": {"value": 0.54, "low": 0.4, "high": 0.7},
    }
    said = {claim.text: claim.judge(run) for claim in claims()}
    assert said["Generated cells raise weighted F1 (5.4)"] == "confirmed"
    assert said["Classical augmentation lowers it (5.4)"] == "refuted"
    assert said["Both together lower it (5.4)"] == "no verdict from fewer than 5 seeds"
    assert said["Rare classes gain most: macro F1 rises (6)"] == "undecided"
    assert said["The AC-GAN generates the requested class (6)"].endswith("than guessing (9 %)")
    assert said["Generated cells are hard to tell from real ones (5.1)"] == "confirmed"
    assert said["Interpolation is smooth (5.3)"] == "not judged: its cells are not recognised"


def test_verdicts_are_on_real_cells():
    phantoms = copy.deepcopy(RECORDED)
    phantoms["01_data"] |= {"phantom": True, "imbalance": 1.0}
    verdicts = claims_table(phantoms)["verdict (recorded: pbc)"]
    assert verdicts[0] == "confirmed" and verdicts[1].startswith("no verdict from one")
    single = verdicts[verdicts.str.startswith("no verdict from one training: ")]
    assert len(single) == sum(claim.one_seed for claim in claims())
    assert single.str.contains("agrees").any() and single.str.contains("differs").any()
    assert not single.str.contains("confirmed|refuted").any()  # of one training
    phantoms["01_data"]["phantom"] = False
    both = claims_table(phantoms)
    assert both["verdict (this run)"][0] == "refuted"
    assert both["verdict (recorded: pbc)"].equals(verdicts)


def test_one_latent_vector_is_the_first_of_every_class():
    generator, cells = load_generator(front.SHOWN), front.one_vector()
    assert tuple(cells) == generator.class_names
    for name in ("promyelocyte", "platelet"):
        alone = generator.generate(name, 1, seed=0)[0].astype(int)
        assert np.abs(cells[name] - alone).max() <= 2
    figure = decode(ROOT / "book/figures" / make_readme.CELLS)[0]
    for image in list(cells.values())[::3]:  # the README's picture is of these weights
        sizes = (cv2.resize(image, (side, side)) for side in range(150, 200, 4))
        found = [cv2.matchTemplate(figure, one, cv2.TM_CCOEFF_NORMED).max() for one in sizes]
        assert max(found) > 0.9


def test_what_the_readme_names_is_there():
    for target in re.findall(r"\]\(([^)#\s]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target
    for place in re.findall(r"\]\(#([\w-]+)\)", README):
        heads = re.findall(r"(?m)^#+ (.*)$", README)
        assert place in [head.lower().replace(" ", "-") for head in heads]
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    assert set(re.findall(r"make ([a-z]+)(?=[`\s])", README)) - {"a"} <= set(targets)


def test_citation_and_codemeta_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    meta = json.loads((ROOT / "codemeta.json").read_text("utf-8"))
    assert citation["version"] == meta["version"] == cellaug.__version__
    assert citation["license"] == Path(meta["license"]).name == "MIT"
    cited = {reference["title"] for reference in citation["references"]}
    cited |= {meta["referencePublication"]["name"]}
    for title in cited:
        words = re.sub(r"[{}]", "", (ROOT / "book/references.bib").read_text("utf-8"))
        assert title in words
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
