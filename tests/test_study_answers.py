"""What the study's page says, on tables whose answers are known, and its figures."""

from dataclasses import replace

from cellaug import figures
from cellaug.book.chapter import notebook_file
from cellaug.data import DataError, Dataset
from cellaug.figures import study as charts
from cellaug.study import answers
from cellaug.study.plan import read_plan

import numpy as np
import pandas as pd
import pytest

PBC = notebook_file("studies/augmentation").parent / "plans" / "pbc.yaml"
EVEN, COPIES, MADE = "even, classical", "duplicates, classical", "half selected, classical"
TRUTH = np.repeat([0, 1], 500)  # of a thousand test images of two classes
LEVELS = {  # macro F1 of each arm, without the seeds' own ups and downs
    "all": {EVEN: 0.90},
    "tail-10": {EVEN: 0.70, COPIES: 0.72, MADE: 0.80},
    "tail-20": {EVEN: 0.80, COPIES: 0.78, MADE: 0.80},
    "tail-50": {EVEN: 0.88},
}


@pytest.fixture(scope="module")
def results():
    """A study of six seeds, whose validation scores are a tenth lower than those of the test."""
    plan, rows, given = read_plan(PBC), [], []
    for scarcity, arms in LEVELS.items():
        for arm, level in arms.items():
            for seed in range(1, 7):
                made = {"run": f"{scarcity} {arm} {seed}", "scarcity": scarcity, "arm": arm,
                        "seed": seed, "class": "", "measure": "macro_f1", "taxonomy": "fine",
                        **plan.classifier}  # fmt: skip
                value = level + 0.001 * (-1) ** seed * (1 + (arm[0] == "h"))
                rows.append(made | {"tested_on": answers.OWN, "value": value})
                rows.append(made | {"tested_on": answers.VALIDATION, "value": value - 0.1})
                own = {"taxonomy": "fine", "tested_on": answers.OWN}
                rows += [made | own | {"measure": "recall", "class": name, "value": value}
                         for name in "ab"]  # fmt: skip
                right = np.tile(np.arange(500) < round(500 * value), 2)  # macro F1 is `value`
                named = np.where(right, TRUTH, 1 - TRUTH).astype(np.uint8)
                given.append({"run": made["run"], "answers": named, **own})
    runs, test = pd.DataFrame(rows), pd.DataFrame({"class": np.array(["a", "b"])[TRUTH]})
    none = pd.DataFrame()
    work = pd.DataFrame({"run": ["a", "b"], "seconds": [3600.0, 3600.0]})
    return answers.Results(plan, runs, none, pd.DataFrame(given), test, none, work)


def test_scores_are_of_the_plans_own_classifier_and_of_one_set(results):
    found = answers.scores(results)
    assert len(found) == 8 * 6 and found["value"].between(0.69, 0.91).all()
    other = results.runs.assign(steps=12_000)
    mixed = replace(results, runs=pd.concat([results.runs, other]))
    assert len(answers.scores(mixed)) == len(found)
    table = answers.summary(found)
    row = table.loc[("tail-10", EVEN)]
    assert row["mean"] == pytest.approx(0.70) and row["n"] == 6
    assert row["low"] < 0.70 < row["high"]
    assert results.hours == 2 and results.done[0] == 8 * 6 < results.done[1]


def test_room_and_what_is_recovered_of_it(results):
    found = answers.room(results).set_index("scarcity")
    row = found.loc["tail-10"]
    assert row["baseline"] == COPIES  # the better one, on validation images
    assert row["room"] == pytest.approx(0.90 - 0.72)
    assert row["recovered"] == pytest.approx((0.80 - 0.72) / 0.18)
    assert row["low"] < row["recovered"] < row["high"] and row["n"] == 6
    # 180 images are in the room, 80 of them recovered, by all seeds alike: a binomial fraction
    spread = np.sqrt(80 / 180 * 100 / 180 / 180)
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * spread, rel=0.1)
    few = results.runs[~((results.runs["arm"] == MADE) & (results.runs["seed"] > 4))]
    few = answers.room(replace(results, runs=few)).set_index("scarcity")
    assert np.isnan(few.loc["tail-10", "low"]) and few.loc["tail-10", "n"] == 4
    assert found.loc["tail-20", "baseline"] == EVEN
    assert found.loc["tail-20", "recovered"] == pytest.approx(0, abs=1e-6)
    assert "tail-50" not in found.index  # no arm with made images there
    with pytest.raises(DataError, match="no scarcity with all images"):
        answers.room(replace(results, plan=replace(results.plan, scarcities={"a": {"images": 3}})))


