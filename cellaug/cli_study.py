"""The commands of ``cellaug`` that train: generators, studies; see `cellaug.cli`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellaug.errors import DataError
from cellaug.options import (
    COUNT,
    HOURS,
    columns_option,
    data_argument,
    new_folder_option,
    option,
    profile_options,
)

import click


@click.command()
@click.argument(
    "name", type=click.Choice(("augmentation", "extractor", "ladder", "weights", "cards", "broken"))
)
@profile_options
@option("--out PATH", "By default build/study/NAME; for cards the weights in the package.")
@option("--images N", "Images shown, repeats counted [weights: 850000; ladder: of its profile].")
@option("--arm NAME", "Only this arm of ladder, weights or broken; repeatable.", multiple=True)
@option("--seeds N", "Seeds of each step of the ladder; first and last have at least 3.", default=1)
@option("--record NAME", "Keep the ladder's variants as book/results/ladder-NAME.", type=str)
@option("--seed S", "Seed of weights [1] or broken [1 2]; repeatable.", type=COUNT, multiple=True)
@option("--scheduler ADDRESS", "A Dask cluster for augmentation; by default one is started here.")
@option("--workers N", "Processes of that cluster [as many as fit].")
@option("--hours H", "Begin no further run of augmentation after so many hours.", type=HOURS)
@option("--external SET", "Test augmentation's runs on another laboratory's cells too.", type=str)
@option("--class-map FILE", "YAML: a class of that set, and what the study calls it.", type=str)
def study(name: str, profile: str, set: Sequence[str], **options: Any) -> None:
    """Make what the package ships or the book records.

    augmentation: run the study "Does it help?" from its plan in notebooks/studies/plans.
    extractor: the network behind the fidelity measures. ladder: the ablation study. weights: the
    generators that come with cellaug. cards: evaluate those again. broken: why some of their cells
    break; with --images also whether the gradient penalty is the cause, which trains.
    Trainings take hours on a processor; they resume after an interruption.
    """
    from cellaug.book import run as runner

    images, arms, seed = options["images"], list(options["arm"]), list(options["seed"])
    if name == "cards" and (images or arms or seed):
        raise DataError("cards trains nothing: remove --arm, --seed and --images")
    if name == "broken" and options["out"]:
        raise DataError("broken writes a record into book/results: remove --out")
    if name == "broken" and (arms or seed) and not images:
        raise DataError("--arm and --seed are of the trainings of broken: give their --images too")
    spread = ("scheduler", "workers", "hours", "external", "class_map")
    own = {key: options[key] for key in spread if options[key]}
    if name != "augmentation" and own:
        are = ", ".join("--" + key.replace("_", "-") for key in own)
        raise DataError(f"{are}: only augmentation takes this; remove it for {name}")
    if "class_map" in own and "external" not in own:
        raise DataError("--class-map names classes of the set of --external: give both")
    files = {key: Path(own[key]).absolute() for key in ("external", "class_map") if key in own}
    own |= {key: str(path) for key, path in files.items() if path.exists()}
    notebook = f"studies/{name}".replace("cards", "weights")
    _, values = runner.load_profile(profile, set, notebook)
    out = options["out"] and str(options["out"].absolute())
    given = {"out": out, "arms": arms, "cards": name == "cards", "images": images, "seeds": seed}
    if name == "ladder":
        given |= {"images": None, "ladder_images": images, "seeds": options["seeds"]}
        given["record_as"] = options["record"]
    given |= own
    print(runner.run_study(notebook, values | {k: v for k, v in given.items() if v}))


@click.command()
@data_argument
@columns_option
@new_folder_option
@option("--size PIXELS", "Width and height of the images, a power of two.", default=64)
@option("--start-from DIR", "A generator, or the name of a shipped one, to begin with.", type=str)
@option("--class-map FILE", "YAML: 'class of DATA: class of that generator', per line.", type=str)
@option("--images N", "Images shown, repeats counted, in whole epochs [850000].")
@option("--hours H", "Instead, how long it may take; it is sized to that.", type=HOURS)
@option("--seed S", "Random seed.", default=1)
@option("--set choice=value", "Change a choice of cellaug.Recipe; repeatable.", multiple=True)
@option("--coordinator HOST:PORT", "Address of process 0 of several that train together.", type=str)
@option("--processes N", "How many there are.")
@option("--process K", "Which of them this is, from 0.", type=click.IntRange(0))
def train(
    data: str, columns: dict, out: Path, size: int, start_from: str | None,
    class_map: str | None, set: Sequence[str],
    coordinator: str | None, processes: int | None, process: int | None, **options: Any,
) -> None:  # fmt: skip
    """Train a conditional generator on your cells.

    Only the training split of DATA is used. Writes the generator's directory, with cells by epoch
    and curves. The same command resumes where it was stopped. With KERAS_BACKEND=jax all devices of
    the machine train together, and several processes do if SLURM or Open MPI started them, or if
    --coordinator, --processes and --process say so, as under Kubernetes.
    """
    from cellaug.book.run import setting
    from cellaug.data.class_map import read_class_map
    from cellaug.train import train as work
    from cellaug.training.devices import join

    join(coordinator, processes, process)
    options |= {"class_map": read_class_map(class_map) if class_map else None, **columns}
    options |= {"choices": dict(map(setting, set)), "start_from": start_from or ""}
    print(work(data, out, size=size, **options))


words = "A generator, or the name of a shipped one, that is also trained further on DATA."
map_words = "YAML: 'class of DATA: class of that generator', per line."


@click.command()
@data_argument
@columns_option
@option("--out DIR", "For the result; a study that was stopped goes on in it.", required=True)
@option("--hours H", "How long it may take; it is sized to that.", type=HOURS, default=8)
@option("--start-from DIR", words, type=str, default="")
@option("--class-map FILE", map_words, type=str)
@option("--size PIXELS", "Width and height of the images that are studied.", default=64)
@option("--scheduler ADDRESS", "A Dask cluster; by default one is started here.", default="")
@option("--workers N", "Processes of that cluster [as many as fit].")
def advise(data: str, columns: dict, out: Path, class_map: str | None, **options: Any) -> None:
    """Find out overnight whether and how to augment your cells.

    Trains classifiers with and without generated cells on the training split of DATA and tests them
    on its test split. Writes advice.html, advice.json, the classifier of the best way, and its
    generator if it has one. DATA is not changed. Says beforehand how long it takes.
    """
    from cellaug.data.class_map import read_class_map
    from cellaug.study import advise as study

    named = read_class_map(class_map) if class_map else None
    place = Path(data).absolute() if Path(data).exists() else data
    found = study.advise(str(place), out.absolute(), class_map=named, **columns, **options)
    for name, lacks in found["collect"].items():
        print(f"collect more images of {name}: it has {lacks}")
    print(f"{'augment' if found['augment'] else 'do not augment'}: {found['because']}")
    if "arm" in found:
        print(f"train on: {found['arm']}")
    if "command" in found:
        print(found["command"], f"in training {found['train']}", sep="\n")
    print(out / study.PAGE)
