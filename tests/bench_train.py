"""`make bench-train`: our training step beside PyTorch's, and beside the machine's matrix products.

Every arm runs in a process of its own and does one round when it is told to, so the arms take turns
on the same machine in the same minutes. A round is a few steps to wake up, then the timed ones, on
images that are already in memory. Rates are medians of five rounds after a single step; what counts
is their ratios. Then a step of ours is traced on one thread, for the share of its time that
convolutions take: they are oneDNN's, so the rest is all that could be saved here. The table goes to
the terminal, and with the machine's description to `book/results/train-benchmark.json`; without
PyTorch to the terminal alone.

PyTorch gets its best, once eager and once through `torch.compile`: channels-last memory,
activations in place, the fused Adam, one pass through the generator for both networks, and no
gradient that is not used.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from cellaug.book.chapter import result_file, versions
from cellaug.files import write_json

import numpy as np
from bench_data import circumstances
from tqdm import tqdm

SIZE, LATENT, KERNEL = 64, 100, 5
G_DEPTH, D_DEPTH = 256, 32
CLASSES = 11
BATCH = 64
WAKING = 3
STEPS = 32  # a multiple of the conditional recipe's lazy penalty, so that all rounds do the same
SLOW = 1.0  # seconds; where a step takes longer, a round has few
PENALTY_EVERY = 8  # steps, of the conditional recipe
ROUNDS = 5
SIDE = 2048

ARMS = {
    "ours": "our DCGAN, TensorFlow, float32",
    "ours-bfloat16": "our DCGAN, TensorFlow, bfloat16",
    "ours-jax": "our DCGAN, JAX, float32",
    "torch": "PyTorch's DCGAN, eager, channels-last, float32",
    "torch-bfloat16": "PyTorch's DCGAN, eager, channels-last, bfloat16",
    "torch-compiled": "PyTorch's DCGAN, compiled, channels-last, float32",
    "torch-compiled-bfloat16": "PyTorch's DCGAN, compiled, channels-last, bfloat16",
    "conditional": "our conditional recipe, TensorFlow, float32",
    "conditional-bfloat16": "our conditional recipe, TensorFlow, bfloat16",
    "products": "matrix products, TensorFlow, float32",
    "torch-products": "matrix products, PyTorch, float32",
}
TRACED = ("ours", "ours-bfloat16", "conditional")
TARGETS = {
    "float32": ("ours", "torch", 1.3),
    "bfloat16": ("ours-bfloat16", "torch-bfloat16", 1.3),
    "share of matrix products": ("conditional", "products", 0.5),
}
"""Which arm is to reach how many times another's rate; the last compares operations, not images."""
PAIRS = (
    ("ours", "torch"),
    ("ours-bfloat16", "torch-bfloat16"),
    ("torch", "torch-compiled"),
    ("torch-bfloat16", "torch-compiled-bfloat16"),
    ("conditional", "conditional-bfloat16"),
)
"""Arms whose rates stand side by side."""


def multiply_adds(network: Any) -> dict[str, int]:
    """Multiply-adds that one image costs going forward, for each weighted layer in order.

    Of `Conv2D`, `Conv2DTranspose` and `Dense`; all others are left out. A convolution costs its
    kernel's numbers once for every place of its output, a transposed one once for every place of
    its input. Taps that fall on padding count, as is usual.
    """
    from keras import layers

    places = {
        layers.Conv2D: lambda layer: math.prod(layer.output.shape[1:3]),
        layers.Conv2DTranspose: lambda layer: math.prod(layer.input.shape[1:3]),
        layers.Dense: lambda layer: 1,
    }
    return {
        layer.name: math.prod(layer.kernel.shape) * places[type(layer)](layer)
        for layer in network.layers
        if type(layer) in places
    }


