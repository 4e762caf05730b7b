"""The command ``cellaug``; commands import what they need in their body, so ``--help`` is quick."""

import io
import json
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellaug import __version__, cli_study
from cellaug.errors import BookError, ChapterFailed, DataError, ReportError, in_words
from cellaug.options import (
    GENERATOR_WORDS,
    SIDE,
    columns_option,
    columns_together,
    data_argument,
    fake_argument,
    figure_option,
    generator_option,
    json_option,
    name_argument,
    new_folder_option,
    option,
    profile_options,
    seed_option,
    size_or_original,
    truncation_option,
)

import click

EXAMPLES = """\b
Examples:
  cellaug run --profile demo              run all six chapters on drawn cells, without a download
  cellaug book --profile demo             build the report, build/demo/html/index.html
  cellaug inspect my_cells/               is this folder of labelled cells fit for training?
  cellaug run --profile pbc --set data=my_cells/
  cellaug advise my_cells/ --out advice/  would generated cells help here? Overnight.
  cellaug augment my_cells/ --generator build/pbc-my_cells/artifacts/03_ac_gan/conditional \\
    --out augmented/
  cellaug expert-test --real my_cells/ --fake generated/ --out trial/"""


def typed(command: str, profile: str, set: Sequence[str]) -> str:
    """The command line of another command for the same profile and settings."""
    settings = [word for pair in set for word in ("--set", pair)]
    return shlex.join(["cellaug", command, "--profile", profile, *settings])


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
    """Add generated cells to training sets of blood cells, and measure whether it helps."""


@commands.command()
@profile_options
@option("--chapter NN", "Run only this chapter and those it needs; repeatable.", multiple=True)
@option("--force", "Run the chapters even if nothing has changed.")
@option("--keys", "List the keys that a profile can set, and exit.")
def run(profile: str, set: Sequence[str], keys: bool, chapter: Sequence[str], force: bool) -> None:
    """Run the chapters of the book that have changed."""
    from cellaug.book import CHAPTERS
    from cellaug.book import run as runner

    if keys:
        print(runner.parameters_help())
        return
    needs_data = any(page in CHAPTERS for page in runner.chosen(chapter))
    name, values = runner.load_profile(profile, set, "", needs_data)
    done = runner.run(name, values, chapter, force)
    late = runner.outdated(name, values) if chapter else []
    print(f"\n{runner.summary(done, typed('book', profile, set), late)}")


@commands.command()
@profile_options
@option("--one-page", "All chapters on one page, for printing, in build/NAME/print.")
def book(profile: str, set: Sequence[str], one_page: bool) -> None:
    """Build the HTML report from the chapters that were run."""
    from cellaug.book import report
    from cellaug.book import run as runner
    from cellaug.book.chapter import build_folder, merge_metrics

    name, values = runner.load_profile(profile, set)
    runner.require_current(name, values, typed("run", profile, set))
    print(report.build_html(build_folder(name), merge_metrics(name), one_page))


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", help="Options of JupyterLab.", nargs=-1, type=click.UNPROCESSED)
def lab(options: Sequence[str]) -> None:
    """Open the chapters in JupyterLab. What is run there does not replace the book's results."""
    from cellaug.book.lab import start

    start(options)


@commands.command()
@profile_options
def record(profile: str, set: Sequence[str]) -> None:
    """Save the results of a run for the book to show. They go to book/results."""
    from cellaug.book import run as runner
    from cellaug.book.chapter import record_results

    name, values = runner.load_profile(profile, set)
    runner.require_current(name, values, typed("run", profile, set))
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
@columns_option
@option("--size PIXELS", "Width and height of the stored images.", required=True)
@option("--out DIR", "Where to save them; by default in the cache.")
def store(data: str, columns: dict, size: int, out: Path | None) -> None:
    """Decode a set's images once, for fast reading. Run it again to bring them up to date."""
    from cellaug.data import open_dataset, stored

    cells = stored(open_dataset(data, **columns), size, out)
    print(f"{len(set(cells.digests)):,} images of {size}×{size} pixels")
    if made := cells.origins():
        print(made)
    print(cells.store and cells.store.folder)


