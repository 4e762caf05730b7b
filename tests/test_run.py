"""The runner on a book of six tiny chapters: what runs, what is kept, what a failure leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from cellaug import cli
from cellaug.book import chapter as book
from cellaug.book import check, run, source
from cellaug.data import open_dataset, split
from cellaug.data.images import write_png
from cellaug.data.inspection import BOUNDS
from cellaug.data.splits import measurable

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile = "tiny"
seed = 1
"""

BODY = """
# %%
import time

for word in ("working", "still working", "done"):
    print(f"\\r{{word}}   ", end="", flush=True)
    time.sleep({pause})  # so that every word is sent on its own
print(seed)

# %%
from cellaug.book import build_folder
from cellaug.files import write_json

out = build_folder(profile) / "artifacts" / "{chapter}"
out.mkdir(parents=True, exist_ok=True)
record = {{"date": "2026-01-01", "settings": {{"seed": seed}}, "versions": {{}}, "device": ""}}
write_json(out / "metrics.json", record | {{"seconds": 1.5, "metrics": {{"seed": seed}}}})
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A project of its own in a temporary folder, with a profile 'tiny'."""
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    for chapter in book.CHAPTERS:
        extra = 'data = "phantom"\nrate = 0.5\n' if chapter == "01_data" else ""
        pause = 0.3 if chapter == "01_data" else 0
        text = HEADER + extra + BODY.format(chapter=chapter, pause=pause)
        (tmp_path / "notebooks" / f"{chapter}.py").write_text(text)
    (tmp_path / "notebooks" / "profiles" / "tiny.yaml").write_text("seed: 3\n")
    (tmp_path / "notebooks" / "record").mkdir()
    (tmp_path / "notebooks" / "record" / "benchmarks.py").write_text("# %%\nprint(6 * 7)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(tiny):
    folder = tiny / "build/tiny/notebooks"
    found = {p.relative_to(folder).with_suffix(""): p for p in folder.rglob("*.ipynb")}
    return {str(name): path.stat().st_mtime_ns for name, path in found.items()}


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_page_that_shows_a_record_is_run_again_when_that_changes(monkeypatch, tmp_path):
    """Every notebook that reads from book/results is listed, with files that are there."""
    for name in book.pages():
        text = book.notebook_file(name).read_text("utf-8")
        if re.search(r"recorded_benchmark\(|\.recorded\(|read_results\(", text):
            assert name in run.RESULTS, name
    for patterns in run.RESULTS.values():
        for pattern in patterns:
            assert any(book.result_file("").glob(pattern)), pattern
    before = run.state_of("record/scale", {})
    shutil.copytree(book.result_file(""), tmp_path / "book/results")
    monkeypatch.setattr(book, "result_file", lambda name: tmp_path / "book/results" / name)
    assert run.state_of("record/scale", {}) == before
    (tmp_path / "book/results/scale-benchmark.json").write_text("{}")
    assert run.state_of("record/scale", {}) != before


def test_only_what_changed_is_run_again(tiny, capsys, monkeypatch):
    name, profile = run.load_profile("tiny")
    merged = run.run(name, profile)
    first = executed(tiny)
    assert set(first) == {*book.CHAPTERS, "record/benchmarks"} == set(book.pages())
    assert merged["chapters"]["04_latent_space"] == {"seed": 3}
    assert merged["durations"]["05_classifier"] == 1.5
    assert json.loads((tiny / "build/tiny/metrics.json").read_text()) == merged
    assert run.outdated(name, profile) == []

    # Of a line that rewrites itself the last state stays, and no machine's path is kept.
    notebook = nbformat.read(tiny / "build/tiny/notebooks/01_data.ipynb", as_version=4)
    texts = [o.text for cell in notebook.cells for o in cell.get("outputs", ())]
    assert texts == ["done   3\n"]
    assert "papermill" not in notebook.metadata
    assert str(tiny) not in json.dumps(notebook)

    run.run(name, profile)
    assert executed(tiny) == first
    assert capsys.readouterr().out.count("nothing has changed") == 7

    # Chapter 04 is read by 06 alone.
    change(tiny / "notebooks/04_latent_space.py", '"seed": seed}}', '"seed": seed + 1}}')
    assert run.outdated(name, profile) == ["04_latent_space"]
    run.run(name, profile)
    second = executed(tiny)
    assert {c for c in first if first[c] != second[c]} == {"04_latent_space", "06_discussion"}

    # So does a recorded result with the notebook that shows it.
    (tiny / "book/results").mkdir(parents=True)
    for name_of_file, chapters in {
        "train-benchmark.json": ["record/benchmarks"],
        "weights-tiny.json": ["06_discussion"],
        "ladder-tiny.png": ["06_discussion"],
    }.items():
        (tiny / "book/results" / name_of_file).write_text("{}")
        assert run.outdated(name, profile) == chapters
        (tiny / "book/results" / name_of_file).unlink()
    # And with the cards of the package's weights.
    weights = tiny / "weights" / "own"
    weights.mkdir(parents=True)
    monkeypatch.setattr(run, "PACKAGE", tiny)
    (weights / "generator.json").write_text("{}")
    assert run.outdated(name, profile) == ["03_ac_gan", "04_latent_space", "05_classifier"]
    monkeypatch.undo()
    monkeypatch.chdir(tiny)

    # A parameter reruns the chapters that declare it; here all declare the seed.
    name, other = run.load_profile("tiny", ["rate=0.25"])
    assert run.outdated(name, other) == ["01_data"]
    run.run(name, profile, ["06"], force=True)
    third = executed(tiny)
    assert {c for c in first if second[c] != third[c]} == {"06_discussion"}

    # What comes out the same again is no reason to train later chapters; 06 shows the times.
    run.run(name, profile, ["01"], force=True)
    assert run.outdated(name, profile) == []
    run.run(name, profile)
    fourth = executed(tiny)
    assert {c for c in first if third[c] != fourth[c]} == {"01_data"}
    file = tiny / "build/tiny/artifacts/01_data/metrics.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"seconds": 2.5, "date": "2026-01-02"}))
    assert run.outdated(name, profile) == ["06_discussion"]
    file.write_text(json.dumps(record | {"metrics": {"seed": 5}}))
    late = ["02_vanilla_gan", "03_ac_gan", "04_latent_space", "05_classifier", "06_discussion"]
    assert run.outdated(name, profile) == late


def test_code_that_changes_during_the_run_does_not_count(tiny):
    path = tiny / "notebooks" / "01_data.py"
    edit = f"with open({str(path)!r}, 'a') as file:\n    file.write('# more')\n\n# %%\nimport time"
    change(path, "import time", edit)
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["01"])
    assert "01_data" in run.outdated(name, profile)