def step_multiply_adds(gan: Any) -> dict[str, float]:
    """Multiply-adds for each image of the batch that one training step has to do at the least.

    Going forward a layer costs what `multiply_adds` says; going back as much again for the gradient
    of its input and as much again for that of its weights. Nothing is counted twice that has the
    same value twice, whatever the step really does. With G and D for one image through all layers
    of a network, and G₁ and D₁ for its first layer:

    - G forward once: both networks see the same images;
    - D forward on real and on generated images, and back to all its weights, but not to the images:
      2 D and 2 (2 D - D₁);
    - for the generator, the improved D forward and back to the images, but not to its weights: 2 D,
      and where images are judged in pairs forward on the real ones as well: 3 D;
    - G back to all its weights: 2 G - G₁;
    - on every k-th step R1, (D + 2 D) / k: D back from the logits of real images to the images
      (their way forward is counted above), then the derivative of that gradient. The layers are
      linear but for activations made of straight pieces, so it is one more way through them and
      one product for each layer's weights.

    Raises:
        ValueError: for a GAN with a penalty other than `R1`, or more than one discriminator step.
    """
    from cellaug.training import R1

    if gan.d_steps != 1 or not (gan.penalty is None or isinstance(gan.penalty, R1)):
        raise ValueError("expected a GAN with one discriminator step, with R1 or no penalty")
    g, d = (list(multiply_adds(n).values()) for n in (gan.generator, gan.discriminator))
    paired = getattr(gan.objective, "paired", False)
    return {
        "generator forward": sum(g),
        "discriminator forward": 2 * sum(d),
        "discriminator back": 2 * (2 * sum(d) - d[0]),
        "discriminator for the generator": (3 if paired else 2) * sum(d),
        "generator back": 2 * sum(g) - g[0],
        "penalty": 3 * sum(d) * (1 + gan.penalty.r2) / gan.penalty.every if gan.penalty else 0,
    }


def noise_images(count: int, size: int = SIZE) -> np.ndarray:
    """Images (count, size, size, 3) float32 in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype("float32")


def noise(count: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A batch of `noise_images`, and their classes."""
    return noise_images(count, size), np.arange(count) % CLASSES


def repeated(batch: tuple[np.ndarray, np.ndarray]) -> Callable[[int], Any]:
    """A reader that gives so many times the same batch, for each number."""
    import keras

    class InMemory(keras.utils.PyDataset):
        """The same batch again and again."""

        def __init__(self, count: int):
            super().__init__()
            self.count = count

        def seek(self, epoch: int, batch: int = 0) -> None:
            """There is no order."""

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return batch

    return InMemory


def fitting(gan: Any) -> Callable[[int], None]:
    """Steps as every chapter takes them, by `cellaug.training.fit`."""
    from cellaug.training import fit

    reader = repeated(noise(BATCH))
    return lambda count: fit(gan, reader(count), 1)


def our_dcgan(policy: str) -> tuple[Callable[[int], None], dict]:
    from cellaug.training import Recipe
    from studies.common import vanilla

    import keras

    keras.config.set_dtype_policy(policy)
    gan = vanilla(
        SIZE,
        Recipe(
            generator_depth=G_DEPTH,
            discriminator_depth=D_DEPTH,
            latent_dim=LATENT,
            kernel=KERNEL,
            symmetries=False,
            half_life=0,
        ),
    )
    networks = gan.generator, gan.discriminator
    parameters = [sum(math.prod(v.shape) for v in n.trainable_variables) for n in networks]
    facts = {"parameters": parameters, "multiply_adds": step_multiply_adds(gan)}
    return fitting(gan), facts


def our_conditional(half: bool) -> tuple[Callable[[int], None], dict]:
    from cellaug.training import Recipe

    recipe = Recipe(generator_depth=G_DEPTH, discriminator_depth=D_DEPTH, mixed_precision=half)
    gan = recipe.build(SIZE, CLASSES)
    return fitting(gan), {"multiply_adds": step_multiply_adds(gan)}


