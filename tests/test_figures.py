"""Tests of cellaug.figures: what is drawn, and that nothing is cut off."""

import re
from base64 import b64decode

from cellaug import figures
from cellaug.data import open_dataset
from cellaug.data.images import read_image, write_png
from cellaug.data.inspection import inspect
from cellaug.evaluation import scorecard
from cellaug.evaluation.finding import Fidelity
from cellaug.figures import style

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

FINE = [
    "segmented neutrophil",
    "band neutrophil",
    "eosinophil",
    "basophil",
    "lymphocyte",
    "monocyte",
    "promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "erythroblast",
    "platelet",
]
NAMES = {3: FINE[:3], 11: FINE, 19: [f"phantom {x} {y}" for x in FINE for y in "ab"][:19]}


@pytest.fixture(autouse=True)
def book_style():
    """Draw in the book's style without a window, and leave no trace of it."""
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        yield


def images(count, size=8):
    """Images of one grey level each, 0, 1, 2, ..."""
    return np.stack([np.full((size, size, 3), i, np.uint8) for i in range(count)])


READABLE = 9 * 72 / style.CSS  # points: nine pixels of a screen, where a figure is as wide as it is


def draw(fig):
    """Draw a figure; nothing may stick out of it or be too small to read, it has an alt text."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    words = [text for text in fig.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert min((text.get_fontsize() for text in words), default=READABLE) >= READABLE
    assert len(re.findall(r"\S\. \S", fig.alt)) >= 1, fig.alt  # what it shows, then what it finds
    assert not re.search(r"\bnan\b|  ", fig.alt)
    inside = fig.get_tightbbox(canvas.get_renderer())
    width, height = fig.get_size_inches()
    slack = 0.03
    assert inside.x0 >= -slack and inside.y0 >= -slack
    assert inside.x1 <= width + slack and inside.y1 <= height + slack
    assert plt.get_fignums() == []
    return fig


def texts(fig):
    """All words on a figure but the ticks'."""
    found = [text.get_text() for ax in fig.axes for text in ax.texts]
    return [text for text in found if text]


def levels(fig):
    """The grey level of every image placed on the sheet, in order."""
    return [int(image.get_array()[0, 0, 0]) for image in fig.axes[0].images]


def marks(ax):
    """The values of every mark of an interval plot by its kind, with the row of each."""
    return {
        line.get_label(): dict(zip(line.get_ydata().tolist(), line.get_xdata(), strict=True))
        for line in ax.lines
        if line.get_marker() != "None"
    }


def ticks(labels):
    """The words of tick labels."""
    return [label.get_text() for label in labels]


def test_image_grid_lays_out_rows():
    fig = draw(figures.image_grid(images(7), columns=3, captions=[f"t{i}" for i in range(7)]))
    assert levels(fig) == list(range(7)) and texts(fig) == [f"t{i}" for i in range(7)]
    extents = [image.get_extent() for image in fig.axes[0].images]
    assert extents[3][0] == extents[0][0] and extents[3][2] > extents[0][2]  # a new row
    assert extents[2][0] > extents[1][0] > extents[0][0]
    assert fig.get_size_inches()[0] < 4.3
    assert draw(figures.image_grid(images(9), columns=9)).get_size_inches()[0] < 7.6
    square = figures.image_grid(images(9))
    assert square.get_size_inches()[0] == pytest.approx(square.get_size_inches()[1])


def test_images_must_be_uint8_and_captions_as_many():
    with pytest.raises(ValueError, match="to_uint8"):
        figures.image_grid(images(3) / 127.5 - 1)
    with pytest.raises(ValueError, match=r"first: .*to_uint8"):
        figures.image_rows({"first": images(3) / 127.5})
    with pytest.raises(ValueError, match="expected 3, one per image"):
        figures.image_grid(images(3), captions=["one"])
    with pytest.raises(ValueError, match="no image to show"):
        figures.image_rows({"none": images(1)[:0]})


def test_hundreds_of_images_share_one_axes():
    fig = figures.image_grid(images(240), columns=20)
    assert len(fig.axes) == 1 and len(levels(fig)) == 240


