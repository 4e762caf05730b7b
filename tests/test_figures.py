"""Tests of cellaug.figures: what is drawn, and that nothing is cut off."""

from cellaug import figures
from cellaug.data import open_dataset
from cellaug.data.images import read_image, write_png
from cellaug.data.inspection import inspect

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
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
def style():
    """Draw in the book's style without a window, and leave no trace of it."""
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        yield


def images(count, size=8):
    """Images of one grey level each, 0, 1, 2, ..."""
    return np.stack([np.full((size, size, 3), i, np.uint8) for i in range(count)])


def draw(fig):
    """Draw a figure; nothing may stick out of it, and pyplot must not hold it."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
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


def ticks(labels):
    """The words of tick labels."""
    return [label.get_text() for label in labels]


def test_image_grid_lays_out_rows():
    fig = draw(figures.image_grid(images(7), columns=3, titles=[f"t{i}" for i in range(7)]))
    assert levels(fig) == list(range(7)) and texts(fig) == [f"t{i}" for i in range(7)]
    extents = [image.get_extent() for image in fig.axes[0].images]
    assert extents[3][0] == extents[0][0] and extents[3][2] > extents[0][2]  # a new row
    assert extents[2][0] > extents[1][0] > extents[0][0]
    assert fig.get_size_inches()[0] < 4
    assert draw(figures.image_grid(images(9), columns=9)).get_size_inches()[0] < 7.6
    square = figures.image_grid(images(9))
    assert square.get_size_inches()[0] == pytest.approx(square.get_size_inches()[1])


def test_images_must_be_uint8():
    with pytest.raises(ValueError, match="to_uint8"):
        figures.image_grid(images(3) / 127.5 - 1)
    with pytest.raises(ValueError, match="expected 3, one per image"):
        figures.image_grid(images(3), titles=["one"])


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
    assert texts(fig) == [f"{total:,}" for total in counts.sum()]
    assert ticks(ax.get_yticklabels()) == NAMES[count]
    assert ax.yaxis_inverted()


def test_loss_curves():
    history = pd.DataFrame({"d_loss": [1.4, 1.2], "g_loss": [0.7, 0.9]}, index=[1, 2])
    fig = draw(figures.loss_curves(history, {"g_loss": "generator"}))
    (line,) = fig.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 0.7], [2, 0.9]]
    assert ticks(fig.axes[0].get_legend().get_texts()) == ["generator"]
    assert len(figures.loss_curves(history, ["d_loss", "g_loss"]).axes[0].lines) == 2
    with pytest.raises(ValueError, match=r"no column \['loss'\]"):
        figures.loss_curves(history, ["loss"])


def test_samples_over_time_sorts_epochs():
    fig = draw(figures.samples_over_time({10: images(3) + 10, 1: images(3)}))
    assert texts(fig) == ["epoch 1", "epoch 10"] and levels(fig) == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("count", [1, 3, 11, 19])
def test_pairs(count):
    names = NAMES.get(count, ["platelet"])
    fig = draw(figures.pairs(images(count), images(count) + 100, names, ["distance 4.0"] * count))
    assert levels(fig)[:2] == [0, 100] and len(levels(fig)) == 2 * count
    words = texts(fig)
    assert [word for word in words if word in names] == names
    assert words.count("generated") == min(count, 3) and words.count("distance 4.0") == count
    with pytest.raises(ValueError, match="equally long"):
        figures.pairs(images(2), images(3), ["a", "b"])


@pytest.mark.parametrize("count", [3, 11, 19])
def test_confusion_matrix_fits(count):
    matrix = 1500 * np.eye(count, dtype=int)
    matrix[0] += 7
    fig = draw(figures.confusion_matrix(matrix, NAMES[count], "baseline"))
    assert len(texts(fig)) == 2 * (2 * count - 1)
    assert ticks(fig.axes[0].get_xticklabels()) == NAMES[count]
    box = fig.axes[0].get_window_extent()
    assert box.width == pytest.approx(box.height)


def test_confusion_matrix_is_normalised_by_row():
    fig = figures.confusion_matrix([[44, 6], [23, 27]], ["real", "generated"])
    assert texts(fig) == ["88", "44", "12", "6", "46", "23", "54", "27"]
    assert fig.axes[0].images[0].get_array().tolist() == [[88, 12], [46, 54]]
    rare = figures.confusion_matrix([[999, 1], [0, 0]], ["a", "b"])
    assert texts(rare) == ["100", "999", "<1", "1"]
    with pytest.raises(ValueError, match="expected 3×3"):
        figures.confusion_matrix([[1]], NAMES[3])


@pytest.mark.parametrize("count", [3, 11, 19])
def test_per_class_change(count):
    changes = pd.DataFrame(
        {"synthetic": np.linspace(-12, 13, count), "both": np.zeros(count)}, index=NAMES[count]
    )
    changes.iloc[1, 0] = np.nan
    fig = draw(figures.per_class_change(changes))
    first, second = fig.axes
    assert (first.get_title(), second.get_title()) == ("synthetic", "both")
    assert texts(fig)[0] == "−12.0" and texts(fig)[count - 2] == "+13.0"
    assert set(texts(fig)[count - 1 :]) == {"0.0"}
    bars = first.containers[0]
    assert bars[0].get_facecolor() != bars[-1].get_facecolor()


@pytest.mark.parametrize("count", [3, 11, 19])
def test_diversity_matches_classes_by_name(count):
    real = pd.Series(np.arange(count) + 20.0, NAMES[count])
    generated = (real - 15)[::-1].drop(NAMES[count][1])
    fig = draw(figures.diversity(generated, real))
    true, made = fig.axes[0].lines
    assert true.get_xdata().tolist() == real.tolist()
    assert made.get_xdata()[0] == 5 and np.isnan(made.get_xdata()[1])
    table = pd.DataFrame({"AC-GAN": generated, "conditional GAN": real})
    fig = draw(figures.diversity(table, real))
    words = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert words == ["real", "AC-GAN", "conditional GAN"]
    assert fig.axes[0].lines[1].get_xdata()[0] == 5


def test_interval_plot():
    rows = pd.DataFrame(
        {
            "name": ["expert of the thesis", "one seed"],
            "value": [0.88, -0.5],
            "low": [0.757, None],
            "high": [0.955, None],
        }
    )
    fig = draw(figures.interval_plot(rows, "recall", reference=0.5))
    assert texts(fig) == ["0.880  (0.757 to 0.955)", "−0.500"]
    assert ticks(fig.axes[0].get_yticklabels()) == rows["name"].tolist()
    assert fig.axes[0].yaxis_inverted()
    with pytest.raises(ValueError, match="'high'"):
        figures.interval_plot(rows.drop(columns="high"))


def test_interpolation_names_its_ends():
    fig = draw(figures.interpolation(images(9)))
    assert texts(fig) == ["first", *(f"{i}/8" for i in range(1, 8)), "second"]
    several = draw(figures.interpolation(images(18).reshape(2, 9, 8, 8, 3)))
    assert levels(several) == list(range(18))


def test_reconstructions():
    real = images(3)
    fig = draw(
        figures.reconstructions(real, real + 10, real + 20, {"optimised": [1.04, 2.0, 30.0]})
    )
    assert levels(fig) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert texts(fig) == ["real", "encoder", "optimised", "1.0", "2.0", "30.0"]
    assert len(levels(figures.reconstructions(real, real))) == 6
    with pytest.raises(ValueError, match="best"):
        figures.reconstructions(real, real, errors={"best": [1, 2, 3]})


def test_perturbations():
    fig = draw(figures.perturbations(images(1)[0], {0.25: images(3) + 20, 0.04: images(3) + 10}))
    assert levels(fig) == [0, 10, 11, 12, 0, 20, 21, 22]
    assert texts(fig) == ["original", "1", "2", "3", "σ² = 0.04", "σ² = 0.25"]


def test_memory_curve():
    held = pd.Series([0.0, 5.0, 8.0], index=[0, 64, 128], name="64 px")
    fig = draw(figures.memory_curve(held, limit_mb=8))
    line, limit = fig.axes[0].lines
    assert line.get_ydata().tolist() == [0, 5, 8] and set(limit.get_ydata()) == {8}


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
    assert ticks(counted.get_yticklabels()) == [name.replace("$", r"\$") for name in names]
    total = sum(bar.get_width() for bars in counted.containers for bar in bars)
    assert total == len(cells) == 20 * count + 3
    assert "mean L*" in bright.get_xlabel() and "chroma" in coloured.get_xlabel()
    by_background = (found.outliers["measure"] == "background").sum()
    assert len(background.lines[1].get_xdata()) == by_background == 1
    assert len(background.lines[0].get_xdata()) == len(cells) - by_background
    assert len(sharp.lines[1].get_xdata()) == len(found.outliers) - 1 >= 1
    assert np.concatenate([line.get_ydata() for line in sharp.lines]).min() > 0  # the axis is log
    shown = [text.get_text() for text in odd.texts]
    assert "20.png" in shown and any(text.startswith("bluer background") for text in shown)
    assert len(odd.images) == min(12, len(found.outliers))
    words = [text.get_text() for text in alike.texts]
    assert len(alike.images) == 2 and words[0] == "Images that show the same (1 of 1 pairs)"
    assert {"7.png", r"a_\$x\$_b.png", "mirrored"} <= set(words)