def torch_dcgan(half: bool, compiled: bool = False) -> tuple[Callable[[int], None], dict]:
    """The layers of `cellaug.networks.dcgan` and the step of `Adversarial` in PyTorch's words.

    With `compiled` both networks go through `torch.compile`, which needs a C++ compiler.
    """
    import torch
    from torch import nn

    doublings = (SIZE // 4).bit_length() - 1
    depths = [*(G_DEPTH // 2**k for k in range(doublings)), 3]
    project = nn.Linear(LATENT, 4 * 4 * G_DEPTH, bias=False)
    up = nn.Sequential()
    for deep, shallow in pairwise(depths):
        up.append(nn.BatchNorm2d(deep, eps=1e-3))
        up.append(nn.LeakyReLU(0.2, inplace=True))
        bias = shallow == 3
        up.append(nn.ConvTranspose2d(deep, shallow, KERNEL, 2, KERNEL // 2, 1, bias=bias))
    up.append(nn.Tanh())
    depths = [3, *(D_DEPTH * 2**k for k in range(doublings))]
    judge = nn.Sequential()
    for shallow, deep in pairwise(depths):
        judge.append(nn.Conv2d(shallow, deep, KERNEL, 2, KERNEL // 2))
        judge.append(nn.LeakyReLU(0.2, inplace=True))
        judge.append(nn.Dropout(0.3))
    judge.extend([nn.Flatten(), nn.Linear(4 * 4 * depths[-1], 1)])
    for network in (up, judge):
        network.to(memory_format=torch.channels_last)
    parameters = [*project.parameters(), *up.parameters()], list(judge.parameters())
    g_adam, d_adam = (
        torch.optim.Adam(own, 2e-4, (0.5, 0.999), eps=1e-7, fused=True) for own in parameters
    )
    if compiled:
        up, judge = torch.compile(up), torch.compile(judge)
    real = torch.from_numpy(noise_images(BATCH)).permute(0, 3, 1, 2)  # channels last in memory
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)

    def cost(images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(judge(images).float(), wanted)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            latents = torch.randn(BATCH, LATENT)
            fake = up(project(latents).view(BATCH, 4, 4, G_DEPTH).permute(0, 3, 1, 2))
            d_loss = cost(real, ones) + cost(fake.detach(), zeros)
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            g_loss = cost(fake, ones)
        g_adam.zero_grad()
        g_loss.backward(inputs=parameters[0])
        g_adam.step()

    def work(count: int) -> None:
        for _ in range(count):
            step()

    return work, {"parameters": [sum(p.numel() for p in own) for own in parameters]}


def factors() -> np.ndarray:
    """Two matrices (2, SIDE, SIDE) float32, large enough to keep all cores busy."""
    return np.random.default_rng(0).normal(size=(2, SIDE, SIDE)).astype("float32")


def products() -> tuple[Callable[[int], None], dict]:
    import tensorflow as tf

    left, right = (tf.constant(matrix) for matrix in factors())

    def work(count: int) -> None:
        for _ in range(count):
            tf.linalg.matmul(left, right)

    return work, {}


def torch_products() -> tuple[Callable[[int], None], dict]:
    import torch

    left, right = (torch.from_numpy(matrix) for matrix in factors())

    def work(count: int) -> None:
        for _ in range(count):
            torch.matmul(left, right)

    return work, {}


def made(name: str) -> tuple[Callable[[int], None], dict]:
    """An arm: what does so many of its steps, and what there is to say of it."""
    return {
        "ours": lambda: our_dcgan("float32"),
        "ours-bfloat16": lambda: our_dcgan("mixed_bfloat16"),
        "ours-jax": lambda: our_dcgan("float32"),
        "torch": lambda: torch_dcgan(half=False),
        "torch-bfloat16": lambda: torch_dcgan(half=True),
        "torch-compiled": lambda: torch_dcgan(half=False, compiled=True),
        "torch-compiled-bfloat16": lambda: torch_dcgan(half=True, compiled=True),
        "conditional": lambda: our_conditional(half=False),
        "conditional-bfloat16": lambda: our_conditional(half=True),
        "products": products,
        "torch-products": torch_products,
    }[name]()


def arm(name: str) -> None:
    """A process that says what it is made of, then does as many steps as every line says."""
    work, facts = made(name)
    print("facts", json.dumps(facts), flush=True)
    for line in sys.stdin:
        steps = int(line)
        work(min(WAKING, steps))
        start = time.perf_counter()
        work(steps)
        print("seconds", time.perf_counter() - start, flush=True)


def steps_of(seconds: dict[str, float], most: int) -> dict[str, int]:
    """How many steps each arm takes in a round, from the seconds that one step took.

    Few where a step is slow: a processor without bfloat16 arithmetic may take half a minute. Never
    less than a turn of the lazy penalty, and as many for two arms whose rates are compared.
    """
    found = {}
    for name, each in seconds.items():
        few = PENALTY_EVERY if name.startswith("conditional") else 1
        found[name] = most if each < SLOW else few
    for one, other in PAIRS:
        if one in found and other in found:
            found[one] = found[other] = min(found[one], found[other])
    return found


def measure(names: list[str], most: int, rounds: int) -> tuple[dict, dict, dict]:
    """The rates of every arm, round by round, the arms taking turns.

    A rate is in images per second, that of matrix products in 10⁹ operations per second. Returns
    with them how many steps each arm took in a round, and what each says of itself.
    """

    def answer(name: str, word: str) -> str:
        line = processes[name].stdout.readline()
        while line and not line.startswith(f"{word} "):
            line = processes[name].stdout.readline()
        if not line:
            raise SystemExit(f"{name} ended: run this with --arm {name} to see why")
        return line.removeprefix(f"{word} ")

    def turn(name: str, count: int) -> float:
        processes[name].stdin.write(f"{count}\n")
        processes[name].stdin.flush()
        return float(answer(name, "seconds"))

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes, facts = {}, {}
    for name in names:
        command = [sys.executable, __file__, "--arm", name]
        backend = "jax" if name == "ours-jax" else "tensorflow"
        environment = {**os.environ, "KERAS_BACKEND": backend}
        processes[name] = subprocess.Popen(command, text=True, env=environment, **pipes)
        facts[name] = json.loads(answer(name, "facts"))
    steps = steps_of({name: turn(name, 1) for name in names}, most)
    found = {name: [] for name in names}
    for _ in tqdm(range(rounds), "rounds", disable=None):
        for name, count in steps.items():
            each = 2 * SIDE**3 / 1e9 if name.endswith("products") else BATCH
            found[name].append(each * count / turn(name, count))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found, steps, facts


def traced(name: str, steps: int) -> dict[str, float]:
    """Seconds that each kind of TensorFlow operation takes in a few steps, the longest first.

    For a process with a single thread, in which operations follow one another.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    work, _ = made(name)
    work(WAKING)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            work(steps)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    seconds = Counter()
    for plane in space.planes:
        names = {key: about.name for key, about in plane.event_metadata.items()}
        for event in (event for line in plane.lines for event in line.events):
            # An operation is called <where it comes from>:<its kind>, the runtime's parts a::b.
            place, _, kind = names[event.metadata_id].rpartition(":")
            if place and kind.isidentifier() and not place.endswith(":"):
                seconds[kind] += event.duration_ps / 1e12
    return dict(seconds.most_common())


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """What part of the time is taken by convolutions, and by drawing random numbers."""
    total = sum(seconds.values())
    wanted = {"convolutions": "Conv2D", "random numbers": "Random"}
    return {
        what: sum(s for kind, s in seconds.items() if word in kind) / total
        for what, word in wanted.items()
    }


def trace(name: str, steps: int) -> dict[str, float]:
    """`shares` of an arm, in a process of its own with one thread."""
    command = [sys.executable, __file__, "--arm", name, "--steps", str(steps), "--trace"]
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | threads, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if done.returncode:
        raise SystemExit(f"{name} ended: run {' '.join(command[1:])} to see why")
    return shares(json.loads(done.stdout.splitlines()[-1]))


def operations_per_second(result: dict) -> dict[str, float]:
    """Each arm's median in 10⁹ operations per second, two for each multiply-add.

    PyTorch's networks cost what ours cost, layer by layer.
    """
    found = {}
    for name, values in result["rates"].items():
        found[name] = statistics.median(values)
        if not name.endswith("products"):
            parts = result["facts"][name].get("multiply_adds")
            parts = parts or result["facts"]["ours"]["multiply_adds"]
            found[name] *= 2 * sum(parts.values()) / 1e9
    return found


def verdicts(result: dict) -> dict[str, dict]:
    """How often each target's second rate goes into its first, and whether that is enough.

    The conditional step is compared with the faster of the two libraries' matrix products.
    """
    speed = operations_per_second(result)
    speed["products"] = max(speed[name] for name in speed if name.endswith("products"))
    return {
        what: {
            "ratio": speed[one] / speed[other],
            "target": target,
            "met": speed[one] / speed[other] >= target,
        }
        for what, (one, other, target) in TARGETS.items()
        if other in speed
    }


def table(result: dict) -> str:
    """Each arm's median rate, its operations per second, and both as ratios."""
    speed = operations_per_second(result)
    fastest = max(speed[name] for name in speed if name.endswith("products"))
    lines = [f"{'medians':<50}{'images/s':>10}{'× PyTorch':>11}{'GFLOP/s':>9}{'of products':>13}"]
    for name, words in result["arms"].items():
        images = ratio = ""
        if not name.endswith("products"):
            images = f"{statistics.median(result['rates'][name]):.1f}"
        if name.startswith(("ours", "torch-compiled")):
            peer = "torch-bfloat16" if name.endswith("bfloat16") else "torch"
            ratio = f"{speed[name] / speed[peer]:.2f}" if peer in speed else ""
        share = speed[name] / fastest
        lines.append(f"{words:<50}{images:>10}{ratio:>11}{speed[name]:>9.1f}{share:>13.2f}")
    for name, row in result.get("shares", {}).items():
        parts = ", ".join(f"{what} {share:.0%}" for what, share in row.items())
        lines.append(f"{result['arms'][name]}: of the time on one thread, {parts}")
    for what, row in result["verdicts"].items():
        outcome = "met" if row["met"] else "missed"
        lines.append(f"{what}: {row['ratio']:.2f}, target {row['target']}: {outcome}")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--arm", choices=ARMS)
    arguments.add_argument("--steps", type=int, default=STEPS)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--output", type=Path, help="instead of book/results")
    arguments.add_argument("--trace", action="store_true", help="of --arm: where the time goes")
    options = arguments.parse_args()
    if options.trace:
        return print(json.dumps(traced(options.arm, options.steps)))
    if options.arm:
        return arm(options.arm)
    names, used = list(ARMS), versions()
    try:
        used["torch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        names = [name for name in names if not name.startswith("torch")]
        print("PyTorch is not installed: its arms are left out, and the book's record stays")
    rates, steps, facts = measure(names, options.steps, options.rounds)
    sizes = {tuple(said["parameters"]) for said in facts.values() if "parameters" in said}
    assert len(sizes) == 1, f"the DCGANs differ in their numbers of parameters: {sizes}"
    result = {
        **circumstances(),
        "versions": used,
        "batch": BATCH,
        "steps": steps,
        "rounds": options.rounds,
        "arms": {name: ARMS[name] for name in names},
        "facts": facts,
        "rates": rates,
        "shares": {name: trace(name, steps[name]) for name in TRACED},
    }
    result["operations_per_second"] = operations_per_second(result)
    result["verdicts"] = verdicts(result)
    print(table(result))
    whole = result_file("train-benchmark.json") if "torch" in used else None
    if target := options.output or whole:
        write_json(target, result)
        print(target)


if __name__ == "__main__":
    main()
