"""Training of the generators that the package ships (`cellaug study weights`)."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any

import cellaug
from cellaug.augmentation import (
    CARD,
    DISCRIMINATOR,
    FORMAT,
    WEIGHTS,
    load_generator,
    save_weights,
)
from cellaug.backend import accelerated
from cellaug.book import device, read_result, result_file, versions, write_json
from cellaug.data import DataError, Dataset
from cellaug.data.images import write_atomically, write_png
from cellaug.evaluation.features import load_extractor
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.labelled import LabelledImages, read_generated
from cellaug.evaluation.scorecard import ROWS, as_json, as_text
from cellaug.study.training import SPLIT_SEED, decay_steps, train_on, vanilla
from cellaug.training import Adversarial, conditional
from cellaug.training.callbacks import duration

import numpy as np

PICTURES, PICTURE_WIDTH = 10, 640
"""Cells at most, and pixels, in a row of a card's picture: first latent vectors, not selected."""


ARMS = ("conditional", "vanilla")

LARGER: Mapping[int, Mapping[str, Any]] = {
    128: {"latent_dim": 64, "narrowest": 32, "batch_size": 64, "gamma": 0.04},
    256: {
        "discriminator_depth": 16,
        "latent_dim": 64,
        "narrowest": 32,
        "batch_size": 64,
        "gamma": 0.16,
    },
}
"""What the conditional recipe wants otherwise for larger images, by size in pixels.

R1's weight grows with the pixels of an image over the images of a batch (the rule in the published
code of Karras et al. 2020); the rest keeps files small and steps quick.
"""


def run(
    out: Path,
    sides: Mapping[str, Dataset],
    name: str,
    images: int,
    size: int = 64,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
) -> Path:
    """Train what the package ships, in subfolders of `out`, and record the conditional runs.

    Args:
        out: for generator directories and checkpoints.
        sides: the images to learn from ("train") and to be measured on ("test").
        name: of the data. The conditional generator is called ``<name>-<size>``, with another seed
            than 1 ``<name>-<size>-seed-<seed>``, and the vanilla one ``<set>-vanilla-<size>``.
        images: how many real images each is to see.
        size: height and width of the images in pixels.
        arms: "conditional", "vanilla"; both if none is given.
        seeds: of the conditional generators; the vanilla pair has the first.

    Returns:
        `out`, or the file of the record.

    Raises:
        DataError: for an unknown arm.
    """
    if unknown := set(arms) - set(ARMS):
        raise DataError(f"no arm {', '.join(sorted(unknown))}: there are {', '.join(ARMS)}")
    kept, called = out, f"{name}-{size}"
    if not arms or "conditional" in arms:
        folders = [out / (called if k == 1 else f"{called}-seed-{k}") for k in seeds]
        for folder, seed in zip(folders, seeds, strict=True):
            train_conditional(folder, sides, images, size, seed=seed, **LARGER.get(size, {}))
            kept = record(folder, called)
    if not arms or "vanilla" in arms:
        vanilla_name = f"{name.partition('-')[0]}-vanilla-{size}"
        train_vanilla(out / vanilla_name, sides, images, size, seed=seeds[0])
    return kept


