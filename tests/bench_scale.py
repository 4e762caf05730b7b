"""`make bench-scale`: what several devices cost, and what a training step computes and exchanges.

On the processor the conditional recipe takes its step on one and on four virtual devices, which
share the same cores, so that their ratio is what spreading a batch costs. Both are processes that
take turns. Then the step is compiled for each size: XLA counts its operations and the bytes that it
touches, on one device, and on four the bytes that the devices exchange. Where there is an
accelerator, its steps are timed in bfloat16, beside matrix products, and the slowest kinds of
operation are named. A folder of very many files and a store of as many images show how long opening
takes, how long an epoch is, and whether memory grows. The record goes to
`book/results/scale-benchmark.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellaug.book.chapter import result_file
from cellaug.files import write_json
from studies.scaling import collectives

import numpy as np
from bench_data import circumstances, many_in_a_store, start_up
from bench_train import BATCH, CLASSES, noise, repeated
from tqdm import tqdm

SIZES = (64, 128, 256)
DEVICES = (1, 4)
STEPS, ROUNDS = 8, 5  # steps: a whole cycle of the lazy penalty
SIDE = 8192
MANY = 450_000
PAIR = "two steps in one call"


def recipe(size: int, **choices: Any) -> Any:
    """The recipe of `cellaug train` at this size, with a batch that four devices can share."""
    from cellaug.train import recipe_for

    return recipe_for(size, 1, {"batch_size": BATCH, **choices})


def stepping(size: int, together: int = 1) -> Callable[[int], None]:
    """What takes so many steps on all devices, by `keras.Model.fit`, `together` in one call."""
    gan, reader = recipe(size).build(size, CLASSES, 10_000), repeated(noise(BATCH, size))
    gan.steps_per_execution = together
    return lambda count: gan.fit(reader(count), shuffle=False, verbose=0)


def compiled(size: int) -> dict[str, Any]:
    """What XLA says of the compiled step of all devices here: operations, bytes, exchange.

    XLA counts the penalty in every step. It is computed in one of `penalty_every`, so this is the
    mean over so many steps, from a compiled step with the penalty and one without.
    """
    every = recipe(size).penalty_every
    whole, bare = costs(size), costs(size, gamma=0.0)

    def mean(one: float, other: float) -> float:
        return one / every + other * (every - 1) / every

    none = {"count": 0, "bytes": 0}
    joined = {
        kind: {what: mean(each[what], bare["collectives"].get(kind, none)[what]) for what in none}
        for kind, each in whole["collectives"].items()
    }
    costly = {what: mean(whole[what], bare[what]) for what in ("flops", "bytes")}
    return {**whole, **costly, "collectives": joined}


def costs(size: int, **choices: Any) -> dict[str, Any]:
    """The same of one step, with further choices of the recipe."""
    import jax
    from keras.src.backend.jax.trainer import _distribute_data

    gan = recipe(size, **choices).build(size, CLASSES, 10_000)
    state = gan._get_jax_state(
        trainable_variables=True, non_trainable_variables=True, optimizer_variables=True,
        metrics_variables=True,
    )  # fmt: skip
    data = _distribute_data(noise(BATCH, size))
    step = jax.jit(gan.train_step).lower(state, data).compile()
    (cost,) = [found] if isinstance(found := step.cost_analysis(), dict) else found
    memory = step.memory_analysis()
    parameters = [sum(int(np.prod(v.shape)) for v in n.trainable_variables) for n in
                  (gan.generator, gan.discriminator)]  # fmt: skip
    return {
        "flops": cost["flops"] / BATCH,
        "bytes": cost["bytes accessed"] / BATCH,
        "memory": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "parameters": parameters,
        "collectives": collectives(step.as_text()),
    }


def peak() -> float:
    """Operations per second of a large product of matrices in bfloat16, on one device."""
    import jax
    import jax.numpy as jnp

    left = jnp.ones((SIDE, SIDE), jnp.bfloat16)
    product = jax.jit(lambda a, b: a @ b)
    product(left, left).block_until_ready()
    start, count = time.perf_counter(), 20
    for _ in range(count):
        result = product(left, left)
    result.block_until_ready()
    return 2 * SIDE**3 * count / (time.perf_counter() - start)


def slowest(work: Callable[[int], None], steps: int = 8, most: int = 12) -> dict[str, float]:
    """The kinds of operation that take most of the device's time in some steps, as parts of 1."""
    import jax
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work(steps)
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = [*ProfileData.from_file(str(file)).planes]
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    seconds: Counter[str] = Counter()
    for line in (line for plane in devices or planes for line in plane.lines):
        if not devices and "XLA" not in line.name and "xla" not in line.name:
            continue
        for event in line.events:
            seconds[event.name.rstrip("0123456789.")] += event.duration_ns / 1e9
    total = sum(seconds.values()) or 1.0
    return {name: part / total for name, part in seconds.most_common(most)}


