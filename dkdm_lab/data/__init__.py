"""Images, labels, and distributions whose truth is known."""

from dkdm_lab.data.images import (
    DATASETS,
    DataSet,
    Shuffled,
    content_hash,
    load_images,
    load_labels,
    mix,
    to_model,
    to_uint8,
)
from dkdm_lab.data.toy import (
    ExactDenoiser,
    GaussianMixture,
    LowRankGaussian,
    LowRankGaussianDenoiser,
    MixtureDenoiser,
)

__all__ = [
    "DATASETS",
    "DataSet",
    "ExactDenoiser",
    "GaussianMixture",
    "LowRankGaussian",
    "LowRankGaussianDenoiser",
    "MixtureDenoiser",
    "Shuffled",
    "content_hash",
    "load_images",
    "load_labels",
    "mix",
    "to_model",
    "to_uint8",
]