def test_a_chapter_brings_what_it_needs(tiny):
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["3"])
    assert sorted(executed(tiny)) == ["01_data", "02_vanilla_gan", "03_ac_gan"]
    with pytest.raises(book.BookError, match="no chapter '7': there are 01_data"):
        run.run(name, profile, ["7"])
    run.run(name, profile, ["record/benchmarks"])
    assert "record/benchmarks" in executed(tiny) and "04_latent_space" not in executed(tiny)


def test_a_killed_run_does_not_count(tiny):
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["01"])
    stop = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n\n# %%\nimport time"
    change(tiny / "notebooks/01_data.py", "import time", stop)
    code = f"from cellaug.book import run; run.run('tiny', {profile!r}, ['01'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    change(tiny / "notebooks/01_data.py", stop, "import time")
    assert "01_data" in run.outdated(name, profile)


def test_a_study_runs_as_a_chapter_does(tiny):
    (tiny / "notebooks" / "studies").mkdir()
    study = tiny / "notebooks" / "studies" / "steps.py"
    cell = '# %% tags=["parameters"]\nprofile = "tiny"\nsteps = 1\n\n# %%\nprint(10 * steps)\n'
    study.write_text(cell)
    with pytest.raises(book.BookError, match="no chapter declares steps"):
        run.load_profile("tiny", ["steps=4"])
    _, profile = run.load_profile("tiny", ["steps=4"], study="studies/steps")
    assert run.run_study("studies/steps", profile) == "40"
    assert "studies/steps" not in book.pages()
    (tiny / "notebooks/profiles/tiny.yaml").write_text("steps: 5\nseed: 3\n")
    _, profile = run.load_profile("tiny", ["seed=4"])  # a file may have a study's keys too
    assert (profile["steps"], profile["seed"]) == (5, 4)

    # Its module is found by the chapters, and a change of it makes them out of date.
    (tiny / "notebooks/studies/__init__.py").touch()
    chapter = tiny / "notebooks/record/benchmarks.py"
    chapter.write_text("# %%\nfrom studies import steps\n\nprint(steps.steps)\n")
    assert source.code_of(chapter)[-1] == study
    run.execute("record/benchmarks", profile)

    study.write_text(cell + "\n# %%\nfrom cellaug.errors import DataError\n\n"
                     "raise DataError('too few')\n")  # fmt: skip
    with pytest.raises(run.DataError, match=r"^too few$"):
        run.run_study("studies/steps", profile)
    study.write_text(cell + "\n# %%\n1 / 0\n")
    with pytest.raises(run.ChapterFailed, match="ZeroDivisionError"):
        run.run_study("studies/steps", profile)