def train_conditional(
    out: Path,
    sides: Mapping[str, Dataset],
    images: int,
    size: int = 64,
    generator_depth: int = 256,
    discriminator_depth: int = 32,
    latent_dim: int = 100,
    batch_size: int = 32,
    decay: float = 0.3,
    seed: int = 1,
    **choices: Any,
) -> Path:
    """Train the conditional recipe and write a shippable generator directory with its model card.

    It learns from the training side alone and is measured on the test side. Interrupted, it goes on
    from its checkpoint (`<out>.checkpoint.npz`).

    Args:
        out: the directory to write, named as `cellaug.load_generator` is to know it.
        sides: the images to learn from ("train") and to be measured on ("test").
        images: how many real images it is to see.
        size: height and width of the images in pixels.
        generator_depth: see `cellaug.training.conditional`, as for the next two.
        discriminator_depth: see there.
        latent_dim: see there.
        batch_size: images in a step.
        decay: share of the steps, at the end, in which the learning rates fall to zero.
        seed: of everything.
        choices: further arguments of `cellaug.training.conditional`, but `decay_steps`.

    Raises:
        TypeError: for a choice that it does not have.
    """
    classes = len(sides["train"].class_names)
    given = {
        "generator_depth": generator_depth,
        "discriminator_depth": discriminator_depth,
        "latent_dim": latent_dim,
        "seed": seed,
        **choices,
    }
    # All of them, those too that are defaults today.
    bound = signature(conditional).bind(size, classes, **given, decay_steps=None)
    bound.apply_defaults()
    recipe = {k: v for k, v in bound.arguments.items() if k not in ("size", "classes")}
    if recipe["mixed_precision"] is None:
        recipe["mixed_precision"] = accelerated()
    falling = decay_steps(sides["train"], size, batch_size, images, decay, recipe["objective"])
    game = conditional(size, classes, **recipe | {"decay_steps": falling})
    options = {
        "size": size,
        "depth": generator_depth,
        "latent_dim": latent_dim,
        "classes": classes,
        **{name: recipe[name] for name in ("kernel", "modulation", "resize", "narrowest")},
    }
    del recipe["decay_steps"]  # says less than the share that it was made of
    recipe = {
        "recipe": "cellaug.training.conditional",
        **recipe,
        "batch_size": batch_size,
        "decay": decay,
    }
    return _train(out, sides, images, size, game, recipe, "conditional_generator", options)


def train_vanilla(
    out: Path,
    sides: Mapping[str, Dataset],
    images: int,
    size: int = 64,
    generator_depth: int = 256,
    discriminator_depth: int = 32,
    latent_dim: int = 100,
    batch_size: int = 32,
    kernel: int = 4,
    half_life: int = 10_000,
    learning_rate: float = 2e-4,
    beta_1: float = 0.5,
    seed: int = 1,
) -> Path:
    """Train a vanilla pair, as the ladder has it before it becomes conditional, and ship it.

    The generator directory holds the discriminator too (`cellaug.load_discriminator`), so that an
    AC-GAN can be built on the frozen pair. Arguments as for `train_conditional`, and those of
    `cellaug.training.conditional` that a pair without classes has.
    """
    recipe = {
        "generator_depth": generator_depth,
        "discriminator_depth": discriminator_depth,
        "latent_dim": latent_dim,
        "kernel": kernel,
        "symmetries": True,
        "half_life": half_life,
        "learning_rate": learning_rate,
        "beta_1": beta_1,
        "seed": seed,
    }
    game = vanilla(size, **recipe)
    options = {"size": size, "depth": generator_depth, "latent_dim": latent_dim, "kernel": kernel}
    judge = {"size": size, "depth": discriminator_depth, "kernel": kernel}
    name = "the thesis's vanilla GAN with the ladder's first changes"
    recipe = {"recipe": name, **recipe, "batch_size": batch_size}
    return _train(out, sides, images, size, game, recipe, "generator", options, judge)