def test_image_rows_have_labels_heads_and_captions():
    rows = {"epoch 1": images(3), "epoch 10": images(2) + 10}
    words = ["$a$", "", "c\n4.0", "d" * 80, "e"]
    fig = draw(figures.image_rows(rows, ["first", "metamyelocyte " * 2, "x"], captions=words))
    assert levels(fig) == [0, 1, 2, 10, 11]
    *heads, row, a, c, distance, other = texts(fig)[: texts(fig).index("epoch 10") + 1]
    *long, e = texts(fig)[texts(fig).index("epoch 10") + 1 :]
    assert heads == ["first", "metamyelocyte " * 2, "x"]
    assert {text.get_rotation() for text in fig.axes[0].texts[:3]} == {90}  # too wide to lie
    assert (row, other) == ("epoch 1", "epoch 10")
    assert (a, c, distance, e) == ("$a$", "c", "4.0", "e")
    assert "".join(long) == "d" * 80 and len(long) > 1  # goes on below, never smaller
    parts = [text for text in fig.axes[0].texts if text.get_text() in long]
    assert {text.get_fontsize() for text in parts} == {style.SMALL}
    assert all(text.get_window_extent().width <= 1.25 * fig.dpi for text in parts)


@pytest.mark.parametrize("count", [3, 11, 19])
def test_class_examples(count):
    labels = np.arange(50) % count
    fig = draw(figures.class_examples(images(50), labels, NAMES[count], per_class=4))
    assert texts(fig) == NAMES[count]
    assert levels(fig)[:3] == [0, count, 2 * count]
    assert len(levels(fig)) == sum(min(4, (labels == k).sum()) for k in range(count))


@pytest.mark.parametrize("count", [3, 11, 19])
def test_class_distribution(count):
    rng = np.random.default_rng(0)
    counts = pd.DataFrame(
        rng.integers(100, 2000, (3, count)), ["train", "validation", "test"], NAMES[count]
    )
    fig = draw(figures.class_distribution(counts))
    ax = fig.axes[0]
    assert [bar.get_width() for bar in ax.containers[1]] == counts.loc["validation"].tolist()
    assert [bar.get_x() for bar in ax.containers[1]] == counts.loc["train"].tolist()
    assert texts(fig) == [f" {total:,}" for total in counts.sum()]
    assert ticks(ax.get_yticklabels()) == NAMES[count]
    assert ax.yaxis_inverted()


def test_loss_curves():
    history = pd.DataFrame({"d_loss": [1.4, 1.2], "g_loss": [0.7, 0.9]}, index=[1, 2])
    fig = draw(figures.loss_curves(history, {"g_loss": "generator"}))
    line = fig.axes[0].lines[0]
    assert line.get_xydata().tolist() == [[1, 0.7], [2, 0.9]]
    assert ticks(fig.axes[0].get_legend().get_texts()) == ["generator"]
    with pytest.raises(KeyError, match="loss"):
        figures.loss_curves(history, {"loss": "loss"})


@pytest.mark.parametrize("count", [1, 3, 11, 19])
def test_pairs(count):
    names = NAMES.get(count, ["platelet"])
    fig = draw(figures.pairs(images(count), images(count) + 100, names, ["distance 4.0"] * count))
    assert levels(fig)[:2] == [0, 100] and len(levels(fig)) == 2 * count
    words = texts(fig)
    said = " ".join(words)  # long names go on below
    places = [said.index(f" {name}") for name in names]
    assert len(set(places)) == count and places[0] == min(places)
    assert words.count("generated") == min(count, 3) and words.count("distance 4.0") == count
    left = [image.get_extent()[0] for image in fig.axes[0].images]
    assert count < 2 or left[2] - left[1] > left[1] - left[0]  # pairs stand apart
    for lengths in ((2, 3, 2, 2), (2, 2, 1, 2), (2, 2, 2, 3)):
        left, right, names, captions = lengths
        with pytest.raises(ValueError):
            figures.pairs(images(left), images(right), ["a"] * names, ["b"] * captions)


