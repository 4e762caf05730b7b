"""The command ``cellaug``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellaug import __version__

EXAMPLES = """\
examples:
  cellaug run --profile demo              all six chapters on drawn cells, no download
  cellaug book --profile demo             the report: build/demo/html/index.html
  cellaug inspect my_cells/               is this folder of labelled cells fit for training?
  cellaug run --profile pbc --set data=my_cells/
  cellaug augment my_cells/ --generator build/pbc/artifacts/03_ac_gan/conditional --out augmented/
"""


def parser() -> argparse.ArgumentParser:
    """The command line, as `--help` shows it."""
    top = argparse.ArgumentParser(
        prog="cellaug",
        description="Better training sets for white blood cells, and the evidence that they are.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cellaug {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, **more: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )

    sub = command(
        "run",
        "execute the chapters of the book that have changed",
        epilog="'cellaug run --keys' lists the keys of a profile.",
    )
    _profile(sub)
    sub.add_argument(
        "--chapter",
        action="append",
        default=[],
        metavar="NN",
        help="only this chapter, and what it needs; may be repeated (default: all six)",
    )
    sub.add_argument("--force", action="store_true", help="run it even if nothing has changed")
    sub.add_argument("--keys", action="store_true", help="list the keys of a profile and leave")

    sub = command("book", "render the executed chapters as HTML")
    _profile(sub)

    sub = command("record", "keep a run's figures under book/results for the book to show")
    _profile(sub)

    sub = command("fetch", "download a public data set, verify and unpack it")
    sub.add_argument(
        "name",
        help="pbc: 17,092 normal blood cells of 360 px, or the same cells as MedMNIST publishes "
        "them: bloodmnist-28, bloodmnist-64, bloodmnist-128, bloodmnist-224 (all CC BY 4.0)",
    )
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: the cache, ~/.cache/cellaug")

    sub = command(
        "store",
        "decode the images of a set once, for fast reading; run it again to bring it up to date",
    )
    _data(sub)
    sub.add_argument(
        "--size", type=_positive, required=True, metavar="PIXELS", help="side of the stored images"
    )
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: a folder in the cache")

    sub = command(
        "inspect",
        "say what a set of labelled cells holds and what is wrong with it",
        epilog="exit status: 0 fit for training, 1 not fit, 2 no set of images",
    )
    _data(sub)
    sub.add_argument("--all", action="store_true", help="do not cut lists short")
    sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    sub.add_argument(
        "--figure",
        type=_figure_file,
        metavar="FILE",
        help="draw it as well: classes, colours, what is unusual and what is there twice "
        "(.png, .svg or .pdf)",
    )

    sub = command("generate", "make images with a trained generator")
    _generator(sub)
    sub.add_argument(
        "--label",
        metavar="NAME",
        help="the class to make; left out only for a generator without classes",
    )
    sub.add_argument("--count", type=_positive, required=True, metavar="N", help="how many")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="PNGs and manifest.csv")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")

    sub = command("augment", "copy a folder of labelled cells and add generated ones to each class")
    _data(sub)
    _generator(sub)
    sub.add_argument(
        "--ratio",
        type=_ratio,
        default=0.5,
        metavar="R",
        help="generated images per real one in each class (default: 0.5, as in the thesis)",
    )
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    return top


def _profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--profile",
        default="demo",
        metavar="NAME|FILE",
        help="smoke, demo (default), pbc, thesis, or a YAML file of your own",
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="change one key of the profile; may be repeated",
    )


def _data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "data",
        metavar="DATA",
        help="a folder with one subfolder per class, a manifest (.csv or .parquet with the columns "
        "path, label and if wanted split and group), a store, or one of pbc, pbc-fine, phantom, "
        "bloodmnist-28, -64, -128, -224",
    )


def _generator(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--generator",
        type=Path,
        required=True,
        metavar="DIR",
        help="what a chapter has written, such as build/demo/artifacts/03_ac_gan/conditional",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found '{text}'")
    return int(text)


def _figure_file(text: str) -> Path:
    file = Path(text).expanduser()
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"expected a .png, .svg or .pdf file, found '{text}'")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder '{file.parent}'")
    return file


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"expected a number above 0 such as 0.5, found '{text}'")
    return value


def run(arguments: argparse.Namespace) -> None:
    """``cellaug run``."""
    from cellaug import run as runner

    if arguments.keys:
        print(runner.parameters_help())
        return
    name, profile = runner.load_profile(arguments.profile, arguments.set)
    merged = runner.run(name, profile, arguments.chapter, arguments.force)
    print(runner.summary(merged))


def book(arguments: argparse.Namespace) -> None:
    """``cellaug book``."""
    from cellaug import run as runner

    print(runner.build_book(*runner.load_profile(arguments.profile, arguments.set)))


def record(arguments: argparse.Namespace) -> None:
    """``cellaug record``."""
    from cellaug import run as runner
    from cellaug.book import record_results

    name, profile = runner.load_profile(arguments.profile, arguments.set)
    late = runner.outdated(name, profile)
    if late:
        raise runner.BookError(
            f"{', '.join(late)} not run with the present code, data and settings: "
            f"'cellaug run --profile {name}' first"
        )
    print(record_results(name))


def fetch(arguments: argparse.Namespace) -> None:
    """``cellaug fetch``."""
    from cellaug.data.download import fetch as download

    print(download(arguments.name, arguments.out))


def inspect(arguments: argparse.Namespace) -> int:
    """``cellaug inspect``; returns the exit status."""
    from cellaug.data import open_dataset
    from cellaug.data.inspection import as_json, as_text
    from cellaug.data.inspection import inspect as look_at

    dataset = open_dataset(arguments.data)
    found = look_at(dataset)
    text = as_json(found) if arguments.json else as_text(found, arguments.all)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    if arguments.figure:
        _draw(found, dataset, arguments.figure)
    return 0 if found.fit else 1


def _draw(found, dataset, file: Path) -> None:
    import io

    from cellaug.data.images import write_atomically

    import matplotlib

    with matplotlib.rc_context({"backend": "agg"}):  # no window, whatever the user's settings are
        from cellaug import figures

        figures.use_style()
        drawn = io.BytesIO()
        figures.inspection(found, dataset).savefig(drawn, format=file.suffix[1:].lower())
    write_atomically(file, drawn.getvalue())


def store(arguments: argparse.Namespace) -> None:
    """``cellaug store``."""
    from cellaug.data import open_dataset

    stored = open_dataset(arguments.data).stored(arguments.size, arguments.out).store
    print(f"{len(stored):,} images of {stored.size}×{stored.size} pixels")
    print(stored.folder)


def generate(arguments: argparse.Namespace) -> None:
    """``cellaug generate``."""
    from cellaug.augmentation import generate as make
    from cellaug.augmentation import load_generator

    generator = load_generator(arguments.generator)
    make(generator, arguments.label, arguments.count, arguments.out, arguments.seed)
    print(arguments.out)


def augment(arguments: argparse.Namespace) -> None:
    """``cellaug augment``."""
    from cellaug.augmentation import augment as extend
    from cellaug.augmentation import load_generator
    from cellaug.data import open_dataset

    generator = load_generator(arguments.generator)
    dataset = open_dataset(arguments.data)
    manifest = extend(dataset, generator, arguments.ratio, arguments.out, arguments.seed)
    counts = manifest.groupby(["label", "origin"]).size().unstack(fill_value=0)
    print(counts.to_string())
    print(arguments.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0, 1 for a failed chapter or a set that is not fit for training, 2 for bad input.
    """
    arguments = parser().parse_args(argv)
    from cellaug.book import BookError
    from cellaug.data import DataError
    from cellaug.report import ReportError
    from cellaug.run import ChapterFailed

    try:
        return globals()[arguments.command](arguments) or 0
    except ChapterFailed as error:
        print(f"cellaug: {error}", file=sys.stderr)
        return 1
    except (BookError, DataError, ReportError, OSError) as error:
        print(f"cellaug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cellaug: stopped; the next run goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
