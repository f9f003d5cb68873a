"""How a pool's samples move: guided, with which variance, and in a warm-up down from noise."""

from dkdm_lab.moves.guidance import GuidedTeacher, Lesson, Teacher
from dkdm_lab.moves.mover import Mover
from dkdm_lab.moves.variance import OF_THE_TEACHER, VARIANCES, AnalyticVariance
from dkdm_lab.moves.warmups import WARMUPS, fill_with_noise

__all__ = [
    "OF_THE_TEACHER",
    "VARIANCES",
    "WARMUPS",
    "AnalyticVariance",
    "GuidedTeacher",
    "Lesson",
    "Mover",
    "Teacher",
    "fill_with_noise",
]