@pytest.mark.parametrize("count", [3, 11, 19])
def test_confusion_matrix_fits(count):
    matrix = 1500 * np.eye(count, dtype=int)
    matrix[0] += 7
    fig = draw(figures.confusion_matrix(matrix, NAMES[count]))
    assert len(texts(fig)) == 2 * count - 1
    assert ticks(fig.axes[0].get_xticklabels()) == NAMES[count]
    assert ticks(fig.axes[0].get_yticklabels()) == NAMES[count] and fig.axes[0].yaxis_inverted()
    box = fig.axes[0].get_window_extent()
    assert box.width == pytest.approx(box.height) and box.width > 40 * count


def test_confusion_matrix_is_normalised_by_row():
    fig = figures.confusion_matrix([[44, 6], [23, 27]], ["real", "generated"])
    assert texts(fig) == ["88\n44", "12\n6", "46\n23", "54\n27"]
    assert fig.axes[0].collections[0].get_array().tolist() == [[88, 12], [46, 54]]
    assert (fig.axes[0].get_ylabel(), fig.axes[0].get_xlabel()) == ("actual", "predicted")
    rare = figures.confusion_matrix([[999, 1], [0, 0]], ["a", "b"])
    assert texts(rare) == ["100\n999", "<1\n1"]
    with pytest.raises(ValueError, match="3 columns passed, passed data had 1"):
        figures.confusion_matrix([[1]], NAMES[3])


@pytest.mark.parametrize("count", [3, 11, 19])
def test_per_class_change(count):
    seeds = pd.DataFrame([np.linspace(k - 13, k + 12, count) for k in range(3)])
    seeds.columns = NAMES[count]
    seeds.iloc[:, 1] = np.nan
    fig = draw(figures.per_class_change({"synthetic": seeds, "both": 0 * seeds - 0.01}))
    first, second = fig.axes
    assert (first.get_title(), second.get_title()) == ("synthetic", "both")
    assert ticks(first.get_yticklabels()) == NAMES[count] and first.yaxis_inverted()
    words = texts(fig)
    assert words[0] == "−12.0" and words[count - 2] == "+13.0"
    assert set(words[count - 1 :]) == {"+0.0"}
    ends = first.collections[0].get_segments()[0][:, 0]
    assert ends == pytest.approx([-13, -11])  # one standard deviation
    two = draw(figures.per_class_change({"synthetic": seeds[:2]}))  # too few for a spread
    assert not any(len(line) for line in two.axes[0].collections[0].get_segments())
    assert first.get_xlim() == second.get_xlim()
    assert fig.get_supxlabel() == "change in percentage points"


@pytest.mark.parametrize("count", [3, 11, 19])
def test_diversity_matches_classes_by_name(count):
    real = pd.Series(np.arange(count) + 20.0, NAMES[count])
    generated = (real - 15)[::-1].drop(NAMES[count][1])
    table = pd.DataFrame({"AC-GAN": generated, "conditional GAN": real})
    fig = draw(figures.diversity(table, real))
    found = marks(fig.axes[0])
    assert list(found) == ["real", "AC-GAN", "conditional GAN"]
    assert ticks(fig.legends[0].get_texts()) == list(found)
    assert found["real"] == found["conditional GAN"] == dict(enumerate(real))
    assert found["AC-GAN"][0] == 5 and np.isnan(found["AC-GAN"][1])
    assert len({line.get_marker() for line in fig.axes[0].lines}) == 3
    assert fig.axes[0].get_xlim()[0] == 0


def test_interval_plot():
    rows = pd.DataFrame(
        {
            "name": ["expert of the thesis", "one $seed$"],
            "value": [0.88, -0.5],
            "low": [0.757, None],
            "high": [0.955, None],
        }
    )
    fig = draw(figures.interval_plot(rows, "recall", reference=0.5))
    assert texts(fig) == ["0.880  (0.757 to 0.955)", "−0.500"]
    assert ticks(fig.axes[0].get_yticklabels()) == ["expert of the thesis", "one $seed$"]
    assert fig.axes[0].yaxis_inverted() and fig.get_supxlabel() == "recall"
    assert fig.axes[0].lines[-1].get_xdata() == [0.5, 0.5]
    with pytest.raises(KeyError, match="high"):
        figures.interval_plot(rows.drop(columns="high"))


