# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Study: the shipped generators
#
# This study trains the generators that come with cellaug: a conditional one for each image size, and
# the thesis's GAN without classes. They are trained on the training split and evaluated on the test
# split. `cellaug study weights` runs it for hours and resumes after an interruption; `cellaug study
# cards` evaluates generators again that are already trained.

# %% tags=["parameters"]
profile = "pbc"
data = "pbc-fine"
image_size = 64
out = ""  # by default build/study/weights; for cards the weights in the package
arms = ()  # "conditional", "vanilla"; by default both
seeds = (1,)
images = 850_000
start_from = ""  # a generator to begin with, instead of nothing
choices: dict = {}  # of the recipe, other than the usual ones for this size
name = ""  # of the conditional generator; by default that of the data with the size
cards = False  # only evaluate again what is in `out`
resamples = 200
classifiers = True  # train classifiers on generated images, which takes minutes

# %%
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cellaug.book.chapter import device, project_root, read_result, result_file, versions
from cellaug.data import DataError, Dataset
from cellaug.data.images import write_png
from cellaug.evaluation.features import SIZES, load_extractor
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.finding import as_text
from cellaug.evaluation.scorecard import (
    IN_FEATURES,
    ROWS,
    compact,
    scorecard,
    scorecard_table,
    summary,
    tidy,
)  # fmt: skip
from cellaug.evaluation.sources import read_generated
from cellaug.files import write_atomically, write_json
from cellaug.generators import CARD, SHIPPED, load_generator, save_generator
from cellaug.train import recipe_for
from cellaug.training import Adversarial, Recipe
from cellaug.training.backends import accelerators
from cellaug.training.finetune import begin, choices_of
from cellaug.training.progress import duration
from studies.common import SPLIT_SEED, require_known, stored_splits, train_on, vanilla

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("conditional", "vanilla")

VANILLA = (
    "generator_depth", "discriminator_depth", "latent_dim", "kernel", "symmetries", "half_life",
    "learning_rate", "beta_1", "seed", "batch_size",
)  # fmt: skip
"""The choices of a recipe that the GAN without classes has."""

# %% [markdown]
# ## Training
#
# A generator is saved with its model card. The GAN without classes keeps its discriminator too, so
# that an AC-GAN can be built on both.


# %%
def train(
    out: Path, splits: Mapping[str, Dataset], images: int, size: int, kind: str = "conditional",
    measured: Mapping[str, Any] | None = None, start_from: str = "", **choices: Any,
) -> None:  # fmt: skip
    """Train a generator on about `images` real images, evaluate it, and write it to `out`.

    Args:
        out: the generator directory. Its checkpoint is `<out>.checkpoint.npz`.
        splits: the images to train on ("train") and to evaluate with ("test").
        images: real images that it sees, up to whole epochs.
        size: height and width of the images in pixels.
        kind: "conditional" or "vanilla".
        measured: options of `measure`.
        start_from: a conditional generator to begin with.
        choices: of `cellaug.training.Recipe`, other than those of `cellaug.train.recipe_for`.
    """
    cells, conditional = splits["train"], kind != "vanilla"
    seed = choices.pop("seed", 1)
    source = load_generator(start_from) if start_from else None
    like = choices_of(source, size) if source else None
    recipe = recipe_for(size, seed, choices, like) if conditional else Recipe(seed=seed, **choices)
    if conditional:
        if recipe.mixed_precision is None:
            recipe = replace(recipe, mixed_precision=bool(accelerators()))
        noted = {"recipe": "cellaug.training.Recipe", **asdict(recipe)}
        if source:
            noted["start_from"] = f"{source.folder.name} ({source.digest})"
    else:
        noted = {"recipe": "the thesis's GAN without classes, with the first changes of the study"}
        noted |= {key: getattr(recipe, key) for key in VANILLA}

    def build(steps: int) -> Adversarial:
        if conditional:
            return begin(recipe, size, cells.class_names, steps, source)
        return vanilla(size, recipe)

    done = train_on(
        cells, build, size, recipe.batch_size, images, seed=recipe.seed, balance=conditional,
        checkpoint=out.with_name(f"{out.name}.checkpoint.npz"),
        settings={**noted, "images": images}, label=out.name,
    )  # fmt: skip
    save_generator(
        done.gan.trained_generator,
        out,
        class_names=cells.class_names if conditional else (),
        dataset=cells,
        discriminator=None if conditional else done.gan.discriminator,
        training={
            "recipe": noted,
            "images_seen": done.images_seen,
            "training_images": len(cells),
            "split_seed": SPLIT_SEED,
            "seconds": round(float(done.history["seconds"].sum())),
            "device": device(),
            "versions": versions(),
        },
    )
    measure(out, splits, **measured or {})


