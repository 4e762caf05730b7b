"""All state of a training run in one file, so that a resumed run ends like an uninterrupted one."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellaug.data.images import write_atomically

import keras
import numpy as np

PACKAGE = Path(__file__).parents[1]


class Mismatch(ValueError):
    """The checkpoint belongs to a run with other settings; ``keys`` names those that differ."""

    def __init__(self, path: Path, keys: list[str]):
        super().__init__(
            f"{path} is of a run that differs in: {', '.join(keys)}. Use its settings to go on "
            "with it, or another file, or remove it"
        )
        self.keys = keys


def source_hash(*parts: str) -> str:
    """A hash over the source of parts of this package, by default training and networks."""
    digest = hashlib.sha256()
    parts = parts or ("training", "networks")
    for path in sorted(path for part in parts for path in PACKAGE.glob(f"{part}/*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Everything that a training step changes: weights, running means, seeds, optimizers' state.

    Metrics are left out, since every epoch begins them anew.
    """
    optimizers = [model.optimizer, getattr(model, "d_optimizer", None)]
    found = list(model.variables)
    for optimizer in optimizers:
        if optimizer is not None:
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
            found += optimizer.variables
    metrics = {id(v) for v in model.metrics_variables}
    return list({id(v): v for v in found if id(v) not in metrics}.values())


def fingerprint(model: keras.Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for a run to be continued, as JSON would give it back.

    The caller's settings and besides them, before them where names are the same, the `choices` of
    an `Adversarial`; ``optimizer`` and ``d_optimizer``, with all of their settings; ``layers``,
    their kinds, activations and the type that they compute in; ``variables`` (their shapes in
    order; Keras's names for them depend on what else the process has built); ``backend`` (random
    numbers differ between backends); ``source`` (`source_hash`).

    Raises:
        TypeError: for settings that are not plain values.
        ValueError: for a model that is not built.
    """
    if not model.built:
        raise ValueError(f"'{model.name}' has no weights yet: build it before it is trained")
    optimizers = {
        name: {k: v for k, v in getattr(model, name).get_config().items() if k != "name"}
        for name in ("optimizer", "d_optimizer")
        if getattr(model, name, None) is not None
    }
    facts = {
        **settings,
        **getattr(model, "choices", {}),
        **optimizers,
        "layers": _layers(model),
        "backend": keras.backend.backend(),
        "source": source_hash(),
        "variables": [list(v.shape) for v in variables_of(model)],
    }
    return json.loads(json.dumps(facts, default=_plain))


def _layers(layer: keras.Layer) -> list[str]:
    if inner := getattr(layer, "layers", ()):
        return [row for part in inner for row in _layers(part)]
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    return [f"{type(layer).__name__} {activation} {layer.compute_dtype}"]


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch: epochs done.
        batch: batches done of the epoch after them.
        seconds: spent in that epoch so far.
        history: one mapping of names to numbers for each epoch done.
        metrics: values of the metrics' variables after that batch.
        stopped: whether a callback has ended the run early.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    metrics: list[list[float]] = field(default_factory=list)
    stopped: bool = False


def save(path: Path, model: keras.Model, own: Mapping[str, Any], position: Position) -> None:
    """Write the state to an .npz file, in place of what is there.

    Args:
        path: the file; its folder is made if it is missing.
        model: compiled.
        own: the run's `fingerprint`.
        position: where the run is.
    """
    arrays = {
        f"{index:05d}": keras.ops.convert_to_numpy(variable.value)
        for index, variable in enumerate(variables_of(model))
    }
    record = {"settings": own, **asdict(position)}
    write_npz(path, record=np.array(json.dumps(record)), **arrays)


def restore(path: Path, model: keras.Model, own: Mapping[str, Any], epochs: int) -> Position:
    """Put a saved state into the model; returns how far it had come.

    Raises:
        Mismatch: if the run's `fingerprint`, here ``own``, is another, or more than ``epochs``
            epochs are done. The model is then as it was.
        ValueError: if the file is not a checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(file["record"].item())
            saved = record.pop("settings")
            keys = sorted(
                key
                for key in own.keys() | saved.keys()
                if key not in own or key not in saved or own[key] != saved[key]
            )
            position = Position(**record)
            if position.epoch + (position.batch > 0) > epochs:
                keys.append("epochs")
            if keys:
                raise Mismatch(path, keys)
            variables = variables_of(model)
            values = [file[f"{index:05d}"] for index in range(len(variables))]
    except Mismatch:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of cellaug: remove it ({error})") from error
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return position


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """`numpy.savez`, but the file appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _plain(value: Any) -> Any:
    """What JSON does not know of by itself: NumPy's numbers and arrays, and paths."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"setting {value!r}: expected plain values, as JSON holds them")
