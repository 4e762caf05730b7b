"""Training of the feature extractor that the package ships (`cellaug study extractor`)."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from cellaug.augmentation import load_weights, save_weights
from cellaug.book import device, versions
from cellaug.data.images import write_atomically
from cellaug.data.reader import Reader
from cellaug.evaluation import classification_report
from cellaug.evaluation.features import NAME, Extractor
from cellaug.networks import blood_extractor
from cellaug.study.training import stored_sides
from cellaug.training import DifferentiableAugmentation, fit, use_xla

import keras


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


def train(
    out: Path,
    data: str = "pbc-fine",
    size: int = 64,
    width: int = 32,
    epochs: int = 24,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 1,
) -> dict:
    """Train an extractor and write ``blood-extractor.npz`` (float16) and ``.json`` to a folder.

    It learns the classes from the training side, in balanced batches, symmetries and small shifts
    and changes of colour thrown in; what the card says of it is measured on the test side with the
    weights as they are written. Returns the card.
    """
    sides = stored_sides(data, size)
    names = sides["train"].class_names
    keras.utils.set_random_seed(seed)
    model = blood_extractor(len(names), size, width)
    image = keras.Input(model.input_shape[1:])
    logits = model(Augmented(DifferentiableAugmentation(probability=0.8), seed)(image))[1]
    learner = keras.Model(image, logits)
    reader = Reader(sides["train"], size, batch_size, seed=seed, balance=True, drop_last=True)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(reader))
    learner.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=use_xla(),
    )
    settings = {
        "data": sides["train"].fingerprint,
        "size": size,
        "width": width,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    began = time.monotonic()
    history = fit(
        learner,
        reader,
        epochs,
        checkpoint=out / f"{NAME}.checkpoint.npz",
        settings=settings,
        label="blood extractor",
    )
    digest = save_weights(model, out / f"{NAME}.npz")
    load_weights(model, out / f"{NAME}.npz", digest)  # as they are written
    card = {
        "class_names": list(names),
        "size": size,
        "width": width,
        "sha256": digest,
        "trained_on": {"train": len(sides["train"]), "epochs": epochs, "settings": settings},
        "images_seen": int(epochs * len(reader) * batch_size),
        "training_accuracy": float(history["accuracy"].iloc[-1]),
        "seconds": round(float(history["seconds"].sum())),
        "credit": sides["train"].credit,
        "created": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "device": device(),
        "accuracy": 0.0,
    }
    extractor = Extractor(model, card, digest[:16])
    for side in ("validation", "test"):
        answer = extractor(sides[side].read(size))[1].argmax(1)
        card[side] = classification_report(sides[side].labels, answer, names)
    card["accuracy"] = card["test"]["accuracy"]
    write_atomically(out / f"{NAME}.json", (json.dumps(card, indent=1) + "\n").encode())
    write_atomically(out / f"{NAME}.md", model_card(card).encode())
    print(f"blood extractor: accuracy {card['accuracy']:.3f}, {time.monotonic() - began:.0f} s")
    return card


def model_card(card: dict) -> str:
    """The card as Markdown: what it is for, what it learned from, how often it is right."""
    test, learned = card["test"], card["trained_on"]
    rows = "\n".join(
        f"| {name} | {test['support'][name]} | {test['recall'][name]:.2f} |"
        for name in card["class_names"]
    )
    return f"""# Blood extractor

128 features of a blood cell at {card["size"]}×{card["size"]} pixels, the space in which
cellaug measures Fréchet and kernel distances; and its class among {len(card["class_names"])}.

- **Learned from**: {learned["train"]:,} training images of PBC, {learned["epochs"]} epochs of
  balanced batches ({card["images_seen"]:,} images, {card["seconds"] / 60:.0f} minutes on
  {card["device"]}). {card["credit"]}
- **Licence of the weights**: CC BY 4.0, with the credit above.
- **Right on** {card["accuracy"]:.1%} of {sum(test["support"].values()):,} test images
  (macro F1 {test["macro_f1"]:.2f}), which it never learned from, in its shipped form (float16).
- **SHA-256**: {card["sha256"]}.

| class | test images | recall |
|---|---|---|
{rows}

It knows one laboratory and one stain. The stages of a neutrophil's growth are told apart worst;
a generated cell's class is judged no better than that. Frozen: distances are comparable only
between runs with the same SHA-256. Not for diagnosis.
"""
