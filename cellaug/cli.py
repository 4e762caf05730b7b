"""The command ``cellaug``; commands import what they need in their body, so ``--help`` is quick."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cellaug import __version__
from cellaug.errors import BookError, ChapterFailed, DataError, ReportError

import click

EXAMPLES = """\b
Examples:
  cellaug run --profile demo              run all six chapters on drawn cells, without a download
  cellaug book --profile demo             build the report, build/demo/html/index.html
  cellaug inspect my_cells/               is this folder of labelled cells fit for training?
  cellaug run --profile pbc --set data=my_cells/
  cellaug augment my_cells/ --generator build/pbc/artifacts/03_ac_gan/conditional --out augmented/
  cellaug expert-test --real my_cells/ --fake generated/ --out trial/"""


def figure_file(text: str) -> Path:
    """The type of `--figure`."""
    file = Path(text).expanduser()
    if file.suffix.lower() not in (".png", ".svg", ".pdf") or not file.parent.is_dir():
        raise click.BadParameter(f"'{text}': expected a .png, .svg or .pdf in an existing folder")
    return file


COUNT, SEED = click.IntRange(1), click.IntRange(0)
TYPES = {"N": COUNT, "PIXELS": COUNT, "S": SEED, "SEED": SEED, "DIR": Path, "PATH": Path}
TYPES |= {"R": click.FloatRange(0, 1000, min_open=True, max_open=True), "FILE": figure_file}


def option(spelling: str, words: str, *names: str, **more: Any) -> Callable:
    """An option as `--help` spells it, ``--count N``, of the type in `TYPES`; or a ``--flag``."""
    flag, _, placeholder = spelling.partition(" ")
    if placeholder:
        more = {"metavar": placeholder, "type": TYPES.get(placeholder)} | more
    return click.option(flag, *names, help=words, is_flag=not placeholder, **more)


def profile_options(command: Callable) -> Callable:
    """The options ``--profile`` and ``--set``."""
    change = option("--set key=value", "Change a key of the profile; repeatable.", multiple=True)
    words = "smoke, demo, pbc, thesis, or a YAML file of your own."
    return option("--profile NAME|FILE", words, default="demo")(change(command))


words = "A folder with one subfolder per class; or a table (.csv, .parquet) with the columns path "
words += "and label, and optionally split and group; or a store; or one of pbc, pbc-fine, phantom, "
data_argument = click.argument("data", help=words + "bloodmnist-28, -64, -128, -224.")
words = "Generated images, as for REAL; or the output of 'generate' or 'augment'; or a generator: "
words += "build/demo/artifacts/03_ac_gan/conditional, for example, or the name of a shipped one."
fake_argument = click.argument("fake", help=words)
words = "pbc: 17,092 images of normal blood cells, 360 px; or the same cells as MedMNIST has them: "
words += "bloodmnist-28, bloodmnist-64, bloodmnist-128, bloodmnist-224. All are CC BY 4.0."
name_argument = click.argument("name", help=words)
words = "One that a chapter saved, or the name of a shipped one."
generator_option = option("--generator DIR", words, required=True)
seed_option = option("--seed S", "Random seed.", default=0)
json_option = option("--json", "Print one JSON document and nothing else.", "as_json")
figure_option = option("--figure FILE", "Also draw the result (.png, .svg or .pdf).")
new_folder_option = option("--out DIR", "A new folder for the result.", required=True)


def draw(name: str, file: Path, *findings: Any) -> None:
    """Write the figure `cellaug.figures.<name>` of the findings."""
    import matplotlib

    matplotlib.use("agg")  # no window, whatever the user's settings are
    from cellaug import figures, files

    figures.use_style()
    getattr(figures, name)(*findings).savefig(drawn := io.BytesIO(), format=file.suffix[1:].lower())
    files.write_atomically(file, drawn.getvalue())


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(cls=_InOrder, epilog=EXAMPLES, no_args_is_help=False, context_settings=SETTINGS)
@click.version_option(__version__, message="cellaug %(version)s")
def commands() -> None:
    """Add generated cells to training sets of white blood cells, and measure whether it helps."""


@commands.command()
@profile_options
@option("--chapter NN", "Run only this chapter and those it needs; repeatable.", multiple=True)
@option("--force", "Run the chapters even if nothing has changed.")
@option("--keys", "List the keys that a profile can set, and exit.")
def run(profile: str, set: Sequence[str], keys: bool, chapter: Sequence[str], force: bool) -> None:
    """Run the chapters of the book that have changed."""
    from cellaug.book import run as runner

    done = None if keys else runner.run(*runner.load_profile(profile, set), chapter, force)
    print(runner.summary(done) if done else runner.parameters_help())


@commands.command()
@profile_options
def book(profile: str, set: Sequence[str]) -> None:
    """Build the HTML report from the chapters that were run."""
    from cellaug.book import run as runner

    print(runner.build_book(*runner.load_profile(profile, set)))


@commands.command()
@profile_options
def record(profile: str, set: Sequence[str]) -> None:
    """Save the results of a run for the book to show. They go to book/results."""
    from cellaug.book import run as runner
    from cellaug.book.chapter import record_results

    name, values = runner.load_profile(profile, set)
    runner.require_current(name, values)
    print(record_results(name))


@commands.command()
@name_argument
@option("--out DIR", "Where to save it; by default in the cache, ~/.cache/cellaug.")
def fetch(name: str, out: Path | None) -> None:
    """Download, verify and unpack a public data set."""
    from cellaug.data.fetch import fetch as download

    print(download(name, out))


@commands.command()
@data_argument
@option("--size PIXELS", "Width and height of the stored images.", required=True)
@option("--out DIR", "Where to save them; by default in the cache.")
def store(data: str, size: int, out: Path | None) -> None:
    """Decode a set's images once, for fast reading. Run it again to bring them up to date."""
    from cellaug.data import open_dataset, stored

    cells = stored(open_dataset(data), size, out)
    print(f"{len(set(cells.digests)):,} images of {size}×{size} pixels")
    print(cells.store and cells.store.folder)