@commands.command()
@data_argument
@columns_option
@option("--all", "Print lists in full length.", "everything")
@json_option
@figure_option
def inspect(data: str, columns: dict, everything: bool, as_json: bool, figure: Path | None) -> int:
    """Check whether labelled cells are fit for training.

    Exit status: 0 if they are, 1 if they are not, 2 if the set cannot be opened.
    """
    from cellaug.data import inspection
    from cellaug.data.sets import open_dataset, roughly

    many = 0 if data.startswith("phantom") else roughly(data)
    if (seconds := inspection.seconds(many)) > 10:
        said = f"takes about {seconds:,.0f} seconds on two cores, again a fifth of it"
        click.echo(f"inspecting {many:,} images {said}", err=True)
    dataset = open_dataset(data, **columns)
    found = inspection.inspect(dataset)
    print(inspection.as_json(found) if as_json else inspection.as_text(found, everything))
    if figure:
        draw("inspection", figure, found, dataset)
    return 0 if found.fit else 1


words = "Divide REAL as chapter 1 did (seed 1). Its test images are compared; its training images "


@commands.command()
@click.argument("real", help="Real images, as for 'inspect'; best ones not used in training.")
@fake_argument
@columns_option
@option("--reference TRAIN", "Training images, for memorisation and classifier tests.")
@option("--split SEED", words + "serve as TRAIN.")
@option("--count N", "Images to generate per class; by default the same number as REAL has.")
@option("--size PIXELS", "Size to compare at; by default that of the generated images.", type=SIDE)
@click.option(
    "--features",
    type=click.Choice(("auto", "shipped", "own")),
    default="auto",
    help="shipped: features of the package; own: learn features from your cells (minutes); "
    "auto: own only if the shipped ones do not know these cells.",
)
@seed_option
@option("--no-cas", "Skip the classifier comparison, which takes a minute or two.")
@json_option
@figure_option
def evaluate(
    real: str, fake: str, columns: dict, as_json: bool, figure: Path | None, **options: Any
) -> None:
    """Compare generated cells with real ones. The result explains every measure."""
    from cellaug import evaluation
    from cellaug.data import open_dataset, split
    from cellaug.data.splits import DEFAULT_FRACTIONS

    compared, seed = open_dataset(real, **columns), options["seed"]
    reference = options["reference"]
    table = columns if reference and Path(reference).is_file() else {}
    trained = open_dataset(reference, **table) if reference else None
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
    counts = len(compared), len(made), len(trained or ()), cas
    seconds, longer = (evaluation.expected_seconds(*counts, own) / 60 for own in (False, True))
    if options["features"] == "own":
        seconds = longer
    if options["features"] == "auto" or seconds > 1 / 3:
        about = f"about {seconds:.1f} minutes" if seconds >= 0.5 else "less than a minute"
        more = f", {longer:.1f} minutes if features must be learned"
        more *= options["features"] == "auto"
        click.echo(f"This takes {about} on two cores{more}.", err=True)
    told = {"features": options["features"], "trained_on": evaluation.training_digests(fake)}
    found = evaluation.evaluate(compared.in_memory(size), made, known, cas=cas, seed=seed, **told)
    width = found.extractor["features"]
    if options["split"] is not None and found.settings["compared"] <= width:
        many = f"{2 * (width + 1) / DEFAULT_FRACTIONS['test']:,.0f}"
        words = f"REAL with about {many} images would have enough test images"
        found.notes.append(f"The Fréchet distance over all was not measured: {words}.")
    print(evaluation.as_json(found) if as_json else evaluation.as_text(found))
    if kept := evaluation.keep_finding(fake, found.card()):
        click.echo(f"cellaug: {kept}", err=True)
    if figure:
        draw("fidelity", figure, found)