def test_a_failing_cell_publishes_nothing(tiny):
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["02"])
    kept = executed(tiny)
    source = tiny / "notebooks" / "02_vanilla_gan.py"
    change(source, "# %%\nimport time", "# %%\nx = 1 / (seed - 3)\n\n# %%\nimport time")
    with pytest.raises(run.ChapterFailed) as error:
        run.run(name, profile)
    message = str(error.value)
    assert "chapter 02_vanilla_gan failed in cell 3" in message
    assert "x = 1 / (seed - 3)" in message and "ZeroDivisionError" in message
    assert executed(tiny) == kept
    failed = nbformat.read(tiny / "build/tiny/failed/02_vanilla_gan.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in failed.cells for o in c.get("outputs", ()))
    with pytest.raises(book.BookError, match="02_vanilla_gan"):
        run.require_current(name, profile)

    change(source, "x = 1 / (seed - 3)", "x = 1")
    run.run(name, profile, ["02"])
    assert not (tiny / "build/tiny/failed/02_vanilla_gan.ipynb").exists()


def write_cells(folder, *levels):
    """Images of one grey level each, with the level as their name."""
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        write_png(folder / f"{level}.png", np.full((16, 16, 3), level, np.uint8))


def test_changed_data_reruns_the_first_chapter(tiny):
    write_cells(tiny / "cells" / "one", 1)
    name, profile = run.load_profile("tiny", [f"data={tiny / 'cells'}"])
    run.run(name, profile, ["01"])
    (tiny / "cells" / "notes.txt").write_text("no image of the set")
    (tiny / "cells" / "one" / "notes.txt").write_text("nor is this")
    assert "01_data" not in run.outdated(name, profile)
    write_cells(tiny / "cells" / "one", 2)
    assert "01_data" in run.outdated(name, profile)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["colour=red"], "no chapter declares colour: the keys are data, profile, rate, seed"),
        (["seed"], "--set seed: expected key=value"),
        (["rate=fast"], "rate: expected a value such as 0.5, found 'fast'"),
        (["rate=1e-5"], r"written 1\.0e-5 in YAML"),
        (["rate=true"], "rate: expected a value such as 0.5, found True"),
        (["seed=1.5"], "seed: expected a value such as 1, found 1.5"),
        (["data=[1"], r"--set data=\[1 is not YAML"),
        (["data=[1, 2]"], r"data: expected a value such as 'phantom', found \[1, 2\]"),
    ],
)
def test_settings_that_no_chapter_can_use(tiny, settings, complaint):
    with pytest.raises(book.BookError, match=complaint):
        run.load_profile("tiny", settings)


def test_all_wrong_values_are_named_before_anything_runs():
    settings = {
        "ratio": (-1, "-1.0 is not in the range 0<x<1000"),
        "image_size": (50, "50 is not one of '16', '32', '64'"),
        "gan_learning_rate": (0, "0.0 is not in the range 0<x<=1"),
        "variance": (".nan", "nan is not a number"),
        "classifier": ("resnet", "'resnet' is not one of 'compact', 'xception'"),
        "protocol": ("two pools", "'two pools' is not one of 'one pool', 'disjoint'"),
        "classifier_batch_size": (0, "0 is not in the range 1<=x"),
        "recipe_epochs": (1.5, "expected a value such as 25, found 1.5"),
        "colour": ("red", ""),
    }
    with pytest.raises(book.BookError) as error:
        run.load_profile("smoke", [f"{key}={value}" for key, (value, _) in settings.items()])
    message = str(error.value)
    assert "9 problems" in message and "no chapter declares colour" in message
    for key, (_, complaint) in settings.items():
        assert not complaint or f"{key}: {complaint}" in message
    with pytest.raises(book.BookError, match=r"generator_depth: 36 cannot .* a multiple of 8"):
        run.load_profile("smoke", ["image_size=64", "generator_depth=36"])
    run.load_profile("smoke", ["image_size=64", "generator_depth=40"])
    with pytest.raises(book.BookError, match=r"generator_depth: 64 .* multiple of 128"):
        run.load_profile("demo", ["image_size=1024"])  # the depth is the chapters' own


