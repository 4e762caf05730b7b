"""The explorer: what its pictures show, how large it is, and how its widgets answer."""

import base64
import io
import json
import re
from dataclasses import replace

from cellaug import explorer, latent, load_generator
from cellaug.data import Dataset
from cellaug.training import generate_images

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def generator():
    return load_generator("pbc-fine-64")


def data_of(html):
    """What the script of an explorer draws from, its picture as an array."""
    data = json.loads(re.search(r"const data = (.*);\n", html)[1])
    start, _, text = data["sheet"].partition(",")
    assert start == "data:image/webp;base64"
    return data | {"sheet": np.array(Image.open(io.BytesIO(base64.b64decode(text))))}


def test_a_book_s_explorer_is_small_and_shows_the_walk(generator):
    """As in chapter 04, but for classes of which every third is drawn."""
    stops = np.random.default_rng(1).standard_normal((4, generator.latent_dim))
    path = latent.path(stops, steps=10)
    drawn = {
        name: generate_images(generator.model, path, np.full(len(path), k))
        for k, name in enumerate(generator.class_names)
        if k % 3 == 0
    }
    cells = {name: drawn[generator.class_names[k - k % 3]] for k, name in enumerate(
        generator.class_names)}  # fmt: skip
    html = explorer.html(cells, steps=10, note="a < b")
    assert len(html.encode()) < 400_000
    assert "\n\n" not in html and "a &lt; b" in html  # Markdown would take a blank line for its end
    data = data_of(html)
    assert data["names"] == list(cells) and (data["frames"], data["steps"]) == (31, 10)
    assert data["sheet"].shape == (11 * 64, 31 * 64, 3)
    for row, frame in ((0, 0), (3, 17), (10, 30)):
        shown = data["sheet"][64 * row : 64 * row + 64, 64 * frame : 64 * frame + 64]
        gap = np.abs(shown.astype(int) - cells[data["names"][row]][frame]).mean()
        assert gap < 6  # grey levels: a lossy file, yet this picture and no other
        other = cells[data["names"][row]][(frame + 10) % 31]
        assert np.abs(shown.astype(int) - other).mean() > 2 * gap


def test_pictures_of_other_sizes_and_wrong_numbers():
    small, large = np.zeros((2, 32, 32, 3), np.uint8), np.full((2, 80, 80, 3), 255, np.uint8)
    data = data_of(explorer.html({"a": small, "b": large}, steps=1))
    assert data["sheet"].shape == (128, 128, 3)
    assert data["sheet"][:60].max() < 8 and data["sheet"][68:].min() > 247
    for cells in ({"a": small, "b": large[:1]}, {"a": small[:0]}):
        with pytest.raises(ValueError, match="the same number of images"):
            explorer.html(cells, steps=1)


def test_path_leads_from_stop_to_stop():
    stops = np.array([[0.0, 0.0], [2.0, 4.0], [2.0, 0.0]])
    expected = [[0, 0], [1, 2], [2, 4], [2, 2], [2, 0]]
    np.testing.assert_allclose(latent.path(stops, steps=2), expected)


def pictures(widget):
    """The pictures that the widgets show, by name."""
    found = {}
    top, *rest = widget.children
    for child in (*rest, top.children[1]):
        for name, data in re.findall(r'alt="(.*?)" src="data:image/png;base64,(.*?)"',
                                     str(getattr(child, "value", ""))):  # fmt: skip
            found[name] = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def test_widgets_draw_what_they_say(generator):
    asked = []

    def nearest(name, image):
        asked.append((name, image))
        return np.full((64, 64, 3), len(asked), np.uint8)

    own = load_generator("pbc-vanilla-64").model
    widget = explorer.live(generator, own, nearest)
    kind, seed, cut, walk, beside = widget.children[0].children[0].children
    first = pictures(widget)
    assert list(first) == [*generator.class_names, "chapter 2, no class", "generated promyelocyte"]
    z = np.random.default_rng(1).standard_normal((1, 100))
    known = generate_images(generator.model, np.repeat(z, 11, 0), np.arange(11))
    for number, name in enumerate(generator.class_names):
        assert np.abs(first[name].astype(int) - known[number]).max() <= 2
    walk.value = 10
    arrived = pictures(widget)
    seed.value, walk.value = 2, 0  # the next seed's vector
    for name, image in pictures(widget).items():
        assert np.array_equal(image, arrived[name]) and not np.array_equal(image, first[name])
    cut.value = 0
    calm = pictures(widget)
    seed.value = 5  # nothing is left of the vector
    assert all(np.array_equal(calm[name], x) for name, x in pictures(widget).items())
    assert not asked
    beside.value = True
    kind.value = "basophil"
    now = pictures(widget)
    assert [name for name, _ in asked] == ["promyelocyte", "basophil"]
    assert np.array_equal(asked[1][1], now["basophil"])
    assert np.array_equal(now["generated basophil"], now["basophil"])
    assert now["nearest real training cell"].max() == 2


def test_without_training_cells_the_widgets_say_so(generator, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_DATA", str(tmp_path))
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path))
    widget = explorer.live(generator)
    beside = widget.children[0].children[0].children[4]
    beside.value = True
    assert beside.disabled and not beside.value
    assert beside.description == "the training cells are not on this machine"
    assert "nearest real training cell" not in pictures(widget)


def test_the_nearest_cell_is_one_of_the_class_that_the_generator_was_trained_on(
    generator, monkeypatch
):
    images = generator.generate(["monocyte", "basophil", "platelet"], 4)
    cells = Dataset.of_images(
        images, np.repeat([0, 1, 2], 4), ["monocyte", "basophil", "platelet"], "pbc-fine"
    )
    seen = np.array([int(digest[:16], 16) for digest in cells.digests], np.uint64)
    # the third monocyte is of the test split
    trained = replace(generator, trained_on=np.sort(np.delete(seen, 2)))
    monkeypatch.setattr(explorer, "open_dataset", lambda name: cells)
    kept = explorer.training_cells(trained)
    assert kept is not None and kept.digests == tuple(np.delete(np.array(cells.digests), 2))
    find = explorer.NearestCell(lambda: kept, 64)
    assert np.array_equal(find("monocyte", images[1]), images[1])
    assert not np.array_equal(find("monocyte", images[2]), images[2])
    assert np.array_equal(find("basophil", images[6]), images[6])
    assert find("lymphocyte", images[0]) is None
    find = explorer.NearestCell(lambda: kept.of_class(0), 64)
    assert find("basophil", images[6]) is None  # a class without an image
