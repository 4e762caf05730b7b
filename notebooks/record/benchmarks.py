# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Benchmarks
#
# How fast do this package's reader and training step work beside others? Both benchmarks were
# recorded on real cells or on noise and are shown here as they were recorded; nothing on this page
# was run again. Rates depend on the machine, so compare ratios, and only those of the same run.
#
# **You will see:** images per second of several readers, the memory of a reader that reads more than
# fits in memory, and the speed of a training step beside PyTorch's.

# %% tags=["hide-input"]
from statistics import median

from cellaug.book import recorded_benchmark

import pandas as pd
from IPython.display import Markdown

pd.set_option("display.max_colwidth", None)
readers, steps = recorded_benchmark("data"), recorded_benchmark("train")


# %% tags=["hide-input"]
def circumstances(bench):
    """When and on what a benchmark was recorded, in a line."""
    machine = bench["machine"]
    packages = ", ".join(
        f"{name} {bench['versions'][name]}"
        for name in ("tensorflow", "torch")
        if name in bench["versions"]
    )
    return Markdown(
        f"*Recorded {bench['date']}, commit {bench.get('commit', 'unknown')[:7]}: "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} "
        f"GiB; {packages}; "
        f"batches of {bench['batch']}, medians of {bench['rounds']} rounds.*"
    )


# %% [markdown]
# ## Readers
#
# How does our reader compare? `make bench-data` times each reader in turn on the same images of PBC;
# the table shows the last recorded run in images per second, the median over epochs.

# %% tags=["hide-input"]
circumstances(readers)

# %% tags=["nbval-check-output", "hide-input"]
rates = pd.DataFrame(
    {
        f"{size} px": {arm: median(of_arm) for arm, of_arm in arms.items()}
        for size, arms in readers["rates"].items()
    }
)
rates = rates.reindex([arm for arm in readers["arms"] if arm in rates.index])
rates.rename(readers["arms"]).round().astype("Int64")

# %% [markdown]
# The same as a multiple of the fastest other reader that also resizes with antialiasing:

# %% tags=["nbval-check-output", "hide-input"]
peers = [arm for arm in readers["antialiased_peers"] if arm in rates.index]
(rates / rates.loc[peers].max()).rename(readers["arms"]).round(1)

# %% tags=["hide-input"]
building = list(readers["building"].values())
of_bare = [
    median(
        ours / bare
        for ours, bare in zip(arms["files"], arms["bare-batch"], strict=True)
    )
    for arms in readers["rates"].values()
]
of_decoding = min(row["of_bare_decoding"] for row in building)
busy = min(row["cores_busy"] / row["cores_busy_bare"] for row in building)
from_files = (rates.loc["files"] / rates.loc["bare"]).min()
Markdown(
    f"Opening a folder of {readers['many']:,} files took "
    f"{readers['start_up']['first_seconds']:.0f} s the first time and "
    f"{readers['start_up']['second_seconds']:.1f} s the second. Building a store had "
    f"at least {100 * of_decoding:.0f} % of the speed of decoding and resizing "
    f"alone, and kept the cores at least {100 * busy:.0f} % as busy. Reading files, "
    f"our reader had at least {100 * min(of_bare):.0f} % of the speed of two threads "
    "that make the same batches and do nothing else (median over rounds), and at least "
    f"{100 * from_files:.0f} % of that of decoding alone: resizing with antialiasing "
    "takes longer than decoding where the images stay large."
)

# %% tags=["nbval-check-output", "hide-input"]
memory = pd.Series(dict(readers["memory_mib"]))
Markdown(
    f"Memory: while the process read a store of {memory.index[-1]:,} images, it held "
    f"between {memory.iloc[1:].min():.0f} and {memory.max():.0f} MiB more than at its "
    "start, and at the end no more than at the beginning. A reader that kept what it "
    "has read would need more and more."
)

# %% [markdown]
# ## The training step
#
# `make bench-train` lets this package and PyTorch take the same training step of a DCGAN of 64 px in
# turn, on noise, and counts the operations that the step needs. PyTorch does so twice: as it comes,
# and through `torch.compile`. Matrix products show what the processor can do at best.

# %% tags=["hide-input"]
circumstances(steps)

# %% tags=["nbval-check-output", "hide-input"]
table = pd.DataFrame(
    {
        "images per second": {
            arm: median(of_arm) for arm, of_arm in steps["rates"].items()
        },
        "10⁹ operations per second": steps["operations_per_second"],
    }
).reindex(steps["arms"])
table.loc[table.index.str.endswith("products"), "images per second"] = float("nan")
table.rename(steps["arms"]).round().astype("Int64")

# %% [markdown]
# The targets, and whether they were met:

# %% tags=["nbval-check-output", "hide-input"]
pd.DataFrame(steps["verdicts"]).T[["ratio", "target", "met"]].infer_objects().round(2)

# %% tags=["hide-input"]
names = {"float32": "ours", "bfloat16": "ours-bfloat16"}
parts = pd.DataFrame({kind: steps["shares"][name] for kind, name in names.items()})
convolving = parts.loc["convolutions"]
drawing = 100 * parts.loc["random numbers"]
reached = pd.Series({kind: steps["verdicts"][kind]["ratio"] for kind in names})
best = reached / convolving
Markdown(
    f"On one thread {100 * convolving['float32']:.0f} % of our step's time goes into "
    f"convolutions in float32 and {100 * convolving['bfloat16']:.0f} % in bfloat16. "
    "Both libraries call oneDNN for convolutions. If everything else took no time, the "
    f"ratios would be about {best['float32']:.2f} and {best['bfloat16']:.2f}. Drawing "
    f"the random numbers of dropout takes {drawing['float32']:.0f} % and "
    f"{drawing['bfloat16']:.0f} %. Two things make the step fast: both networks use "
    "the same generated images, and TensorFlow's input autotuner is switched off, so "
    "no epoch waits for it."
)
