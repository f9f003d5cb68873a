"""Studies: data-free distillation of VAEs and classifiers, in named parts that are made from each other.

A ladder VAE and a classifier are distilled from their own noise, from real images, and from images that a
diffusion model, the *guide*, was made to draw for them. This is the door to what stands in files of its own:
settings in :mod:`~dkdm_lab.experiments.study`, parts in :mod:`~dkdm_lab.experiments.parts`, their results in
:mod:`~dkdm_lab.experiments.study_results`, the second source's numbers and claims in
:mod:`~dkdm_lab.experiments.slides`.
"""

from dkdm_lab.beyond.loss_guided_synthesis import VAELosses
from dkdm_lab.experiments.ledger import enter
from dkdm_lab.experiments.parts import CLASSIFIERS, NAMES, PARTS, VAES, Part
from dkdm_lab.experiments.slides import CLAIMS, ROLES, SLIDES, beside, verdicts
from dkdm_lab.experiments.study import STUDIES, Split, Study, get
from dkdm_lab.experiments.study_results import SCORES, by_seed, cell, entered, over_seeds, table

__all__ = [
    "CLAIMS",
    "CLASSIFIERS",
    "NAMES",
    "PARTS",
    "ROLES",
    "SCORES",
    "SLIDES",
    "STUDIES",
    "VAES",
    "Part",
    "Split",
    "Study",
    "VAELosses",
    "beside",
    "by_seed",
    "cell",
    "enter",
    "entered",
    "get",
    "over_seeds",
    "table",
    "verdicts",
]
