"""The score of an expert test: what its readers answered, and what that can show."""

import json
import math
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from cellaug.data import DataError
from cellaug.data.dataset import printable
from cellaug.data.images import decode
from cellaug.evaluation import expert

import numpy as np
import pandas as pd
from scipy import stats

PAGE, KEY = "expert-test.html", "key.json"
HASTY = 0.5  # seconds in which nobody looks at a cell
EXTREMES = 8  # generated cells of each kind in the picture
SURE = {1: "guessed", 2: "fairly sure", 3: "sure"}

# accuracies reached elsewhere
REFERENCES = {0.63: "haematologists on marrow cells of StyleGAN2-ADA", 0.71: "the thesis's expert"}


def read_key(path: str | Path) -> dict:
    """Read a key; `real` is bool (N,). FileNotFoundError or DataError if it is none."""
    key = expert.read_document(path, f"the key of an expert test, {KEY}")
    if {"said_real", "said_class"} & key.keys():
        raise DataError(f"{path} holds answers: give the key, {KEY}, as the last file")
    real = key.get("real")
    if not isinstance(real, list) or not real or any(not isinstance(x, bool) for x in real):
        raise DataError(f"{path}: real should be a list of true and false, one for each image")
    if not isinstance(key.get("trial"), str):
        raise DataError(f"{path}: trial should be a text, found {key.get('trial')!r}")
    for field in ("classes", "files"):  # older keys have no classes
        texts = key.setdefault(field, [""] * len(real))
        if not isinstance(texts, list) or [type(x) for x in texts] != [str] * len(real):
            raise DataError(f"{path}: {field} should be a list of {len(real)} texts")
    return {"ask": "real"} | key | {"real": np.array(real)}


def score_answers(answers: Sequence[str | Path], key: str | Path) -> dict:
    """Score files of answers, one for each reader, against the key of their trial.

    Returns `trial`, `ask` ("real" or "class"), `images` (numbers of real and fake ones), `readers`,
    `agreement` (of each pair of them: `same`, the fraction of equal answers, and Cohen's `kappa`),
    `generated` (see `_rated`; of a trial that asks what is real) and `power`: what so many images
    can show. A reader has what `score_confusion` (or `_score_classes`) gives, `file`, `initials`,
    `started`, `finished`, `by_class`, `by_confidence`, `why` (how often each was given), `hasty`
    (answers in under `HASTY` seconds), `median_seconds` (or None), and `sentence`, the result.
    Raises as `read_answers` does.
    """
    truth = read_key(key)
    real, asked = truth["real"], f"said_{truth['ask']}"
    readers, given_by = [], []
    seen: dict[str, Path] = {}
    for path in map(Path, answers):
        given = expert.read_answers(path, truth["trial"])
        if asked not in given:
            raise DataError(f"{path}: expected {asked}, because the key asks for that")
        said, times = given[asked], given["milliseconds"]
        if len(said) != len(real):
            raise DataError(f"{path}: expected {len(real)} answers, found {len(said)}")
        same = seen.setdefault(str(given | {asked: list(map(str, said))}), path)
        if same is not path and times:  # equal to the millisecond: one reader's
            raise DataError(f"{path} holds the same answers as {same}: give each participant once")
        reader: dict[str, Any] = {"file": printable(path.name)}
        reader["initials"] = "".join(filter(str.isprintable, given["initials"] or ""))[:40]
        reader |= _score_classes(truth, said) if asked == "said_class" else _score(truth, said)
        reader |= _behaviour(given, np.array(reader.pop("right")))
        reader["sentence"] = _sentence(reader)
        readers.append(reader | {name: given[name] for name in ("started", "finished")})
        given_by.append(given)
    power: dict = {"power": expert.POWER, "alpha": expert.ALPHA}
    power["detectable_accuracy"] = expert.detectable_accuracy(len(real))
    power["trials_needed"] = {str(a): expert.trials_needed(a) for a in REFERENCES}
    found = {"trial": truth["trial"], "ask": truth["ask"], "readers": readers, "power": power}
    found["images"] = {"real": int(real.sum()), "fake": int((~real).sum())}
    found["agreement"] = list(_agreement([given[asked] for given in given_by], readers))
    found["generated"] = _rated(truth, given_by) if asked == "said_real" else []
    return found


