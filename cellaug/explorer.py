"""The explorer: one latent vector, drawn as every class, and a way through the latent space.

As a piece of HTML with pictures that were drawn before, it needs no network and no kernel; in
JupyterLab `live` draws while the sliders move.
"""

import io
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cellaug.data import DataError, Dataset, open_dataset, to_uint8
from cellaug.data.dataset import digest_numbers
from cellaug.data.images import check_images, fit_square
from cellaug.generators import Generator
from cellaug.latent import interpolate

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import ipywidgets
    import keras

SIDE, QUALITY = 64, 80  # of a picture in pixels, and of the WebP file: 31 frames take 250 kB
STEPS = 10  # from one vector to the next in `live`
Nearest = Callable[[str, np.ndarray], np.ndarray | None]


def sheet(cells: Mapping[str, np.ndarray]) -> bytes:
    """All pictures as one WebP file: a row for each entry of `cells`, a column for each frame.

    The values are uint8 (frames, H, W, 3), of any size; ValueError unless all have as many frames.
    """
    rows = [[fit_square(x, SIDE) for x in check_images(images, k)] for k, images in cells.items()]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError("cells: expected the same number of images, at least one, in each row")
    pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(pixels).save(file := io.BytesIO(), "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def html(cells: Mapping[str, np.ndarray], steps: int, note: str = "") -> str:
    """The explorer as HTML for any page: a slider moves all rows of `cells` from frame to frame.

    Every `steps` frames the path arrives at a vector that was drawn at random, from the first on;
    `note` stands below the pictures. Raises as `sheet`.
    """
    picture = b64encode(sheet(cells)).decode()
    frames = len(next(iter(cells.values())))
    data = {"names": list(cells), "frames": frames, "steps": steps, "side": SIDE}
    data["sheet"] = f"data:image/webp;base64,{picture}"
    text = Path(__file__).with_suffix(".html").read_text("utf-8")
    text = text.replace("%ID%", f"explorer-{len(cells)}").replace("%LAST%", str(frames - 1))
    text = text.replace("%NOTE%", escape(note))
    # One line, because Markdown takes a blank one for the end of HTML.
    data_text = json.dumps(data).replace("<", "\\u003c")
    return "\n".join(filter(str.strip, text.splitlines())).replace("%DATA%", data_text)


def training_cells(generator: Generator) -> Dataset | None:
    """The images that a generator was trained on, if its public set lies on this machine."""
    try:
        cells = open_dataset(generator.data_name)
    except (DataError, FileNotFoundError):
        return None
    if generator.trained_on is None:
        return cells
    return cells.subset(np.isin(digest_numbers(cells.digests), generator.trained_on))


class NearestCell:
    """Finds the cell of a set and class that is nearest to an image, in the features of cells.

    The cells of a class are read and described when they are first asked for.
    """

    def __init__(self, find: Callable[[], Dataset | None], size: int) -> None:
        self.find, self.size = find, size
        self.cells: Dataset | None = None
        self.known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, name: str, image: np.ndarray) -> np.ndarray | None:
        """The nearest cell, uint8 (size, size, 3), of class `name`; None where there is no cell."""
        from cellaug.evaluation.features import load_extractor

        extractor = load_extractor(self.size)
        if name not in self.known:
            self.cells = self.cells or self.find()
            if self.cells is None or not self.cells.counts().get(name):
                return None
            images = self.cells.of_class(self.cells.class_names.index(name)).read(self.size)
            self.known[name] = images, extractor(images)[0]
        images, features = self.known[name]
        gaps = np.linalg.norm(features - extractor(image[None])[0], axis=1)
        return images[gaps.argmin()]


def live(
    generator: Generator, own: "keras.Model | None" = None, nearest: Nearest | None = None
) -> "ipywidgets.Widget":
    """The explorer for JupyterLab: class, seed, scale, walk, and the nearest training cell.

    The latent vector lies on the way from that of the seed to that of the next seed (Eq. 40), times
    the scale. `generator` draws it as each of its classes, `own`, without classes, beside
    them. `nearest` finds a real cell for a class and image, by default one of `training_cells`.
    """
    import ipywidgets as widgets

    nearest = nearest or NearestCell(lambda: training_cells(generator), generator.image_size)
    names, wide = generator.class_names, widgets.Layout(width="26rem", max_width="100%")
    look = {"layout": wide, "style": {"description_width": "6.5rem"}}
    kind = widgets.Dropdown(options=names, description="Class", **look)
    seed = widgets.IntSlider(1, 0, 99, description="Seed", **look)
    scale = widgets.FloatSlider(value=1, min=0, max=1.5, step=0.1, description="Scale", **look)
    walk = widgets.IntSlider(0, 0, STEPS, description="Walk", **look)
    beside = widgets.Checkbox(False, description="nearest real training cell", **look)
    pictures, pair = widgets.HTML(), widgets.HTML()

    def draw(*_: object) -> None:
        rngs = [np.random.default_rng(seed.value + k) for k in (0, 1)]
        first, second = (rng.standard_normal(generator.latent_dim) for rng in rngs)
        z = (scale.value * interpolate(first, second, STEPS)[walk.value]).astype("f4")
        labels = np.arange(len(names), dtype="i4")
        many = [np.repeat(z[None], len(names), 0), labels] if generator.conditional else z[None]
        images = to_uint8(np.asarray(generator.model.predict_on_batch(many)))
        cells = dict(zip(names, images, strict=False))
        shown = {k: (x, "2px solid #0b57a4" * (k == kind.value)) for k, x in cells.items()}
        if own is not None:
            width = own.inputs[0].shape[-1]
            mine = own.predict_on_batch(np.resize(z, (1, width)))
            shown["chapter 2, no class"] = to_uint8(np.asarray(mine))[0], ""
        pictures.value = _row(shown, "6rem")
        large = {f"generated {kind.value}": (cells[kind.value], "")}
        if beside.value:
            if (real := nearest(kind.value, cells[kind.value])) is None:
                beside.value, beside.disabled = False, True
                beside.description = "the training cells are not on this machine"
            else:
                large["nearest real training cell"] = real, ""
        pair.value = _row(large, "11rem")

    for control in (kind, seed, scale, walk, beside):
        control.observe(draw, "value")
    draw()
    note = widgets.HTML(
        f"<small>Generated, not real. Trained on {escape(generator.credit)}</small>"
    )
    controls = widgets.VBox([kind, seed, scale, walk, beside])
    top = widgets.HBox([controls, pair], layout=widgets.Layout(flex_flow="row wrap"))
    return widgets.VBox([top, pictures, note])


def _row(cells: Mapping[str, tuple[np.ndarray, str]], width: str) -> str:
    """Named images side by side as HTML, each with its border."""
    parts = []
    for name, (image, border) in cells.items():
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        data, word = b64encode(file.getvalue()).decode(), escape(name)
        style = f"width:100%;display:block;outline:{border or 'none'}"
        picture = f'<img style="{style}" alt="{word}" src="data:image/png;base64,{data}">'
        parts.append(
            f'<div style="width:{width};font-size:.8125rem;line-height:1.25">{picture}{word}</div>'
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:.5rem">{"".join(parts)}</div>'