def test_the_data_set_is_checked_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_BUILD", str(tmp_path / "build"))
    assert run.load_profile("smoke", data=True)[0] == "smoke"
    write_cells(tmp_path / "cells" / "b", *range(40))
    write_cells(tmp_path / "cells" / "a", 200)
    given = [f"data={tmp_path / 'cells'}"]
    run.load_profile("smoke", given)
    with pytest.raises(book.BookError, match=r'data: class "a" has only 1 images, so the split'):
        run.load_profile("smoke", given, data=True)
    write_cells(tmp_path / "cells" / "a", *range(200, 240))
    run.load_profile("smoke", given, data=True)
    with pytest.MonkeyPatch.context() as patch:  # as after `cellaug run --chapter 1`
        patch.setattr(run, "outdated", lambda *_: ["02_vanilla_gan"])
        with pytest.raises(book.BookError, match="gan_batch_size: 5000 is more than the 56 train"):
            run.load_profile("smoke", [*given, "gan_batch_size=5000"], data=True)
        patch.setattr(run, "outdated", lambda *_: ["record/ladder"])
        run.load_profile("smoke", [*given, "gan_batch_size=5000"], data=True)
    for k in range(200, 240):
        (tmp_path / "cells" / "a" / f"{k}.png").unlink()
    write_cells(tmp_path / "cells" / "a", 200, 201, 202)
    small = [*given, *(f"{net}_batch_size=8" for net in ("gan", "ac", "cgan", "recipe"))]
    run.load_profile("smoke", small, data=True)
    four = r'data: class "a" .* split "\w+" .*The protocol \'disjoint\' needs four splits'
    with pytest.raises(book.BookError, match=four):
        run.load_profile("smoke", [*small, "protocol=disjoint"], data=True)
    write_cells(tmp_path / "cells" / "a", *range(200, 240))
    room = shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda place: room)
    with pytest.raises(book.BookError) as error:
        run.load_profile("smoke", [*given, "gan_batch_size=64"], data=True)
    assert re.search(r"gan_batch_size: 64 is more than the \d\d training images", str(error.value))
    assert "has 1.0 GiB free, but a run needs about 1.0 GiB" in str(error.value)


def test_a_path_of_data_is_from_the_profile_or_from_here(tiny, monkeypatch):
    monkeypatch.setattr(book, "project_root", lambda: tiny)
    place, here = tiny / "lab", tiny / "here"
    for folder in (place / "mine", here / "mine", here / "other set"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    own = place / "own.yaml"
    own.write_text("data: mine\n")
    assert run.load_profile(str(own)) == ("own", {"profile": "own", "data": str(place / "mine")})
    own.write_text("data: other set\n")
    assert run.load_profile(str(own))[1]["data"] == str(here / "other set")
    # What is typed is meant from here, and a run on other data has a name of its own.
    name, profile = run.load_profile(str(own), ["data=mine"])
    assert (name, profile["profile"]) == ("own-mine", "own-mine")
    assert profile["data"] == str(here / "mine")
    assert run.load_profile("tiny", ["data=../here/other set/"])[0] == "tiny-other-set"
    assert run.load_profile("tiny", ["data=pbc"]) == (
        "tiny-pbc",
        {"seed": 3, "data": "pbc", "profile": "tiny-pbc"},
    )
    own.write_text("data: gone\n")
    with pytest.raises(
        book.BookError, match=f"there is no {place / 'gone'} and no {here / 'gone'}"
    ):
        run.load_profile(str(own))


def test_sets_of_one_name_do_not_share_a_build(tiny):
    for place in ("here", "there"):
        (tiny / place / "lab").mkdir(parents=True)
    first, profile = run.load_profile("tiny", [f"data={tiny}/here/lab"])
    assert first == "tiny-lab" == run.load_profile("tiny", [f"data={tiny}/there/lab"])[0]
    record = tiny / "build" / first / "artifacts" / "01_data" / "metrics.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"settings": {"data": profile["data"]}}))
    assert run.load_profile("tiny", ["data=here/lab"])[0] == first
    second, profile = run.load_profile("tiny", ["data=there/lab"])
    assert re.fullmatch("tiny-lab-[0-9a-f]{6}", second) and profile["profile"] == second
    (tiny / "build" / second).mkdir()
    record.unlink()  # it keeps its name when the first one is gone
    assert run.load_profile("tiny", ["data=there/lab"])[0] == second
    (own := tiny / "tiny-lab.yaml").write_text("data: there/lab\n")  # a profile called so
    assert run.load_profile(str(own))[0] == second


@pytest.mark.parametrize("name", ["...yaml", "..yaml"])
def test_a_profile_is_not_called_as_a_folder_above(tiny, name):
    (tiny / name).write_text("seed: 8\n")
    with pytest.raises(book.BookError, match=r"the name of the profile, '.*Give the file a name"):
        run.run(*run.load_profile(str(tiny / name)))
    assert not (tiny / "build").exists() and not (tiny / ".doit.json").exists()


def test_a_second_run_of_a_profile_says_who_runs(tiny):
    name, profile = run.load_profile("tiny")
    seen = tiny / "seen"
    cell = f"""\
from cellaug.book import run
from cellaug.errors import BookError
from pathlib import Path

try:
    run.run("tiny", {profile!r}, ["01"])
except BookError as error:
    Path({str(seen)!r}).write_text(str(error))

# %%
import time"""
    change(tiny / "notebooks/01_data.py", "import time", cell)
    run.run(name, profile, ["01"])
    assert f"is being written by a run of process {os.getpid()} on" in seen.read_text()
    run.run(name, profile, ["record/benchmarks"])  # free again


def test_a_killed_kernel_is_a_failed_chapter(tiny):
    name, profile = run.load_profile("tiny")
    stop = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n\n# %%\nimport time"
    change(tiny / "notebooks/01_data.py", "import time", stop)
    with pytest.raises(
        run.ChapterFailed, match=r"01_data: the kernel died, .* want of memory"
    ) as e:
        run.run(name, profile, ["01"])
    failed = tiny / "build/tiny/failed/01_data.ipynb"
    assert str(failed) in str(e.value) and failed.is_file()
    with pytest.raises(run.ChapterFailed, match="the kernel died"):
        run.run_study("01_data", profile)


def test_a_run_ends_with_its_result(tiny):
    change = {"weighted_f1": {"mean": 0.0312, "low": -0.01, "high": 0.07}}
    single = {"weighted_f1": {"mean": -0.02, "low": None, "high": None}}
    arms = {name: {"weighted_f1": {"mean": 0.8 + k / 100}} for k, name in enumerate("xyz")}
    found = {"arms": arms, "change_against_original": {"y": change, "z": single}}
    merged = {"profile": "tiny", "durations": {"01_data": 2.0, "05_classifier": 61.0}}
    merged["chapters"] = {"05_classifier": found}
    text = run.summary(merged, "cellaug book --profile x.yaml")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:3] == ["01_data 2 s", "05_classifier 61 s", "all 63 s"]
    assert lines[5:8] == [
        "x 80.0",
        "y 81.0 +3.1 (-1.0 to +7.0)",
        "z 82.0 -2.0 (too few seeds for an interval)",
    ]
    assert lines[-2] == f"executed notebooks: {tiny / 'build/tiny/notebooks'}"
    assert lines[-1] == "the report: cellaug book --profile x.yaml"
    late = run.summary(merged, "", ["05_classifier"])
    assert "81.0" not in late and late.endswith("still to be run: 05_classifier")


