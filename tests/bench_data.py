"""`make bench-data`: our reader beside others, its memory, its start-up, and building a store.

Every arm runs in a process of its own and does one epoch when it is told to, so the arms take turns
on the same machine in the same minutes. Rates are medians of five epochs after one for warming up;
what counts is their ratios. The bare work of our reader has its turn right after it, and their
ratio is the median over the rounds, because machines drift. The table goes to the terminal, and
with the machine's description to `book/results/data-benchmark.json`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path

from cellaug.book.chapter import project_root, result_file, versions
from cellaug.book.source import commit
from cellaug.data import Dataset, open_dataset
from cellaug.data.images import decode_reduced, fit_square, to_float
from cellaug.data.store import INDEX, SUM, stored

import numpy as np
import psutil
from tqdm import tqdm

BATCH = 32
SAMPLE = 2048
ROUNDS = 5
SIZES = (256, 128, 64)
MANY = 250_000

ARMS = {
    "files": "our reader, files",
    "bare-batch": "decoding, shrinking and scaling alone, two threads",
    "store": "our reader, store",
    "store-uint8": "our reader, store, uint8",
    "keras": "keras.utils.image_dataset_from_directory (not antialiased)",
    "tf.data": "tf.data, antialiased",
    "grain": "grain with OpenCV",
    "torch": "PyTorch DataLoader with OpenCV",
    "bare": "decoding alone, two threads",
    "bare-scaled": "decoding alone at the reader's scale, two threads",
}
PEERS = ("tf.data", "grain", "torch")
"""Those that shrink images as carefully as we do."""


def our_reader(cells: Dataset, size: int, values: str = "float32"):
    """Epochs of the project's reader, each from a new seed and with nothing kept in memory."""
    from cellaug.data.reader import Reader

    with Reader(cells, size, BATCH, memory_mb=0, values=values, drop_last=True) as reader:
        while True:
            for i in range(len(reader)):
                reader[i]
            yield len(reader) * BATCH
            reader.epoch += 1


