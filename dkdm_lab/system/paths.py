"""Where things lie on disk."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]  # of this project; site-packages where only the module is
BOOK = CHECKOUT / "book"


def cache_dir() -> Path:
    """``data_cache`` of this checkout, or the folder named by the variable DKDM_DATA_CACHE."""
    if "DKDM_DATA_CACHE" in os.environ:
        return Path(os.environ["DKDM_DATA_CACHE"])
    return (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()) / "data_cache"


def results_dir() -> Path:
    """``book/results`` of this checkout, the ledger, or the folder named by the variable DKDM_LEDGER."""
    return Path(os.environ.get("DKDM_LEDGER", BOOK / "results"))


def models_dir() -> Path:
    """``book/models`` of this checkout."""
    return BOOK / "models"