def _score(truth: dict, said: np.ndarray) -> dict:
    """`score_confusion`, `against_guessing`, `by_class` and which answers are `right`."""
    found = expert.score(truth["real"], said)
    found["against_guessing"] = expert.against_guessing(found["confusion"])
    right = said == truth["real"]
    return found | {"by_class": _by_class(truth, right), "right": right.tolist()}


def _score_classes(truth: dict, said: Sequence[str]) -> dict:
    """Whether classes are named as they are labelled: `real` and `fake` as in `score_confusion`.

    And `difference`, the p of Fisher's exact test of real against fake images, `confused`, the
    most frequent pairs (label, answer, number) among the generated ones, `by_class` and `right`.
    """
    classes, real = np.array(truth["classes"]), truth["real"]
    right = np.array(said) == classes
    scored = expert.score(real, real == right)  # as if "real" were said of what is named right
    found: dict[str, Any] = {"real": scored["recall"], "fake": scored["specificity"]}
    table = [[part["successes"], part["trials"] - part["successes"]] for part in found.values()]
    found["difference"] = float(stats.fisher_exact(table).pvalue)
    wrong = np.flatnonzero(~right & ~real)
    pairs = Counter((str(classes[k]), said[int(k)]) for k in wrong).most_common(3)
    found["confused"] = [[*pair, number] for pair, number in pairs]
    return found | {"by_class": _by_class(truth, right), "right": right.tolist()}


def _by_class(truth: dict, right: np.ndarray) -> dict[str, dict[str, list[int]]]:
    """Of each class, and each kind in it, the numbers of right answers and of images."""
    kinds = np.where(truth["real"], "real", "fake")
    cells = pd.DataFrame({"class": truth["classes"], "kind": kinds, "right": right})
    cells = cells[cells["class"] != ""]
    found: dict[str, dict[str, list[int]]] = {}
    for (name, kind), part in cells.groupby(["class", "kind"])["right"]:
        found.setdefault(str(name), {})[str(kind)] = [int(part.sum()), len(part)]
    return found


def _behaviour(given: dict, right: np.ndarray) -> dict:
    """How a reader answered: seconds, hasty answers, right ones by confidence, and reasons."""
    times, sure = given["milliseconds"], given["confidence"]
    found: dict[str, Any] = {"median_seconds": None, "hasty": None, "by_confidence": {}}
    if times:
        found["median_seconds"] = float(np.median(times)) / 1000
        found["hasty"] = sum(time < 1000 * HASTY for time in times)
    for level in sorted(set(sure or ())):
        part = right[np.array(sure) == level]
        found["by_confidence"][str(level)] = [int(part.sum()), len(part)]
    reasons = Counter(word for words in given["why"] or () for word in words)
    return found | {"why": dict(reasons.most_common())}


def _sentence(reader: dict) -> str:
    """The result of one reader in a sentence."""
    who = reader["initials"] or reader["file"]
    words = "{successes} of {trials} ({value:.2f}, 95 % interval {low:.2f} to {high:.2f})"
    if "confusion" not in reader:
        of = {k: words.format(**reader[k]) if reader[k]["trials"] else "" for k in ("real", "fake")}
        said = f"{who} gave generated cells the class that they were made as in {of['fake']}"
        if of["real"]:
            said += f", and real cells their label in {of['real']}; {_p(reader['difference'])} "
            said += "for a difference"
        return f"{said}."
    p = reader["against_guessing"]["p"]
    found = f"{words.format(**reader['accuracy'])} were right"
    if p is None:
        return f"{who}: {found}; with images of one kind this shows nothing about guessing."
    sums = reader["recall"]["value"] + reader["specificity"]["value"]
    verdict = "no better than by guessing, as far as so many images can show"
    if p < expert.ALPHA:
        verdict = "better than by guessing" if sums > 1 else "worse than by guessing"
    return f"{who} told real from generated cells {verdict}: {found}, {_p(p)}."


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _agreement(said: Sequence[Sequence], readers: Sequence[dict]) -> Iterable[dict]:
    """For each pair of readers how often they agree, and Cohen's kappa (None if undefined)."""
    from sklearn.metrics import cohen_kappa_score

    names = [reader["initials"] or reader["file"] for reader in readers]
    for a, b in combinations(range(len(said)), 2):
        one, two = (np.array([str(x) for x in said[k]]) for k in (a, b))
        several = len({*one, *two}) > 1
        kappa = float(cohen_kappa_score(one, two)) if several else None
        yield {"readers": [names[a], names[b]], "same": float((one == two).mean()), "kappa": kappa}


