"""The command line as a whole: quick, in one voice, with the exit codes that it promises."""

import subprocess
import sys

from cellaug import __version__, cli
from cellaug.book import run as runner
from cellaug.errors import BookError, ChapterFailed, ReportError

import click
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
        (KeyboardInterrupt(), 130, "stopped; the next run resumes from the last checkpoint"),
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
