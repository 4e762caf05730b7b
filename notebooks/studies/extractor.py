# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Study: the blood extractor
#
# This study trains the small classifier whose features the fidelity measures use, and writes it to a
# folder: the weights (float16), a card with its results, and the card as text. `cellaug study
# extractor` runs it. It takes hours on a processor and resumes after an interruption.

# %% tags=["parameters"]
profile = "pbc"
data = "pbc-fine"
image_size = 64
out = ""  # by default build/study/extractor
width = 32
epochs = 24
batch_size = 64
learning_rate = 2e-3
seed = 1

# %%
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellaug.book.chapter import device, project_root, versions
from cellaug.data import Dataset
from cellaug.data.reader import Reader
from cellaug.evaluation import classification_report
from cellaug.evaluation.features import NAME, Extractor
from cellaug.files import write_atomically
from cellaug.generators import load_weights, save_weights
from cellaug.networks import blood_extractor
from cellaug.training import fit, use_xla
from studies.common import stored_splits
from studies.variants import DifferentiableAugmentation

import keras

# %% [markdown]
# ## Training
#
# The extractor learns the classes from the training split, in balanced batches. Symmetries, small
# shifts and colour changes are applied to its images in training.


# %%
class Augmented(keras.layers.Layer):
    """`DifferentiableAugmentation` as a layer, active in training only."""

    def __init__(self, augmentation: DifferentiableAugmentation, seed: int):
        super().__init__()
        self.augmentation = augmentation
        self.seed = keras.random.SeedGenerator(seed)

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Images (N, H, W, 3), changed in training."""
        if not training:
            return images
        drawn = self.augmentation.draw(keras.ops.shape(images)[0], self.seed)
        return self.augmentation(images, drawn)


# %% [markdown]
# The card gives its accuracy on the validation and the test split, measured with the weights as they
# are written.


# %%
def train(
    out: Path, splits: Mapping[str, Dataset], size: int, width: int = 32, epochs: int = 24,
    batch_size: int = 64, learning_rate: float = 2e-3, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Train an extractor; write ``blood-extractor.npz``, ``.json`` and ``.md``; return the card."""
    cells, given = splits["train"], (size, width, epochs, batch_size, learning_rate, seed)
    named = ("size", "width", "epochs", "batch_size", "learning_rate", "seed")
    settings = {"data": cells.fingerprint, **dict(zip(named, given, strict=True))}
    keras.utils.set_random_seed(seed)
    model = blood_extractor(len(cells.class_names), size, width)
    image = keras.Input(model.input_shape[1:])
    logits = model(Augmented(DifferentiableAugmentation(probability=0.8), seed)(image))[1]
    learner = keras.Model(image, logits)
    reader = Reader(cells, size, batch_size, seed=seed, balance=True, drop_last=True)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(reader))
    learner.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=use_xla(),
    )
    kept = out / f"{NAME}.checkpoint.npz"
    history = fit(
        learner, reader, epochs, checkpoint=kept, settings=settings, label="blood extractor"
    )
    digest = save_weights(model, out / f"{NAME}.npz")
    load_weights(model, out / f"{NAME}.npz", digest)  # in the precision of the file
    card: dict[str, Any] = {
        "class_names": list(cells.class_names),
        "size": size,
        "width": width,
        "sha256": digest,
        "trained_on": {"train": len(cells), "epochs": epochs, "settings": settings},
        "images_seen": epochs * len(reader) * batch_size,
        "training_accuracy": float(history["accuracy"].iloc[-1]),
        "seconds": round(float(history["seconds"].sum())),
        "credit": cells.credit,
        "created": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "device": device(),
        "accuracy": 0.0,
    }
    extractor = Extractor(model, card, digest[:16])
    for name in ("validation", "test"):
        answers = extractor(splits[name].read(size))[1].argmax(1)
        card[name] = classification_report(splits[name].labels, answers, cells.class_names)
    card["accuracy"] = card["test"]["accuracy"]
    write_atomically(out / f"{NAME}.json", (json.dumps(card, indent=1) + "\n").encode())
    write_atomically(out / f"{NAME}.md", model_card(card).encode())
    return card


# %%
def model_card(card: dict[str, Any]) -> str:
    """The card as Markdown: purpose, training data, accuracy."""
    test, learned = card["test"], card["trained_on"]
    rows = "\n".join(
        f"| {name} | {test['support'][name]} | {test['recall'][name]:.2f} |"
        for name in card["class_names"]
    )
    return f"""# Blood extractor

A network that gives 128 features of a blood cell at {card["size"]}×{card["size"]} pixels, in which
cellaug measures Fréchet and kernel distances, and its class among {len(card["class_names"])}.

- **Trained on**: {learned["train"]:,} training images of PBC, {learned["epochs"]} epochs of
  balanced batches ({card["images_seen"]:,} images, {card["seconds"] / 60:.0f} minutes on
  {card["device"]}). {card["credit"]}
- **Licence of the weights**: CC BY 4.0, with the credit above.
- **Accuracy**: {card["accuracy"]:.1%} of {sum(test["support"].values()):,} test images
  (macro F1 {test["macro_f1"]:.2f}), none of which it was trained on, in its shipped form (float16).
- **SHA-256**: {card["sha256"]}.

| class | test images | recall |
|---|---|---|
{rows}

It knows one laboratory and one stain. It confuses the stages of neutrophil maturation most often,
and judges the class of a generated cell no better. Its weights never change: distances are
comparable only between runs with the same SHA-256. Not for diagnosis.
"""


# %% [markdown]
# ## Run

# %%
if __name__ == "__main__":
    folder = Path(out) if out else project_root() / "build" / "study" / "extractor"
    choices = (width, epochs, batch_size, learning_rate, seed)
    card = train(folder, stored_splits(data, image_size), image_size, *choices)

# %%
if __name__ == "__main__":
    print(f"accuracy on the test split: {card['accuracy']:.3f}, {card['seconds']} s")
    print(folder)
