"""`cellaug train`: from a folder of labelled cells to a generator's directory."""

import json
import shutil
from dataclasses import asdict, replace

import cellaug.train as work
from cellaug import cli
from cellaug.data import DataError, open_dataset, split
from cellaug.data.phantom import phantom
from cellaug.evaluation.collapse import Diversity
from cellaug.generators import CARD, load_generator, read_generator, short_digests

import numpy as np
import pandas as pd
import pytest

SMALL = {"generator_depth": 16, "discriminator_depth": 4, "latent_dim": 8, "batch_size": 16}
TYPED = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Forty drawn cells of each of two classes, in a folder."""
    root, (drawn, names, _) = (
        tmp_path_factory.mktemp("train") / "my cells",
        phantom(2, 80, 16, 4, 1),
    )
    for name, ours in zip(names, ("basophil", "monocyte"), strict=True):
        shutil.copytree(drawn / name, root / ours)
    return root


@pytest.fixture(scope="module")
def trained(cells, tmp_path_factory):
    """A generator of two classes, after eight epochs of three batches."""
    out = tmp_path_factory.mktemp("trained") / "generator"
    return work.train(str(cells), out, size=16, images=400, seed=3, choices=SMALL)


def test_its_directory_holds_all_that_was_asked_for(trained, cells):
    generator, train = load_generator(trained), split(open_dataset(cells))["train"]
    assert generator.class_names == ("basophil", "monocyte") and generator.image_size == 16
    assert generator.generate(["monocyte"], 2, (1,)).shape == (2, 16, 16, 3)
    training = json.loads((trained / CARD).read_text())["training"]
    assert training["recipe"] == {
        "recipe": "cellaug.training.Recipe", **asdict(work.recipe_for(16, 3, SMALL))
    }  # fmt: skip
    assert training["training_images"] == len(train)
    history = pd.read_csv(trained / "history.csv", index_col="epoch")
    steps = len(train) // 16
    assert len(history) == round(400 / (16 * steps)) and "diversity" in history
    assert training["images_seen"] == len(history) * steps * 16
    page = (trained / "README.md").read_text()
    for name in ("samples.png", "losses.png", "diversity.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in page
    rows = [f"epoch {epoch}" for epoch in (0, 1, 2, 4, 8)]
    assert all(row in page for row in rows) and "Not for diagnosis" in page
    assert not trained.with_name("generator.training").exists()


def test_no_test_image_is_trained_on(trained, cells):
    parts = split(open_dataset(cells))
    known = read_generator(trained).trained_on
    assert np.isin(short_digests(parts["train"].digests), known).all()
    for side in ("validation", "test"):
        assert not np.isin(short_digests(parts[side].digests), known).any()


def test_published_test_images_are_not_trained_on_where_a_class_has_none(cells, capsys):
    opened = open_dataset(cells)
    first = opened.class_names[0]
    held = (np.arange(len(opened)) % 3 == 0) & (opened.table["class"] != first).to_numpy()
    sides = np.where(held, "test", "train")
    given = replace(opened, table=opened.table.assign(side=sides))
    assert set(work.training_side(given).digests) == set(opened.subset(~held).digests)
    assert "and no other is kept for tests" in capsys.readouterr().out


def test_generated_images_of_a_set_are_not_trained_on(trained, cells, tmp_path, capsys):
    command = ["augment", str(cells), "--generator", str(trained), "--out", f"{tmp_path}/more"]
    assert cli.main(command) == 0
    found = work.training_side(open_dataset(tmp_path / "more"))
    assert set(found.table["origin"]) == {"real"}


def test_a_stopped_training_goes_on_to_the_same_bits(trained, cells, tmp_path, monkeypatch, capsys):
    usual, out = Diversity.on_epoch_end, tmp_path / "again"
    command = ["train", str(cells), "--out", str(out), "--size", "16", "--images", "400"]
    command += ["--seed", "3", *TYPED]

    def stopped(self, epoch, logs=None):
        usual(self, epoch, logs)
        if epoch == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(work, "SAVE_SECONDS", 0)
    monkeypatch.setattr(Diversity, "on_epoch_end", stopped)
    assert cli.main(command) == 130
    assert "the next run resumes from the last checkpoint" in capsys.readouterr().err
    assert (out.with_name("again.training") / "checkpoint.npz").is_file() and not out.exists()
    monkeypatch.setattr(Diversity, "on_epoch_end", usual)
    assert cli.main([*command[:-1], "batch_size=8"]) == 2
    assert "was begun before recipe has changed" in capsys.readouterr().err
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "steps of 16 images" in told and told.endswith(f"{out}\n")
    assert read_generator(out).digest == read_generator(trained).digest
    assert cli.main(command) == 2
    assert "holds files already" in capsys.readouterr().err


def test_it_is_sized_to_hours_by_what_was_measured(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "rehearse", lambda *_: 36.0)
    out = work.train(str(cells), tmp_path / "out", size=16, hours=0.1, choices=SMALL)
    seen = read_generator(out).card["training"]["images_seen"]
    assert seen == 3 * 16 * round(10 * 16 / 48)  # ten steps, in whole epochs of three
    assert "9 steps of 16 images" in capsys.readouterr().out


def test_it_begins_with_a_trained_generator(trained, cells, tmp_path, capsys):
    """With a learning rate of nothing a new class is the mean, the others are as they were."""
    names = {"basophil": "Baso", "monocyte": "Mono"}
    for name, folder in {**names, "monocyte ": "new", "basophil ": "Monocyte"}.items():
        for file in (cells / name.strip()).iterdir():
            image = tmp_path / "cells" / folder / file.name
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(file.read_bytes() + folder.encode())
    out = work.train(
        str(tmp_path / "cells"), tmp_path / "out", size=16, images=48, start_from=str(trained),
        class_map={"Baso": "basophil", "Mono": "monocyte"}, choices={"learning_rate": 0},
    )  # fmt: skip
    old, new = load_generator(trained).model, load_generator(out).model
    vectors = [m.get_layer("label_vector").get_weights()[0] for m in (old, new)]
    order = list(map(read_generator(out).class_names.index, ("Baso", "Mono", "Monocyte", "new")))
    expected = [*vectors[0], vectors[0][1], vectors[0].mean(0)]
    said = "start from generator: Baso as basophil, Mono as monocyte, Monocyte as monocyte, "
    assert f"the classes {said}new as the mean of all classes\n" in capsys.readouterr().out
    np.testing.assert_allclose(vectors[1][order], expected, atol=1e-3)
    pairs = [(a, b) for a, b in zip(old.weights, new.weights, strict=True)
             if "label_vector" not in a.path and "moving" not in a.path]  # fmt: skip
    assert len(pairs) > 5 and np.ptp(pairs[0][0]) > 0
    for before, after in pairs:
        np.testing.assert_allclose(after, before, atol=1e-3)


def test_a_class_map_is_checked_and_kept(trained, cells, tmp_path, monkeypatch, capsys):
    """A training goes on with its own map alone; one of before, which kept none, goes on too."""
    out, asked = tmp_path / "out", []
    command = ["train", str(cells), "--out", str(out), "--size", "16", "--images", "400", *TYPED]
    names = tmp_path / "names.yaml"
    names.write_text("basophil: monocyte")
    assert cli.main([*command, "--class-map", str(names)]) == 2
    assert "--class-map names classes of the generator of --start-from" in capsys.readouterr().err
    command += ["--start-from", str(trained)]
    for line, words in (
        ("Baso: basophil", "data set has no class Baso; its classes are basophil"),
        ("basophil: mono", "generator has no class mono; its classes are"),
    ):
        names.write_text(line)
        assert cli.main([*command, "--class-map", str(names)]) == 2
        assert words in capsys.readouterr().err
    assert not out.with_name("out.training").exists()

    def stopped(*_, settings, **__):
        asked.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "train_on", stopped)
    names.write_text("basophil: monocyte")
    assert cli.main([*command, "--class-map", str(names)]) == 130
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "was begun before class_map has changed" in capsys.readouterr().err
    kept = out.with_name("out.training") / work.SETTINGS
    settings = json.loads(kept.read_text())
    assert settings.pop("class_map") == {"basophil": "monocyte", "monocyte": "monocyte"}
    kept.write_text(json.dumps(settings))
    assert cli.main(command) == 130
    assert asked == [settings, settings]  # as its checkpoint has them


def test_a_damaged_checkpoint_is_named(cells, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["train", str(cells), "--out", str(out), "--size", "16", "--images", "40", *TYPED]

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work, "train_on", stopped)
        assert cli.main(command) == 130
    file = out.with_name("out.training") / work.CHECKPOINT
    file.write_bytes(b"damaged")
    capsys.readouterr()
    assert cli.main(command) == 2
    assert f"{file} is not a checkpoint of cellaug: remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--size", "48"], "--size: image size 48: expected a power of two, 16 or more"),
        (["--images", "9", "--hours", "1"], "--images and --hours both say how long"),
        (["--set", "gama=1"], "--set gama: no choice of the recipe. There are generator_depth"),
        (["--set", "batch_size=2.5"], "--set batch_size=2.5: expected a whole number from 1 on"),
        (["--set", "batch_size=0"], "--set batch_size=0: expected a whole number from 1 on"),
        (["--set", "penalty_every=0"], "--set penalty_every=0: expected a whole number from 1 on"),
        (["--set", "half_life=-1"], "--set half_life=-1: expected a whole number from 0 on"),
        (["--set", "gamma=-1"], "--set gamma=-1: expected a number from 0 on"),
        (["--set", "r2=1"], "--set r2=1: expected true or false"),
        (["--set", "learning_rate=fast"], "--set learning_rate='fast': expected a number from 0"),
        (["--set", "batch_size=.inf"], "--set batch_size=inf: expected a whole number from 1 on"),
        (["--set", "gamma=.nan"], "--set gamma=nan: expected a number from 0 on"),
        (
            ["--hours", "1", "--set", "objective=hinge"],
            "this recipe cannot be built: objective 'hinge': expected one of",
        ),
        (["--set", "objective=hinge"], "expected one of relativistic, cross-entropy"),
        (["--set", "batch_size=5000"], "images are less than one batch of 5000"),
        (["--start-from", "pbc-fine-64"], "pbc-fine-64 draws 64 pixels, not 16"),
        (["--start-from", "nobody"], "no such generator directory"),
        (["--processes", "2"], "--coordinator, --processes and --process belong together"),
        (
            ["--coordinator", "a:1", "--processes", "2", "--process", "2"],
            "--process 2: expected from 0 to 1",
        ),
        (
            ["--coordinator", "a:1", "--processes", "2", "--process", "1"],
            "set KERAS_BACKEND=jax",
        ),
    ],
)
def test_wrong_orders_are_refused_in_words(cells, tmp_path, capsys, given, words):
    command = ["train", str(cells), "--out", str(tmp_path / "out"), "--size", "16", *given]
    assert cli.main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-4]"}, "SLURM"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"}, ""),
        ({"SLURM_NTASKS": "4"}, ""),  # salloc's own shell
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1;tcp://h:1"}, "Open MPI"),
        ({"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "Kubernetes"),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),  # one pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
    ],
)
def test_launchers_are_known_by_what_they_set(monkeypatch, environment, expected):
    from cellaug.training import devices

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert devices.launcher() == expected
    if expected:
        with pytest.raises(DataError, match=f"{expected}: .* set KERAS_BACKEND=jax"):
            devices.join()


def test_a_batch_is_shared_evenly():
    from cellaug.training.devices import Team

    assert Team(1, 2, 4).share(32) == 16
    with pytest.raises(DataError, match="batch_size=30 cannot be shared by 4 devices"):
        Team(1, 2, 4).share(30)
