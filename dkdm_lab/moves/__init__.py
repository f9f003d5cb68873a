"""How a pool's samples move beside the paper's one step: with which variance, and down from noise."""

from dkdm_lab.moves.variance import OF_THE_TEACHER, VARIANCES, AnalyticVariance

__all__ = ["OF_THE_TEACHER", "VARIANCES", "AnalyticVariance"]
