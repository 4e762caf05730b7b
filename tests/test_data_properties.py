"""Properties of splitting, sampling and sharding that hold for any set."""

import hashlib
from pathlib import Path

from cellaug.data import DataError, Dataset, split
from cellaug.data.dataset import as_table
from cellaug.data.reader import Reader

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

FAST = settings(deadline=None, max_examples=60)


def dataset(labels, groups=None, salt=0):
    """A set with these labels whose files are never read."""
    names = tuple(f"class {k}" for k in range(max(labels, default=0) + 1))
    table = pd.DataFrame(
        {
            "path": [str(i) for i in range(len(labels))],
            "class": [names[label] for label in labels],
            "digest": [
                hashlib.sha256(f"{salt}/{i}".encode()).hexdigest() for i in range(len(labels))
            ],
        }
    )
    if groups:
        table["group"] = groups
    report = pd.DataFrame(columns=["path", "class", "outcome", "reason"])
    return Dataset("any", Path("/none"), names, as_table(table, names), report)


labelled = st.lists(st.integers(0, 3), min_size=1, max_size=80)


def order(reader, epoch):
    """Indices of the images of an epoch, batch by batch, without reading them."""
    reader.epoch = epoch
    return [batch.tolist() for batch in reader._batches]


def flat(batches):
    return [index for batch in batches for index in batch]


@FAST
@given(labelled, st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**32))
def test_an_epoch_is_a_permutation_in_batches(labels, batch, epoch, seed):
    batches = order(Reader(dataset(labels), 4, batch, seed=seed), epoch)
    assert sorted(flat(batches)) == list(range(len(labels)))
    assert all(len(b) == batch for b in batches[:-1]) and 1 <= len(batches[-1]) <= batch
    assert batches == order(Reader(dataset(labels), 4, batch, seed=seed), epoch)


@FAST
@given(labelled, st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_shares_are_disjoint_complete_and_in_step(labels, processes, batch, epoch, balance):
    cells = dataset(labels)
    options = {"balance": balance, "seed": 7, "processes": processes}
    whole = flat(order(Reader(cells, 4, 1, seed=7, balance=balance), epoch))
    if len(whole) < processes:
        with np.testing.assert_raises(DataError):
            Reader(cells, 4, batch, process=0, **options)
        return
    shares = [order(Reader(cells, 4, batch, process=p, **options), epoch) for p in range(processes)]
    assert len({tuple(map(len, share)) for share in shares}) == 1
    longest = -(-len(whole) // processes)
    # without the one image that a short share repeats at its end, together they are the epoch
    own = [flat(share)[: len(whole[p::processes])] for p, share in enumerate(shares)]
    assert sorted(index for share in own for index in share) == sorted(whole)
    for share, part in zip(shares, own, strict=True):
        assert len(flat(share)) == longest and set(flat(share)) == set(part)


@FAST
@given(labelled, st.integers(1, 9), st.integers(0, 3), st.booleans(), st.data())
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(labels, batch, epoch, balance, data):
    reader = Reader(dataset(labels), 4, batch, balance=balance, seed=5)
    whole = order(reader, epoch)
    at = data.draw(st.integers(0, len(whole) - 1))
    reader.seek(epoch, at)
    assert [batch.tolist() for batch in reader._batches] == whole[at:]


@FAST
@given(labelled, st.integers(0, 4), st.booleans())
def test_balanced_epochs_use_the_images_of_a_class_equally_often(labels, epochs, shuffle):
    cells = dataset(labels)
    reader = Reader(cells, 4, 5, balance=True, shuffle=shuffle, seed=3)
    present, sizes = np.unique(labels, return_counts=True)
    used = np.zeros(len(labels), int)
    for epoch in range(epochs + 1):
        seen = flat(order(reader, epoch))
        counts = np.bincount(cells.labels[seen], minlength=len(cells.class_names))[present]
        assert len(set(counts.tolist())) == 1
        np.add.at(used, seen, 1)
    for label in present:
        of_class = used[cells.labels == label]
        assert of_class.max() - of_class.min() <= 1
    assert used.sum() == (epochs + 1) * max(1, round(len(labels) / len(sizes))) * len(sizes)


fractions = st.lists(st.integers(1, 8), min_size=1, max_size=4).map(
    lambda parts: {f"part {k}": p / sum(parts) for k, p in enumerate(parts)}
)


@FAST
@given(labelled, fractions, st.integers(0, 50), st.data())
def test_sides_hang_on_the_image_alone(labels, fractions, seed, data):
    """Whatever else is in the set, an image falls on the same side; the parts make up the whole."""
    cells = dataset(labels)

    def sides(part):
        try:
            parts = split(part, fractions, seed)
        except DataError:
            return None
        found = {d: name for name, side in parts.items() for d in side.digests}
        assert sorted(found) == sorted(part.digests)
        assert sum(len(side) for side in parts.values()) == len(part)
        return found

    subset = cells.subset(
        np.flatnonzero(
            data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
        )
    )
    whole, some = sides(cells), sides(subset)
    if whole and some:
        assert all(whole[digest] == side for digest, side in some.items())


@FAST
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ABCDEFGH")), min_size=30, max_size=90)
)
def test_a_group_is_never_divided(rows):
    cells = dataset([label for label, _ in rows], groups=tuple(group for _, group in rows))
    for seed in range(3):
        try:
            parts = split(cells, {"train": 0.5, "test": 0.5}, seed)
        except DataError:
            continue
        assert not set(parts["train"].table["group"]) & set(parts["test"].table["group"])


def test_sides_are_met_on_average():
    """100,000 images: shares within five standard deviations of what was asked, in every class."""
    cells = dataset(np.arange(100_000) % 4)
    parts = split(cells, {"a": 0.7, "b": 0.2, "c": 0.1}, seed=1)
    for name, share in {"a": 0.7, "b": 0.2, "c": 0.1}.items():
        deviation = np.sqrt(25_000 * share * (1 - share))
        assert (abs(parts[name].counts() - 25_000 * share) < 5 * deviation).all()
