"""Measures of classification, of generated images against real ones, and of the expert trial."""

from cellaug.evaluation.classifiers import classification_report
from cellaug.evaluation.distances import diversity
from cellaug.evaluation.expert import read_answers, score_confusion, trial_hash
from cellaug.evaluation.features import Extractor, load_extractor
from cellaug.evaluation.fidelity import evaluate, expected_seconds
from cellaug.evaluation.finding import Fidelity, as_json, as_text
from cellaug.evaluation.scorecard import scorecard_table
from cellaug.evaluation.sources import (
    keep_finding,
    read_generated,
    refuse_generated,
    training_digests,
)
