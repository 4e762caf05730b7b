"""Measures of what the networks do: classification, likeness and diversity, and the expert."""

from cellaug.evaluation.classification import (
    classification_report,
    paired_difference,
    per_class_change,
    summarise_seeds,
)
from cellaug.evaluation.expert import (
    ExpertForm,
    answers,
    binomial_interval,
    score,
    score_confusion,
    shuffle_trial,
    trial_hash,
)
from cellaug.evaluation.realfake import machine_expert
from cellaug.evaluation.similarity import diversity, mean_pairwise_distance, nearest

__all__ = [
    "ExpertForm",
    "answers",
    "binomial_interval",
    "classification_report",
    "diversity",
    "machine_expert",
    "mean_pairwise_distance",
    "nearest",
    "paired_difference",
    "per_class_change",
    "score",
    "score_confusion",
    "shuffle_trial",
    "summarise_seeds",
    "trial_hash",
]
