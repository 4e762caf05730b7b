"""Can an expert tell generated cells from real ones? The trial of section 4.4, and its statistics.

As in the thesis's Table 2, *real* is the positive answer: recall (Eq. 36) is the share of real
images called real, specificity (Eq. 37) the share of generated ones called generated.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from cellaug.data import DataError
from cellaug.data.images import write_atomically

import numpy as np
from scipy import optimize, stats

FORMAT = 1


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of Clopper and Pearson for a share of `successes` in `trials`, both ends 0–1.

    Without any trial it is (0, 1). Raises ValueError unless 0 ≤ successes ≤ trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 ≤ successes ≤ trials, got {successes} of {trials}")
    tail = (1 - confidence) / 2
    failures = trials - successes
    low = stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
    return float(low), float(high)


def score(truth_real: np.ndarray, said_real: np.ndarray) -> dict:
    """Score answers, bool (N,) each: whether an image is real, and whether it was called real.

    See `score_confusion` for what comes back.
    """
    truth, said = np.asarray(truth_real), np.asarray(said_real)
    if truth.dtype != bool or said.dtype != bool or truth.ndim != 1 or truth.shape != said.shape:
        raise ValueError(
            "truth_real and said_real: expected two equally long lists of booleans, got "
            f"{truth.dtype} {truth.shape} and {said.dtype} {said.shape}"
        )
    counts = [
        [int((said[truth == real] == called).sum()) for called in (True, False)]
        for real in (True, False)
    ]
    return score_confusion(counts)


def score_confusion(confusion: Sequence[Sequence[int]]) -> dict:
    """Score a table laid out like Table 2: rows actual real and fake, columns called real and fake.

    Gives `confusion` and, under `recall`, `specificity` and `accuracy`, each a dict of `value`
    (None without trials), `low` and `high` (exact 95 % interval), `successes` and `trials`.
    """
    (real_real, real_fake), (fake_real, fake_fake) = confusion
    real, fake = real_real + real_fake, fake_real + fake_fake
    return {
        "confusion": [[real_real, real_fake], [fake_real, fake_fake]],
        "recall": _share(real_real, real),
        "specificity": _share(fake_fake, fake),
        "accuracy": _share(real_real + fake_fake, real + fake),
    }


def against_guessing(confusion: Sequence[Sequence[int]]) -> dict:
    """Test a table as in `score_confusion` against a reader who guesses; `test` names the test.

    With as many real as generated images whoever guesses is right on half of them, however often
    they say "real": `p` is of the two-sided exact binomial test of the accuracy against 0.5. With
    unequal numbers a habit of saying "real" would look like knowledge; then `p` is of Fisher's
    exact test of whether real images are called real as often as generated ones. None where there
    are no images of one kind.
    """
    (real_real, real_fake), (fake_real, fake_fake) = confusion
    real, fake = real_real + real_fake, fake_real + fake_fake
    if real == fake > 0:
        p = stats.binomtest(real_real + fake_fake, real + fake, 0.5).pvalue
        return {"test": "exact binomial test of the accuracy against 0.5", "p": float(p)}
    p = stats.fisher_exact(confusion).pvalue if real and fake else None
    return {
        "test": "Fisher's exact test of real against fake images called real",
        "p": None if p is None else float(p),
    }


def detectable_accuracy(trials: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true accuracy above 0.5 that `trials` images tell from guessing.

    That is where the two-sided exact binomial test at level `alpha` finds a difference with
    probability `power` (`against_guessing`, equal halves). None where there are too few images for
    any answers to differ from guessing. Raises ValueError unless 0 < alpha < power < 1.
    """
    _check_levels(power, alpha)
    if trials < 1 or _power(trials, 1.0, alpha) < power:
        return None
    return float(optimize.brentq(lambda a: _power(trials, a, alpha) - power, 0.5, 1.0))