# %% [markdown]
# ## Evaluation
#
# The card gets the measures on the test split, a picture of the first cells that the generator draws,
# and a text. Features are those of the extractor for its size; small cells are enlarged and measured
# once more with the extractor for large ones, so that all sizes can be compared. The card's field
# `seen`, which a person has written, stays: weaknesses that no measure shows.


# %%
def measure(
    folder: Path, splits: Mapping[str, Dataset], resamples: int = 200, cas: bool = True
) -> None:
    """Evaluate a trained generator; write its card and picture again.

    Raises:
        DataError: if it was trained on other images than those of `splits`.
    """
    card = json.loads((folder / CARD).read_text())
    if card["data_hash"] != splits["train"].fingerprint:
        raise DataError(
            f"{folder.name} was trained on {card['data_name']} ({card['data_hash']}), not on "
            f"{splits['train'].name} ({splits['train'].fingerprint}): name the profile of its data"
        )
    size, names = card["image_size"], card["class_names"]
    seed = card["training"]["recipe"]["seed"]
    made = read_generated(folder, splits["test"].counts().to_dict(), seed=seed)
    sets = [splits["test"].in_memory(size), made, splits["train"].in_memory(size)]
    options = {"features": "shipped", "resamples": resamples, "seed": seed}
    found = evaluate(*sets, cas=cas and bool(names), **options)
    card["fidelity"] = found.card()
    if size < SIZES[-1]:
        larger = evaluate(*sets, cas=False, extractor=load_extractor(SIZES[-1]), **options)
        card["enlarged"] = larger.card()
    write_atomically(folder / CARD, (json.dumps(card, indent=1) + "\n").encode())
    columns = min(10, 640 // size)
    cells = load_generator(folder).generate(names or None, columns if names else 3 * columns)
    rows = [np.concatenate(cells[k : k + columns], 1) for k in range(0, len(cells), columns)]
    write_png(folder / "samples.png", labelled(rows, names))
    text = model_card(folder.name, card, as_text(found))
    write_atomically(folder / "README.md", text.encode())


# %%
def labelled(rows: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Rows of images (H, W, 3) under each other, each after its name; the pixels stay as they are.

    Without names there are only the images.
    """
    picture = np.concatenate(list(rows))
    if not names:
        return picture
    font, height = ImageFont.load_default(14), len(rows[0])
    width = 12 + max(round(font.getlength(name)) for name in names)
    left = Image.new("RGB", (width, len(picture)), "white")
    pen = ImageDraw.Draw(left)
    for k, name in enumerate(names):
        pen.text((width - 8, (k + 0.5) * height), name, "#222222", font, anchor="rm")
    return np.concatenate([np.asarray(left), picture], 1)


def model_card(name: str, card: dict[str, Any], fidelity: str) -> str:
    """The card as Markdown: weaknesses, pictures, scorecard; training and all measures folded."""
    training, names, size = card["training"], card["class_names"], card["image_size"]
    choices = ", ".join(f"{k} {v}" for k, v in training["recipe"].items() if k != "recipe")
    classes = f"of {len(names)} classes" if names else "without a class"
    rows = "a row for each class, the" if names else "the"
    pair = ""
    if "discriminator" in card:
        pair = f', `cellaug.load_discriminator("{name}")` its discriminator'
    fine = "At this size the texture of chromatin cannot be seen."
    if size == SIZES[-1]:
        fine = f"The extractor looks at {size} pixels, as these cells have."
    elif size > SIZES[-1]:
        fine = (
            f"The extractor looks at {SIZES[-1]} pixels; of finer detail only the grid is measured."
        )
    enlarged = ""
    if "enlarged" in card:
        enlarged = f"""
The same with cells enlarged to {SIZES[-1]} pixels, in the features of the extractor for that size, where the
sizes can be compared:

{scorecard_rows(card["enlarged"], in_features=True)}
"""
    weak = [f"By eye: {card['seen']}"] if "seen" in card else []
    weak += [*weaknesses(card["fidelity"]), "Cells from one laboratory and one stain."]
    weak += [fine, "Not for diagnosis."]
    listed = "\n".join(f"- {weakness}" for weakness in weak)
    shown = "Generated cells" + f" in rows by class: {', '.join(names)}" * bool(names)
    return f"""# {name}

Generates blood cells {classes}, {size}×{size} pixels.
`cellaug.load_generator("{name}")` loads it{pair}.

## Known weaknesses

{listed}

![{shown}. {weak[0]}](samples.png)

*Generated, not real: {rows} first latent vectors of seed 0, not selected.*

## Scorecard

Generated cells against test cells, for each measure in the worst class (or grid period). Values are
relative to real cells measured against other real cells: 1 is as good as real, but class accuracy is
a difference. A target is met if the whole interval is within it.

{scorecard_rows(card["fidelity"])}
{enlarged}
<details>
<summary>Training, recipe and all measures on the test split, by class</summary>

- **Trained on**: {training["training_images"]:,} training images of {card["data_name"]} (split
  seed {training["split_seed"]}), none of the test images. {card["credit"]}
- **Licence of the weights**: CC BY 4.0, with the credit above.
- **Images seen**: {training["images_seen"]:,} in {duration(training["seconds"])} on
  {training["device"]}.
- **Format**: float16 arrays; SHA-256 {card["sha256"]}.

- **Recipe**: {training["recipe"]["recipe"]}: {choices}.

```text
{fidelity.strip()}
```

</details>
"""


def scorecard_rows(fidelity: Mapping[str, Any], in_features: bool = False) -> str:
    """The scorecard of a card's fidelity as a Markdown table, or only what features decide."""
    table = scorecard_table(fidelity["table"])
    if in_features:
        decided = [ROWS[name] for name in ROWS if name.rpartition("_")[0] in IN_FEATURES]
        table = table.loc[decided]
    table = table.rename_axis("measure").rename(columns={"": "verdict"})
    table = table.replace("", "–").reset_index()
    sides = ["---:" if name in ("worst value", "95 %") else "---" for name in table]
    rows = [list(table), sides, *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def weaknesses(fidelity: Mapping[str, Any]) -> list[str]:
    """The targets that were missed and the worst classes, from a card's fidelity, in sentences."""
    table = tidy(fidelity["table"])
    card = scorecard(table)
    judged = card[card["value"].notna() & (card["reason"] == "")]
    named = judged["where"].map(lambda where: f" ({where})" if where else "")
    named = named.radd([ROWS[str(name)] for name in judged.index])
    missed = ", ".join(named[judged["met"].eq(False)])
    said = [f"Targets missed: {missed or 'none of those measured'}."]
    if undecided := ", ".join(named[judged["met"].isna()]):
        said.append(f"Undecided, because the interval includes an end of the target: {undecided}.")
    overall = table[table["level"] == "overall"].set_index("measure")["energy_ratio"].dropna()
    if len(overall):
        energies = ", ".join(f"{value:.2f} at {name[5:]}" for name, value in overall.items())
        said.append(f"Fine detail, as energy relative to real images: {energies} pixels' period.")
    classes = table[table["level"] == "class"].set_index("group")
    far = classes.loc[classes["measure"] == "frechet", "ratio"].dropna()
    if len(far):
        said.append(
            f"Farthest from the real cells of its class: {far.idxmax()}, at {far.max():.1f} times "
            f"the Fréchet distance between their halves (median of the classes {far.median():.1f})."
        )
    seen = classes[(classes["measure"] == "agreement") & classes["gap"].notna()]
    if len(seen):
        oddest = seen["gap"].abs().idxmax()
        said.append(
            f"Class accuracy differs most for {oddest}: the extractor recognises "
            f"{100 * seen['value'][oddest]:.0f} % of the generated cells and "
            f"{100 * seen['real'][oddest]:.0f} % of the real ones."
        )
    return said


# %% [markdown]
# ## Records
#
# The measures of conditional generators are recorded for the book to show. A run takes hours, so
# seeds are recorded one after the other: a run replaces an earlier one of the same seed, and removes
# those that differ in more than the seed.


# %%
def record(folder: Path, name: str) -> Path:
    """Add the measures of a conditional generator to ``book/results/weights-<name>.json``."""
    path = result_file(f"weights-{name}.json")
    card = json.loads((folder / CARD).read_text())
    training, fidelity = card["training"], card["fidelity"]
    run = {"arm": name, "seed": training["recipe"]["seed"], **training}
    run |= {key: card[key] for key in ("data_name", "data_hash", "credit", "image_size", "sha256")}
    run |= {
        "date": card["created"][:10],
        "test_images": fidelity["sets"]["real"]["images"],
        "extractor": fidelity["extractor"]["digest"],
        "evaluation": {k: v for k, v in fidelity["settings"].items() if k != "seed"},
        "table": compact(summary(tidy(fidelity["table"]))),
    }
    others = recorded(name) if path.is_file() else []
    runs = {old["seed"]: old for old in others if shared(old) == shared(run)} | {run["seed"]: run}
    write_json(path, {"runs": [runs[seed] for seed in sorted(runs)]})
    return path


def shared(run: Mapping[str, Any]) -> tuple:
    """The facts in which runs of different seeds must agree."""
    recipe = {key: value for key, value in run["recipe"].items() if key != "seed"}
    same = ("data_hash", "images_seen", "image_size", "test_images", "extractor", "evaluation")
    return recipe, *(run.get(key) for key in same)


def recorded(name: str) -> list[dict[str, Any]]:
    """The recorded runs, by seed; `BookError` if there are none."""
    return read_result(f"weights-{name}.json", "cellaug study weights")["runs"]


# %% [markdown]
# ## Run


# %%
def run(
    out: Path,
    splits: Mapping[str, Dataset],
    images: int,
    size: int,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
    start_from: str = "",
    choices: Mapping[str, Any] | None = None,
    name: str = "",
    **measured: Any,
) -> Path:
    """Train generators in subfolders of `out` and record the conditional ones.

    A conditional generator is called ``<data>-<size>`` unless it has a name, with ``-seed-<seed>``
    for another seed than 1; the one without classes ``<set>-vanilla-<size>``, with the first seed.

    Returns:
        The record, or `out` if none was made.
    """
    require_known(arms, KINDS)
    chosen, data = arms or KINDS, splits["train"].name
    kept, name = out, name or f"{data}-{size}"
    for seed in seeds if "conditional" in chosen else ():
        folder = out / (name if seed == 1 else f"{name}-seed-{seed}")
        given = {"start_from": start_from, **(choices or {})}
        train(folder, splits, images, size, measured=measured, seed=seed, **given)
        kept = record(folder, name)
    if "vanilla" in chosen:
        folder = out / f"{data.partition('-')[0]}-vanilla-{size}"
        train(folder, splits, images, size, "vanilla", measured, seed=seeds[0])
    return kept


def measure_again(folder: Path, splits: Mapping[str, Dataset], **measured: Any) -> Path:
    """Evaluate every generator in a folder again."""
    if not (found := sorted(folder.glob(f"*/{CARD}"))):
        raise DataError(f"{folder} holds no folder with a {CARD}: 'cellaug study weights' first")
    for card in found:
        measure(card.parent, splits, **measured)
    return folder


# %%
if __name__ == "__main__":
    folder = Path(out) if out else SHIPPED if cards else project_root() / "build/study/weights"
    splits = stored_splits(data, image_size)
    options = {"resamples": resamples, "cas": classifiers}
    if cards:
        place = measure_again(folder, splits, **options)
    else:
        more: dict = {"start_from": start_from, "choices": choices, "name": name, **options}
        place = run(folder, splits, images, image_size, arms, seeds, **more)

# %%
if __name__ == "__main__":
    print(place)
