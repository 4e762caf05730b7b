"""What a training step on several devices computes and exchanges, and how far that scales.

The numbers come from XLA: the compiled step says what it computes (`cost`), and its text which
collective operations join the devices (`collectives`). `predicted` puts them together with a machine
that is described in ``machines.yaml``, and with what a recorded training reached (`reached`).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

MACHINES = Path(__file__).with_name("machines.yaml")
"""Data sheets."""

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
BYTES |= {"s64": 8, "u64": 8}

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

DATA_SHEET = ("name", "source", "peak", "memory", "per_host", "inside", "between", "latency")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """The operations of a compiled step (its HLO text) that join devices: how many, how many bytes.

    Bytes are those of the results, on one device. An operation that begins and ends apart
    (``all-reduce-start``, ``all-reduce-done``) counts once.
    """
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        operation = re.search(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(", line)
        if not operation:
            continue
        shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", operation[1])
        if operation[3]:  # the shapes of what it begins with stand first
            shapes = shapes[len(shapes) // 2 :] or shapes
        size = sum(BYTES[kind] * math.prod(map(int, filter(None, sides.split(",")))) for kind, sides
                   in shapes)  # fmt: skip
        kind = found.setdefault(operation[2], {"count": 0, "bytes": 0})
        kind["count"] += 1
        kind["bytes"] += size
    return found


def machines() -> dict[str, dict[str, Any]]:
    """The machines of ``machines.yaml``, by a short name.

    `peak` is in 10¹² operations per second (bfloat16), `memory` what a device reads from its own
    memory, `per_host` the devices of a host, `inside` and `between` what a device can send to
    others of its host and of other hosts, all three in 10⁹ bytes per second, `latency` of a message
    between hosts in microseconds.
    """
    known = yaml.safe_load(MACHINES.read_text("utf-8"))
    for name, each in known.items():
        if missing := set(DATA_SHEET) - set(each):
            raise ValueError(f"{MACHINES.name}: {name} has no {', '.join(sorted(missing))}")
    return known


def least(step: Mapping[str, Any], machine: Mapping[str, Any]) -> float:
    """Seconds for an image at best: operations at the peak or bytes from memory, the slower of both.

    The roofline model (Williams et al. 2009). `step` has `flops` and `bytes` for each image.
    """
    return max(step["flops"] / machine["peak"] / 1e12, step["bytes"] / machine["memory"] / 1e9)


def reached(training: Mapping[str, Any], step: Mapping[str, Any]) -> float | None:
    """A recorded training's rate as a part of the best that its device could do (`least`).

    `training` is that of a generator's card. None if its device has no data sheet here.
    """
    for name, machine in machines().items():
        if name.upper() in training["device"]:
            return training["images_seen"] / training["seconds"] * least(step, machine)
    return None


def exchanged(
    devices: int, joined: Mapping[str, Mapping[str, int]], machine: Mapping[str, Any]
) -> float:
    """Seconds that a step's collective operations take with so many devices.

    Bandwidth: of n bytes a ring sends 2 (N − 1)/N · n from each device for an all-reduce, and half
    of it for the others (Thakur et al. 2005); between hosts the slower link counts. Latency: a tree
    passes 2 log₂ N messages for each operation. No exchange is hidden behind computation, although
    XLA may do that.
    """
    if devices == 1:
        return 0.0
    speed = machine["inside" if devices <= machine["per_host"] else "between"] * 1e9
    part = (devices - 1) / devices
    total = sum((2 if kind == "all-reduce" else 1) * part * each["bytes"] / speed for kind, each
                in joined.items())  # fmt: skip
    count = sum(each["count"] for each in joined.values())
    return total + count * 2 * math.log2(devices) * machine["latency"] / 1e6


def predicted(
    devices: int, batch: int, step: Mapping[str, Any], machine: Mapping[str, Any], share: float,
    reading: float,
) -> dict[str, float]:  # fmt: skip
    """Seconds of a step's parts, and images per second, with so many devices and images in a batch.

    `step` is the record of a compiled step: `flops` and `bytes` for each image, `collectives`.
    `share` is the part of its best speed (`least`) that a device reaches, `reading` the images that
    its process reads in a second. Reading goes on while the devices compute, so the slower of both
    counts.
    """
    computing = least(step, machine) * batch / devices / share
    exchanging = exchanged(devices, step["collectives"], machine)
    waiting = batch / devices / reading
    whole = max(computing + exchanging, waiting)
    return {"computing": computing, "exchanging": exchanging, "reading": waiting, "step": whole,
            "images_per_second": batch / whole}  # fmt: skip


def efficiency(rows: pd.DataFrame) -> pd.Series:
    """Images per second of each device as a part of what one device reaches alone (the first row)."""
    each = rows["images_per_second"] / rows["devices"]
    return each / each.iloc[0]
