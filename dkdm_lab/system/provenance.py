"""With what a result was made: versions, hardware, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib.metadata import version

import torch

from dkdm_lab.system.paths import CHECKOUT


def device() -> torch.device:
    """The device that runs use: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def provenance() -> dict:
    """Versions, hardware and commit: how a number was made."""
    packages = ("torch", "diffusers", "accelerate", "torch-fidelity", "numpy")
    cores = f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else cores
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "hardware": hardware,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of this checkout; of a copy without its history what the variable DKDM_COMMIT says."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        ask = {"cwd": CHECKOUT, "capture_output": True, "encoding": "utf-8", "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "dkdm_lab"], **ask).stdout.strip()
        return commit + ("+changes" if changed else "")
    return os.environ.get("DKDM_COMMIT") or "unknown"
