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
  cellaug expert-test --real my_cells/ --fake generated/ --out trial/
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

    sub = command(
        "evaluate",
        "say how true generated cells are to real ones",
        epilog="REAL should be images that the generator was not trained on. What is measured, and "
        "how, is said in the result.",
    )
    sub.add_argument("real", metavar="REAL", help="real images, as for 'inspect'")
    sub.add_argument(
        "fake",
        metavar="FAKE",
        help="generated ones: as REAL, the output of 'generate' or 'augment', a generator "
        "directory such as build/demo/artifacts/03_ac_gan/conditional, or a shipped one's name",
    )
    sub.add_argument(
        "--reference",
        metavar="TRAIN",
        help="the images it was trained on: is it memorising them, and what do they achieve?",
    )
    sub.add_argument(
        "--split",
        type=_seed,
        metavar="SEED",
        help="divide REAL as the chapters do (seed 1 unless changed): its test side is compared, "
        "its training side is the reference",
    )
    sub.add_argument(
        "--count",
        type=_positive,
        metavar="N",
        help="images that a generator draws of each class (default: as many as REAL has)",
    )
    sub.add_argument(
        "--size",
        type=_positive,
        metavar="PIXELS",
        help="size to compare at (default: that of the generated images)",
    )
    sub.add_argument("--seed", type=_seed, default=0, metavar="S", help="default: 0")
    sub.add_argument(
        "--no-cas", action="store_true", help="train no classifiers, which takes a minute or two"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    sub.add_argument(
        "--figure", type=_figure_file, metavar="FILE", help="draw it as well (.png, .svg or .pdf)"
    )

    sub = command(
        "study",
        "make what the package ships or the book records: the extractor, the ladder, the weights; "
        "or measure the shipped weights anew (cards)",
        epilog="hours on a processor, which go on where they were interrupted; cards takes minutes",
    )
    sub.add_argument("study", choices=("extractor", "ladder", "weights", "cards"))
    _profile(sub)
    sub.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="default: build/study/<study>; for cards the weights in the package",
    )
    sub.add_argument(
        "--images",
        type=_positive,
        metavar="N",
        help="real images that each generator sees (default: the profile's ladder_images for the "
        "ladder, 850000 for the weights)",
    )
    sub.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME",
        help="ladder: this rung or side arm alone, and nothing is recorded; weights: 'conditional' "
        "or 'vanilla' alone; may be repeated",
    )
    sub.add_argument(
        "--seeds",
        type=_positive,
        default=1,
        metavar="N",
        help="ladder: of every arm, of the first and the last rung at least 3 (default: 1)",
    )
    sub.add_argument(
        "--seed",
        action="append",
        type=_positive,
        metavar="S",
        help="weights: train with this seed; the package ships the first; may be repeated "
        "(default: 1)",
    )

    sub = command("generate", "make images with a trained generator")
    _generator(sub)
    sub.add_argument(
        "--label",
        metavar="NAME",
        help="the class to make (default: every class that the generator knows)",
    )
    sub.add_argument(
        "--count", type=_positive, required=True, metavar="N", help="how many, of each class"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="PNGs and manifest.csv")
    sub.add_argument("--seed", type=_seed, default=0, metavar="S", help="default: 0")

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
    sub.add_argument("--seed", type=_seed, default=0, metavar="S", help="default: 0")

    sub = command(
        "expert-test",
        "make a page on which a person tells real images from generated ones, and its key",
        epilog="The page is one file that works in a browser without a network; keep the key.",
    )
    for side in ("real", "fake"):
        sub.add_argument(
            f"--{side}",
            type=Path,
            required=True,
            metavar="DIR",
            help=f"a folder with {side} images, in it or in subfolders",
        )
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    sub.add_argument(
        "--count",
        type=_positive,
        default=50,
        metavar="N",
        help="images of each side, drawn at random (default: 50, as in the thesis)",
    )
    sub.add_argument("--seed", type=_seed, default=0, metavar="S", help="default: 0")
    sub.add_argument(
        "--size",
        type=_positive,
        metavar="PIXELS",
        help="side of the images on the page (default: the shortest side of all drawn images)",
    )

    sub = command(
        "expert-score",
        "score the answers that readers exported from a page of expert-test",
    )
    sub.add_argument("answers", nargs="+", metavar="ANSWERS", help="one file for each reader")
    sub.add_argument("key", metavar="KEY", help="the key.json of that page")
    sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
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
        required=True,
        metavar="DIR",
        help="what a chapter has written, such as build/demo/artifacts/03_ac_gan/conditional, or "
        "the name of one that comes with cellaug",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found '{text}'")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found '{text}'")
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
    _print(as_json(found) if arguments.json else as_text(found, arguments.all))
    if arguments.figure:
        _draw("inspection", arguments.figure, found, dataset)
    return 0 if found.fit else 1


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _draw(name: str, file: Path, *what: object) -> None:
    import io

    from cellaug.data.images import write_atomically

    import matplotlib

    with matplotlib.rc_context({"backend": "agg"}):  # no window, whatever the user's settings are
        from cellaug import figures

        figures.use_style()
        drawn = io.BytesIO()
        getattr(figures, name)(*what).savefig(drawn, format=file.suffix[1:].lower())
    write_atomically(file, drawn.getvalue())


