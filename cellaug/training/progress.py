"""What a training run shows while it goes on: in JupyterLab, on a terminal, in a log file."""

import io
import sys
import time
from typing import Any

from cellaug.files import MinuteLines, in_kernel, interactive
from cellaug.training.checkpoint import Position

import keras
import numpy as np

BAR = 20
"""Characters of a bar."""


class Progress(keras.callbacks.Callback):
    """A bar with images/s and the time left, rewritten every second; in a log a line a minute.

    In JupyterLab there are nine cells and the losses below it, drawn after every epoch. What stays
    is a line on the whole run.
    """

    def __init__(
        self,
        label: str,
        position: Position,
        epochs: int,
        steps: int,
        images: int,
        reader: Any = None,
    ):
        super().__init__()
        self.label, self.position, self.epochs = label, position, epochs
        self.steps, self.images = steps, images  # of an epoch
        self.reader = reader
        self.width, self.shown = 0, 0.0
        self.start: tuple[int, float] | None = None  # steps done and the time after the first one
        self.preview = Preview() if interactive() else None
        # A notebook's process is no terminal, but shows a line that is rewritten.
        self.watched = in_kernel() or sys.stdout.isatty()
        self.log = MinuteLines(sys.stdout)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Rewrite the line if a second has gone by."""
        now, place = time.monotonic(), self.position
        done = place.epoch * self.steps + place.batch
        # The first step is no measure: it compiles the networks.
        began, since = self.start = self.start or (done, now)
        if now - self.shown < 1:
            return
        self.shown = now
        share = done / (self.epochs * self.steps)
        line = f"{self.label}: [{'#' * int(BAR * share):.<{BAR}}] {100 * share:.0f} %, epoch "
        line += f"{place.epoch + 1} of {self.epochs}"
        if done > began and now > since:
            rate = (done - began) / (now - since)
            left = (self.epochs * self.steps - done) / rate
            line += f", {rate * self.images / self.steps:,.0f} images/s, {duration(left)} left"
        self._show(line + _numbers(logs))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Draw cells and losses, where somebody looks."""
        if self.preview:
            self.preview.draw(nine_cells(self.model, self.reader), self.position.history)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Write the line that stays, unless more epochs follow."""
        epoch, history = self.position.epoch, self.position.history
        if epoch == self.epochs or self.position.stopped:
            seconds = duration(sum(row["seconds"] for row in history))
            epochs = f"{epoch:,} epoch{'s' * (epoch != 1)}, " * (self.epochs > 1)
            images = f"{epochs}{epoch * self.images:,} images"
            self.watched = True
            self._show(f"{self.label}: {images}, {seconds}{_numbers(history[-1])}")
            if self.preview:
                self.preview.end()
            else:
                print(flush=True)

    def _show(self, line: str) -> None:
        if self.preview:
            self.preview.say(line)
        elif self.watched:
            print(("\r" if self.width else "") + line.ljust(self.width), end="", flush=True)
            self.width = len(line)
        else:
            self.log.write(line)


class Preview:
    """A line and a picture below a notebook's cell, each replaced by the next."""

    def __init__(self) -> None:
        self.line: Any = None
        self.picture: Any = None
        self.cells = False

    def say(self, line: str) -> None:
        """Replace the line."""
        from IPython.display import display

        if self.line is None:
            self.line = display({"text/plain": line}, raw=True, display_id=True)
        self.line.update({"text/plain": line}, raw=True)

    def draw(self, cells: np.ndarray | None, history: list[dict[str, float]]) -> None:
        """Replace the picture: nine cells (9, H, W, 3), if there are any, and losses by epoch."""
        from IPython.display import Image, display
        from matplotlib.figure import Figure

        self.cells = cells is not None
        figure = Figure(figsize=(7.5, 2.7), layout="constrained")
        axes = figure.subplots(1, 1 + self.cells, squeeze=False)[0]
        if cells is not None:
            rows = [np.concatenate([*row], axis=1) for row in (cells[:3], cells[3:6], cells[6:])]
            axes[0].imshow(np.concatenate(rows))
            axes[0].set_axis_off()
            axes[0].set_title(f"Nine generated cells after epoch {len(history)}", fontsize=9)
        for name, style in zip(_shown(history[-1]), ("-", "--", ":", "-."), strict=False):
            values = [row[name] for row in history]
            axes[-1].plot(range(1, len(values) + 1), values, style, marker=".", label=name)
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        axes[-1].legend(fontsize=8)
        figure.savefig(png := io.BytesIO(), format="png", dpi=100)
        if self.picture is None:
            self.picture = display(Image(png.getvalue()), display_id=True)
        else:
            self.picture.update(Image(png.getvalue()))

    def end(self) -> None:
        """Take the picture away if it has no cells: a chapter draws the losses itself."""
        if self.picture and not self.cells:
            self.picture.update({"text/plain": ""}, raw=True)


def nine_cells(model: keras.Model, reader: Any) -> np.ndarray | None:
    """Nine generated cells (9, H, W, 3), from the same latent vectors each time.

    A conditional generator makes cells of the first nine classes, or of all of them in turn. None
    for a model that generates nothing.
    """
    if not hasattr(model, "generate"):
        return None
    classes = None
    if len(model.trained_generator.inputs) == 2:
        classes = np.arange(9) % len(reader.dataset.class_names)
    latents = np.random.default_rng(0).standard_normal((9, model.latent_dim))
    return model.generate(latents, classes)


def _shown(logs: dict | None) -> dict[str, float]:
    return {k: v for k, v in (logs or {}).items() if "loss" in k or "accuracy" in k}


def _numbers(logs: dict | None) -> str:
    return "".join(f", {name} {value:.3g}" for name, value in _shown(logs).items())


def duration(seconds: float) -> str:
    """'5 min 12 s', with hours if there are any, without minutes if there are none."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min")] if minutes else []
    return " ".join(f"{count} {unit}" for count, unit in [*parts, (left, "s")])
