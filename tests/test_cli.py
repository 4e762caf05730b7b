"""The command line as a whole: quick, in one voice, with the exit codes that it promises."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cellaug import __version__, augmentation, cli, errors, generators
from cellaug.book import run as runner
from cellaug.errors import BookError, ChapterFailed, ReportError
from cellaug.files import atomic_folder, write_atomically

import click
import numpy as np
import pytest

HEAVY = {"tensorflow", "keras", "jax", "pandas", "numpy", "cv2", "scipy", "matplotlib", "doit"}


@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"], ["--version"], ["inspect"]])
def test_help_and_usage_errors_import_nothing_heavy(words):
    code = f"import sys; from cellaug.cli import main; main({words}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize("name", cli.commands.commands)
def test_every_command_and_option_has_its_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    command = cli.commands.commands[name]
    for parameter in command.params:  # a list of choices explains itself
        assert parameter.help or isinstance(parameter.type, click.Choice), parameter.name
    assert f"Usage: cellaug {name}" in capsys.readouterr().out
    assert command.get_short_help_str(60).endswith(".") and "..." not in command.get_short_help_str(
        60
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command. See 'cellaug --help'."),
        (["inspct"], "No such command 'inspct'."),
        (["inspect"], "Missing argument 'DATA'. See 'cellaug inspect --help'."),
        (["inspect", "x", "--al"], "No such option '--al'."),
        (["store", "x"], "Missing option '--size'."),
        (["store", "x", "--size", "ten"], "Invalid value for '--size': 'ten' is not"),
        (["augment", "x", "--generator", "y", "--out", "z", "--ratio", "0"], "'--ratio': 0.0 is"),
        (["study", "all"], "'all' is not one of"),
        (["study", "augmentation", "--class-map", "x"], "the set of --external: give both"),
        (["expert-score", "key.json"], "Missing argument 'ANSWERS..."),
        (["run", "--profile", "nosuch"], "no profile 'nosuch'"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(words, message, capsys):
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("cellaug: ") and message in printed.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ChapterFailed("02, cell 3: boom"), 1, "02, cell 3: boom"),
        (BookError("no profile"), 2, "no profile"),
        (ReportError("no pages"), 2, "no pages"),
        (OSError("disk full"), 2, "disk full"),
        (
            KeyboardInterrupt(),
            130,
            "stopped; the next run resumes from the last checkpoint, if there is one yet",
        ),
    ],
)
def test_errors_have_their_exit_status(monkeypatch, capsys, error, status, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(runner, "load_profile", fail)
    assert cli.main(["run"]) == status
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"cellaug: {message}"


def test_a_mistake_of_the_package_is_not_hidden(monkeypatch):
    for error in (EOFError, ZeroDivisionError):

        def fail(*arguments, error=error):
            raise error

        monkeypatch.setattr(runner, "load_profile", fail)
        with pytest.raises(Exception) as caught:
            cli.main(["run"])
        assert error in (caught.type, type(caught.value.__cause__))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cellaug {__version__}\n"


def test_the_shell_completes_commands_and_options():
    code = "import sys; from cellaug.cli import main; sys.argv = ['cellaug']; sys.exit(main())"
    for words, expected in (("cellaug exp", "expert-test"), ("cellaug inspect --f", "--figure")):
        told = {"_CELLAUG_COMPLETE": "bash_complete", "COMP_WORDS": words}
        told["COMP_CWORD"] = str(words.count(" "))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=told
        )
        assert expected in done.stdout


def test_tensorflow_writes_nothing_of_its_own(tmp_path):
    words = ["generate", "--generator", "pbc-fine-64", "--label", "basophil", "--count", "1"]
    command = [sys.executable, "-m", "cellaug.cli", *words, "--out", str(tmp_path / "out")]
    told = os.environ | {"KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, capture_output=True, text=True, env=told)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == f"{tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "synthetic_basophil_0_00000.png").is_file()


def test_a_failed_import_of_tensorflow_is_heard(tmp_path):
    """So are a program's own lines: nothing but the import is kept quiet."""
    (tmp_path / "tensorflow.py").write_text(
        "import os; os.write(2, b'a library is missing\\n'); raise ImportError('broken')"
    )
    code = (
        "import os, sys; from cellaug import cli; cli.main(['--version'])\n"
        "os.write(2, b'before\\n')\n"
        "try:\n    import tensorflow\n"
        "except ImportError as error:\n    print(error, file=sys.stderr)\n"
    )
    told = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=told)
    assert done.stderr.splitlines() == ["before", "a library is missing", "broken"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_errors_of_the_disk_are_sentences(number, tmp_path, monkeypatch, capsys):
    """Whether or not the system names the file, as it does not when a disk is full."""
    monkeypatch.chdir(tmp_path)
    full, named = OSError(number, os.strerror(number)), OSError(number, os.strerror(number), "x.y")

    def fail(self, *arguments):
        raise full

    def draw(*arguments):
        yield np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(generators.Generator, "draw", draw)
    words = ["generate", "--generator", "pbc-fine-64", "--label", "basophil", "--count", "1"]
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", fail)
        assert cli.main([*words, "--out", "out"]) == 2
    line = capsys.readouterr().err
    assert line == f"cellaug: {tmp_path / 'out'}: {errors.ADVICE[number]}\n"
    assert "Errno" not in line and ("give" in line) and not list(tmp_path.iterdir())
    assert errors.in_words(named) == f"x.y: {errors.ADVICE[number]}"
    assert errors.in_words(OSError("no such place")) == "no such place"
    assert errors.in_words(OSError(errno.ENODEV, "No such device", "a")) == "a: No such device"


def test_room_that_lacks_is_named_before_anything_is_decoded(tmp_path, monkeypatch, capsys):
    room = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda place: room)
    (tmp_path / "set" / "basophil").mkdir(parents=True)
    for k in range(300):
        (tmp_path / "set" / "basophil" / f"{k}.png").write_bytes(b"")
    words = ["augment", str(tmp_path / "set"), "--generator", "pbc-fine-64"]
    monkeypatch.setattr("cellaug.data.open_dataset", lambda *_, **__: 1 / 0)
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "the set of images needs 1.17 MiB more, but the disk has 1 MiB left. Make" in line


