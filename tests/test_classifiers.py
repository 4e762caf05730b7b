"""A classifier on disk: the same answers after loading, on both backends, and hostile files."""

import json
import shutil

import cellaug
from cellaug import classifiers, cli
from cellaug.classifiers import CARD, FEATURES, UNLIKE, WEIGHTS, load_classifier, save_classifier
from cellaug.data import DataError, open_dataset, split
from cellaug.data.images import decode, fit_square, read_image, write_png
from cellaug.evaluation.classifiers import balanced, train_classifier

import cv2
import numpy as np
import pandas as pd
import pytest
from processes import python

SIZE = 32


@pytest.fixture(scope="module")
def parts():
    cells = open_dataset("phantom", classes=3, images=300, size=SIZE, seed=6, imbalance=1.2)
    return {name: part.in_memory(SIZE) for name, part in split(cells).items()}


@pytest.fixture(scope="module")
def model(parts):
    batches = balanced(parts["train"].images, parts["train"].labels, 0)
    return train_classifier(batches, SIZE, 3, 200, kind="residual", seed=0)


@pytest.fixture(scope="module")
def saved(parts, model, tmp_path_factory):
    return save_classifier(model, tmp_path_factory.mktemp("saved") / "classifier", **parts)


def test_its_card_says_how_well_it_knows_cells_that_were_held_out(saved, parts):
    card = json.loads((saved / CARD).read_text())
    assert card["data_hash"] == parts["train"].fingerprint and "phantom" in card["class_names"][0]
    found = card["held_out"]
    assert found["images"] == len(parts["test"]) and found["accuracy"] > 0.6
    assert 0 <= found["false_alarms"] < 0.15  # about a hundredth is expected
    assert sorted(path.name for path in saved.iterdir()) == sorted([CARD, FEATURES, WEIGHTS])


def test_answers_after_loading_are_those_of_the_network(saved, model, parts):
    loaded = cellaug.load_classifier(saved)
    test = parts["test"]
    found = loaded.predict(test.images)
    from cellaug.evaluation.calibration import probabilities
    from cellaug.evaluation.classifiers import predicted_logits

    p = probabilities(predicted_logits(model, test.images), loaded.card["temperature"])
    np.testing.assert_allclose(found[list(loaded.class_names)], p, atol=0.01)  # float16 weights
    assert (found["class"] == np.array(loaded.class_names)[p.argmax(1)]).mean() > 0.97
    np.testing.assert_allclose(found["probability"], p.max(1), atol=0.01)
    accuracy = (found["class"].to_numpy() == test.table["class"].astype(str)).mean()
    assert accuracy == pytest.approx(loaded.card["held_out"]["accuracy"], abs=0.03)


def test_what_is_no_cell_is_not_like_the_training_cells(saved, parts):
    rng = np.random.default_rng(0)
    strange = rng.integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    loaded = load_classifier(saved)
    assert (loaded.predict(strange)["note"] == UNLIKE).mean() > 0.9
    assert (loaded.predict(parts["test"].images)["note"] == UNLIKE).mean() < 0.15


def test_both_backends_give_the_same_answers(saved, parts, tmp_path):
    np.save(tmp_path / "images.npy", parts["test"].images[:8])
    code = (
        "import sys, numpy as np, cellaug\n"
        f"c = cellaug.load_classifier({str(saved)!r})\n"
        f"c.predict(np.load({str(tmp_path / 'images.npy')!r})).to_csv(sys.stdout, index=False)"
    )
    done = python(code, "jax")
    assert done.returncode == 0, done.stderr
    from io import StringIO

    theirs = pd.read_csv(StringIO(done.stdout), keep_default_na=False)
    mine = load_classifier(saved).predict(parts["test"].images[:8])
    names = list(load_classifier(saved).class_names)
    np.testing.assert_allclose(theirs[names], mine[names], atol=1e-3)
    assert theirs["note"].tolist() == mine["note"].tolist()


def test_predict_names_the_cells_of_files_and_folders(saved, parts, tmp_path, capsys):
    folder = tmp_path / "new cells"
    (folder / "more").mkdir(parents=True)
    for k, image in enumerate(parts["test"].images[:4]):
        write_png(folder / ("more" if k % 2 else "") / f"{k}.png", image)
    (folder / "notes.txt").write_text("no image")
    assert cli.main(["predict", "--classifier", str(saved), str(folder)]) == 0
    from io import StringIO

    found = pd.read_csv(StringIO(capsys.readouterr().out), keep_default_na=False)
    assert len(found) == 4 and found["path"].str.endswith(".png").all()
    np.testing.assert_allclose(found.iloc[:, 4:].sum(axis=1), 1, atol=0.01)
    (folder / "broken.png").write_bytes(b"no image")
    order = ["predict", "--classifier", str(saved), str(folder / "0.png"), str(folder)]
    assert cli.main(order) == 1
    printed = capsys.readouterr()
    assert "broken.png" in printed.err and "1 files could not be read" in printed.err
    assert len(printed.out.splitlines()) == 1 + 5
    assert cli.main(["predict", "--classifier", str(saved), str(tmp_path / "none")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_large_files_are_read_as_they_are_in_training(saved, parts, tmp_path):
    """A JPEG of more than 2.8 times the size is decoded at a half of its scale or less."""
    rng, file = np.random.default_rng(0), tmp_path / "large.jpg"
    large = cv2.resize(parts["test"].images[0], (360, 360), interpolation=cv2.INTER_NEAREST)
    noise = rng.integers(-60, 60, large.shape)
    cv2.imwrite(str(file), np.clip(large + noise, 0, 255).astype(np.uint8)[..., ::-1])
    image, loaded = read_image(file, SIZE), load_classifier(saved)
    assert not np.array_equal(image, fit_square(decode(file)[0], SIZE))
    found, problems = loaded.predict_files([file])
    assert not problems
    pd.testing.assert_frame_equal(found.drop(columns="path"), loaded.predict(image[None]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a", "a", "b"]}, "class_names should be different names"),
        ({"class_names": ["a", "b"]}, "2 class_names, but its network has another number"),
        ({"temperature": "1"}, "field temperature should be a float"),
        ({"image_size": 5000}, "image_size should be from 8 to 2048"),
        ({"format": 2}, "expected format 1, found 2"),
        ({"builder": "os.system"}, "builder should be one of"),
        ({"features": "0" * 64}, "is not the file that classifier.json describes"),
        ({"sha256": "0" * 64}, "is not the file that its card describes"),
    ],
)
def test_damaged_cards_are_refused(saved, tmp_path, change, message):
    shutil.copytree(saved, tmp_path / "copy")
    path = tmp_path / "copy" / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        classifiers.load_classifier(tmp_path / "copy")


def test_a_folder_without_a_classifier_is_said(tmp_path, capsys):
    assert cli.main(["predict", "--classifier", str(tmp_path), str(tmp_path)]) == 2
    assert "is no classifier directory: it lacks classifier.json" in capsys.readouterr().err
