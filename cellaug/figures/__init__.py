"""The book's figures: each a `matplotlib.figure.Figure` that pyplot has already closed.

A notebook shows it as the value of its cell. Images are uint8 RGB, N×H×W×3; sizes are inches.
"""

from cellaug.figures.charts import (
    class_distribution,
    confusion_matrix,
    diversity,
    forest,
    interval_plot,
    ladder,
    loss_curves,
    per_class_change,
)
from cellaug.figures.reports import fidelity, inspection
from cellaug.figures.sheets import class_examples, image_grid, image_rows, marked, pairs
from cellaug.figures.style import use_style
