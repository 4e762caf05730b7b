"""Sheets of images: rows and grids, with labels, heads and captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellaug.data.images import check_images
from cellaug.figures.alt import sheet as described
from cellaug.figures.style import (
    GREY,
    INK,
    SMALL,
    TINY,
    WIDTH,
    Described,
    new_figure,
    text_width,
    wrapped,
)

import numpy as np
from matplotlib.axes import Axes

# Inches: maximum height of a sheet, between images, between groups, and from line to line.
TALLEST, GAP, WIDE_GAP, LINE = 11.0, 0.08, 0.18, 0.13
Rows = Mapping[str, np.ndarray] | Sequence[np.ndarray]


@dataclass
class Sheet:
    """Rows of images on one axes: an axes for each would take many seconds to draw."""

    rows: Rows  # uint8 (N, H, W, 3) each, or a mapping whose keys are labels, on the left
    heads: Sequence[str] = ()  # over the columns; upright if one is wider than an image
    captions: Sequence[str] = ()  # under the images, row after row; a wide line goes on below
    together: int = 0  # images in a group, if groups are to stand apart
    scale: float | None = None  # maximum width of an image in inches; up to 1.2 by default

    def __post_init__(self) -> None:  # noqa: D105 - the class says it
        rows, captions = self.rows, self.captions
        named = rows.items() if isinstance(rows, Mapping) else [("", images) for images in rows]
        self.named = [(label, check_images(images, label or "images")) for label, images in named]
        counts = [len(images) for _, images in self.named]
        if not sum(counts):
            raise ValueError("there is no image to show")
        if captions and len(captions) != sum(counts):
            raise ValueError(f"captions: expected {sum(counts)}, one per image: {len(captions)}")
        columns = np.arange(max(counts))
        left = WIDE_GAP * (columns // (self.together or len(columns)))
        left += max(text_width(label, SMALL) + 0.1 * bool(label) for label, _ in self.named)
        widest = (WIDTH - left[-1] + GAP) / len(columns) - GAP
        self.side = min(widest, self.scale or min(1.2, max(TALLEST / len(counts) - GAP, 0.5)))
        self.x = left + columns * (self.side + GAP)
        head = max((text_width(head, SMALL) for head in self.heads), default=0)
        self.upright = head > self.side
        self.top = head + 0.1 if self.upright else 0.2 * bool(head)
        self.words = [self._lines(caption) for caption in captions]
        lines = max(map(len, self.words), default=0)
        self.pitch = self.side + GAP + LINE * lines
        self.width = self.x[-1] + self.side
        self.height = self.top + len(counts) * self.pitch - GAP * (not lines)

    def _lines(self, caption: str) -> list[tuple[str, float, str]]:
        """The lines of a caption, each with its size and colour; all but the first are small."""
        found: list[tuple[str, float, str]] = []
        for i, line in enumerate(caption.split("\n") if caption else []):
            size, colour = (TINY, GREY) if i else (SMALL, INK)
            parts = wrapped(line, size, self.side + 0.5 * GAP)
            found += [(part, size, colour) for part in parts]
        return found

    def draw(self, ax: Axes) -> None:
        """Draw the sheet on an axes, one inch to a unit; it is `width` by `height` inches."""
        side, words = self.side, iter(self.words)
        for x, head in zip(self.x + side / 2, self.heads, strict=False):
            over = ax.text(x, self.top - 0.05, head, ha="center", fontsize=SMALL, color=GREY)
            over.set(rotation=90 * self.upright, va="bottom")
        for row, (label, images) in enumerate(self.named):
            y = self.top + row * self.pitch
            ax.text(self.x[0] - 0.1, y + side / 2, label, ha="right", va="center", fontsize=SMALL)
            for x, image in zip(self.x, images, strict=False):
                ax.imshow(image, extent=(x, x + side, y + side, y))
                for i, (line, size, colour) in enumerate(next(words, ())):
                    look: Any = {"ha": "center", "va": "top", "color": colour, "fontsize": size}
                    ax.text(x + side / 2, y + side + 0.03 + i * LINE, line, **look)
        ax.set(xlim=(0, self.width), ylim=(self.height, 0))
        ax.set_axis_off()


def image_rows(
    rows: Rows, heads: Sequence[str] = (), captions: Sequence[str] = (), **options: Any
) -> Described:
    """Draw rows of images as in `Sheet`; ValueError without one, or if captions are too few."""
    sheet = Sheet(rows, heads, captions, **options)
    fig = new_figure(sheet.width, sheet.height)
    fig.alt = described(sheet.named, sheet.heads, sheet.captions)
    sheet.draw(fig.add_axes((0, 0, 1, 1)))
    return fig


def image_grid(images: np.ndarray, columns: int = 0, captions: Sequence[str] = ()) -> Described:
    """Draw images in rows of `columns`, by default nearly a square; with optional captions."""
    images = check_images(images, "images")
    columns = columns or min(5, int(np.ceil(np.sqrt(len(images)))))
    return image_rows(np.split(images, range(columns, len(images), columns)), captions=captions)


def class_examples(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], per_class: int = 6, **options: Any
) -> Described:
    """Draw a row per class with its first `per_class` images; options as in `Sheet`."""
    rows = {name: images[labels == k][:per_class] for k, name in enumerate(names)}
    return image_rows(rows, **options)


def pairs(
    left: np.ndarray, right: np.ndarray, names: list[str], captions: list[str], real: str = "real"
) -> Described:
    """Draw pairs of a generated cell, over its name, and the nearest real one, over its caption.

    `real` is the word over the nearest cells.
    """
    both = np.stack([left, right], axis=1).reshape(-1, *np.shape(left)[1:])
    words = [text for pair in zip(names, captions, strict=True) for text in pair]
    heads = ["generated", f"nearest {real}"] * min(3, len(left))
    fig = image_rows(np.split(both, range(6, len(both), 6)), heads, captions=words, together=2)
    told = ", ".join(f"{name} {caption}" for name, caption in zip(names, captions, strict=True))
    fig.alt = f"{len(left)} pairs, each a generated cell and the nearest {real} cell of its class. "
    fig.alt += f"Their distances: {told}."
    return fig


Mark = tuple[str, tuple[float, float], tuple[float, float]]  # word, what it points at, its place


def marked(cells: Sequence[tuple[str, np.ndarray, Sequence[Mark]]], columns: int = 3) -> Described:
    """Draw cells large, each over its caption, with words that point at places in them.

    Places are fractions of the width and height of an image, from the top left.
    """
    rows = -(-len(cells) // columns)
    side = WIDTH / columns - GAP
    fig = new_figure(WIDTH, rows * (side + 4 * LINE))
    axes = fig.subplots(rows, columns, squeeze=False)
    fig.subplots_adjust(0, 2.4 * LINE / fig.get_figheight(), 1, 1, GAP, 4 * LINE / side)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (caption, image, marks) in zip(axes.flat, cells, strict=False):
        ax.imshow(image, extent=(0, 1, 1, 0))
        words = "\n".join(wrapped(caption, SMALL, side))
        ax.text(0.5, 1.02, words, ha="center", va="top", fontsize=SMALL)
        look = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkB": 0}
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": INK}
        for word, there, here in marks:
            options = {"ha": "center", "va": "center", "fontsize": SMALL, "bbox": box}
            ax.annotate(word, there, here, arrowprops=look, **options)
    shown = [f"{text}, {', '.join(mark[0] for mark in marks)}" for text, _, marks in cells]
    fig.alt = f"{len(cells)} cells with arrows. {'; '.join(shown)}."
    return fig
