"""The slides *Data-Free Knowledge Distillation of Deep Generative Models* (Group 2, Indian Institute of
Technology Mandi, 15 May 2025): their numbers beside ours, and their claims."""

from __future__ import annotations

from collections.abc import Callable

from dkdm_lab.experiments.claims import Check, Claim, verdict_table
from dkdm_lab.experiments.ledger import Table
from dkdm_lab.experiments.study import STUDIES
from dkdm_lab.experiments.study_results import SCORES, by_seed, cell

# Their last table, "Results of DGM distillation via our data-free pipeline", on CIFAR-10, as printed: what
# they call FID stands under what it is, the square root of a Frechet distance.
SLIDES = {
    "vae-teacher": {
        "parameters": "5.39M", "sqrt-FID": "4.63", "EMD": "7.57", "MMD": "0.25", "1-NN": "0.89",
        "milliseconds": "23.3 ± 1.12", "MiB": "20.5",
    },
    "vae-real": {
        "parameters": "0.03M", "sqrt-FID": "5.24", "EMD": "7.96", "MMD": "0.30", "1-NN": "0.91",
        "milliseconds": "5.63 ± 0.54", "MiB": "1.44",
    },
    "vae-guided": {
        "parameters": "0.03M", "sqrt-FID": "5.27", "EMD": "8.07", "MMD": "0.29", "1-NN": "0.92",
        "milliseconds": "5.6 ± 1.2", "MiB": "1.52",
    },
}  # fmt: skip
# Who plays their parts here, shown images alone, or nothing and images in turn.
ROLES = {
    "vae-teacher": ("teacher", "vae-teacher"),
    "vae-real": ("student, with data", "vae-both-real"),
    "vae-guided": ("student, data-free", "vae-both-guided"),
}


def beside() -> Table:
    """The slides' table beside the ledger's, at their own size and at the digits'; there with the students of
    images alone, and with those of noise and images in turn."""
    rows = []
    for alone, numbers in SLIDES.items():
        role, in_turn = ROLES[alone]
        for metric in ("parameters", *SCORES, "milliseconds", "MiB"):
            ours = [("cifar10", alone), ("digits", alone), ("digits", in_turn)]
            cells = [cell(study, name, metric) for study, name in ours]
            rows.append([role, metric, numbers.get(metric, "not given"), *cells])
    names = ["", "", "slides", "ours, `cifar10`", "ours, `digits`", "ours, `digits`, noise in turn"]
    return Table.of(names, rows, "llrrrr")


def _compared(name: str, other: str, metric: str, how: Callable[[float, float], float]) -> Check:
    """A check of two parts by one score of theirs. how: the ratio that decides, from both scores."""

    def check(study: str) -> dict[int, float]:
        a, b = (by_seed(study, part, metric) for part in (name, other))
        return {seed: how(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())}

    return check


def _ratio(name: str, other: str, metric: str, room: float = 1.0) -> Check:
    """``name`` has at most ``room`` times the score of ``other``, where less is better."""
    return _compared(name, other, metric, lambda a, b: a / (room * b))


def _behind(name: str, other: str, points: float) -> Check:
    """``name`` is right at most so many percentage points less often than ``other``."""
    return _compared(name, other, "accuracy", lambda a, b: 100 * (b - a) / points)


def _more_often(name: str, other: str) -> Check:
    """``name`` is right more often than ``other``."""
    return _compared(name, other, "accuracy", lambda a, b: b / a)


TENTH = 1.1  # "about as good": at most a tenth worse
_STUDENTS = {
    "from images alone": ("vae-guided", "vae-real"),
    "from noise and images in turn": ("vae-both-guided", "vae-both-real"),
}
CLAIMS = (
    *[
        Claim("slides", f"Without data as good as with it, {how}: {metric}, within a tenth.",
              "19_unified_distillation", _ratio(*pair, metric, TENTH), tuple(STUDIES))
        for how, pair in _STUDENTS.items()
        for metric in ("sqrt-FID", "EMD", "MMD", "1-NN")
    ],
    *[
        Claim("ours", f"The same of what an encoder is for, {how}: reconstruction, within a tenth.",
              "19_unified_distillation", _ratio(*pair, "reconstruction", TENTH), tuple(STUDIES))
        for how, pair in _STUDENTS.items()
    ],
    Claim("ours", "Noise alone makes as good a generator as real images alone: sqrt-FID, within a tenth.",
          "19_unified_distillation", _ratio("vae-noise", "vae-real", "sqrt-FID", TENTH), tuple(STUDIES)),
    Claim("slides", "Guidance brings a guide's images nearer to the teacher's data: sqrt-FID.",
          "20_guided_synthesis", _ratio("images-guided", "images-unguided", "sqrt-FID"), tuple(STUDIES)),
    Claim("slides", "Guided images make a better generator than unguided ones: sqrt-FID.",
          "20_guided_synthesis", _ratio("vae-guided", "vae-unguided", "sqrt-FID"), tuple(STUDIES)),
    Claim("ours", "Guided images make a better encoder than unguided ones: reconstruction.",
          "20_guided_synthesis", _ratio("vae-guided", "vae-unguided", "reconstruction"), tuple(STUDIES)),
    Claim("DiffDFKD", "Without data the student is about as good as with it: accuracy, within 5 points.",
          "21_classifier", _behind("classifier-guided", "classifier-real", 5.0), tuple(STUDIES)),
    Claim("DiffDFKD", "Guided images make a better classifier than unguided ones.",
          "21_classifier", _more_often("classifier-guided", "classifier-unguided"), tuple(STUDIES)),
)  # fmt: skip


def verdicts(chapter: str) -> Table:
    """A chapter's claims, each with its verdict at every study, by the rule of the other chapters."""
    return verdict_table([claim for claim in CLAIMS if claim.chapter == chapter], tuple(STUDIES))
