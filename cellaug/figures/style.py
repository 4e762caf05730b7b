"""Colours, sizes and the small helpers that all figures share."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

WIDTH, SMALL, TINY = 7.5, 8, 7  # of the text column in inches; font sizes in points
PALETTE = sns.color_palette("colorblind")
BLUE, INK, GREY, PALE = PALETTE[0], "#222222", "#777777", "#e4e4e4"
MARKERS = "o^DsvP*X<p"


def use_style() -> None:
    """Set the book's style: colours for the colour-blind, white paper, 110 dpi, no TeX in names."""
    rc = {"figure.dpi": 110, "savefig.dpi": 110, "legend.frameon": False, "text.parse_math": False}
    sns.set_theme("paper", "whitegrid", "colorblind", font_scale=0.92, rc=rc)


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Return a figure that pyplot has already closed, yet a notebook can draw."""
    fig = plt.figure(figsize=(width, height), **options)
    plt.close(fig)
    return fig


def class_axis(ax: Axes, names: Sequence[str] | pd.Index) -> None:
    """Name the rows 0, 1, … of a chart, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), ylabel="")
    ax.grid(axis="y", visible=False)
    sns.despine(ax=ax, left=True)


def legend_above(ax: Axes) -> None:
    """Put the legend over the axes, in rows of five; no frame there and on the right."""
    sns.despine(ax=ax)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=5)


@cache
def text_width(text: str, size: float) -> float:
    """Width of a line of text in inches; `size` in points."""
    ink = TextPath((0, 0), text, size=size).get_extents() if text.strip() else None
    return 1.05 * ink.x1 / 72 if ink else 0.0  # on screen letters are placed on whole pixels
