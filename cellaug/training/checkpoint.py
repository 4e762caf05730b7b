"""All state of a training run in one file, so that a resumed run ends like an uninterrupted one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cellaug.errors import DataError
from cellaug.files import write_npz
from cellaug.training.backends import without

import keras
import numpy as np

PACKAGE = Path(__file__).parents[1]


class Mismatch(DataError):
    """The checkpoint belongs to a run with other settings; `keys` names those that differ."""

    def __init__(self, path: Path, keys: list[str]):
        super().__init__(
            f"{path} is of a run that differs in: {', '.join(keys)}. Use its settings to resume "
            "it, or another file, or remove it"
        )
        self.keys = keys


def source_hash(*parts: str) -> str:
    """A hash over the source of parts of this package, by default training and networks."""
    digest = hashlib.sha256()
    found = (PACKAGE.glob(f"{part}/*.py") for part in parts or ("training", "networks"))
    for path in sorted(chain(*found)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """All that a training step changes (weights, means, seeds, optimizers' state) but metrics."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    found = chain(model.variables, *(x.variables for x in _optimizers(model).values()))
    return without(list({id(v): v for v in found}.values()), model.metrics_variables)


def _optimizers(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    return {name: x for name in ("optimizer", "d_optimizer") if (x := getattr(model, name, None))}


def fingerprint(model: keras.Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be the same for a run to be resumed, as JSON has it.

    The variables go in by shape, since their names depend on what else the process has built.
    Raises TypeError for settings that are not plain, ValueError for a model that is not built.
    """
    if not model.built:
        raise ValueError(f"'{model.name}' has no weights yet: build it before it is trained")
    facts = {
        **settings,
        **getattr(model, "choices", {}),
        **{name: {**x.get_config(), "name": ""} for name, x in _optimizers(model).items()},
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
    """How far a run has come."""

    epoch: int = 0  # complete epochs
    batch: int = 0  # batches done of the next epoch
    seconds: float = 0.0  # spent in that epoch so far
    history: list[dict[str, float]] = field(default_factory=list)  # of each complete epoch
    metrics: list[list[float]] = field(default_factory=list)  # their variables after that batch
    stopped: bool = False  # a callback has ended the run early


def save(path: Path, model: keras.Model, own: Mapping[str, Any], position: Position) -> None:
    """Write the state of a compiled model, the run's `fingerprint` and position to an .npz file."""
    record = {"settings": own, **asdict(position)}
    values = [keras.ops.convert_to_numpy(variable.value) for variable in variables_of(model)]
    arrays = {f"{index:05d}": value for index, value in enumerate(values)}
    write_npz(path, record=np.array(json.dumps(record)), **arrays)


def restore(path: Path, model: keras.Model, own: Mapping[str, Any], epochs: int) -> Position:
    """Put a saved state into the model; returns how far it had come.

    Raises Mismatch if the run's `fingerprint` is not `own` or more than `epochs` epochs are done,
    DataError if it is no checkpoint; the model is then as it was.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(file["record"].item())
            saved = record.pop("settings")
            position = Position(**record)
            values = [file[key] for key in sorted(file.files)[:-1]]  # "record" comes last
    except Exception as error:
        raise DataError(f"{path} is not a checkpoint of cellaug: remove it ({error})") from error
    keys = [k for k in sorted({**own, **saved}) if own.get(k, ...) != saved.get(k, ...)]
    if position.epoch + (position.batch > 0) > epochs:
        keys.append("epochs")
    if keys:
        raise Mismatch(path, keys)
    for variable, value in zip(variables_of(model), values, strict=True):
        variable.assign(value)
    return position


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | Path):
        return str(value) if isinstance(value, Path) else value.tolist()
    raise TypeError(f"setting {value!r}: expected plain values, as JSON holds them")