@commands.command()
@generator_option
@option("--label NAME", "The class to generate; by default every class of the generator.")
@option("--count N", "Number of images per class.", required=True)
@new_folder_option
@seed_option
@option("--select DATA", "Labelled real cells: keep only images that pass for such ones.")
@columns_option
@truncation_option
def generate(
    generator: str, label: str | None, count: int, out: Path, seed: int, select: str | None,
    columns: dict, truncation: float | None,
) -> None:  # fmt: skip
    """Generate images with a trained generator. Their table is manifest.csv."""
    from cellaug import augmentation, files, generators
    from cellaug.data import open_dataset

    read, chooser = generators.read_generator(generator, truncation), None
    read.numbers(label or read.class_names or None)
    if select:
        files.new_folder(out)
        cells = open_dataset(select, **columns)
        names = [label] if label else read.class_names
        if unknown := ", ".join(x for x in names if x not in cells.class_names):
            known = ", ".join(cells.class_names)
            raise DataError(f"--select: {cells.name} has no class {unknown}, only {known}")
        chooser = selector(cells, read.image_size, seed)
    images = count * (1 if label else max(1, len(read.class_names)))
    seconds = augmentation.SECONDS_PER_PIXEL * read.image_size**2 * images
    seconds *= augmentation.TRIES if select else 1
    if seconds > 20:
        told = f"{images:,} images take about {seconds / 60:.1f} minutes on two cores"
        click.echo(told, err=True)
    augmentation.generate(read, label or read.class_names or None, count, out, seed, chooser)
    if select:
        show_selection(out, read, seed)
    print(out)


def selector(cells: Any, size: int, seed: int) -> Any:
    """Learn what to select by, and say so beforehand."""
    from cellaug.evaluation.selection import selector_of

    click.echo("learning what to select by takes about two minutes on two cores", err=True)
    return selector_of(cells, size, seed)


def show_selection(out: Path, generator: Any, seed: int) -> None:
    """Print what a selection kept and refused, and draw some of what it refused."""
    from cellaug import augmentation

    counts = augmentation.selection(out)
    print(counts.rename_axis(columns=None).to_string())
    if none := ", ".join(counts.index[counts["kept"] == 0]):
        click.echo(f"cellaug: no generated image of {none} passed for a real one", err=True)
    if images := augmentation.refused_images(out, generator, seed):
        draw("image_rows", out / "refused.png", images)


class_map_words = "YAML lines: 'class of DATA: class of the generator' or 'class of DATA: leave'."
words = "Width and height of all images; by default the generator's. With 'original', real images "
words += "keep theirs, and their sharpness shows which ones are real."


@commands.command()
@data_argument
@columns_option
@option("--generator DIR", GENERATOR_WORDS)
@option("--advice DIR", "What 'advise' wrote: its generator, and as many cells as it recommends.")
@option("--ratio R", "Generated images per real image of a class [0.5].")
@option("--fill N", "Instead of --ratio: fill each class up to N images.")
@option("--only CLASS", "Add images to this class alone; repeatable.", multiple=True)
@option("--select", "Keep only generated images that pass for real ones of DATA; takes minutes.")
@new_folder_option
@seed_option
@option("--size PIXELS|original", words, type=size_or_original)
@option("--class-map FILE", class_map_words, type=str)
@truncation_option
def augment(
    data: str, columns: dict, generator: str | None, advice: Path | None, ratio: float | None,
    fill: int | None, out: Path, class_map: str | None, select: bool, truncation: float | None,
    **options: Any,
) -> None:  # fmt: skip
    """Copy labelled cells and add generated ones to each class.

    If DATA has a published split, only its training images count and get generated ones beside
    them. The generator is --generator DIR, or that of --advice DIR, whose numbers are of the
    training images of its study.
    """
    from cellaug import augmentation, files, generators
    from cellaug.data import class_map as maps
    from cellaug.data import export, open_dataset, split

    if ratio is not None and fill is not None:
        raise DataError("--ratio and --fill both say how many images to add: give one of them")
    if (advice is None) == (generator is None):
        raise DataError("expected either --generator DIR or --advice DIR")
    if advice:
        told = augmentation.read_advice(advice)
        generator, select = str(advice / "generator"), select or told["select"]
        if ordered := ratio is None and fill is None:
            ratio, fill = told["ratio"], told["fill"]
    assert generator is not None
    read, more = generators.read_generator(generator, truncation), 0.5 if ratio is None else ratio
    augmentation.check_order(read, more, out, options["size"])
    named = maps.read_class_map(class_map) if class_map else None
    if read.caution:
        click.echo(f"cellaug: {read.caution}", err=True)
    files.require_room(out, files.count(data) * read.image_size**2, "the set of images")
    cells, seed = open_dataset(data, **columns), options["seed"]
    options["selector"] = selector(cells, read.image_size, seed) if select else None
    if advice and ordered:  # the study counted the images that it trained on
        options["counts"] = split(cells)["train"].counts()
    manifest = augmentation.augment(cells, read, more, out, **options, class_map=named, fill=fill)
    print(export.as_text(manifest, options["size"], read.image_size))
    if seen := read.seen(cells):
        said = f"the generator was trained on {seen:,} of the {len(cells):,} real images"
        click.echo(f"cellaug: {said}: test a classifier on others alone", err=True)
    if select:
        show_selection(out, read, seed)
    if advice and told["train"]:
        print(f"in training {told['train']}")
    print(out)