def _train(
    out: Path,
    sides: Mapping[str, Dataset],
    images: int,
    size: int,
    game: Adversarial,
    recipe: dict[str, Any],
    builder: str,
    options: dict[str, Any],
    judge: dict[str, Any] | None = None,
) -> Path:
    """Train, write weights and card, measure, and write the measures into the card."""
    cells = sides["train"]
    labelled = builder == "conditional_generator"
    names = cells.class_names if labelled else ()
    history, images_seen = train_on(
        cells,
        game,
        size,
        recipe["batch_size"],
        images,
        seed=recipe["seed"],
        balance=labelled,
        checkpoint=out.with_name(f"{out.name}.checkpoint.npz"),
        settings={**recipe, "images": images},
        label=out.name,
    )
    out.mkdir(parents=True, exist_ok=True)
    card = {
        "format": FORMAT,
        "class_names": list(names),
        "latent_dim": game.latent_dim,
        "image_size": size,
        "conditional": labelled,
        "data_name": cells.name,
        "data_hash": cells.fingerprint,
        "credit": cells.credit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cellaug": cellaug.__version__,
        "builder": builder,
        "options": options,
        "sha256": save_weights(game.trained_generator, out / WEIGHTS),
        "training": {
            "recipe": recipe,
            "images_seen": images_seen,
            "training_images": len(cells),
            "split_seed": SPLIT_SEED,
            "seconds": round(float(history["seconds"].sum())),
            "device": device(),
            "versions": versions(),
        },
    }
    if judge is not None:
        digest = save_weights(game.discriminator, out / DISCRIMINATOR)
        card["discriminator"] = {"options": judge, "sha256": digest}
    write_atomically(out / CARD, (json.dumps(card, indent=1) + "\n").encode())
    measure(out, sides)
    return out