def test_advice_is_what_was_typed(tiny, capsys):
    (tiny / "my lab.yaml").write_text("seed: 4\n")
    words = ["--profile", "my lab.yaml", "--set", "rate=0.25"]
    for command in ("book", "record"):
        assert cli.main([command, *words]) == 2
        advice = "'cellaug run --profile 'my lab.yaml' --set rate=0.25' first"
        assert advice in capsys.readouterr().err
    assert cli.main(["run", *words, "--chapter", "record/benchmarks"]) == 0  # needs no data
    printed = capsys.readouterr().out
    assert "still to be run: 01_data" in printed and "build/my lab/notebooks" in printed


def write_record(tiny, **more):
    """The record of chapter 01, as if it had been run with seed 3."""
    record = {"date": "2026-01-01", "settings": {"seed": 3}, "versions": {}, "device": ""}
    path = tiny / "build/tiny/artifacts/01_data/metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"seconds": 1.5, "metrics": {}} | more))


def test_a_chapter_takes_no_artifacts_of_another_run(tiny):
    write_record(tiny)
    chapter = book.Chapter("02_vanilla_gan", {"profile": "tiny", "seed": 3})
    assert chapter.inputs("01_data") == tiny / "build/tiny/artifacts/01_data"
    with pytest.raises(book.BookError, match=r"02_vanilla_gan has seed = 4, but 01_data .* with 3"):
        book.Chapter("02_vanilla_gan", {"profile": "tiny", "seed": 4}).inputs("01_data")
    with pytest.raises(book.BookError, match="needs 03_ac_gan, which has not been run here"):
        chapter.inputs("03_ac_gan")


