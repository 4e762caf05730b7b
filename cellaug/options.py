"""Arguments and options that several commands of ``cellaug`` share."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


def figure_file(text: str) -> Path:
    """The type of `--figure`."""
    file = Path(text).expanduser()
    if file.suffix.lower() not in (".png", ".svg", ".pdf") or not file.parent.is_dir():
        raise click.BadParameter(f"'{text}': expected a .png, .svg or .pdf in an existing folder")
    return file


def renamed(ctx: click.Context, parameter: click.Parameter, given: Sequence[str]) -> dict:
    """The option of `open_dataset` that ``--columns`` gives; a comma may separate pairs."""
    pairs = [part for text in given for part in re.split(r",(?=\s*\w+\s*=)", text)]
    if wrong := next((pair for pair in pairs if not all(map(str.strip, pair.partition("=")))), ""):
        raise click.BadParameter(f"'{wrong}': expected NAME=COLUMN, as in label=cell_type")
    named = (pair.partition("=") for pair in pairs)
    columns = {name.strip(): column.strip() for name, _, column in named}
    return {"columns": columns} if columns else {}


def columns_together(words: Sequence[str]) -> list[str]:
    """A command line in which all pairs after one ``--columns`` are one word."""
    found: list[str] = []
    for word in words:
        if found[-2:-1] == ["--columns"] and re.match(r"(path|label|split|group|origin)=.", word):
            found[-1] += f",{word}"
        else:
            found.append(word)
    return found


COUNT, SEED = click.IntRange(1), click.IntRange(0)
HOURS = click.FloatRange(0, min_open=True)
SIDE = click.IntRange(8)  # `SMALLEST_SIDE`: an image that is smaller shows no cell
TYPES = {"N": COUNT, "PIXELS": COUNT, "S": SEED, "SEED": SEED, "DIR": Path, "PATH": Path}
TYPES |= {"R": click.FloatRange(0, 1000, min_open=True, max_open=True), "FILE": figure_file}
TYPES |= {"real|class": click.Choice(("real", "class"))}


def size_or_original(text: str) -> int | str:
    """The type of `--size` of augment."""
    return text if text == "original" else COUNT(text)


def option(spelling: str, words: str, *names: str, **more: Any) -> Callable:
    """An option as `--help` spells it, ``--count N``, of the type in `TYPES`; or a ``--flag``."""
    flag, _, placeholder = spelling.partition(" ")
    if placeholder:
        more = {"metavar": placeholder, "type": TYPES.get(placeholder)} | more
    else:  # False would mean that a value may be left out
        more["is_flag"] = True
    return click.option(flag, *names, help=words, **more)


def profile_options(command: Callable) -> Callable:
    """The options ``--profile`` and ``--set``."""
    change = option("--set key=value", "Change a key of the profile; repeatable.", multiple=True)
    words = "smoke, demo, pbc, thesis, or a YAML file of your own."
    return option("--profile NAME|FILE", words, default="demo")(change(command))


words = "A folder with one subfolder per class; or a table (.csv, .parquet) with the columns path "
words += "and label, and optionally split and group; or a store; or one of pbc, pbc-fine, phantom, "
data_argument = click.argument("data", help=words + "phantom-2, bloodmnist-28, -64, -128, -224.")
words = "Generated images, as for REAL; or the output of 'generate' or 'augment'; or a generator: "
words += "build/demo/artifacts/03_ac_gan/conditional, for example, or the name of a shipped one."
fake_argument = click.argument("fake", help=words)
words = "pbc: 17,092 images of normal blood cells, 360 px; or the same cells as MedMNIST has them: "
words += "bloodmnist-28, bloodmnist-64, bloodmnist-128, bloodmnist-224. All are CC BY 4.0."
name_argument = click.argument("name", help=words)
words = "Other names of a table's columns path, label, split, group and origin; repeatable: "
words += '--columns path="image ID" label=cell_type.'
columns_option = option("--columns NAME=COLUMN", words, multiple=True, callback=renamed)
GENERATOR_WORDS = "One that a chapter saved, or the name of a shipped one."
generator_option = option("--generator DIR", GENERATOR_WORDS, required=True)
words = "Draw values beyond ±T again, such as 2: fewer broken cells, and less variety."
truncation_option = option("--truncation T", words, type=click.FloatRange(0.1))
seed_option = option("--seed S", "Random seed.", default=0)
json_option = option("--json", "Print one JSON document and nothing else.", "as_json")
figure_option = option("--figure FILE", "Also draw the result (.png, .svg or .pdf).")
new_folder_option = option("--out DIR", "A new folder for the result.", required=True)