def test_a_gain_is_worth_the_real_images_that_would_bring_it(results):
    found = answers.worths(results).set_index("scarcity")
    assert set(found["baseline"]) == {EVEN} and set(found["number"]) == {10, 20}
    # 0.70 at 10 images becomes 0.80, which is the baseline's score at 20
    assert found.loc["tail-10", "images"] == pytest.approx(10, abs=0.2)
    assert found.loc["tail-20", "images"] == pytest.approx(0, abs=0.2)
    less = results.runs.copy()
    less.loc[(less["arm"] == MADE) & (less["scarcity"] == "tail-10"), "value"] -= 0.3
    found = answers.worths(replace(results, runs=less)).set_index("scarcity")
    assert found.loc["tail-10", "images"] == -np.inf  # below the whole curve, and not left out


def test_words_decide_nothing_from_few_seeds():
    row = {"mean": 0.0123, "low": 0.003, "high": 0.0214, "n": 10, "scarcity": "tail-10",
           "arm": "a", "against": "b"}  # fmt: skip
    assert answers.verdict(row) == "better" and answers.verdict(row | {"n": 4}) == ""
    assert answers.verdict(row | {"low": -0.1}) == "undecided"
    assert answers.verdict(row | {"low": -0.2, "high": -0.1}) == "worse"
    assert answers.points(row) == "+1.2 (+0.3 to +2.1), 10 seeds"
    lone = row | {"mean": -0.02, "low": np.nan, "n": 1}
    assert answers.points(lone) == "−2.0, 1 seed"
    assert answers.points(lone | {"planned": 5}) == "−2.0, 1 of 5 seeds"
    assert answers.doubt(row | {"adjusted": 0.04}) == "" == answers.doubt(row | {"n": 4})
    doubtful = answers.in_words(pd.DataFrame([row | {"adjusted": 0.06}]))
    assert "better at tail-10 (but not after Holm's correction): +1.2" in doubtful
    assert answers.in_words(pd.DataFrame([row, row | {"n": 3}])) == (
        "*a* against *b*: better at tail-10: +1.2 (+0.3 to +2.1), 10 seeds; "
        "too few seeds for a verdict at tail-10: +1.2 (+0.3 to +2.1), 3 seeds."
    )


def test_cells_that_only_one_classifier_names_right(results):
    """Four test images, two seeds: one arm is right in the second, the other in the third."""
    images = np.arange(4 * 48, dtype=np.uint8).reshape(4, 4, 4, 3)
    cells = Dataset.of_images(images, [0, 1, 1, 0], ["a", "b"])
    said = {MADE: [[0, 1, 0, 0], [0, 1, 1, 0]], EVEN: [[0, 0, 1, 0], [0, 0, 1, 0]]}
    rows, given = [], []
    for arm, by_seed in said.items():
        for seed, answered in enumerate(by_seed):
            run = f"{arm} {seed}"
            own = {"taxonomy": "fine", "tested_on": answers.OWN}
            made = {"run": run, "scarcity": "tail-10", "arm": arm, "measure": "recall", **own}
            rows += [made | {"class": name, **results.plan.classifier} for name in "ab"]
            given.append({"run": run, "answers": np.array(answered, np.uint8), **own})
    names = np.array(cells.class_names, object)[cells.labels]
    test = pd.DataFrame({"digest": cells.digests, "class": names})
    study = replace(results, runs=pd.DataFrame(rows), answers=pd.DataFrame(given), test=test)
    found = answers.only_one(study, MADE, EVEN, "tail-10")
    assert found[MADE][["digest", "class", "named"]].values.tolist() == [
        [cells.digests[1], "b", "a"]
    ]
    assert found[MADE]["apart"].tolist() == [1.0] and found[EVEN]["apart"].tolist() == [0.5]
    assert found[EVEN]["digest"].tolist() == [cells.digests[2]]
    assert answers.only_one(study, COPIES, EVEN, "tail-10") == {}
    fig = charts.differing_cells(found, cells)
    assert "b" in "".join(text.get_text() for text in fig.axes[0].texts)


def test_class_names_under_differing_cells_are_whole():
    names = ["metamyelocyte", "promyelocyte", "segmented neutrophil"]
    images = np.arange(12 * 48, dtype=np.uint8).reshape(12, 4, 4, 3)
    cells = Dataset.of_images(images, [0, 1, 2] * 4, names)
    classes = np.array(names, object)[cells.labels]
    table = pd.DataFrame({"digest": cells.digests, "class": classes, "named": classes[::-1]})
    arms = {"half synthetic, classical": table[:6], "even, classical": table[6:]}
    fig = charts.differing_cells(arms, cells)
    words = {word for text in fig.axes[0].texts for word in text.get_text().split()}
    whole = " ".join([*names, "named", *(f"only {arm}" for arm in arms)]).split()
    assert words <= {*whole}
    assert fig.alt.count("; ") == 11  # between two cells, so that one hears which name is whose


