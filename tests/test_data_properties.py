"""Properties of splitting, sampling and sharding that hold for any set."""

import hashlib
from dataclasses import replace
from pathlib import Path

from cellaug.data import DataError, Dataset, split
from cellaug.data.dataset import as_table
from cellaug.data.reader import Reader
from cellaug.data.splits import DEFAULT_FRACTIONS

import numpy as np
import pandas as pd
from hypothesis import example, given, settings
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
    if groups is not None:
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
    # Each whole batch is the one that a single process would read, cut into parts.
    single = order(Reader(cells, 4, batch * processes, seed=7, balance=balance), epoch)
    for k in range(len(whole) // (batch * processes)):
        assert [i for share in shares for i in share[k]] == list(single[k])


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
def test_sides_of_published_sets_hang_on_the_image_alone(labels, fractions, seed, data):
    """Whatever else is in the set, an image falls on the same side; the parts make up the whole."""
    cells = replace(dataset(labels), name="phantom", credit="drawn")

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
@given(labelled, fractions, st.integers(0, 50), st.randoms(use_true_random=False))
def test_own_sets_have_the_fractions_in_every_class(labels, fractions, seed, random):
    """Within one image, or as near as one in every part allows; the order of rows is nothing."""
    cells = dataset(labels)
    counts = cells.counts()
    if counts.min() < len(fractions):
        with np.testing.assert_raises_regex(
            DataError, "class .* has only .* images.*(need as many|Add images of it)"
        ):
            split(cells, fractions, seed)
        return
    parts = split(cells, fractions, seed)
    ends = np.cumsum([part.counts() for part in parts.values()], axis=0)
    wanted = np.outer(np.cumsum(list(fractions.values())), counts)
    assert (np.abs(ends - wanted) < len(fractions)).all()
    enough = (counts * min(fractions.values()) >= 1).to_numpy()
    assert (np.abs(ends - wanted)[:, enough] <= 0.5 + 1e-6).all()
    order = list(range(len(labels)))
    random.shuffle(order)
    again = split(cells.subset(order), fractions, seed)
    assert all(set(again[n].digests) == set(part.digests) for n, part in parts.items())


rows = st.tuples(st.integers(0, 2), st.sampled_from("ABCDEFGH"))


@FAST
@given(st.lists(rows, min_size=30, max_size=90), st.randoms(use_true_random=False))
def test_a_group_is_never_divided(rows, random):
    cells = dataset([label for label, _ in rows], groups=tuple(group for _, group in rows))
    order = list(range(len(rows)))
    random.shuffle(order)
    try:
        parts = split(cells, {"train": 0.5, "test": 0.5})
    except DataError:
        return
    assert not set(parts["train"].table["group"]) & set(parts["test"].table["group"])
    again = split(cells.subset(order), {"train": 0.5, "test": 0.5})
    assert set(again["test"].digests) == set(parts["test"].digests)


def patients(count, seed):
    """Images of 11 classes, the rarest a tenth as many, of patients with a mixture of their own."""
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet(np.full(11, 0.5), count) * np.geomspace(1, 0.1, 11)
    numbers = rng.integers(5, 60, count)
    drawn = [rng.choice(11, n, p=m / m.sum()) for n, m in zip(numbers, mixtures, strict=True)]
    return dataset(
        np.concatenate(drawn), groups=np.repeat([f"P{k}" for k in range(count)], numbers)
    )


def test_groups_are_divided_in_the_fractions_of_every_class():
    """106 patients, as in one real set: by position alone a class misses them by over 20 %."""
    for seed in range(5):
        cells = patients(106, seed)
        shares = {n: part.counts() / cells.counts() for n, part in split(cells).items()}
        for name, wanted in DEFAULT_FRACTIONS.items():
            assert (abs(shares[name] - wanted) < 0.08).all()


@FAST
@given(st.lists(st.integers(1, 40), min_size=3, max_size=12), st.integers(0, 50))
@example([37, 21, 4, 2, 1, 1], 1)
@example([37, 21, 4, 2, 1, 1], 2)
def test_training_is_the_largest_part_and_has_the_largest_patient(sizes, seed):
    groups = np.repeat([f"P{k}" for k in range(len(sizes))], sizes)
    labels = np.repeat([0, 1], [len(groups), 60])
    cells = dataset(labels, groups=(*groups, *np.repeat([f"Q{k}" for k in range(6)], 10)))
    parts = split(cells, seed=seed)
    held = {name: part.table["group"].value_counts() for name, part in parts.items()}
    held = {name: own[own.index.str.startswith("P")] for name, own in held.items()}
    assert held["train"].max() == max(sizes)
    assert held["train"].sum() == max(own.sum() for own in held.values())
    if sizes == [37, 21, 4, 2, 1, 1]:
        assert sorted(own.sum() for own in held.values())[1] == 21 and held["train"].sum() >= 40


def test_more_groups_move_few_of_the_old_images():
    """5 % more patients: on average at most a tenth of the old images change their part."""
    moved = []
    for seed in range(8):
        cells = patients(106, seed)
        old = cells.subset(~cells.table["group"].isin([f"P{k}" for k in range(101, 106)]))
        side = {d: name for name, part in split(cells).items() for d in part.digests}
        parts = split(old).items()
        moved.append(np.mean([side[d] != name for name, part in parts for d in part.digests]))
    assert np.mean(moved) < 0.12 and max(moved) < 0.25


def test_sides_are_met_on_average():
    """100,000 images by content: within five standard deviations of what was asked, each class."""
    cells = replace(dataset(np.arange(100_000) % 4), name="phantom", credit="drawn")
    parts = split(cells, {"a": 0.7, "b": 0.2, "c": 0.1}, seed=1)
    for name, share in {"a": 0.7, "b": 0.2, "c": 0.1}.items():
        deviation = np.sqrt(25_000 * share * (1 - share))
        assert (abs(parts[name].counts() - 25_000 * share) < 5 * deviation).all()