@commands.command()
@data_argument
@option("--all", "Print lists in full length.", "everything")
@json_option
@figure_option
def inspect(data: str, everything: bool, as_json: bool, figure: Path | None) -> int:
    """Check whether labelled cells are fit for training.

    Exit status: 0 if they are, 1 if they are not, 2 if the set cannot be opened.
    """
    from cellaug.data import inspection, open_dataset

    dataset = open_dataset(data)
    found = inspection.inspect(dataset)
    print(inspection.as_json(found) if as_json else inspection.as_text(found, everything))
    if figure:
        draw("inspection", figure, found, dataset)
    return 0 if found.fit else 1


@commands.command()
@click.argument("real", help="Real images, as for 'inspect'; best ones not used in training.")
@fake_argument
@option("--reference TRAIN", "Training images, for memorisation and classifier tests.")
@option("--split SEED", "Split REAL like chapter 01 (its seed is 1): TRAIN and the test images.")
@option("--count N", "Images to generate per class; by default the same number as REAL has.")
@option("--size PIXELS", "Size to compare at; by default that of the generated images.")
@seed_option
@option("--no-cas", "Skip the classifier comparison, which takes a minute or two.")
@json_option
@figure_option
def evaluate(real: str, fake: str, as_json: bool, figure: Path | None, **options: Any) -> None:
    """Compare generated cells with real ones. The result explains every measure."""
    from cellaug import evaluation
    from cellaug.data import open_dataset, split

    compared, seed = open_dataset(real), options["seed"]
    trained = open_dataset(options["reference"]) if options["reference"] else None
    if options["split"] is not None:
        splits = split(compared, seed=options["split"])
        compared, trained = splits["test"], trained or splits["train"]
    for dataset in filter(None, (compared, trained)):
        evaluation.refuse_generated(dataset)
    wanted, cas = compared.counts().to_dict(), not options["no_cas"]
    made = evaluation.read_generated(fake, wanted, options["size"], options["count"], seed)
    assert made.images is not None
    size = made.images.shape[1]
    known = trained and trained.in_memory(size)
    found = evaluation.evaluate(compared.in_memory(size), made, known, cas=cas, seed=seed)
    print(evaluation.as_json(found) if as_json else evaluation.as_text(found))
    if figure:
        draw("fidelity", figure, found)


