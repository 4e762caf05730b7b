# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # How far it scales
#
# [One training on many machines](../scaling.md) gives the result of one device. But how much faster is
# it, and where does it stop to pay? `make bench-scale` measured what can be measured on one machine, and
# asked the compiler what a training step computes and what the devices exchange. From these records,
# and from data sheets, this page calculates the rest. Nothing on it was run again.
#
# **You will see:** what spreading a batch costs, how 450,000 images are opened and read, what a step
# computes and exchanges, and a prediction for up to 512 GPUs.

# %% tags=["hide-input"]
from statistics import median

from cellaug import figures
from cellaug.book import recorded_benchmark
from cellaug.generators import read_generator, shipped_generators
from studies import scaling

import pandas as pd
from IPython.display import Markdown

figures.use_style()
record = recorded_benchmark("scale")
machine = record["machine"]
Markdown(
    f"*Recorded {record['date']}, commit {record['commit'][:7]}: "
    f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
    f"JAX {record['versions']['jax']}, Keras {record['versions']['keras']}; batches of "
    f"{record['batch']} images.*"
)

# %% [markdown]
# ## What spreading a batch costs
#
# Four virtual devices share the cores of one processor. The extra time compared with one device is the
# cost of spreading a batch: dividing it, and joining gradients, means and pairs. Four devices can also be
# faster, because one device alone leaves cores idle for some of the time. `steps_per_execution` takes
# several steps in one call, which saves the way back to Python between them. The rounds took turns, so
# the last column compares each round with that of one device beside it.

# %% tags=["nbval-check-output", "hide-input"]
times = pd.DataFrame(record["seconds"]).mul(1000)
rows = times.agg(["median", "min", "max"]).T.round()
rows.columns = [f"milliseconds a step, {word}" for word in rows.columns]
relative = times.div(times["1 devices"], axis=0).median()
rows["relative to one device, median"] = relative.round(2)
rows.rename(index={"1 devices": "one device", "4 devices": "four devices"})

# %% tags=["nbval-check-output", "hide-input"]
together = relative["two steps in one call"]
Markdown(
    f"Two steps in one call took {together:.2f} of the time of one after the other, "
    + (
        "so there is nothing to save: `cellaug train` takes one."
        if together > 0.95
        else "which `cellaug train` does not use yet."
    )
)

# %% [markdown]
# ## Very many images
#
# A laboratory with as many images as the thesis had opens the same folder again and again. The first
# time each file is read, after that only what has changed. The store holds decoded images.

# %% tags=["nbval-check-output", "hide-input"]
many = record["many"]
again = many["second_seconds"]
most = max(above for _, above in many["memory_mib"])
whole = len({many["images"], *many["seen"]}) == 1
Markdown(
    f"A folder of {many['images']:,} files opened in {many['first_seconds']:.0f} s, "
    f"and the second time in {again:.1f} s; a store of as many images in "
    f"{many['store_seconds']:.1f} s. Two epochs of the store had "
    f"{' and '.join(f'{n:,}' for n in many['seen'])} images, "
    f"{'each image once' if whole else 'which is not each image once'}, at "
    f"{many['images_per_second']:,.0f} images per second. Calculated in proportion, "
    f"ten million images would take {again * 1e7 / many['images']:.0f} s from the "
    f"second time on, {most * 1e7 / many['images'] / 2**10:.1f} GiB of memory for the "
    f"table of the set, and {1e7 * 3 * record['size'] ** 2 / 2**30:.0f} GiB of disk "
    f"at {record['size']} pixels. The files of this measurement are small (8 × 8 "
    "pixels), and most of the images of its store are black."
)

# %% mystnb={"figure": {"caption": "Memory of a process that reads two epochs of a store of as many images as the text says, above that before it opened the store, against the images read so far. Beside it what a reader would need that keeps all that it has read. The axis is logarithmic.", "name": "fig-scale-memory"}} tags=["hide-input"]
memory = pd.DataFrame(many["memory_mib"], columns=["read", "memory"]).set_index("read")
kept = memory.index.to_series().clip(upper=many["images"])
memory["kept"] = kept * 3 * record["size"] ** 2 / 2**20
words = {"memory": "as measured", "kept": "if all images were kept"}
fig = figures.loss_curves(
    memory[memory["memory"] > 0], words, "MiB above the start", "images read"
)
fig.axes[0].set_yscale("log")
fig.axes[0].yaxis.set_major_formatter("{x:,.0f}")
fig

# %% [markdown]
# ## What a step computes and exchanges
#
# XLA counts the operations of the compiled step and the bytes that they read and write. Compiled for
# four devices, the step holds operations that join them; each device sends and receives their results.
# The numbers are means over several steps, of which only one computes the penalty.

# %% tags=["nbval-check-output", "hide-input"]
sizes = sorted(record["steps"], key=int)
steps = {
    size: record["steps"][size]["1"]
    | {"collectives": record["steps"][size]["4"]["collectives"]}
    for size in sizes
}
table = {
    f"{size} px": {
        "10⁹ operations for an image": step["flops"] / 1e9,
        "MB touched for an image": step["bytes"] / 1e6,
        "operations for a byte": step["flops"] / step["bytes"],
        "weights, millions": sum(step["parameters"]) / 1e6,
        "joining operations": sum(k["count"] for k in step["collectives"].values()),
        "MB exchanged in a step": sum(k["bytes"] for k in step["collectives"].values())
        / 1e6,
    }
    for size, step in steps.items()
}
shown = pd.DataFrame(table).map("{:,.2f}".format)
shown.map(lambda number: number.removesuffix(".00"))

