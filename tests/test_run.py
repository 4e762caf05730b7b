"""The runner on a book of six tiny chapters: what runs, what is kept, what a failure leaves."""

import json
import signal
import subprocess
import sys

from cellaug.book import chapter as book
from cellaug.book import run, source

import nbformat
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
    time.sleep(0.3)  # so that every word is sent on its own
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
        text = HEADER + extra + BODY.format(chapter=chapter)
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
    assert run.outdated(name, profile) == ["05_classifier"]
    monkeypatch.undo()
    monkeypatch.chdir(tiny)

    # A parameter reruns the chapters that declare it; here all declare the seed.
    name, other = run.load_profile("tiny", ["rate=0.25"])
    assert run.outdated(name, other) == ["01_data"]
    run.run(name, profile, ["06"], force=True)
    third = executed(tiny)
    assert {c for c in first if second[c] != third[c]} == {"06_discussion"}


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
        run.build_book(name, profile)

    change(source, "x = 1 / (seed - 3)", "x = 1")
    run.run(name, profile, ["02"])
    assert not (tiny / "build/tiny/failed/02_vanilla_gan.ipynb").exists()


def test_changed_data_reruns_the_first_chapter(tiny):
    cells = tiny / "cells" / "one"
    cells.mkdir(parents=True)
    (cells / "a.png").write_bytes(b"not looked at here")
    name, profile = run.load_profile("tiny", [f"data={tiny / 'cells'}"])
    run.run(name, profile, ["01"])
    assert "01_data" not in run.outdated(name, profile)
    (cells / "b.png").write_bytes(b"new")
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
    (cells / "a").mkdir(parents=True)
    (cells / "a" / "1.png").write_bytes(b"one")
    (cells / "m.csv").write_text("path,label\na/1.png,a\n")
    for place in (cells, cells / "m.csv"):
        before = run.data_state({"data": str(place)})
        assert before == run.data_state({"data": str(place)}) != []
        (cells / "a" / "1.png").write_bytes(b"another, for " + place.name.encode())
        assert run.data_state({"data": str(place)}) != before
    before = run.data_state({"data": str(cells / "m.csv")})
    (cells / "m.csv").write_text("path,label\na/1.png,b\nx,y\n")
    assert run.data_state({"data": str(cells / "m.csv")}) != before
    assert run.data_state({"data": "phantom"}) == []


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