@commands.command()
@click.argument("name", type=click.Choice(("extractor", "ladder", "weights", "cards")))
@profile_options
@option("--out PATH", "By default build/study/NAME; for cards the weights in the package.")
@option("--images N", "Real images per training [ladder: its key ladder_images; weights: 850000].")
@option("--arm NAME", "Only this variant of the ladder or the weights; repeatable.", multiple=True)
@option("--seeds N", "Seeds of each step of the ladder; first and last have at least 3.", default=1)
@option("--seed S", "Seed of the weights [1]; repeatable.", type=COUNT, multiple=True)
def study(name: str, profile: str, set: Sequence[str], **options: Any) -> None:
    """Make what the package ships or the book records.

    extractor: the network behind the fidelity measures. ladder: the ablation study. weights: the
    generators that come with cellaug. cards: evaluate those again. All but cards take hours on a
    processor; they resume after an interruption.
    """
    from cellaug.book import run as runner

    images, arms, seed = options["images"], list(options["arm"]), list(options["seed"])
    if name == "cards" and (images or arms or seed):
        raise DataError("cards trains nothing: remove --arm, --seed and --images")
    notebook = f"studies/{name}".replace("cards", "weights")
    _, values = runner.load_profile(profile, set, notebook)
    out = options["out"] and str(options["out"].absolute())
    given = {"out": out, "arms": arms, "cards": name == "cards", "images": images, "seeds": seed}
    if name == "ladder":
        given |= {"images": None, "ladder_images": images, "seeds": options["seeds"]}
    print(runner.run_study(notebook, values | {k: v for k, v in given.items() if v}))


@commands.command()
@generator_option
@option("--label NAME", "The class to generate; by default every class of the generator.")
@option("--count N", "Number of images per class.", required=True)
@new_folder_option
@seed_option
def generate(generator: str, label: str | None, count: int, out: Path, seed: int) -> None:
    """Generate images with a trained generator. Their table is manifest.csv."""
    from cellaug import generators

    loaded = generators.load_generator(generator)
    generators.generate(loaded, label or loaded.class_names or None, count, out, seed)
    print(out)


@commands.command()
@data_argument
@generator_option
@option("--ratio R", "Generated images per real image of a class.", default=0.5)
@new_folder_option
@seed_option
def augment(data: str, generator: str, ratio: float, out: Path, seed: int) -> None:
    """Copy labelled cells and add generated ones to each class."""
    from cellaug import generators
    from cellaug.data import open_dataset

    loaded = generators.load_generator(generator)
    manifest = generators.augment(open_dataset(data), loaded, ratio, out, seed)
    print(manifest.groupby(["label", "origin"]).size().unstack(fill_value=0).to_string())
    print(out)


@commands.command("expert-test")
@option("--real DIR", "A folder with real images, also in subfolders.", required=True)
@option("--fake DIR", "A folder with generated images, also in subfolders.", required=True)
@new_folder_option
@option("--count N", "Images of each kind, drawn at random; 50 in the thesis.", default=50)
@seed_option
@option("--size PIXELS", "Size of all images; by default the shortest side of any drawn image.")
def expert_test(real: Path, fake: Path, out: Path, **options: Any) -> None:
    """Make a page that tests a person on real and fake images.

    The page is one file that works in any browser without a network. Keep its key to yourself.
    """
    from cellaug.evaluation import expert_page

    print(expert_page.summary(expert_page.write_test(real, fake, out, **options), out))


@commands.command("expert-score")
@click.argument("answers", help="Exported answers, one file per reader.", nargs=-1, required=True)
@click.argument("key", help="The key.json of that page.")
@json_option
def expert_score(answers: Sequence[str], key: str, as_json: bool) -> None:
    """Score the answers exported from a page of expert-test."""
    from cellaug.evaluation import expert_page

    scores = expert_page.score_answers(answers, key)
    print(json.dumps(scores, indent=2) if as_json else expert_page.as_text(scores))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 1 (failed chapter, unfit set), 2 (bad input) or 130 (Ctrl-C)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names can have letters that a terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return commands.main(argv, "cellaug", standalone_mode=False) or 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cellaug"
        status, message = 2, f"{error.format_message()} See '{command} --help'."
    except (ChapterFailed, BookError, DataError, ReportError, OSError) as error:
        status, message = 1 if isinstance(error, ChapterFailed) else 2, str(error)
    except click.Abort as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        status, message = 130, "stopped; the next run resumes from the last checkpoint"
    print(f"cellaug: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
