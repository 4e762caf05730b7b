"""Colours, sizes and the small helpers that all figures share."""

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from io import BytesIO
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
MARKERS, HATCHES = "o^DsvP*X<p", ("", "////", "....", "xxxx")
DPI, CSS = 200, 96  # pixels of an image for an inch, and of a screen on which letters are readable


def use_style() -> None:
    """Set the book's style: colours for the colour-blind, white paper, no TeX in names."""
    rc: dict[str, Any] = {"figure.dpi": 110, "savefig.dpi": DPI, "legend.frameon": False}
    rc |= {"text.parse_math": False, "hatch.linewidth": 0.6}
    sns.set_theme("paper", "whitegrid", "colorblind", font_scale=0.92, rc=rc)
    from IPython import get_ipython  # here, since few programs need it

    if shell := get_ipython():  # else its own way to draw figures wins, with fewer pixels
        shell.display_formatter.formatters["image/png"].for_type(Described, lambda figure: None)


class Described(Figure):
    """A figure with an alt text: what it shows, then what it finds.

    A notebook displays it with `DPI` pixels for an inch, as wide as its letters need (`CSS`), and
    keeps both the text and the width beside the image.
    """

    alt = ""

    def as_png(self) -> tuple[str, dict[str, Any]]:
        """The figure as PNG (base64), and what is kept beside it: alt, width, height (CSS px)."""
        file = BytesIO()
        self.savefig(file, format="png", dpi=DPI, bbox_inches="tight")
        png = file.getvalue()
        width, height = (int.from_bytes(png[k : k + 4]) * CSS // DPI for k in (16, 20))
        facts = {"alt": self.alt, "width": width, "height": height}
        return b64encode(png).decode(), facts

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        png, facts = self.as_png()
        return {"image/png": png, "text/plain": facts["alt"]}, {"image/png": facts}


def new_figure(width: float, height: float, **options: Any) -> Described:
    """Return a figure that pyplot has already closed, yet a notebook can draw."""
    fig = plt.figure(figsize=(width, height), FigureClass=Described, **options)
    assert isinstance(fig, Described)
    plt.close(fig)
    return fig


def class_axis(ax: Axes, names: Sequence[str] | pd.Index) -> None:
    """Name the rows 0, 1, … of a chart, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), ylabel="")
    ax.grid(axis="y", visible=False)
    sns.despine(ax=ax, left=True)


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Lines no wider than `width` inches, broken at spaces, and inside a word that is too long."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip(" ")
        if text_width(longer, size) <= width:
            lines[-1] = longer
            continue
        lines += [""] * bool(lines[-1])
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def legend_above(ax: Axes) -> None:
    """Put the legend over the axes, in rows of five; no frame there and on the right."""
    sns.despine(ax=ax)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=5)


@cache
def text_width(text: str, size: float) -> float:
    """Width of a line of text in inches; `size` in points."""
    ink = TextPath((0, 0), text, size=size).get_extents() if text.strip() else None
    return 1.05 * ink.x1 / 72 if ink else 0.0  # on screen letters are placed on whole pixels