def untuned():
    """No autotuner: at the end of an epoch it is waited for, which would be counted as reading."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def keras_directory(cells: Dataset, size: int, folder: Path):
    import keras

    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=BATCH, crop_to_aspect_ratio=True, verbose=False
    )
    data = data.map(lambda x, y: ((x - 127.5) / 127.5, y)).prefetch(2).with_options(untuned())
    while True:
        yield sum(len(labels) for _, labels in data)


def tf_data(cells: Dataset, size: int):
    import tensorflow as tf

    def load(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        side = tf.reduce_min(tf.shape(image)[:2])
        image = tf.image.resize_with_crop_or_pad(image, side, side)
        image = tf.image.resize(image, (size, size), antialias=True)
        return (image - 127.5) / 127.5, label

    data = tf.data.Dataset.from_tensor_slices(([str(p) for p in cells.paths], cells.labels))
    data = data.shuffle(len(cells)).map(load, num_parallel_calls=2).batch(BATCH, True).prefetch(2)
    data = data.with_options(untuned())
    while True:
        yield sum(len(labels) for _, labels in data)


def opencv_load(path: Path, size: int) -> np.ndarray:
    """Whole decoding, central square, averaged over areas, Eq. 39: what a user would write."""
    import cv2

    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return to_float(fit_square(image, size))


def grain_arm(cells: Dataset, size: int):
    import grain

    source = grain.MapDataset.source(list(zip(cells.paths, cells.labels, strict=True)))
    epoch = 0
    while True:
        data = source.shuffle(seed=epoch).map(lambda row: (opencv_load(row[0], size), row[1]))
        data = data.batch(BATCH, drop_remainder=True)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        yield sum(len(labels) for _, labels in data.to_iter_dataset(options))
        epoch += 1


class TorchCells:
    """A map-style dataset; at module level, so that worker processes can be handed it."""

    def __init__(self, cells: Dataset, size: int):
        self.paths, self.labels, self.size = cells.paths, cells.labels, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return opencv_load(self.paths[index], self.size), int(self.labels[index])


def torch_arm(cells: Dataset, size: int):
    from torch.utils.data import DataLoader

    data = DataLoader(
        TorchCells(cells, size),
        BATCH,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    while True:
        yield sum(len(labels) for _, labels in data)


def bare(cells: Dataset, work):
    """That work on batches of files in two threads, nothing else: what no reader can beat."""
    import cv2

    cv2.setNumThreads(1)

    blocks = [cells.paths[i : i + BATCH] for i in range(0, len(cells), BATCH)]
    with ThreadPoolExecutor(2) as pool:
        while True:
            list(pool.map(lambda block: work([path.read_bytes() for path in block]), blocks))
            yield len(cells)


def decode_whole(files: list[bytes]) -> None:
    import cv2

    for data in files:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def decode_scaled(size: int):
    def work(files: list[bytes]) -> None:
        for data in files:
            decode_reduced(data, size)

    return work


def float_batch(size: int):
    """What a reader must do at the least: a float32 batch of images of that size."""

    def work(files: list[bytes]) -> None:
        batch = np.empty((len(files), size, size, 3), np.float32)
        for data, image in zip(files, batch, strict=True):
            image[:] = to_float(fit_square(decode_reduced(data, size), size))

    return work


def arm(name: str, size: int, folder: Path) -> None:
    """A process that does one epoch for every line that it is sent."""
    cells = open_dataset(folder / "images")
    if name.startswith("store"):
        cells = open_dataset(folder / f"store-{size}")
    epochs = {
        "files": lambda: our_reader(cells, size),
        "store": lambda: our_reader(cells, size),
        "store-uint8": lambda: our_reader(cells, size, "uint8"),
        "keras": lambda: keras_directory(cells, size, folder / "images"),
        "tf.data": lambda: tf_data(cells, size),
        "grain": lambda: grain_arm(cells, size),
        "torch": lambda: torch_arm(cells, size),
        "bare": lambda: bare(cells, decode_whole),
        "bare-scaled": lambda: bare(cells, decode_scaled(size)),
        "bare-batch": lambda: bare(cells, float_batch(size)),
    }[name]()
    for _ in sys.stdin:
        start = time.perf_counter()
        count = next(epochs)
        print("rate", count / (time.perf_counter() - start), flush=True)


def rates(size: int, folder: Path, names: list[str]) -> dict[str, list[float]]:
    """Images per second of every arm, epoch by epoch, the arms taking turns."""
    command = [sys.executable, __file__, "--folder", folder, "--size", str(size), "--arm"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = {n: subprocess.Popen([*command, n], text=True, **pipes) for n in names}
    found = {name: [] for name in names}
    for _ in tqdm(range(1 + ROUNDS), f"{size} px"):
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            while line and not line.startswith("rate "):
                line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{name} at {size} px ended: run it with --arm {name} to see why")
            found[name].append(float(line.split()[1]))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {name: values[1:] for name, values in found.items()}


def building(cells: Dataset, size: int, folder: Path) -> dict[str, float]:
    """Building a store, beside decoding and resizing the same files in two threads."""

    def square(path: Path) -> np.ndarray:
        return fit_square(decode_reduced(path.read_bytes(), size), size)

    def bare_building() -> float:
        blocks = [cells.paths[i : i + 16] for i in range(0, len(cells), 16)]
        start = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda block: [square(path) for path in block], blocks))
        return time.perf_counter() - start

    bare_seconds, bare_cores, seconds, cores = [], [], [], []
    for k in range(3):
        busy = time.process_time()
        bare_seconds.append(bare_building())
        bare_cores.append((time.process_time() - busy) / bare_seconds[-1])
        busy, start = time.process_time(), time.perf_counter()
        stored(cells, size, folder / f"building-{k}")
        seconds.append(time.perf_counter() - start)
        cores.append((time.process_time() - busy) / seconds[-1])
        shutil.rmtree(folder / f"building-{k}")
    return {
        "images_per_second": len(cells) / statistics.median(seconds),
        "of_bare_decoding": statistics.median(bare_seconds) / statistics.median(seconds),
        "cores_busy": statistics.median(cores),
        "cores_busy_bare": statistics.median(bare_cores),
    }


def many_in_a_store(store: Path, count: int = MANY) -> Path:
    """A store of so many images beside a small one; its array is a hole but for the first ones."""
    (small, facts), many = Dataset.load(store / INDEX), store.with_name("many")
    many.mkdir()
    (array,) = store.glob("*.npy")
    first = np.load(array, mmap_mode="r")
    with (many / array.name).open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(first.tobytes())
        file.truncate(file.tell() + (count - len(small)) * first[0].size)
    table = small.table.iloc[np.arange(count) % len(small)].reset_index(drop=True)
    empty = zlib.adler32(bytes(first[0].size))  # what a hole reads as
    table.loc[len(small) :, SUM] = np.array(empty, table[SUM].dtype)
    whole = replace(small, table=table.assign(digest=[f"{k:064x}" for k in range(count)]))
    whole.save(many / INDEX, **facts)
    assert small.class_names == open_dataset(many).class_names
    return many


def memory(store: Path) -> None:
    """A process that reads a store once and prints its memory above its start as it goes."""
    from cellaug.data.reader import Reader

    process = psutil.Process()
    start = process.memory_info().rss
    cells = open_dataset(store)
    with Reader(cells, 256, BATCH) as reader:
        for i in range(len(reader)):
            reader[i]
            if i % 100 == 0 or i == len(reader) - 1:
                above = (process.memory_info().rss - start) / 2**20
                print("memory", (i + 1) * BATCH, above, flush=True)


def memory_curve(store: Path) -> list[tuple[int, float]]:
    command = [sys.executable, __file__, "--memory", store]
    output = subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE).stdout
    rows = [line.split()[1:] for line in output.splitlines() if line.startswith("memory ")]
    return [(int(images), float(mib)) for images, mib in rows]


def start_up(folder: Path, count: int = MANY) -> dict[str, float]:
    """Opening a folder of so many small files, for the first and for the second time."""
    import cv2

    many = folder / "many-files"
    rng = np.random.default_rng(0)
    for k in range(8):
        (many / f"class {k}").mkdir(parents=True)
    for i in tqdm(range(count), "writing small files", disable=None):
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (many / f"class {i % 8}" / f"{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    code = (
        "import sys, time; from cellaug.data import open_dataset; start = time.perf_counter();"
        "cells = open_dataset(sys.argv[1]); print(time.perf_counter() - start, len(cells))"
    )
    seconds = []
    for _ in range(2):
        command = [sys.executable, "-c", code, many]
        answer = subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE).stdout
        took, found = answer.split()
        assert int(found) == count
        seconds.append(float(took))
    shutil.rmtree(many)
    return {"first_seconds": seconds[0], "second_seconds": seconds[1]}


def machine() -> dict[str, object]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
    }


def circumstances() -> dict[str, object]:
    """How every record of a benchmark begins: when, from which code, on what and with what."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(project_root()),
        "machine": machine(),
        "versions": versions(),
    }