def test_what_a_study_recommends(results):
    row = {"question": 1, "class": "", "taxonomy": "fine", "tested_on": answers.OWN, "arm": MADE,
           "against": COPIES, "scarcity": "tail-10", "mean": 0.08, "low": 0.07, "high": 0.09,
           "n": 6, "adjusted": 0.01}  # fmt: skip
    pairs = pd.DataFrame([row, row | {"against": EVEN, "scarcity": "tail-20", "low": -0.01}])
    said = answers.advice(replace(results, contrasts=pairs)).split("\n")
    assert "**tail-10**: of the arms without synthesis take *duplicates, classical*" in said[0]
    assert said[0].endswith("; add generated cells: *half selected, classical* did better.")
    assert said[1].endswith("; not shown to help: *half selected, classical*.")
    worse = pairs.assign(low=-0.2, high=-0.1, adjusted=0.06)
    more = pairs.assign(arm="half synthetic, classical", low=-0.1)  # another arm is undecided
    said = answers.advice(replace(results, contrasts=pd.concat([worse, more]))).split("\n")
    assert said[0].endswith(
        "; generated cells seem worse (but not after Holm's correction): *half selected, classical*"
        "; not shown to help: *half synthetic, classical*."
    )
    one = pd.concat([worse, worse.assign(arm="half synthetic, classical", adjusted=0.01)])
    said = answers.advice(replace(results, contrasts=one)).split("\n")
    assert said[0].endswith(
        "; add no generated cells: *half selected, classical* (but not after Holm's correction), "
        "*half synthetic, classical* did worse."
    )
    few = answers.advice(replace(results, contrasts=pairs.assign(n=3))).split("\n")
    assert few[0].endswith("is not decided, for there are too few seeds.")


def test_the_quality_of_a_generator_and_its_gain(results):
    """Gains that rise with coverage and fall with the distance, whatever the arm's mean is."""
    runs, rng = results.runs.copy(), np.random.default_rng(0)
    made = runs["arm"] == MADE
    quality = runs["seed"].map(dict(enumerate(rng.permutation(6), 1)))
    runs.loc[made, "generator_coverage"] = quality[made]
    runs.loc[made, "generator_kernel_distance"] = -quality[made]
    runs.loc[made & (runs["tested_on"] == answers.OWN), "value"] += 0.01 * quality[made]
    other = runs[made].assign(arm="half synthetic, classical")  # uses the same generators
    other["run"] = "other " + other["run"]
    found = answers.quality_and_gain(replace(results, runs=pd.concat([runs, other])))
    assert found.loc["coverage", "ρ"] == pytest.approx(1, abs=0.2)
    assert found["generators"].eq(12).all()
    assert found.loc["kernel distance", "ρ"] == pytest.approx(-found.loc["coverage", "ρ"])


@pytest.mark.parametrize(("choice", "other"), [("norm", "group"), ("network", "xception")])
def test_classifiers_side_by_side(results, choice, other):
    usual = results.plan.classifier[choice]
    more = results.runs.assign(**{choice: other}, value=results.runs["value"] - 0.1)
    more["run"] = more["run"] + " " + other
    found = answers.by_classifier(replace(results, runs=pd.concat([results.runs, more])), choice)
    np.testing.assert_allclose(found["mean"][other] - found["mean"][usual], -0.1)
    one = more[(more["arm"] == EVEN) & (more["seed"] == more["seed"].min())]
    found = answers.by_classifier(replace(results, runs=pd.concat([results.runs, one])), choice)
    assert set(found.index.get_level_values("arm")) == {EVEN} and len(found)
    assert (found["count"][other] == 1).all()
    assert answers.by_classifier(results, choice).empty


def test_results_that_are_not_all_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no results of a study: runs\.parquet is missing"):
        answers.read_results(tmp_path)


def test_figures_show_every_arm(results):
    figures.use_style()
    table = answers.numbered(results, answers.summary(answers.scores(results)))
    fig = charts.score_curves(table, "real images", "macro F1")
    (axes,) = fig.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["10", "20", "50"]
    named = [text.get_text() for text in fig.legends[0].get_texts()]
    assert named == [EVEN, COPIES, MADE]
    line = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(line.get_ydata(), [0.70, 0.80, 0.88])
    one = charts.score_curves(table[table["number"] == 10], "images of each", "macro F1")
    assert [text.get_text() for text in one.axes[0].get_yticklabels()] == [EVEN, COPIES, MADE]
    assert one.axes[0].get_title() == "10 images of each" and not one.legends
    fig = charts.worth_in_images(answers.worths(results).assign(high=np.inf))
    assert len(fig.axes) == 2
    rows = pd.DataFrame({"class": ["a", "b"], "mean": [0.1, -0.1], "low": 0.0, "high": 0.2})
    rows = rows.assign(measure="macro_f1", scarcity="tail-10", n=4)
    (axes,) = charts.change_by_class(rows).axes
    assert axes.get_title() == "tail-10 (4 seeds)"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [10, -10])