def evaluate(arguments: argparse.Namespace) -> None:
    """``cellaug evaluate``."""
    from cellaug.data import open_dataset, split
    from cellaug.evaluation import (
        LabelledImages,
        as_json,
        as_text,
        read_generated,
        refuse_generated,
    )
    from cellaug.evaluation import evaluate as compare

    real = open_dataset(arguments.real)
    trained = open_dataset(arguments.reference) if arguments.reference else None
    if arguments.split is not None:
        sides = split(real, seed=arguments.split)
        real, trained = sides["test"], trained or sides["train"]
    for dataset in (real, trained):
        if dataset is not None:
            refuse_generated(dataset)
    wanted = {name: int(count) for name, count in real.counts().items()}
    fake = read_generated(arguments.fake, wanted, arguments.size, arguments.count, arguments.seed)
    size = fake.images.shape[1]
    found = compare(
        LabelledImages.read(real, size),
        fake,
        LabelledImages.read(trained, size) if trained else None,
        cas=not arguments.no_cas,
        seed=arguments.seed,
    )
    _print(as_json(found) if arguments.json else as_text(found))
    if arguments.figure:
        _draw("fidelity", arguments.figure, found)


def store(arguments: argparse.Namespace) -> None:
    """``cellaug store``."""
    from cellaug.data import open_dataset

    stored = open_dataset(arguments.data).stored(arguments.size, arguments.out).store
    print(f"{len(stored):,} images of {stored.size}×{stored.size} pixels")
    print(stored.folder)


def study(arguments: argparse.Namespace) -> None:
    """``cellaug study``."""
    from cellaug import run as runner
    from cellaug.book import declared_parameters, project_root

    name, profile = runner.load_profile(arguments.profile, arguments.set)
    data, size = profile.get("data", "phantom"), profile.get("image_size", 64)
    out = arguments.out or project_root() / "build" / "study" / arguments.study
    if arguments.study == "extractor":
        from cellaug.study.extractor import train

        train(out, data, size)
        print(out)
        return
    from cellaug.augmentation import CARD, SHIPPED
    from cellaug.data import DataError
    from cellaug.study import ladder, weights
    from cellaug.study.training import stored_sides

    sides = stored_sides(data, size)
    if arguments.study == "cards":
        out = arguments.out or SHIPPED
        if arguments.arm or arguments.seed or arguments.images:
            raise DataError("cards trains nothing: leave --arm, --seed and --images out")
        if not (cards := sorted(out.glob(f"*/{CARD}"))):
            raise DataError(
                f"{out} holds no folder with a {CARD}, as 'cellaug study weights' makes"
            )
        for card in cards:
            weights.measure(card.parent, sides)
    elif arguments.study == "weights":
        images, seeds = arguments.images or 850_000, arguments.seed or [1]
        out = weights.run(out, sides, sides["train"].name, images, size, arguments.arm, seeds)
    else:
        profile = declared_parameters("03_ac_gan") | profile
        found = ladder.run(
            sides,
            size,
            arguments.images or profile["ladder_images"],
            out / name,
            arms=arguments.arm,
            seeds=arguments.seeds,
            generator_depth=profile["ladder_generator_depth"],
            discriminator_depth=profile["ladder_discriminator_depth"],
        )
        print(ladder.table(found).round(3).to_string(index=False))
        out = out / name
        if not arguments.arm:
            out = ladder.record(found, out, name)
    print(out)


def generate(arguments: argparse.Namespace) -> None:
    """``cellaug generate``."""
    from cellaug.augmentation import generate as make
    from cellaug.augmentation import load_generator

    generator = load_generator(arguments.generator)
    labels = arguments.label or generator.class_names or None
    make(generator, labels, arguments.count, arguments.out, arguments.seed)
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


def expert_test(arguments: argparse.Namespace) -> None:
    """``cellaug expert-test``."""
    from cellaug.evaluation import expert_page

    key = expert_page.write_test(
        arguments.real,
        arguments.fake,
        arguments.out,
        arguments.count,
        arguments.seed,
        arguments.size,
    )
    made, secret = arguments.out / expert_page.PAGE, arguments.out / expert_page.KEY
    lines = [f"left out: {file}: {reason}" for file, reason in key["left_out"][:20]]
    if key["left_out"][20:]:
        lines += [f"left out: {len(key['left_out'][20:])} more, see {secret}"]
    lines += [*key["notes"], expert_page.power_statement(len(key["real"]))]
    lines += [f"{made}  for the readers, {made.stat().st_size / 1e6:.1f} MB"]
    lines += [f"{secret}  the key: keep it to yourself"]
    _print("\n".join(lines))


def expert_score(arguments: argparse.Namespace) -> None:
    """``cellaug expert-score``."""
    import json

    from cellaug.evaluation import expert_page

    scores = expert_page.score_answers(arguments.answers, arguments.key)
    _print(json.dumps(scores, indent=2) if arguments.json else expert_page.as_text(scores))


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
        return globals()[arguments.command.replace("-", "_")](arguments) or 0
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
