"""Verdicts: how a claim or a number of a source came out here."""

from enum import StrEnum


class Verdict(StrEnum):
    """How a claim or a number came out; its value is what tables print."""

    REPRODUCED = "reproduced at this scale"
    UNDECIDED = "undecided"  # the seeds disagree
    NOT_REPRODUCED = "not reproduced"
    NOT_RUN = "not run"
