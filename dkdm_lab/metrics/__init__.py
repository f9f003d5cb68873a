"""Scores: FID and its kin, and distances between two samples."""

from dkdm_lab.metrics.digits import (
    DigitsClassifier,
    class_accuracy,
    digits_classifier,
    digits_classifier_hash,
)
from dkdm_lab.metrics.inception import INCEPTION_WEIGHTS, InceptionSpatial, inception_weights
from dkdm_lab.metrics.scores import FEATURES, FEWEST, METRICS, compare, require, score
from dkdm_lab.metrics.statistics import KEPT, statistics_file
from dkdm_lab.metrics.two_samples import emd, energy_distance, mmd, nearest_neighbour

__all__ = [
    "FEATURES",
    "FEWEST",
    "INCEPTION_WEIGHTS",
    "KEPT",
    "METRICS",
    "DigitsClassifier",
    "InceptionSpatial",
    "class_accuracy",
    "compare",
    "digits_classifier",
    "digits_classifier_hash",
    "emd",
    "energy_distance",
    "inception_weights",
    "mmd",
    "nearest_neighbour",
    "require",
    "score",
    "statistics_file",
]