def test_interval_plot_of_several_measures_and_kinds():
    rows = pd.DataFrame(
        [
            {"name": arm, "measure": measure, "kind": kind, "value": value, "low": value - 1}
            for value, (arm, measure, kind) in enumerate(
                (arm, measure, kind)
                for arm in ("thesis", "ours")
                for measure in ("F1", "recall")
                for kind in ("64 px", "128 px")
            )
        ]
    )
    fig = draw(figures.interval_plot(rows.assign(high=rows["value"] + 1), reference={"F1": 1.5}))
    first, second = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["F1", "recall"]
    assert ticks(fig.legends[0].get_texts()) == ["64 px", "128 px"]
    heights = [text.get_position()[1] for text in second.texts]
    assert [text.get_text() for text in second.texts] == ["2.000", "6.000", "3.000", "7.000"]
    small, large = marks(second).values()
    assert (list(small.values()), list(large.values())) == ([2, 6], [3, 7])
    assert heights == [*small, *large]  # each number beside its mark
    assert [round(y) for y in small] == [0, 1] and not set(small) & set(large)
    assert first.lines[-1].get_xdata() == [1.5, 1.5] and len(first.lines) == len(second.lines) + 1


def test_few_epochs_are_written_as_numbers_and_small_changes_look_small():
    few = pd.DataFrame({"loss": [0.526, 0.524], "other": [0.69, 0.51]})
    fig = draw(figures.loss_curves(few[["loss"]], {"loss": "loss"}))
    assert {text.get_text() for text in fig.axes[0].texts} == {"0.526", "0.524"}
    low, high = fig.axes[0].get_ylim()
    assert high - low == pytest.approx(0.0526) and low < 0.524 < 0.526 < high
    both = draw(figures.loss_curves(few, {"loss": "loss", "other": "other"})).axes[0].texts
    sides = {text.get_text(): text.xyann[1] > 0 for text in both}
    assert sides == {"0.526": False, "0.524": True, "0.69": True, "0.51": False}
    long = draw(figures.loss_curves(pd.DataFrame({"loss": np.linspace(2, 1, 9)}), {"loss": "loss"}))
    assert not long.axes[0].texts


def test_forest_shows_sources_in_one_colour_and_no_interval_of_few_seeds():
    def change(mean, n=3):
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": n}

    recorded = {
        "classical": {"weighted_f1": change(-0.02), "macro_f1": change(0.01, n=2)},
        "AC-GAN": {"weighted_f1": change(0.03), "macro_f1": change(0.04)},
    }
    thesis = {"AC-GAN": {"weighted_f1": {"mean": 0.007, "low": None, "high": None, "n": 1}}}
    fig = draw(figures.forest({"thesis": thesis, "recorded": recorded}))
    weighted, macro = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["weighted F1", "macro F1"]
    assert [label.get_text() for label in weighted.get_yticklabels()] == ["AC-GAN", "classical"]
    drawn = {line.get_label(): line.get_xdata() for line in weighted.lines}
    np.testing.assert_allclose(drawn["recorded"], [3, -2])
    np.testing.assert_allclose(drawn["thesis"], [0.7, np.nan])
    (line,) = filter(len, macro.collections[1].get_segments())  # none of the two seeds
    np.testing.assert_allclose(line[:, 0], [3, 5])
    other = figures.forest({"thesis": thesis, "x": {"a": recorded["AC-GAN"]}})
    assert [ax.lines[1].get_color() for ax in other.axes] == [weighted.lines[1].get_color()] * 2
    assert fig.alt.endswith(". No change has 5 seeds.")  # an interval is no verdict
    many = {"a": {"weighted_f1": change(-0.02, 5), "macro_f1": change(0.04, 6)}}
    alt = figures.forest({"recorded": many | recorded}).alt
    assert alt.endswith("Of 2 changes over 5 seeds or more 1 are gains and 1 losses; the intervals "
                        "of the others include zero.")  # fmt: skip
    with pytest.raises(ValueError, match="no change"):
        figures.forest({"thesis": {}})