def measure(folder: Path, sides: Mapping[str, Dataset]) -> None:
    """Measure a generator that `_train` wrote on the test side; write its card and pictures anew.

    What somebody has written into the card under ``seen`` stays: failings that no measure sees.

    Raises:
        DataError: where it was trained on other images than `sides` has to train on.
    """
    card = json.loads((folder / CARD).read_text())
    if card["data_hash"] != sides["train"].fingerprint:
        raise DataError(
            f"{folder.name} learned from {card['data_name']} ({card['data_hash']}), not from "
            f"{sides['train'].name} ({sides['train'].fingerprint}): name the profile of its data"
        )
    size, names = card["image_size"], card["class_names"]
    seed = card["training"]["recipe"]["seed"]
    found = evaluate(
        LabelledImages.read(sides["test"], size),
        read_generated(folder, sides["test"].counts().to_dict(), seed=seed),
        LabelledImages.read(sides["train"], size),
        cas=bool(names),
        seed=seed,
    )
    card["fidelity"] = json.loads(as_json(found))
    write_atomically(folder / CARD, (json.dumps(card, indent=1) + "\n").encode())
    columns = min(PICTURES, PICTURE_WIDTH // size)
    cells = load_generator(folder).generate(names or None, columns if names else 3 * columns)
    rows = [np.concatenate(cells[k : k + columns], 1) for k in range(0, len(cells), columns)]
    write_png(folder / "samples.png", np.concatenate(rows))
    text = model_card(folder.name, card, as_text(found))
    write_atomically(folder / "README.md", text.encode())


def record(folder: Path, name: str) -> Path:
    """Add the measures of a conditional run to ``book/results/weights-<name>.json``.

    Runs that are there stay, unless they have the same seed or differ in more than the seed: a run
    takes hours, so seeds are recorded one after the other.

    Args:
        folder: what `train_conditional` wrote.
        name: of the record.
    """
    path = result_file(f"weights-{name}.json")
    card = json.loads((folder / CARD).read_text())
    run = {
        "arm": name,
        "seed": card["training"]["recipe"]["seed"],
        **{key: card[key] for key in ("data_name", "data_hash", "credit", "image_size", "sha256")},
        **card["training"],
        "date": card["created"][:10],
        "test_images": card["fidelity"]["sets"]["real"]["images"],
        "extractor": card["fidelity"]["extractor"]["digest"],
        "evaluation": {k: v for k, v in card["fidelity"]["settings"].items() if k != "seed"},
        **{key: card["fidelity"][key] for key in ("scorecard", "overall", "grid")},
    }
    others = recorded(name)["runs"] if path.is_file() else []
    same = {old["seed"]: old for old in others if _shared(old) == _shared(run)}
    runs = {**same, run["seed"]: run}
    write_json(path, {"runs": [runs[seed] for seed in sorted(runs)]})
    return path


def _shared(run: Mapping[str, Any]) -> tuple:
    """All that two runs must share to be put side by side."""
    recipe = {key: value for key, value in run["recipe"].items() if key != "seed"}
    same = ("data_hash", "images_seen", "image_size", "test_images", "extractor", "evaluation")
    return recipe, *(run.get(key) for key in same)


def recorded(name: str) -> dict[str, list]:
    """What `record` kept: `runs`, as `cellaug.study.ladder.verdicts` takes them.

    Raises:
        BookError: where nothing is recorded under that name.
    """
    return read_result(f"weights-{name}.json", "cellaug study weights")


def model_card(name: str, card: dict, fidelity: str) -> str:
    """The card as Markdown: what it is, what it learned from, how well it does, what it cannot."""
    training = card["training"]
    choices = ", ".join(f"{k} {v}" for k, v in training["recipe"].items() if k != "recipe")
    names = card["class_names"]
    size = card["image_size"]
    of = f"of {len(names)} classes, " if names else "of no particular class, "
    rows = f"a row for each class ({', '.join(names)}), the" if names else "the"
    pair = ""
    if "discriminator" in card:
        pair = f' and `cellaug.load_discriminator("{name}")` its discriminator'
    fine = "at this size the texture of chromatin is not resolved"
    if size > (sees := load_extractor().size):
        fine = f"features are those of {sees} pixels, so of what is finer only the grid is measured"
    seen = f" By eye: {card['seen']}" if "seen" in card else ""
    return f"""# {name}

Draws generated blood cells {of}{size}×{size} pixels.
`cellaug.load_generator("{name}")` reads it{pair}.

![Generated cells.](samples.png)

*Generated, not real: {rows} first latent vectors of seed 0, not selected.*

- **Learned from**: {training["training_images"]:,} training images of {card["data_name"]} (split
  seed {training["split_seed"]}), none of the test images. {card["credit"]}
- **Licence of the weights**: CC BY 4.0, with the credit above.
- **Recipe**: {training["recipe"]["recipe"]}, {choices}.
- **Images seen**: {training["images_seen"]:,} in {duration(training["seconds"])} on
  {training["device"]}.
- **Format**: float16 arrays; SHA-256 {card["sha256"]}.

## Fidelity over the test split

```text
{fidelity.strip()}
```

## Known failings

Cells from one laboratory and one stain; {fine}.
{failings(card["fidelity"])}{seen} Not for diagnosis.
"""


def failings(fidelity: Mapping[str, Any]) -> str:
    """What missed its target, and the classes that come out worst, of a card's fidelity."""
    missed = [
        f"{ROWS[name]} ({row['where']})" if row["where"] else ROWS[name]
        for name, row in fidelity["scorecard"].items()
        if row and row["met"] is False
    ]
    said = [f"Targets missed: {', '.join(missed) or 'none of those measured'}."]
    if grid := fidelity["grid"]:
        shares = ", ".join(f"{row['energy_ratio']:.2f} at {period}" for period, row in grid.items())
        said.append(f"Energy at periods of so many pixels, over real images': {shares}.")
    classes = fidelity["classes"]
    far = {name: group["frechet"]["ratio"] for name, group in classes.items() if group["frechet"]}
    if far:
        farthest = max(far, key=far.get)
        said.append(
            f"Farthest from the real cells of its class: {farthest}, at {far[farthest]:.1f} times "
            f"the Fréchet distance between their halves (median of the classes "
            f"{median(far.values()):.1f})."
        )
    seen = {name: group["agreement"] for name, group in classes.items() if group["agreement"]}
    if seen:
        oddest = max(seen, key=lambda name: abs(seen[name]["gap"]))
        said.append(
            f"Class agreement differs most for {oddest}: the extractor sees it in "
            f"{seen[oddest]['value']:.0%} of the generated cells of that class and in "
            f"{seen[oddest]['real']:.0%} of the real ones."
        )
    return " ".join(said)
