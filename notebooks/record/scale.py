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
# Four virtual devices share the cores of one processor. What they are slower by than one device is the
# price of spreading: dividing the batch, and joining gradients, means and pairs. Where they are faster,
# one device alone leaves cores idle for some of the time. `steps_per_execution` takes several steps in
# one call, which saves the way back to Python between them.

# %% tags=["nbval-check-output", "hide-input"]
times = pd.DataFrame(record["seconds"]).mul(1000)
rows = pd.DataFrame(
    {
        "milliseconds a step": times.median().round(),
        "of one device": (times.div(times["1 devices"], axis=0)).median().round(2),
    }
)
rows.rename(index={"1 devices": "one device", "4 devices": "four devices"})

# %% tags=["nbval-check-output", "hide-input"]
together = rows.loc["two steps in one call", "of one device"]
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
whole = len({many["images"], *many["seen"]}) == 1
Markdown(
    f"A folder of {many['images']:,} files opened in {many['first_seconds']:.0f} s, "
    f"and the second time in {again:.1f} s; a store of as many images in "
    f"{many['store_seconds']:.1f} s. Two epochs of the store had "
    f"{' and '.join(f'{n:,}' for n in many['seen'])} images, "
    f"{'each image once' if whole else 'which is not each image once'}, at "
    f"{many['images_per_second']:,.0f} images per second. Ten million images would "
    f"take {again * 1e7 / many['images']:.0f} s from the second time on, if it "
    f"is in proportion, and "
    f"{1e7 * 3 * record['size'] ** 2 / 2**30:.0f} GiB of disk at {record['size']} "
    "pixels."
)

# %% mystnb={"figure": {"caption": "Memory of a process that reads two epochs of a store of 450,000 images, above that before it opened the store, against the images read so far. Beside it what a reader would need that keeps all that it has read. The axis is logarithmic.", "name": "fig-scale-memory"}} tags=["hide-input"]
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

# %% tags=["nbval-check-output", "hide-input"]
card = record["accelerator"]
share = recorded_benchmark("train")["verdicts"]["share of matrix products"]["ratio"]
whose = f"{100 * share:.0f} % of the speed of its matrix products, as our step does "
whose += "on a processor"
if card:
    share = median(card[size]["share"] for size in sizes)
    whose = f"{100 * share:.0f} % of the speed of its matrix products, as "
    whose += f"{card['device']} did"
Markdown(
    "No accelerator was at hand when this was recorded."
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
# reads the next images, as fast as was measured here. The slower of both decides. The table is of H100,
# its times in milliseconds. These data sheets are known:

# %% tags=["nbval-check-output", "hide-input"]
known = scaling.machines()
Markdown(
    "\n".join(
        f"- [{each['name']}]({each['source']}): {each['peak']} · 10¹² operations "
        "per second "
        f"in bfloat16, {each['inside']} GB/s to a device of the same host, "
        f"{each['between']} GB/s to another host, {each['latency']} µs a message."
        for each in known.values()
    )
    + f"\n\nEach is assumed to reach {whose}, and nothing to be exchanged while it "
    "computes."
)

# %% tags=["nbval-check-output", "hide-input"]
COUNTS = (1, 8, 64, 512)  # of H100; times are in milliseconds


def predictions(name, size, batch):
    """The rows for `COUNTS` devices; `batch` gives the images of a batch for each."""
    reading = many["images_per_second"] * (record["size"] / int(size)) ** 2
    rows = [
        {"devices": count, "batch": batch(count)}
        | scaling.predicted(
            count, batch(count), steps[size], known[name], share, reading
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
        f"reading is the slowest part with {at[1]}."
    )
Markdown("Of 1, 8, 64 or 512 H100 with 64 images each:\n\n" + "\n".join(limits))

# %% [markdown]
# What does this mean? What is exchanged depends on the weights alone, the time of computing on the images
# that a device has. So larger images and larger batches leave more room for exchange, and small networks
# least. Where reading is the slowest part, faster reading helps and more devices do not. Many trainings
# side by side, as in [the study](augmentation.ipynb), exchange nothing at all.