def test_a_chapter_that_is_stopped_at_its_end_keeps_what_was_there(tiny, monkeypatch):
    write_record(tiny, data="a" * 8)
    kept = tiny / "build/tiny/artifacts/01_data/metrics.json"
    before, usual = kept.read_text(), Path.replace
    chapter = book.Chapter("01_data", {"profile": "tiny", "seed": 3, "data": "x", "rate": 0.5})

    def stop(self, target):
        if Path(target) == kept.parent and self.name != "old":
            raise KeyboardInterrupt
        return usual(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        chapter.finish({}, data="b" * 8)
    assert kept.read_text() == before


def test_what_is_run_in_jupyterlab_stays_beside_the_book(tiny, monkeypatch):
    """It reads the book's artifacts where there are none of one's own, and replaces none."""
    write_record(tiny, data="a" * 8)
    theirs = tiny / "build/tiny/artifacts/01_data"
    before = (theirs / "metrics.json").read_text()
    monkeypatch.setenv("JPY_SESSION_NAME", "02_vanilla_gan.py")
    given = {"profile": "tiny", "seed": 3}
    chapter = book.Chapter("02_vanilla_gan", given)
    assert chapter.inputs("01_data") == theirs
    chapter.finish({"found": 1})
    own = tiny / "build/lab/tiny/artifacts"
    assert json.loads((own / "02_vanilla_gan/metrics.json").read_text())["data"] == "a" * 8
    assert list(book.merge_metrics("tiny")["chapters"]) == ["02_vanilla_gan"]

    # One's own data do not go with the GAN that was trained on the book's.
    first = book.Chapter("01_data", {**given, "data": "phantom", "rate": 0.5})
    first.finish({}, data="b" * 8)
    third = book.Chapter("03_ac_gan", given)
    assert third.inputs("01_data") == own / "01_data"
    with pytest.raises(book.BookError, match=r"01_data and 02_vanilla_gan, .* different data"):
        third.inputs("02_vanilla_gan")
    book.Chapter("02_vanilla_gan", given).inputs("01_data")

    left = {p.relative_to(tiny / "build/tiny").as_posix() for p in (tiny / "build/tiny").rglob("*")}
    assert left == {"artifacts", "artifacts/01_data", "artifacts/01_data/metrics.json"}
    assert (theirs / "metrics.json").read_text() == before
    # A command that is run in a notebook's cell is the book's all the same.
    assert cli.main(["--version"]) == 0
    assert book.build_folder("tiny") == tiny / "build/tiny"


def test_a_log_file_gets_the_latest_line_once_a_minute(tiny, capfd, monkeypatch):
    name, profile = run.load_profile("tiny")
    monkeypatch.setattr("cellaug.files.MINUTE", 0.0)
    run.run(name, profile, ["01"])
    told = capfd.readouterr().err.splitlines()
    assert "01_data: working" in told and "01_data: still working" in told
    monkeypatch.undo()
    monkeypatch.chdir(tiny)
    run.run(name, profile, ["01"], force=True)
    assert capfd.readouterr().err == ""  # within a minute


def test_the_first_chapter_says_whether_its_set_is_split_by_patient(tmp_path):
    cells = jupytext.read(book.project_root() / "notebooks" / "01_data.py").cells
    (code,) = [cell.source for cell in cells if "patients = (" in cell.source]
    write_cells(tmp_path, *range(60))
    said: list[str] = []
    chapter = SimpleNamespace(real="real")
    for grouped in (60, 30, 0, 0):
        chapter.real = "drawn" if len(said) == 3 else "real"
        rows = [f"{k}.png,{'ab'[k % 2]},{f'p{k // 5}' if k < grouped else ''}" for k in range(60)]
        (tmp_path / "m.csv").write_text("\n".join(["path,label,group", *rows]))
        opened = open_dataset(tmp_path / "m.csv")
        names = {"cells": opened, "parts": split(opened, seed=1), "Markdown": said.append}
        names["chapter"] = chapter
        exec(code, names)
    sides = ["train", "train", "validation", "test"]  # a published split that divides patients
    rows = [f"{k}.png,{'ab'[k % 2]},p{k // 5},{sides[k // 2 % 4]}" for k in range(60)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,group,split", *rows]))
    opened = open_dataset(tmp_path / "m.csv")
    chapter.real = "real"
    exec(code, names | {"cells": opened, "parts": split(opened, seed=1)})
    assert "12 groups are in training and in another split. The published split" in said[4]
    profile = {key: value for page in book.CHAPTERS
               for key, value in book.declared_parameters(page).items()}  # fmt: skip
    told = "12 of 12 groups (patients or slides) are on several sides of the published split"
    with pytest.warns(UserWarning, match=re.escape(told)):
        check.data_problems(profile | {"data": str(tmp_path / "m.csv")}, tmp_path)
    assert said[0].startswith("Splits are by patient") and "the 2 groups of the test" in said[0]
    assert said[1].startswith("30 of 60 images name their group") and "too optimistic" in said[1]
    assert said[2].startswith("0 of 60 images name their group") and "too optimistic" in said[2]
    assert said[3].startswith("Drawn cells belong to no patient.")


def test_the_first_chapter_says_where_patients_or_images_are_too_few(tmp_path):
    cells = jupytext.read(book.project_root() / "notebooks" / "01_data.py").cells
    (code,) = [cell.source for cell in cells if "few = measurable(parts)" in cell.source]
    write_cells(tmp_path, *range(200))
    groups = [f"p{k % 4}" if k % 2 else f"q{k // 4}" for k in range(200)]  # of b: p1 and p3
    groups = [f"p{k // 2 % 3}" if k % 2 else group for k, group in enumerate(groups)]
    rows = [f"{k}.png,{'ab'[k % 2]},{groups[k]}" for k in range(200)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,group", *rows]))
    parts = split(open_dataset(tmp_path / "m.csv"))
    found = {"parts": parts, "measurable": measurable, "BOUNDS": BOUNDS, "np": np, "pd": pd}
    exec(code, found := found | {"chapter": SimpleNamespace(real="real")})
    one, two = found["table"].loc["a"], found["table"].loc["b"]
    assert one["patients (in the test)"].startswith("50 (")
    assert "Too few images to measure much." in one["note"]
    assert "Too few patients" not in one["note"]
    assert two["patients (in the test)"] == "3 (1)"
    assert "Too few patients to say much about others." in two["note"]


def test_a_record_of_other_data_is_not_replaced(tiny):
    write_record(tiny, data="0123", settings={"seed": 3, "data": "/somewhere/cells"})
    path = book.record_results("tiny")
    assert json.loads(path.read_text())["settings"] == {"data": "cells", "seed": 3}
    assert book.record_results("tiny") == path  # the same data may be recorded again
    change(path, '"0123"', '"4567"')
    with pytest.raises(
        book.BookError, match=r"data 4567, but this run is of data 0123.*other name"
    ):
        book.record_results("tiny")
    assert '"4567"' in path.read_text()


def test_profiles(tiny):
    assert run.load_profile("tiny", ["rate=2"]) == (
        "tiny",
        {"seed": 3, "rate": 2.0, "profile": "tiny"},
    )
    own = tiny / "mine.yaml"
    own.write_text("seed: 8\n")
    assert run.load_profile(str(own)) == ("mine", {"seed": 8, "profile": "mine"})
    own.write_text("- seed\n")
    with pytest.raises(book.BookError, match="expected lines of the form"):
        run.load_profile(str(own))
    own.write_text("seed: [\n")
    with pytest.raises(book.BookError, match=r"mine\.yaml is not YAML"):
        run.load_profile(str(own))
    own.write_bytes(b"data: \xff\n")
    with pytest.raises(book.BookError, match=r"mine\.yaml is not UTF-8 .*: save it as"):
        run.load_profile(str(own))
    with pytest.raises(book.BookError, match="no profile 'huge': give one of tiny"):
        run.load_profile("huge")


def test_a_chapter_declares_its_parameters(tiny):
    expected = {"profile": "tiny", "seed": 1, "data": "phantom", "rate": 0.5}
    assert book.declared_parameters("01_data") == expected
    path = tiny / "notebooks" / "01_data.py"
    change(path, 'tags=["parameters"]', "")
    with pytest.raises(book.BookError, match=r"01_data\.py has no cell tagged"):
        book.declared_parameters("01_data")


def test_code_of_a_chapter_is_what_it_imports(tiny):
    path = tiny / "notebooks" / "02_vanilla_gan.py"
    path.write_text(path.read_text() + "\n# %%\nfrom cellaug.data.splits import split\n")
    code = source.code_of(path)
    files = {str(file.relative_to(source.PACKAGE)) for file in code if file != path}
    assert {"book/chapter.py", "data/splits.py", "data/sets.py", "data/pbc_digests.bin"} <= files
    assert not {"cli.py", "book/run.py", "book/report.py", "training/fit.py"} & files
    path.write_text("# %%\ndef later():\n    import cellaug.training.fit\n")
    assert source.PACKAGE / "training" / "fit.py" in source.code_of(path)


def test_prose_and_comments_do_not_change_the_code_of_a_record(tmp_path):
    path = tmp_path / "one.py"
    hashes = []
    for text in ("x = 1\n", "# %% [markdown]\n# Words.\n\nx = 1\n", "x = 2\n"):
        path.write_text(text)
        hashes.append(source.code_hash({path}))
    assert hashes[0] == hashes[1] != hashes[2]


def test_outside_of_a_clone_the_chapters_are_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (book.project_root() / "notebooks" / "01_data.py").is_file()


def test_the_shipped_profiles_are_accepted():
    for path in sorted((book.project_root() / "notebooks" / "profiles").glob("*.yaml")):
        name, profile = run.load_profile(path.stem)
        assert name == path.stem == profile["profile"]


def test_a_recorded_run_knows_its_commit_and_whether_the_code_has_changed(tiny):
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["01"])
    with pytest.raises(book.BookError, match="02_vanilla_gan, 03_ac_gan"):
        run.require_current(name, profile)
    run.run(name, profile)
    path = book.record_results(name)
    assert path == tiny / "book/results/tiny/metrics.json"
    found = book.recorded_results()["tiny"]
    assert found["chapters"]["03_ac_gan"] == {"seed": 3}
    assert (found["commit"], found["changed"]) == ("unknown", False)
    change(tiny / "notebooks/03_ac_gan.py", "print(seed)", "print(seed, seed)")
    assert book.recorded_results()["tiny"]["changed"]

    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=tiny, check=True)
    book.record_results(name)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tiny, capture_output=True, text=True)
    assert book.recorded_results()["tiny"]["commit"] == head.stdout.strip()
    book.record_results(name)  # now the record of the line above differs from the commit
    assert book.recorded_results()["tiny"]["commit"] == head.stdout.strip() + "-dirty"
    path.write_text("{")
    with pytest.raises(book.BookError, match=r"metrics\.json is not JSON.*cellaug record"):
        book.recorded_results()


