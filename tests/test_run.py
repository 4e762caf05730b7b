"""The runner on a book of six tiny chapters: what runs, what is kept, what a failure leaves."""

import json
import shutil
from pathlib import Path

from cellaug import book, run

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
from cellaug.book import build_folder, write_json

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
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(tiny):
    return {p.stem: p.stat().st_mtime_ns for p in (tiny / "build/tiny/notebooks").glob("*.ipynb")}


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_only_what_changed_is_run_again(tiny, capsys):
    name, profile = run.load_profile("tiny")
    merged = run.run(name, profile)
    first = executed(tiny)
    assert set(first) == set(book.CHAPTERS)
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
    assert capsys.readouterr().out.count("nothing has changed") == 6

    # Chapter 04 is read by 06 alone.
    change(tiny / "notebooks/04_latent_space.py", '"seed": seed}}', '"seed": seed + 1}}')
    assert run.outdated(name, profile) == ["04_latent_space"]
    run.run(name, profile)
    second = executed(tiny)
    assert {c for c in first if first[c] != second[c]} == {"04_latent_space", "06_discussion"}

    # So does a recorded result with the chapter that shows it.
    (tiny / "book/results").mkdir(parents=True)
    for name_of_file, chapters in {
        "train-benchmark.json": ["02_vanilla_gan"],
        "weights-tiny.json": ["03_ac_gan", "06_discussion"],
        "ladder-tiny.png": ["03_ac_gan", "06_discussion"],
    }.items():
        (tiny / "book/results" / name_of_file).write_text("{}")
        assert run.outdated(name, profile) == chapters
        (tiny / "book/results" / name_of_file).unlink()
    # And with the cards of the package's weights.
    inputs = {c: run.chapter_task(c, profile).file_dep for c in ("01_data", "03_ac_gan")}
    cards = [f for f in inputs["03_ac_gan"] if f.endswith("pbc-fine-64/generator.json")]
    assert cards and not set(cards) & set(inputs["01_data"])

    # A parameter reruns the chapters that declare it; here all declare the seed.
    name, other = run.load_profile("tiny", ["rate=0.25"])
    assert run.outdated(name, other) == ["01_data"]
    run.run(name, profile, ["06"], force=True)
    third = executed(tiny)
    assert {c for c in first if second[c] != third[c]} == {"06_discussion"}


def test_code_that_changes_during_the_run_does_not_count(tiny):
    path = tiny / "notebooks" / "01_data.py"
    touch = f"import pathlib\npathlib.Path({str(path)!r}).touch()\n\n# %%\nimport time"
    change(path, "import time", touch)
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["01"])
    assert "01_data" in run.outdated(name, profile)


def test_a_chapter_brings_what_it_needs(tiny):
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["3"])
    assert sorted(executed(tiny)) == ["01_data", "02_vanilla_gan", "03_ac_gan"]
    with pytest.raises(book.BookError, match="no chapter '7': there are 01_data"):
        run.run(name, profile, ["7"])


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
        (["data=[1, 2]"], "data: expected a plain value"),
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


def test_parameters_cell_must_be_plain(tiny):
    path = tiny / "notebooks" / "01_data.py"
    change(path, "seed = 1", "seed = int('1')")
    with pytest.raises(book.BookError, match=r"01_data\.py: 'seed = int"):
        book.declared_parameters("01_data")
    change(path, 'tags=["parameters"]', "")
    with pytest.raises(book.BookError, match=r"01_data\.py has no cell tagged"):
        book.declared_parameters("01_data")


def test_code_of_a_chapter_is_what_it_imports(tiny):
    path = tiny / "notebooks" / "02_vanilla_gan.py"
    path.write_text(path.read_text() + "\n# %%\nfrom cellaug.data.splits import split\n")
    package = Path(book.__file__).parent
    code = (Path(file) for file in run.code_of("02_vanilla_gan"))
    files = {str(file.relative_to(package)) for file in code if file.is_relative_to(package)}
    assert {"book.py", "data/splits.py", "data/catalogue.py"} <= files
    assert not {"cli.py", "report.py", "training/loop.py"} & files


def test_outside_of_a_clone_the_chapters_are_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (book.project_root() / "notebooks" / "01_data.py").is_file()


def test_the_shipped_profiles_are_accepted():
    for path in sorted((book.project_root() / "notebooks" / "profiles").glob("*.yaml")):
        name, profile = run.load_profile(path.stem)
        assert name == path.stem == profile["profile"]


def test_recording_needs_all_chapters(tiny):
    name, profile = run.load_profile("tiny")
    run.run(name, profile, ["01"])
    with pytest.raises(book.BookError, match="02_vanilla_gan, 03_ac_gan"):
        book.record_results(name)
    run.run(name, profile)
    path = book.record_results(name)
    assert path == tiny / "book/results/tiny/metrics.json"
    assert book.recorded_results()["tiny"]["chapters"]["03_ac_gan"] == {"seed": 3}
    shutil.rmtree(tiny / "book")


def test_the_state_of_the_data_follows_a_folder_and_a_manifest(tmp_path):
    cells = tmp_path / "cells"
    (cells / "a").mkdir(parents=True)
    (cells / "a" / "1.png").write_bytes(b"one")
    (cells / "m.csv").write_text("path,label\na/1.png,a\n")
    for source in (cells, cells / "m.csv"):
        before = run.data_state({"data": str(source)})
        assert before == run.data_state({"data": str(source)}) != ""
        (cells / "a" / "1.png").write_bytes(b"another, for " + source.name.encode())
        assert run.data_state({"data": str(source)}) != before
    before = run.data_state({"data": str(cells / "m.csv")})
    (cells / "m.csv").write_text("path,label\na/1.png,b\nx,y\n")
    assert run.data_state({"data": str(cells / "m.csv")}) != before
    assert run.data_state({"data": "phantom"}) == ""