def _rated(truth: dict, given: Sequence[dict]) -> list[dict]:
    """The generated cells, the most convincing first: `index` in the trial, `file`, `class`.

    `called_real` is the number of readers; the `rating` is the mean of their confidence (2 where
    it was not asked), positive for "real" and negative for "fake". Equal ones in the trial's order.
    """
    signs = [np.where(one["said_real"], 1, -1) for one in given]
    sure = [np.array(one["confidence"] or [2] * len(truth["real"])) for one in given]
    rating = np.mean([a * b for a, b in zip(signs, sure, strict=True)], axis=0)
    real = np.sum([one["said_real"] for one in given], axis=0)
    fake = np.flatnonzero(~truth["real"])
    order = fake[np.argsort(-rating[fake], kind="stable")]
    return [
        {
            "index": int(k), "file": truth["files"][k], "class": truth["classes"][k],
            "called_real": int(real[k]), "rating": float(rating[k]),
        }
        for k in order
    ]  # fmt: skip


def extremes(scores: dict, key: str | Path) -> tuple[dict[str, np.ndarray], tuple[()], list[str]]:
    """The most convincing and the most obvious generated cells, as `figures.image_rows` takes them.

    These are rows of images, no heads, and captions. The images come from the page beside the key;
    DataError where it is not there, or where no generated cell can be shown.
    """
    if not (file := Path(key).parent / PAGE).is_file():
        raise DataError(f"{file}: no such file. The picture needs the page beside its key")
    data = re.search(r'<script type="application/json" id="data">(.*)</script>', file.read_text())
    uris = json.loads(data[1])["images"] if data else []
    cells, rows, captions = scores["generated"], dict[str, np.ndarray](), list[str]()
    parts = {
        "most convincing": [cell for cell in cells if cell["rating"] > 0],
        "most obvious": [cell for cell in reversed(cells) if cell["rating"] < 0],
    }
    for name, part in parts.items():
        shown = part[:EXTREMES]
        if shown and max(cell["index"] for cell in shown) < len(uris):
            files = [b64decode(uris[cell["index"]].partition(",")[2]) for cell in shown]
            rows[name] = np.stack([decode(png)[0] for png in files])
            words = f"{{class}}\nreal: {{called_real}} of {len(scores['readers'])}"
            captions += [words.format(**cell) for cell in shown]
    if not rows:
        raise DataError(f"{file}: no generated cell to show; only 'real or generated?' rates them")
    return rows, (), captions


def as_text(scores: dict) -> str:
    """The result of `score_answers` for a person: sentences, then tables, a row for each reader."""
    real, fake = scores["images"]["real"], scores["images"]["fake"]
    readers = scores["readers"]
    lines = [f"trial {scores['trial']}: {real} real and {fake} fake images"]
    lines += [reader["sentence"] for reader in readers]
    lines += _tables(readers) if scores["ask"] == "real" else _confused(readers)
    for reader in readers:
        lines += _details(reader)
    if len(readers) > 1:
        lines += ["", "agreement between participants (equal answers, Cohen's kappa):"]
        for pair in scores["agreement"]:
            kappa = "-" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
            lines += [f"{' and '.join(pair['readers'])}: {pair['same']:.2f}, {kappa}"]
        lines += ["All saw the same images: their answers are not independent, no pooled"]
        lines += ["result is given."]
    for name, part in (("convincing", scores["generated"]), ("obvious", scores["generated"][::-1])):
        sign = 1 if name == "convincing" else -1
        if shown := [cell for cell in part if sign * cell["rating"] > 0][:3]:
            lines += ["", f"most {name} generated cells:"]
            lines += [f"{x['file'] or x['index']}  rating {x['rating']:+.1f}" for x in shown]
    lines += ["", power_statement(real + fake)] if scores["ask"] == "real" else []
    return "\n".join(lines)


