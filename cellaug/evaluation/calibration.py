"""Probabilities that mean what they say: temperature scaling, calibration error, Brier score."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(logits / T) is likeliest: (N, C) with class numbers (N,).

    Temperature scaling (Guo et al. 2017). T lies between 0.05 and 20.
    """

    def loss(log_t: float) -> float:
        return float(
            -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean()
        )

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Class probabilities (N, C) of logits (N, C)."""
    return softmax(np.asarray(logits, float) / temperature, axis=1)


def calibration(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, float]:
    """How far probabilities (N, C) are from what happens to class numbers (N,).

    `ece`: expected calibration error of the largest probability, mean |accuracy − confidence| over
    `bins` bins of equally many images (Nguyen & O'Connor 2015); `brier`: mean squared error of all
    probabilities (Brier 1950: 0 best, 2 worst); `nll`: mean negative log-likelihood in nats.
    """
    right, sure = p.argmax(1) == labels, p.max(1)
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    apart = [abs(right[part].mean() - sure[part].mean()) * len(part) for part in parts]
    true = np.eye(p.shape[1])[labels]
    likely = np.maximum(p[np.arange(len(labels)), labels], 1e-12)
    return {
        "ece": float(np.sum(apart) / len(labels)),
        "brier": float(((p - true) ** 2).sum(1).mean()),
        "nll": float(-np.log(likely).mean()),
    }
