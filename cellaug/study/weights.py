"""Training of the generators that the package ships (`cellaug study weights`)."""

import json
from datetime import UTC, datetime
from pathlib import Path

import cellaug
from cellaug.augmentation import (
    CARD,
    FORMAT,
    WEIGHTS,
    load_generator,
    save_weights,
)
from cellaug.book import device, versions
from cellaug.data import open_dataset, split
from cellaug.data.images import write_atomically, write_png
from cellaug.data.reader import Reader
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.labelled import LabelledImages, read_generated
from cellaug.evaluation.scorecard import as_json, as_text
from cellaug.study.extractor import SPLIT_SEED
from cellaug.training import Diversity, conditional, fit

import numpy as np

PICTURES = 10
"""Generated cells of each class in the card's picture: the first latent vectors, not selected."""


def train(
    out: Path,
    images: int,
    data: str = "pbc-fine",
    size: int = 64,
    generator_depth: int = 256,
    discriminator_depth: int = 32,
    latent_dim: int = 100,
    batch_size: int = 64,
    seed: int = 1,
    **choices: object,
) -> Path:
    """Train the conditional recipe and write a shippable generator directory with its model card.

    It learns from the training side alone and is measured on the test side. Interrupted, it goes on
    from its checkpoint (`<out>.checkpoint.npz`).

    Args:
        out: the directory to write, named as `cellaug.load_generator` is to know it.
        images: how many real images it is to see.
        data: what to learn from.
        size: height and width of the images in pixels.
        generator_depth: see `cellaug.training.conditional`, as for the next two.
        discriminator_depth: see there.
        latent_dim: see there.
        batch_size: images in a step.
        seed: of everything.
        choices: further arguments of `cellaug.training.conditional`.
    """
    cells = open_dataset(data).stored(size)
    sides = split(cells, seed=SPLIT_SEED)
    names = sides["train"].class_names
    depths = {"generator_depth": generator_depth, "discriminator_depth": discriminator_depth}
    game = conditional(size, len(names), **depths, latent_dim=latent_dim, seed=seed, **choices)
    reader = Reader(
        sides["train"],
        size,
        batch_size * game.d_steps,
        seed=seed,
        balance=True,
        drop_last=True,
    )
    per_epoch = len(reader) * reader.batch_size
    epochs = max(1, round(images / per_epoch))
    recipe = {**depths, "batch_size": batch_size, "seed": seed, "size": size, **choices}
    real = sides["train"].sample(2000, seed=0)
    history = fit(
        game,
        reader,
        epochs,
        checkpoint=out.with_name(f"{out.name}.checkpoint.npz"),
        settings={**recipe, "data": sides["train"].fingerprint},
        callbacks=[Diversity(real.read(size), real.labels, latent_dim)],
        label=out.name,
        save_seconds=60,
    )
    out.mkdir(parents=True, exist_ok=True)
    card = {
        "format": FORMAT,
        "class_names": list(names),
        "latent_dim": latent_dim,
        "image_size": size,
        "conditional": True,
        "data_name": cells.name,
        "data_hash": sides["train"].fingerprint,
        "credit": cells.credit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cellaug": cellaug.__version__,
        "builder": "conditional_generator",
        "options": {
            "size": size,
            "depth": generator_depth,
            "latent_dim": latent_dim,
            "classes": len(names),
            "kernel": choices.get("kernel", 4),
            "modulation": choices.get("modulation", True),
        },
        "sha256": save_weights(game.trained_generator, out / WEIGHTS),
        "training": {
            "recipe": recipe,
            "images_seen": len(history) * per_epoch,
            "training_images": len(sides["train"]),
            "split_seed": SPLIT_SEED,
            "seconds": round(float(history["seconds"].sum())),
            "device": device(),
            "versions": versions(),
        },
    }
    write_atomically(out / CARD, (json.dumps(card, indent=1) + "\n").encode())
    generator = load_generator(out)
    test = LabelledImages.read(sides["test"], size)
    found = evaluate(
        test,
        read_generated(out, test.counts(), seed=seed),
        LabelledImages.read(sides["train"], size),
        seed=seed,
    )
    card["fidelity"] = json.loads(as_json(found))
    write_atomically(out / CARD, (json.dumps(card, indent=1) + "\n").encode())
    rows = [np.concatenate(list(generator.generate(k, PICTURES)), 1) for k in range(len(names))]
    write_png(out / "samples.png", np.concatenate(rows))
    write_atomically(out / "README.md", model_card(out.name, card, as_text(found)).encode())
    return out


def model_card(name: str, card: dict, fidelity: str) -> str:
    """The card as Markdown: what it is, what it learned from, how well it does, what it cannot."""
    training = card["training"]
    hours = training["seconds"] / 3600
    choices = ", ".join(f"{key} {value}" for key, value in training["recipe"].items())
    return f"""# {name}

Draws generated white blood cells of {len(card["class_names"])} classes,
{card["image_size"]}×{card["image_size"]} pixels. `cellaug.load_generator("{name}")` reads it.

![Generated cells, {PICTURES} of each class.](samples.png)

*Generated, not real: a row for each class ({", ".join(card["class_names"])}), the first
{PICTURES} latent vectors of seed 0, not selected.*

- **Learned from**: {training["training_images"]:,} training images of {card["data_name"]} (split
  seed {training["split_seed"]}), none of the test images. {card["credit"]}
- **Licence of the weights**: CC BY 4.0, with the credit above.
- **Recipe**: `cellaug.training.conditional` with {choices}.
- **Images seen**: {training["images_seen"]:,} in {hours:.1f} hours on {training["device"]}.
- **Format**: float16 arrays; SHA-256 {card["sha256"]}.

## Fidelity over the test split

```text
{fidelity.strip()}
```

## Known failings

Cells from one laboratory and one stain; at this size the texture of chromatin is not resolved.
Every line above that misses its target is a failing. Classes that differ little, the stages of a
neutrophil's growth above all, are told apart worse than real ones. Not for diagnosis.
"""
