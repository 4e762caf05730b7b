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
    sub.add_argument("name", choices=["pbc"], help="pbc: 17,092 normal blood cells, CC BY 4.0")
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: $CELLAUG_DATA or the cache")

    sub = command("inspect", "say what a set of labelled cells holds and what is wrong with it")
    _data(sub)
    sub.add_argument("--all", action="store_true", help="list every file dropped or converted")

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
        help="a folder with one subfolder per class, or pbc, pbc-fine or phantom",
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


def inspect(arguments: argparse.Namespace) -> None:
    """``cellaug inspect``."""
    from cellaug.data import open_dataset, split

    dataset = open_dataset(arguments.data)
    counts = dataset.counts()
    width = max(len(name) for name in counts.index)
    print(f"{dataset.name}: {len(dataset):,} images, {len(counts)} classes")
    print(f"data hash {dataset.fingerprint}")
    if dataset.credit:
        print(dataset.credit)
    print()
    sides = {name: part.counts() for name, part in split(dataset).items()}
    print(f"{'class':<{width}}  images  " + "  ".join(f"{side:>10}" for side in sides))
    for name, count in counts.items():
        parts = "  ".join(f"{side[name]:>10,}" for side in sides.values())
        print(f"{name:<{width}}  {count:>6,}  {parts}")
    print()
    report = dataset.report
    if report.empty:
        print("no file was dropped or converted")
        return
    for row in dataset.outcomes().itertuples():
        print(f"{row.outcome}: {row.files:,} × {row.reason}")
    print()
    for row in (report if arguments.all else report.head(20)).itertuples():
        print(f"{row.outcome}  {row.path}  ({row.reason})")
    if len(report) > 20 and not arguments.all:
        print(f"… and {len(report) - 20:,} more files: '--all' lists them")


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
    """Run the command line; returns the exit status: 0, 1 for a failed chapter, 2 for bad input."""
    arguments = parser().parse_args(argv)
    from cellaug.book import BookError
    from cellaug.data import DataError
    from cellaug.report import ReportError
    from cellaug.run import ChapterFailed

    try:
        globals()[arguments.command](arguments)
    except ChapterFailed as error:
        print(f"cellaug: {error}", file=sys.stderr)
        return 1
    except (BookError, DataError, ReportError, OSError) as error:
        print(f"cellaug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cellaug: stopped; the next run goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