@commands.command()
@option("--classifier DIR", "A folder with classifier.json.", required=True)
@click.argument("images", help="Image files, or folders of them.", nargs=-1, required=True)
def predict(classifier: Path, images: Sequence[str]) -> int:
    """Name cells, with calibrated probabilities, as CSV.

    The column note says which images are not like the cells that the classifier was trained on.
    Exit status: 0 if all images could be read, 1 if not. Not for diagnosis.
    """
    from cellaug import classifiers
    from cellaug.data.layouts import files_in

    read = classifiers.read_classifier(classifier)
    found, problems = read.predict_files([file for place in images for file in files_in(place)])
    print(found.round(4).to_csv(index=False), end="")
    for problem in problems:
        click.echo(f"cellaug: {problem}", err=True)
    if problems:
        click.echo(f"cellaug: {len(problems)} files could not be read", err=True)
    return 1 if problems else 0


@commands.command("expert-test")
@option("--real DIR", "A folder with real images, also in subfolders.", required=True)
@option("--fake DIR", "A folder with generated images, also in subfolders.", required=True)
@new_folder_option
@option("--count N", "Images of each kind, drawn at random; 50 in the thesis.", default=50)
@seed_option
@option("--size PIXELS", "Size of all images; by default the shortest side of any drawn image.")
@option("--ask real|class", "Real or generated? Or which class, to test labels?", default="real")
def expert_test(real: Path, fake: Path, out: Path, **options: Any) -> None:
    """Make a page that tests a person on real and fake images.

    The page is one file that works in any browser without a network. Keep its key to yourself.
    If both folders have classes (subfolders or a manifest.csv), both get the same number of images
    of each class; else the frequency of a class can tell a participant what is real.
    """
    from cellaug.evaluation import expert_page

    print(expert_page.summary(expert_page.write_test(real, fake, out, **options), out))


@commands.command("expert-score")
@click.argument("answers", help="Answers, one file per participant.", nargs=-1, required=True)
@click.argument("key", help="The key.json of that page.")
@json_option
@option("--figure FILE", "Also draw the most convincing and most obvious cells (.png, .svg, .pdf).")
def expert_score(answers: Sequence[str], key: str, as_json: bool, figure: Path | None) -> None:
    """Score the answers exported from a page of expert-test."""
    from cellaug.evaluation import expert_score as expert

    scores = expert.score_answers(answers, key)
    print(json.dumps(scores, indent=2) if as_json else expert.as_text(scores))
    if figure:
        draw("image_rows", figure, *expert.extremes(scores, key))


for command in (cli_study.train, cli_study.advise, cli_study.study):
    commands.add_command(command)


def stop(number: int, frame: Any) -> None:
    """Stop as Ctrl-C does; half a minute later again: what a callback raises can get lost."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(30)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 1 (failed chapter, unfit set), 2 (bad input) or 130 (stopped).

    It is stopped by Ctrl-C or SIGTERM, after which no unfinished file is left.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names can have letters that a terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ.pop("JPY_SESSION_NAME", None)  # a command in a notebook's cell is not that notebook
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    setattr(warnings, "formatwarning", lambda words, *_, **__: f"cellaug: {words}\n")  # noqa: B010 - mypy
    given = columns_together(sys.argv[1:] if argv is None else argv)
    try:
        return commands.main(given, "cellaug", standalone_mode=False) or 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cellaug"
        status, message = 2, f"{error.format_message()} See '{command} --help'."
    except (ChapterFailed, BookError, DataError, FloatingPointError, ReportError, OSError) as error:
        status, message = 1 if isinstance(error, ChapterFailed) else 2, in_words(error)
    except click.Abort as error:
        signal.alarm(0)
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        goes_on = given[0] in ("run", "study", "advise", "train")
        more = "; the next run resumes from the last checkpoint, if there is one yet" * goes_on
        status, message = 130, f"stopped{more}"
    print(f"cellaug: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