def test_the_state_of_the_data_follows_a_folder_and_a_manifest(tmp_path):
    cells = tmp_path / "cells"
    write_cells(cells / "a", 1, 2)
    write_cells(cells / "b", 4)
    (cells / "m.csv").write_text("path,label\na/1.png,a\n")
    folder, manifest = ({"data": str(place)} for place in (cells, cells / "m.csv"))
    before = [run.data_state(folder), run.data_state(manifest)]
    write_cells(cells / "a", 3)  # the manifest does not list it
    assert run.data_state(folder) != before[0] and run.data_state(manifest) == before[1]
    write_png(cells / "a" / "1.png", np.full((16, 16, 3), 9, np.uint8))
    assert run.data_state(manifest) != before[1]
    before = run.data_state(manifest)
    (cells / "m.csv").write_text("path,label\na/1.png,b\n")
    assert run.data_state(manifest) != before
    assert run.data_state({"data": "phantom"}) == ""


def inner(x: int) -> int:
    """Say something.

    Args:
        x: a number.
    """

    def deeper():
        """More words."""
        return x

    return deeper()


class Thing:
    """Only words."""

    def one(self):
        """One."""
        return 1

    def two(self):
        """Two."""


def test_show_displays_the_source_without_docstrings(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda markdown: shown.append(markdown.data))
    source.show(inner, Thing)
    assert shown[0] == (
        "````python\n# test_run.inner\ndef inner(x: int) -> int:\n"
        "    def deeper():\n        return x\n\n    return deeper()\n````"
    )
    assert shown[1].splitlines()[2:] == [
        "class Thing:",
        "    def one(self):",
        "        return 1",
        "",
        "    def two(self):",
        '        """Two."""',
        "````",
    ]
    source.show(Thing.one, docstring=True)
    assert '    """One."""' in shown[2]


