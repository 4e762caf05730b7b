"""Measures of what the networks do: classification, likeness and diversity, and the expert."""

from cellaug.evaluation.classification import (
    classification_report,
    paired_difference,
    per_class_change,
    summarise_seeds,
)
from cellaug.evaluation.expert import (
    ExpertForm,
    against_guessing,
    answers,
    binomial_interval,
    detectable_accuracy,
    score,
    score_confusion,
    shuffle_trial,
    trial_hash,
    trials_needed,
)
from cellaug.evaluation.features import Extractor, load_extractor
from cellaug.evaluation.fidelity import Fidelity, evaluate
from cellaug.evaluation.labelled import LabelledImages, read_generated, refuse_generated
from cellaug.evaluation.realfake import machine_expert
from cellaug.evaluation.scorecard import as_json, as_text, scorecard_table, scorecard_text
from cellaug.evaluation.similarity import diversity, mean_pairwise_distance, nearest

__all__ = [
    "ExpertForm",
    "Extractor",
    "Fidelity",
    "LabelledImages",
    "against_guessing",
    "answers",
    "as_json",
    "as_text",
    "binomial_interval",
    "classification_report",
    "detectable_accuracy",
    "diversity",
    "evaluate",
    "load_extractor",
    "machine_expert",
    "mean_pairwise_distance",
    "nearest",
    "paired_difference",
    "per_class_change",
    "read_generated",
    "refuse_generated",
    "score",
    "score_confusion",
    "scorecard_table",
    "scorecard_text",
    "shuffle_trial",
    "summarise_seeds",
    "trial_hash",
    "trials_needed",
]
