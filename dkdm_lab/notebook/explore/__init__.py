"""Explorations: each is one call, live in a notebook with a front end, a static twin everywhere else."""

from dkdm_lab.notebook.explore.cost import cost_calculator
from dkdm_lab.notebook.explore.forward_process import ForwardProcess
from dkdm_lab.notebook.explore.ledger_explorer import LedgerExplorer
from dkdm_lab.notebook.explore.look import Control, Exploration, frames, live
from dkdm_lab.notebook.explore.pool_player import PoolPlayer, watch
from dkdm_lab.notebook.explore.sampler import Sampler
from dkdm_lab.notebook.explore.training_dashboard import TrainingDashboard

__all__ = [
    "Control",
    "Exploration",
    "ForwardProcess",
    "LedgerExplorer",
    "PoolPlayer",
    "Sampler",
    "TrainingDashboard",
    "cost_calculator",
    "frames",
    "live",
    "watch",
]