def test_a_chapter_knows_whether_its_cells_are_real(tiny):
    seed = {"profile": "tiny", "seed": 3}
    for data, word in (("pbc", "real"), ("phantom", "drawn")):
        first = book.Chapter("01_data", seed | {"data": data, "rate": 0.5})
        write_record(tiny, settings={"seed": 3, "data": data})
        later = book.Chapter("02_vanilla_gan", seed)
        assert (first.real, later.real) == (word, word)


def test_the_thesis_beside_what_was_found():
    table = book.Chapter.compare({"images": (1000, 20), "diversity": ("by eye", "0.57")})
    assert table.to_string().splitlines()[0].split() == ["thesis", "here"]
    assert table.loc["images"].tolist() == [1000, 20]


def test_a_page_on_record_may_be_a_chapter_without_artifacts(tiny):
    page = book.Chapter("01_data", {"profile": "tiny", "seed": 1, "data": "x", "rate": 0.5})
    page.finish({})
    record = tiny / "notebooks/record/benchmarks.py"
    record.write_text('# %% tags=["parameters"]\nprofile = "tiny"\nseed = 1\n')
    page = book.Chapter("record/benchmarks", {"profile": "tiny", "seed": 1})
    page.finish({})
    found = json.loads((tiny / "build/tiny/artifacts/record/benchmarks/metrics.json").read_text())
    assert found["metrics"] == {}
    assert list(book.merge_metrics("tiny")["chapters"]) == ["01_data"]
    with pytest.raises(book.BookError, match="no chapter is called 'record/other'"):
        book.Chapter("record/other", {})


def test_jax_counts_where_it_computes_alone(monkeypatch):
    """It comes with the test packages, which make no chapter outdated."""
    _, profile = run.load_profile("smoke")
    states = []
    for backend in ("tensorflow", "jax"):
        monkeypatch.setenv("KERAS_BACKEND", backend)
        for extra in ({}, {"jax": "0.9"}):
            monkeypatch.setattr(book, "versions", lambda extra=extra: {"keras": "3"} | extra)
            states.append(run.state_of("02_vanilla_gan", profile))
    assert states[0] == states[1] != states[3] and states[2] != states[3]


def test_a_note_in_a_table_makes_no_chapter_outdated(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    write_cells(tmp_path, *range(6))
    states = []
    for head, more in (("", ""), (",remark", ",seen"), (",group", ",p1")):
        rows = [f"{k}.png,{'ab'[k % 2]}{more}" for k in range(6)]
        (tmp_path / "m.csv").write_text("\n".join([f"path,label{head}", *rows]))
        states.append(run.data_state({"data": str(tmp_path / "m.csv")}))
    assert states[0] == states[1] != states[2]