# %% [markdown]
# ## On an accelerator
#
# No device is faster than its operations at their peak, or than its memory passes the bytes of a step,
# whichever is slower: the roofline {cite}`williams2009`. How near to it did the trainings of the shipped
# generators on a GPU come? Their time includes compiling and the measures of every epoch. The bytes are
# those that XLA counts in float32 for a processor; in bfloat16 on a GPU, as these trainings were, it
# touches fewer, so the true part is smaller. For the predictions this cancels out.

# %% tags=["nbval-check-output", "hide-input"]
near = {}
for generator in map(read_generator, shipped_generators()):
    training = generator.card["training"]
    part = scaling.reached(training, steps[str(generator.image_size)])
    if generator.conditional and part:  # the step is that of the conditional recipe
        near[f"{generator.image_size} px"] = {
            "machine": training["device"],
            "images per second": training["images_seen"] / training["seconds"],
            "of the roofline": part,
        }
trained = pd.DataFrame(near)
trained.T.infer_objects().sort_index(key=lambda names: names.str.len()).round(3)

# %% tags=["nbval-check-output", "hide-input"]
card = record["accelerator"]
share = trained.loc["of the roofline"]
Markdown(
    "No accelerator was at hand when the benchmark was recorded."
    if not card
    else f"On {card['device']}, in bfloat16: "
    + "; ".join(
        f"{size} px {card[size]['images_per_second']:,.0f} images per second, "
        f"{100 * card[size]['share']:.0f} % of the speed of matrix products, slowest: "
        + ", ".join(
            f"{k} {100 * v:.0f} %" for k, v in list(card[size]["slowest"].items())[:4]
        )
        for size in sizes
    )
)

# %% [markdown]
# ## A prediction
#
# A device computes its part of the batch, then all exchange their results, and meanwhile its process
# reads the next images, as fast as our reader does from a store on [two cores](benchmarks.ipynb). The
# slower of both decides. The table is of H100, its times in milliseconds. These data sheets are known:

# %% tags=["nbval-check-output", "hide-input"]
known = scaling.machines()
Markdown(
    "\n".join(
        f"- [{each['name']}]({each['source']}): {each['peak']} · 10¹² operations "
        f"per second in bfloat16, {each['memory']:,} GB/s from its own memory, "
        f"{each['inside']} GB/s to a device of the same host, "
        f"{each['between']} GB/s to another host, {each['latency']} µs a message."
        for each in known.values()
    )
    + "\n\nEach is assumed to come as near to its roofline as the trainings above did "
    "at the same size, or as their middle where none was trained on a GPU, and to "
    "exchange nothing while it computes."
)

# %% tags=["nbval-check-output", "hide-input"]
COUNTS = (1, 8, 64, 512)  # of H100; times are in milliseconds
stores = recorded_benchmark("data")["rates"]


def predictions(name, size, batch):
    """The rows for `COUNTS` devices; `batch` gives the images of a batch for each."""
    reading = median(stores[size]["store"])
    part = share.get(f"{size} px", share.median())
    rows = [
        {"devices": count, "batch": batch(count)}
        | scaling.predicted(
            count, batch(count), steps[size], known[name], part, reading
        )
        for count in COUNTS
    ]
    rows = pd.DataFrame(rows)
    return rows.assign(efficiency=scaling.efficiency(rows))


growing = {size: predictions("h100", size, lambda n: 64 * n) for size in sizes}
fixed = {size: predictions("h100", size, lambda n: 512) for size in sizes}
shown = pd.concat(
    {
        (f"{size} px", kind): rows.set_index("devices")
        for kind, found in (("64 each", growing), ("512 in all", fixed))
        for size, rows in found.items()
    },
    names=["images", "batch of"],
)
parts = shown[["computing", "exchanging", "reading"]].mul(1000)
parts.columns = ["compute", "exchange", "read"]
parts.assign(step=1000 * shown["step"]).map("{:,.1f}".format).assign(
    **{
        "images/s": shown["images_per_second"].map("{:,.0f}".format),
        "efficiency": shown["efficiency"].round(2),
    }
)

# %% mystnb={"figure": {"caption": "Predicted images per second of each H100 as a part of what one reaches alone, if each device has 64 images of a batch, by size of the images. Where a line falls, exchange takes over. A line stays at 1 also where one device alone already waits for reading, see the table. Calculated, not measured.", "name": "fig-scale-efficiency"}} tags=["hide-input"]
lines = pd.DataFrame({size: rows["efficiency"] for size, rows in growing.items()})
lines.index = pd.Index(COUNTS)
words = {size: f"{size} px" for size in sizes}
fig = figures.loss_curves(lines, words, "efficiency (1 is perfect)", "devices")
fig.axes[0].set_xscale("log")
fig.axes[0].set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
fig

# %% tags=["nbval-check-output", "hide-input"]
limits = []
for size, rows in growing.items():
    slow = rows[rows["exchanging"] > rows["computing"]]
    late = rows[rows["reading"] > rows["computing"] + rows["exchanging"]]
    at = [", ".join(map(str, part["devices"])) or "no number" for part in (slow, late)]
    limits.append(
        f"- {size} px: exchange takes longer than computing with {at[0]} of them, and "
        f"reading is the slowest part with {at[1]}. Each of 512 is "
        f"{100 * rows['efficiency'].iloc[-1]:.0f} % as fast as one alone."
    )
Markdown("Of 1, 8, 64 or 512 H100 with 64 images each:\n\n" + "\n".join(limits))

# %% [markdown]
# What does this mean? What is exchanged depends on the weights alone, the time of computing on the images
# that a device has. So larger images and larger batches leave more room for exchange, and small networks
# least. Where reading is the slowest part, faster reading helps and more devices do not. Many trainings
# side by side, as in [the study](augmentation.ipynb), exchange nothing at all.
