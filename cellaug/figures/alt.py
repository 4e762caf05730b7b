"""Alt texts: what a figure shows, then what it finds, for those who cannot see it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

MOST = 6  # things that a sentence names one by one; of more only the ends


def value(number: float) -> str:
    """A number with three digits and a minus sign."""
    return f"{number:,.3g}".replace("-", "−") if abs(number) < 1000 else f"{number:,.0f}"


def listed(words: Sequence[str]) -> str:
    """Words with commas, and "and" before the last."""
    plain = [" ".join(str(word).split()) for word in words]
    *first, last = plain or [""]
    return f"{', '.join(first)} and {last}" if first else last


def ends(values: pd.Series, unit: str = "") -> str:
    """A few values by name, or only the highest and the lowest of many, or that there is none."""
    known = values.dropna()
    told = [f"{name} {value(number)}{unit}" for name, number in known.items()]
    if not told:
        return "no value"
    if len(told) <= MOST:
        return listed(told)
    high, low = told[known.to_numpy().argmax()], told[known.to_numpy().argmin()]
    return f"highest {high}, lowest {low}, median {value(known.median())}{unit}"


def bars(counts: pd.DataFrame) -> str:
    """Images by class (column) and split (row)."""
    total = counts.sum()
    text = f"Bar chart of the images of {len(total)} classes, in {listed(counts.index)}. "
    if total.min() == total.max():
        return text + f"All have {total.max():,} images."
    text += f"The largest class is {total.idxmax()} with {total.max():,} images, the smallest "
    return text + f"{total.idxmin()} with {total.min():,}."


def curves(table: pd.DataFrame, ylabel: str, xlabel: str) -> str:
    """Lines, a column each, by the index."""
    if len(table) == 1:
        return f"Chart of {ylabel} at {value(table.index[0])} {xlabel}: {ends(table.iloc[0])}."
    text = f"Line chart of {ylabel} by {xlabel}, {value(table.index[0])} to "
    text += f"{value(table.index[-1])}. "
    found = []
    for name, column in table.items():
        known = column.dropna()
        if len(known) == 1:
            found.append(f"{name} {value(known.iloc[0])} at {value(known.index[0])}")
        elif len(known):
            turns = f"from {value(known.iloc[0])} to {value(known.iloc[-1])}"
            found.append(f"{name} {turns}, between {value(known.min())} and {value(known.max())}")
    return text + "; ".join(found) + "."


def confusion(share: pd.DataFrame) -> str:
    """Per cent of each actual class (row) by predicted class."""
    right = pd.Series(np.diag(share), share.index)
    wrong = share.where(~np.eye(len(share), dtype=bool)).stack()
    text = f"Confusion matrix of {len(share)} classes, rows actual, columns predicted, per cent of "
    text += f"the row. Best recognised: {right.idxmax()} ({right.max():.0f} %), worst: "
    text += f"{right.idxmin()} ({right.min():.0f} %). "
    actual, predicted = wrong.idxmax()
    return text + f"Most frequent mistake: {actual} taken for {predicted} ({wrong.max():.0f} %)."


def intervals(rows: pd.DataFrame, xlabel: str) -> str:
    """Values with intervals (see `charts.interval_plot`): what was measured, then the values."""
    plain = {key: rows[key].astype(str).str.split().str.join(" ") for key in ("name", "measure")}
    rows = rows.assign(**plain)
    quantity = xlabel or listed([name for name in rows["measure"].unique() if name] or ["values"])
    spread = " with error bars" if rows["low"].notna().any() else ""
    text, found = f"Chart of {quantity}{spread}. ", []
    several = [key for key in ("measure", "kind") if rows[key].nunique() > 1]
    for group, part in rows.groupby(several, sort=False) if several else [((), rows)]:
        head = ", ".join(map(str, group))
        if several or len(part) > MOST:
            found.append(f"{head}: {ends(part.set_index('name')['value'])}".removeprefix(": "))
            continue
        for row in part.dropna(subset=["value"]).itertuples():
            span = f" ({value(row.low)} to {value(row.high)})" if np.isfinite(row.low) else ""
            found.append(f"{row.name} {value(row.value)}{span}")
    return text + "; ".join(found) + "."


def sheet(
    named: Sequence[tuple[str, np.ndarray]], heads: Sequence[str], captions: Sequence[str]
) -> str:
    """Rows of images with their labels: what they are, then how much those of a row differ."""
    count = sum(len(images) for _, images in named)
    labels = [label for label, _ in named if label]
    text = f"{count} images of cells in {len(named)} row{'s' * (len(named) > 1)}"
    text += f": {listed(labels)}" * bool(labels)
    text += f"; columns: {listed(heads)}" * bool(heads)
    if told := [" ".join(caption.split()) for caption in captions if caption]:
        shown = told if len(told) <= 24 else [*told[:12], f"and {len(told) - 12} more"]
        between = "; " if any("\n" in caption for caption in captions) else ", "
        text += f". Under them: {between.join(shown)}"
    text += ". "
    if not labels:
        images = [image for _, row in named for image in row]
        named = [("", np.stack(images))] if len({image.shape for image in images}) == 1 else []
    apart = pd.Series(
        {label or "they": differences(images) for label, images in named if len(images) > 1},
        dtype=float,
    )
    if apart.empty:
        return text + "One image in each row."
    if not labels:
        return text + f"Two of them differ by {value(apart.iloc[0])} grey levels on average."
    return text + f"Mean difference of two images of a row, in grey levels: {ends(apart)}."


def differences(images: np.ndarray) -> float:
    """Mean absolute difference of two images, in grey levels; at most 16 evenly taken ones."""
    few = images[:: -(-len(images) // 16)].astype(np.float32)
    apart = [np.abs(few[i] - few[j]).mean() for i in range(len(few)) for j in range(i)]
    return float(np.mean(apart))