def many_images(count: int) -> dict[str, Any]:
    """Open a folder of so many files, twice; read two epochs of a store of as many: the memory."""
    from cellaug.data import open_dataset, stored
    from cellaug.data.reader import Reader

    import psutil

    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = start_up(Path(folder), count)
        some = open_dataset("phantom", classes=CLASSES, images=256, size=SIZES[0])
        stored(some, SIZES[0], Path(folder) / "store")
        place = many_in_a_store(Path(folder) / "store", count)
        start = psutil.Process().memory_info().rss
        started = time.perf_counter()
        cells = open_dataset(place)
        found["store_seconds"] = time.perf_counter() - started
        memory, images, started = [], [], time.perf_counter()
        with Reader(cells, SIZES[0], BATCH) as reader:
            for epoch in range(2):
                reader.seek(epoch)
                seen = 0
                for index in range(len(reader)):
                    seen += len(reader[index][1])
                    if not index % (len(reader) // 50 or 1):
                        above = psutil.Process().memory_info().rss - start
                        memory.append((epoch * count + seen, above / 2**20))
                images.append(seen)
        found["images_per_second"] = sum(images) / (time.perf_counter() - started)
    return found | {"images": count, "seen": images, "memory_mib": memory}


def arm(size: int, together: int) -> None:
    """A process that takes as many steps as every line says, and says how long they took."""
    work = stepping(size, together)
    work(2 * together)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work(int(line))
        print("seconds", time.perf_counter() - start, flush=True)


def process(*words: str, devices: int = 1) -> subprocess.Popen:
    """Start this program on JAX with so many virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
    )  # fmt: skip


def answer(of: subprocess.Popen, word: str) -> str:
    """The rest of the line that begins with a word."""
    assert of.stdout
    for line in of.stdout:
        if line.startswith(f"{word} ") or line.strip() == word:
            return line.removeprefix(word).strip()
    raise SystemExit(f"{' '.join(map(str, of.args))} ended")


def overhead(size: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, round by round, on one and on four devices, and of two in one call."""
    arms = {f"{count} devices": ("1", count) for count in DEVICES} | {PAIR: ("2", 1)}
    parts = {
        name: process("--arm", str(size), "--together", together, devices=count)
        for name, (together, count) in arms.items()
    }
    for part in parts.values():
        answer(part, "ready")
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in tqdm(range(rounds), "rounds", disable=None):
        for name, part in parts.items():
            assert part.stdin
            print(steps, file=part.stdin, flush=True)
            found[name].append(float(answer(part, "seconds")) / steps)
    for part in parts.values():
        part.communicate()
    return found


def told(*words: str, devices: int = 1) -> Any:
    """What this program says in a process of its own, as JSON."""
    part = process(*words, devices=devices)
    found = json.loads(answer(part, "found"))
    part.communicate()
    return found


def on_accelerator(sizes: tuple[int, ...], steps: int) -> dict[str, Any]:
    """Images per second at each size, the share of matrix products' speed, the slowest parts."""
    from cellaug.training.backends import accelerators

    if not (names := accelerators()):
        return {}
    import jax

    found: dict[str, Any] = {"device": names[0], "devices": jax.local_device_count()}
    found["peak"] = peak()
    for size in sizes:
        work = stepping(size)
        work(8)
        start = time.perf_counter()
        work(steps)
        rate = BATCH * steps / (time.perf_counter() - start)
        facts = compiled(size)
        found[str(size)] = facts | {
            "images_per_second": rate,
            "share": rate * facts["flops"] / found["peak"] / found["devices"],
            "slowest": slowest(work),
        }
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--arm", type=int, help="a size: take steps when told to")
    arguments.add_argument("--together", type=int, default=1)
    arguments.add_argument("--cost", type=int, help="a size: say what its step costs")
    arguments.add_argument("--many", type=int, help="images: open a store of so many")
    arguments.add_argument("--accelerator", action="store_true")
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments.add_argument("--images", type=int, default=MANY)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--output", type=Path, help="instead of book/results")
    options = arguments.parse_args()
    if options.arm or options.cost or options.many or options.accelerator:
        from cellaug.training.devices import together

        with together():
            if options.arm:
                return arm(options.arm, options.together)
            found = (
                compiled(options.cost) if options.cost
                else many_images(options.many) if options.many
                else on_accelerator(tuple(options.sizes), 64)
            )  # fmt: skip
        return print("found", json.dumps(found), flush=True)
    steps = {
        str(size): {str(count): told("--cost", str(size), devices=count) for count in DEVICES}
        for size in tqdm(options.sizes, "compiling", disable=None)
    }
    result = {
        **circumstances(),
        "batch": BATCH,
        "size": options.sizes[0],
        "rounds": options.rounds,
        "seconds": overhead(options.sizes[0], STEPS, options.rounds),
        "steps": steps,
        "accelerator": told("--accelerator", "--sizes", *map(str, options.sizes)),
        "many": told("--many", str(options.images)),
    }
    medians = {name: statistics.median(each) for name, each in result["seconds"].items()}
    print("\n".join(f"{name}: {1000 * each:.0f} ms a step" for name, each in medians.items()))
    target = options.output or result_file("scale-benchmark.json")
    write_json(target, result)
    print(target)


if __name__ == "__main__":
    main()