def of_bare_work(rates: dict[str, list[float]]) -> float:
    """Our reader's rate from files as a part of what the bare work reaches, round by round."""
    pairs = zip(rates["files"], rates["bare-batch"], strict=True)
    return statistics.median(ours / bare for ours, bare in pairs)


def table(result: dict) -> str:
    """The rates and their ratios to the fastest peer with the same pixels."""
    lines = [f"{'images/s, medians':<58}" + "".join(f"{s:>9} px" for s in result["rates"])]
    for name, words in result["arms"].items():
        row = ""
        for size in result["rates"]:
            medians = {n: statistics.median(v) for n, v in result["rates"][size].items()}
            best = max(medians[peer] for peer in result["antialiased_peers"])
            row += f"{medians[name]:>7,.0f} {medians[name] / best:>3.1f}×"
        lines.append(f"{words:<58}{row}")
    lines.append("× of the fastest peer that gives antialiased pixels")
    of_bare = ", ".join(f"{of_bare_work(r):.0%} at {s} px" for s, r in result["rates"].items())
    lines.append(f"our reader, files, of decoding, shrinking and scaling alone: {of_bare}")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--arm", choices=ARMS)
    arguments.add_argument("--size", type=int)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--memory", type=Path)
    options = arguments.parse_args()
    if options.arm:
        return arm(options.arm, options.size, options.folder)
    if options.memory:
        return memory(options.memory)
    names = list(ARMS)
    try:
        import torch  # only asked whether it is there
    except ImportError:
        names.remove("torch")
        print("PyTorch is not installed: its arm is left out")
    else:
        del torch
    build = project_root() / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-data-", dir=build) as place:
        folder = Path(place)
        every = open_dataset("pbc")
        cells = every.sample(SAMPLE, seed=0)
        for path in cells.paths:
            (folder / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "images" / path.parent.name / path.name)
        sample = open_dataset(folder / "images")
        for size in SIZES:
            stored(sample, size, folder / f"store-{size}")
        result = {
            **circumstances(),
            "images": SAMPLE,
            "batch": BATCH,
            "rounds": ROUNDS,
            "many": MANY,
            "arms": {name: ARMS[name] for name in names},
            "antialiased_peers": [name for name in PEERS if name in names],
            "rates": {str(size): rates(size, folder, names) for size in SIZES},
            "built_images": len(every),
            "building": {str(size): building(every, size, folder) for size in SIZES},
            "memory_mib": memory_curve(many_in_a_store(folder / "store-256")),
            "start_up": start_up(folder),
        }
    print(table(result))
    for size, row in result["building"].items():
        print(
            f"building a store at {size} px: {row['images_per_second']:,.0f} images/s, "
            f"{row['of_bare_decoding']:.0%} of decoding and shrinking alone, "
            f"{row['cores_busy']:.2f} cores busy against {row['cores_busy_bare']:.2f}"
        )
    held = [mib for _, mib in result["memory_mib"]]
    print(
        f"reading {MANY:,} images of 256 px from a store: at most {max(held):.0f} MiB above the "
        f"start, {held[len(held) // 10]:.0f} after a tenth, {held[-1]:.0f} at the end"
    )
    print(
        f"opening a folder of {MANY:,} files: {result['start_up']['first_seconds']:.1f} s, "
        f"the second time {result['start_up']['second_seconds']:.1f} s"
    )
    target = result_file("data-benchmark.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