def test_a_missing_file_is_a_sentence(tmp_path, capsys):
    words = ["augment", "x", "--generator", "pbc-fine-64", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--class-map", "none.yaml"]) == 2
    assert capsys.readouterr().err == f"cellaug: none.yaml: {errors.ADVICE[errno.ENOENT]}\n"


def test_a_disk_that_can_only_be_read_is_named_with_the_file(tmp_path, monkeypatch):
    def fail(self, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_atomically(tmp_path / "f.png", b"")
    assert caught.value.filename == str(tmp_path / "f.png")


def test_generate_says_how_long_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(augmentation, "generate", lambda *_: None)
    words = ["generate", "--generator", "pbc-fine-64", "--out", str(tmp_path / "out"), "--count"]
    assert cli.main([*words, "10"]) == 0 and capsys.readouterr().err == ""
    assert cli.main([*words, "10000"]) == 0  # of 11 classes, 3e-7 s for each of 64 by 64 pixels
    said = "110,000 images take about 2.3 minutes on two cores\n"
    assert capsys.readouterr().err == said


def test_other_errors_keep_the_name_of_their_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(tmp_path / "out"):
        (tmp_path / "none").read_bytes()
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(OSError, match=r"^in words$"), atomic_folder(tmp_path / "out"):
        raise OSError("in words")
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "none" / "file", b"")
    assert caught.value.filename == str(tmp_path / "none" / "file")


def test_a_stopped_command_leaves_no_files(tmp_path):
    code = (
        "import sys, time, numpy as np; from cellaug import cli, generators\n"
        "def draw(*arguments):\n"
        "    while True:\n        time.sleep(0.01)\n        yield np.zeros((64, 64, 3), 'u1')\n"
        "generators.Generator.draw = draw\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["generate", "--generator", "pbc-fine-64", "--count", "1000", "--out", "out"]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*.part/new/*.png")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read().strip() == "cellaug: stopped"
    assert process.returncode == 130 and not list(tmp_path.iterdir())