def trials_needed(accuracy: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """The number of images that tells a true accuracy from guessing; see `detectable_accuracy`.

    As answers are whole numbers, the power of the exact test rises in a zigzag; from the number
    that is returned on, it stays at `power` or above. Raises ValueError unless
    0 < alpha < power < 1 and 0.51 ≤ accuracy ≤ 1 (below that it takes tens of thousands).
    """
    _check_levels(power, alpha)
    if not 0.51 <= accuracy <= 1:
        raise ValueError(f"accuracy: expected a share from 0.51 to 1, got {accuracy}")
    # the normal approximation, which the zigzag never leaves by half
    width = stats.norm.isf(alpha / 2) / 2
    width += stats.norm.ppf(power) * math.sqrt(accuracy * (1 - accuracy))
    counts = np.arange(1, 50 + int(1.5 * (width / (accuracy - 0.5)) ** 2))
    return int(counts[_power(counts, accuracy, alpha) < power][-1]) + 1


def shuffle_trial(
    real: np.ndarray, fake: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Real and generated images in random order: uint8 N×H×W×3, and bool (N,) which are real."""
    real, fake = np.asarray(real), np.asarray(fake)
    if real.dtype != np.uint8 or fake.dtype != np.uint8 or real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            "real and fake: expected uint8 images of one size, since a difference in size would "
            f"tell them apart, got {real.dtype} {real.shape} and {fake.dtype} {fake.shape}"
        )
    images = np.concatenate([real, fake])
    is_real = np.arange(len(images)) < len(real)
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order], is_real[order]


def trial_hash(images: np.ndarray) -> str:
    """What tells one trial from another: 16 hex characters over the images in their order."""
    images = np.ascontiguousarray(images)
    digest = hashlib.sha256(f"{images.dtype} {images.shape} ".encode())
    digest.update(images.tobytes())
    return digest.hexdigest()[:16]


def answers(path: str | Path, images: np.ndarray | None = None) -> np.ndarray:
    """The answers in a form's file, bool (N,): True where the image was called real.

    With `images` the file must belong to that trial. Raises FileNotFoundError for a missing file,
    DataError for one that is damaged, of another trial or not yet complete.
    """
    content = read_answers(path, None if images is None else trial_hash(images))
    return complete_answers(path, content)


def read_answers(path: str | Path, trial: str | None = None) -> dict:
    """What a file of answers holds, of the form or of the page: a dict of its checked fields.

    `said_real` is a list of True, False and None (not answered yet). The page's files also have
    `milliseconds` (as many numbers), `started`, `finished` and `initials` (texts); in a form's they
    are None. Raises FileNotFoundError for a missing file, DataError for one that is damaged or,
    with `trial`, belongs to another trial.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there are no answers yet; fill in the form first")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected the JSON of an expert form: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: expected an expert form's file of format {FORMAT}")
    given = content.get("said_real")
    if not isinstance(given, list) or any(x is not None and not isinstance(x, bool) for x in given):
        raise DataError(f"{path}: said_real should be a list of true, false and null")
    if trial is not None and content.get("trial") != trial:
        raise DataError(
            f"{path} holds the answers to another trial ({content.get('trial')}, this one is "
            f"{trial}): give this trial a file of its own"
        )
    times = content.get("milliseconds")
    if times is not None and not (
        isinstance(times, list)
        and len(times) == len(given)
        and all(type(x) in (int, float) and 0 <= x < math.inf for x in times)
    ):
        raise DataError(f"{path}: milliseconds should be a list of {len(given)} numbers from 0")
    texts = {field: content.get(field) for field in ("started", "finished", "initials")}
    for field, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise DataError(f"{path}: {field} should be a text, found {text!r}")
    return {"said_real": given, "milliseconds": times} | texts


def complete_answers(path: str | Path, content: dict) -> np.ndarray:
    """The answers of `read_answers`, bool (N,); DataError, naming the file, if one is missing."""
    given = content["said_real"]
    open_ones = given.count(None)
    if open_ones:
        raise DataError(f"{path}: {open_ones} of {len(given)} images are not answered yet")
    return np.array(given, bool)


class ExpertForm:
    """A form for a notebook: one image at a time, and the buttons Real, Generated and Back.

    `images` is uint8 N×H×W×3 in the order of the trial (`shuffle_trial`); the form does not know
    which are real. Every answer is saved at once to `path` (JSON), and a form opened on that file
    goes on where it stopped. Back shows the image before, to change its answer; then the form
    returns to the first image without one. `width` is the shown width in CSS pixels.

    Raises DataError for a file of another trial or one that is no form's.
    """

    def __init__(self, images: np.ndarray, path: str | Path, width: int = 360):
        """Build the widgets, and take up the answers where `path` holds some."""
        import ipywidgets as widgets

        self.images = np.asarray(images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not len(self.images):
            raise ValueError(
                "images: expected uint8 RGB images N×H×W×3, at least one, got "
                f"{self.images.dtype} {self.images.shape}"
            )
        self.path = Path(path)
        self.trial = trial_hash(self.images)
        self.given: list[bool | None] = [None] * len(self.images)
        if self.path.exists():
            self.given = read_answers(self.path, self.trial)["said_real"]
            if len(self.given) != len(self.images):
                raise ValueError(
                    f"{self.path}: expected {len(self.images)} answers, found {len(self.given)}"
                )
        self.position = self._next_open()

        self.picture = widgets.Image(format="png", layout=widgets.Layout(width=f"{width}px"))
        self.real = widgets.Button(description="Real", button_style="success")
        self.generated = widgets.Button(description="Generated", button_style="warning")
        self.back = widgets.Button(description="Back", icon="arrow-left")
        self.bar = widgets.IntProgress(
            min=0, max=len(self.images), layout=widgets.Layout(width=f"{width}px")
        )
        self.text = widgets.HTML()
        self.real.on_click(lambda _: self._answer(True))
        self.generated.on_click(lambda _: self._answer(False))
        self.back.on_click(lambda _: self._go_back())
        buttons = widgets.HBox([self.real, self.generated, self.back])
        self.widget = widgets.VBox([self.text, self.picture, buttons, self.bar])
        self._show()

    @property
    def complete(self) -> bool:
        """Whether every image has its answer."""
        return None not in self.given

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    def _answer(self, real: bool) -> None:
        if self.position >= len(self.images):
            return
        self.given[self.position] = real
        self._save()
        self.position = self._next_open()
        self._show()

    def _go_back(self) -> None:
        if self.position > 0:
            self.position -= 1
        self._show()

    def _next_open(self) -> int:
        return self.given.index(None) if None in self.given else len(self.images)

    def _show(self) -> None:
        done = len(self.images) - self.given.count(None)
        at_end = self.position >= len(self.images)
        self.bar.value = done
        self.back.disabled = self.position == 0
        self.real.disabled = self.generated.disabled = at_end
        self.picture.layout.display = "none" if at_end else ""
        if at_end:
            self.text.value = f"All {done} images are answered. Thank you!"
            return
        said = self.given[self.position]
        before = "" if said is None else f" (so far: {'real' if said else 'generated'})"
        self.text.value = (
            f"Image {self.position + 1} of {len(self.images)}: real or generated?{before}"
        )
        self.picture.value = _png(self.images[self.position])

    def _save(self) -> None:
        content = {"format": FORMAT, "trial": self.trial, "said_real": self.given}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(content) + "\n").encode())


def _share(successes: int, trials: int) -> dict:
    low, high = binomial_interval(successes, trials)
    return {
        "value": successes / trials if trials else None,
        "low": low,
        "high": high,
        "successes": successes,
        "trials": trials,
    }


def _check_levels(power: float, alpha: float) -> None:
    if not 0 < alpha < power < 1:
        raise ValueError(f"expected 0 < alpha < power < 1, got alpha {alpha} and power {power}")


def _power(trials, accuracy: float, alpha: float):
    """How probably the two-sided exact test against 0.5 rejects; for one number or an array."""
    # rejected are at most `few` right answers, or at most as many wrong ones: largest `few` whose
    # tail is within alpha / 2, -1 if there is none
    few = stats.binom.ppf(alpha / 2, trials, 0.5)
    few = few - (stats.binom.cdf(few, trials, 0.5) > alpha / 2)
    low = stats.binom.cdf(few, trials, accuracy)
    return low + stats.binom.sf(trials - few - 1, trials, accuracy)


def _png(image: np.ndarray) -> bytes:
    import cv2

    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"OpenCV cannot write an image of shape {image.shape} as PNG")
    return data.tobytes()
