"""With what a result was made: versions, hardware, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version

import torch

from dkdm_lab.system.paths import CHECKOUT

_chosen: str | None = None


def device() -> torch.device:
    """The device that runs use: a GPU if there is one, but for what :func:`on` says."""
    return torch.device(_chosen or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextlib.contextmanager
def on(name: str | None) -> Iterator[None]:
    """Runs in here use this device, as "cpu" or "cuda:1"; None: the one they would. ValueError where torch
    finds none such, or among several processes, each of which has been given its own."""
    global _chosen
    if name is not None:
        found = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        found += [f"cuda:{number}" for number in range(torch.cuda.device_count() if found[1:] else 0)]
        if name not in found:
            raise ValueError(f"device: found {name!r}, expected one of {', '.join(found)}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"device: found {name!r} in one of several processes, which have their own")
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)  # for what says "cuda" and means the current one
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def provenance() -> dict:
    """Versions, hardware and commit: how a number was made."""
    packages = ("torch", "diffusers", "accelerate", "torch-fidelity", "numpy")
    cores = f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    hardware = torch.cuda.get_device_name() if device().type == "cuda" else cores
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
