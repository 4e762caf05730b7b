"""How a network was built, as plain values: what a model card needs to build it again."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from keras import Model, models, ops

BUILDERS: dict[str, Callable[..., Model]] = {}  # that a model card may name


def described(build: Callable[..., Model]) -> Callable[..., Model]:
    """Let a function note its name and all its arguments in ``model.description``."""

    @wraps(build)
    def builder(*given: Any, **named: Any) -> Model:
        model = build(*given, **named)
        bound = signature(build).bind(*given, **named)
        bound.apply_defaults()
        options = {k: getattr(v, "description", v) for k, v in bound.arguments.items()}
        model.description = {"builder": build.__name__, "options": options}
        return model

    BUILDERS[build.__name__] = builder
    return builder


def build_described(builder: str, options: dict[str, Any]) -> Model:
    """A new network from its description; raises TypeError for options that it does not take."""
    if builder not in BUILDERS:
        raise ValueError(f"builder {builder!r}: expected one of {', '.join(BUILDERS)}")
    inner = {k: build_described(**v) if isinstance(v, dict) else v for k, v in options.items()}
    return BUILDERS[builder](**inner)


def frozen(model: Model, name: str) -> Model:
    """A copy of a network with the same weights and description, none of its weights trainable.

    In training its batch normalisation stays in inference mode; dropout is active.
    """
    copy = models.clone_model(model)
    for own, original in zip(copy.weights, model.weights, strict=True):
        own.assign(ops.copy(original))  # JAX may not get one buffer twice
    copy.trainable = False
    copy.name = name
    copy.description = getattr(model, "description", None)
    return copy