def _tables(readers: Sequence[dict]) -> list[str]:
    """A table like Table 2 for each reader, and one of all readers' scores."""
    lines, rows = [], []
    for reader in readers:
        name = reader["initials"] or reader["file"]
        columns = pd.Index(["called real", "called fake"], name=name)
        lines += ["", pd.DataFrame(reader["confusion"], ["real", "fake"], columns).to_string()]
        row = {"participant": name}
        for measure in ("recall", "specificity", "accuracy"):
            words = "{value:.2f} [{low:.2f}, {high:.2f}]" if reader[measure]["trials"] else "-"
            row[measure] = words.format(**reader[measure])
        p, seconds = reader["against_guessing"]["p"], reader["median_seconds"]
        row["p"] = "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        rows.append(row | {"seconds": "-" if seconds is None else f"{seconds:.1f}"})
    test = readers[0]["against_guessing"]["test"]
    lines += ["", pd.DataFrame(rows).to_string(index=False), ""]
    lines += ["recall: real images called real; specificity: fake images called fake; in brackets:"]
    return [*lines, f"exact 95 % intervals. p: two-sided {test}.", "seconds: median per image."]


def _confused(readers: Sequence[dict]) -> list[str]:
    """Which generated cells each reader gave another class."""
    lines = []
    for reader in readers:
        pairs = "; ".join(f"{a} called {b}: {number}" for a, b, number in reader["confused"])
        who = reader["initials"] or reader["file"]
        lines += [f"{who}, generated cells called otherwise: {pairs}."] * bool(pairs)
    return lines


def _details(reader: dict) -> list[str]:
    """By class, by confidence, what gave it away, and whether there was no time to look."""
    name, lines = reader["initials"] or reader["file"], []
    if found := reader["by_class"]:
        table = pd.DataFrame(found).T.reindex(columns=["real", "fake"])
        cells = table.map(lambda x: "{} of {}".format(*x) if isinstance(x, list) else "-")
        lines += ["", cells.rename_axis(columns=f"{name}, right:").to_string()]
    if sure := reader["by_confidence"]:
        parts = (f"{SURE[int(k)]} {right} of {n}" for k, (right, n) in sure.items())
        lines += ["", f"{name}, right by confidence: {', '.join(parts)}."]
    if reader["why"]:
        words = ", ".join(f"{word} {number}" for word, number in reader["why"].items())
        lines += [f"{name}, what gave it away: {words}."]
    if reader["hasty"]:
        answers = f"{reader['hasty']} answer{'s' * (reader['hasty'] > 1)}"
        lines += [f"Warning: {name} gave {answers} in under {HASTY} seconds."]
    return lines


def power_statement(images: int) -> str:
    """What a test with so many images, half of them real, can show and what others would need."""
    least = expert.detectable_accuracy(images)
    found = "are too few to tell any accuracy from guessing"
    if least is not None:
        found = f"tell a true accuracy of {math.ceil(least * 100) / 100:.2f} or more from guessing"
    terms = f"level {expert.ALPHA}, power {expert.POWER * 100:.0f} %"
    lines = [f"{images} images {found} (two-sided exact binomial test at {terms})."]
    for accuracy, who in REFERENCES.items():
        lines += [f"An accuracy of {accuracy} ({who}) would take {expert.trials_needed(accuracy)}."]
    return "\n".join(lines)