def test_ladder_numbers_steps_and_shows_the_range_of_seeds():
    runs = pd.DataFrame(
        {
            "arm": ["thesis", "thesis", "kernel", "WGAN"],
            "seed": [1, 2, 1, 1],
            "coverage": [0.2, 0.4, 0.5, np.nan],
            "Fréchet distance": [10, 20, 5, 8],
            "agreement, points": [-9, -7, -3, 0],
            "recall": np.nan,
        }
    )
    fig = draw(figures.ladder(runs, 2))
    assert [ax.get_title() for ax in fig.axes] == list(runs.columns[2:5])
    coverage, distance, agreement = fig.axes
    assert ticks(coverage.get_yticklabels()) == ["1  thesis", "2  kernel", "  WGAN"]
    assert marks(coverage)["step"] == pytest.approx({0: 0.3, 1: 0.5})
    assert marks(distance) == {"step": {0: 15, 1: 5}, "variant": {2: 8}}
    assert coverage.collections[0].get_segments()[0][:, 0].tolist() == [0.2, 0.4]
    assert distance.get_xscale() == "log" and coverage.get_xscale() == "linear"
    assert (coverage.lines[-1].get_xdata()[0], agreement.lines[-1].get_xdata()[0]) == (1, 0)


@pytest.mark.parametrize("count", [2, 11, 20])
def test_inspection_names_classes_outliers_and_pairs(count, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    names = [f"class {k} $1" for k in range(count)] if count == 20 else FINE[:count]
    rng = np.random.default_rng(0)

    def tinted(*tint):
        clouds = cv2.GaussianBlur(rng.normal(0, 90, (64, 64, 1)), (0, 0), 3)[..., None] * 4
        return np.clip((180 + clouds) * tint, 0, 255).astype(np.uint8)

    for name in names:
        (tmp_path / "cells" / name).mkdir(parents=True)
        for i in range(20):
            write_png(tmp_path / "cells" / name / f"{i}.png", tinted(1, 0.9, 0.8))
    last = tmp_path / "cells" / names[-1]
    write_png(last / "20.png", tinted(0.8, 0.9, 1))
    write_png(last / "a_$x$_b.png", read_image(last / "7.png", 64)[:, ::-1])
    write_png(last / "blank.png", np.full((64, 64, 3), (200, 180, 160), np.uint8))
    cells = open_dataset(tmp_path / "cells", class_names=names)
    found = inspect(cells)
    fig = draw(figures.inspection(found, cells))
    counted, bright, coloured, background, sharp, odd, alike = fig.findobj(Axes)
    assert ticks(counted.get_yticklabels()) == names
    total = sum(bar.get_width() for bars in counted.containers for bar in bars)
    assert total == len(cells) == 20 * count + 3
    assert "mean L*" in bright.get_xlabel() and "chroma" in coloured.get_xlabel()
    by_background = (found.outliers["measure"] == "background").sum()
    usual, marked = (part.get_offsets() for part in background.collections)
    assert (len(usual), len(marked)) == (len(cells) - by_background, 1)
    usual, marked = (part.get_offsets() for part in sharp.collections)
    assert len(marked) == len(found.outliers) - 1 >= 1
    assert np.concatenate([usual, marked])[:, 1].min() > 0  # the axis is logarithmic
    shown = [text.get_text() for text in odd.texts]
    assert "20.png" in shown and any(text.startswith("bluer background") for text in shown)
    assert len(odd.images) == min(12, len(found.outliers))
    words = [text.get_text() for text in fig.findobj(plt.Text)]
    assert len(alike.images) == 2 and "Images that show the same (1 of 1 pairs)" in words
    assert {"7.png", "a_$x$_b.png", "mirrored"} <= {text.get_text() for text in alike.texts}


def finding(names, copies=True):
    """A finding about classes of some names, with numbers made up."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        [(name, measure) for name in ["", *names] for measure in scorecard.MEASURES]
        + [("", f"{kind} {p}") for kind, p in (("grid", 2), ("copies in", "features"))],
        columns=["group", "measure"],
    )
    rows["level"] = rows["group"].map(lambda name: "class" if name else "overall")
    rows["ratio"] = np.linspace(0.5, 1.5, len(rows))
    for column in ("value", "real"):
        rows[column] = rng.uniform(0.4, 0.9, len(rows))
        prefix = "" if column == "value" else "real_"
        rows[f"{prefix}low"], rows[f"{prefix}high"] = rows[column] - 0.1, rows[column] + 0.1
    rows["reason"] = ["" if copies else "no training images"] * len(rows)
    rows.loc[rows["measure"] == "grid 2", "ratio"] = 1.5
    closest = {"class": names[0] if names else "", "training_class": "", "relative": 0.25}
    both = ("features", "pixels") if copies else ()
    return Fidelity(
        table=scorecard.tidy(rows),
        closest=pd.DataFrame([closest | {"space": "pixels"}] * 6 * copies),
        sets={
            "real": {"name": "held out", "images": 200, "credit": "They et al. " * 30},
            "generated": {"name": "$x$" * 20, "images": 2000, "credit": "$y$"},
        },
        extractor={},
        settings={},
        memorisation={space: {"threshold": 0.25} for space in both},
        left_out={},
        notes=[],
        nearness={space: tuple(rng.uniform(0.4, 0.8, (2, 90))) for space in both},
        spectra=tuple(rng.uniform(1, 2, (2, 16, 16))),
        pairs=rng.integers(0, 255, (6, 2, 16, 16, 3), np.uint8) if copies else None,
    )


@pytest.mark.parametrize("count", [1, 11, 19])
def test_fidelity_reads_its_table(count):
    found = finding(NAMES.get(count, ["$x$"]))
    fig = draw(figures.fidelity(found))
    axes = {ax.get_title(): ax for ax in fig.findobj(Axes)}
    table = found.table[found.table["level"] == "class"]
    for measure, title in (("recall", "recall"), ("diversity_pixels", "diversity\n(grey levels)")):
        drawn, rows = marks(axes[title]), table[table["measure"] == measure]
        assert list(drawn["generated"].values()) == rows["value"].tolist()
        assert list(drawn["real halves"].values()) == rows["real"].tolist()
    recall = table[table["measure"] == "recall"]
    spans = axes["recall"].patches  # of the values that meet the target: 0.6 of real, or more
    assert [bar.get_x() for bar in spans] == pytest.approx(list(0.6 * recall["real"]))
    assert [bar.get_x() + bar.get_width() for bar in spans] == pytest.approx([1] * len(recall))
    spans = axes["diversity\n(grey levels)"].patches
    real = table.loc[table["measure"] == "diversity_pixels", "real"]
    assert [bar.get_x() for bar in spans] == pytest.approx(list(0.8 * real))
    assert [bar.get_width() for bar in spans] == pytest.approx(list(0.3 * real))
    words = " ".join(text.get_text() for text in fig.findobj(plt.Text))
    card = scorecard.scorecard(found.table)["met"].dropna()
    assert f"{sum(card)} of {len(card)} targets met, missed: " in words
    missed = [scorecard.ROWS[name] for name, met in card.items() if not met]
    assert "grid texture" in missed and all(name in words for name in missed)
    assert "period 2 px: 1.50" in words and "0.25 of the mean" in words and "$y$" in words
    pictures = [image for ax in fig.findobj(Axes) for image in ax.images]
    pictures = [image.get_array() for image in pictures if image.get_array().ndim == 3]
    assert len(pictures) == 12 and np.array_equal(pictures[1], found.pairs[0, 1])


def test_fidelity_without_classes_or_training_images():
    fig = draw(figures.fidelity(finding([], copies=False)))
    words = " ".join(text.get_text() for text in fig.findobj(plt.Text))
    assert "all images" in words and "not measured: no training images" in words


def test_a_notebook_draws_a_figure_once_with_its_alt_text(monkeypatch):
    """Also in a shell that has a way of its own to draw figures, with fewer pixels."""
    shell = InteractiveShell.instance()
    try:
        select_figure_formats(shell, {"png"})
        figures.use_style()
        fig = style.new_figure(3, 2)
        fig.alt = "What it shows."
        drawn, draw = [], fig.savefig
        monkeypatch.setattr(fig, "savefig", lambda *a, **b: drawn.append(a) or draw(*a, **b))
        data, facts = shell.display_formatter.format(fig)
    finally:
        InteractiveShell.clear_instance()
    assert len(drawn) == 1 and data["text/plain"] == facts["image/png"]["alt"] == fig.alt
    width = int.from_bytes(b64decode(data["image/png"])[16:20])
    assert facts["image/png"]["width"] == width * style.CSS // style.DPI
