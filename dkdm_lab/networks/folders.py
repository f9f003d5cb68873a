"""Model folders in diffusers' layout: found, checked, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import diffusers
from diffusers import (
    DDPMScheduler,
)
from huggingface_hub import snapshot_download
from torch import nn

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.system.files import sha256

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def find_folder(path: str | Path) -> Path:
    """A folder here, or what a Hub id names, fetched into the Hub's cache."""
    local = Path(path)
    if local.suffix in (".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"{path}: a bare list of weights, not diffusers' folder; read it with load_adm() or load_ldm()"
        )
    if local.exists():
        check(local)
        return local
    try:
        return Path(snapshot_download(str(path), allow_patterns=_NEEDED, ignore_patterns=_COPIES))
    except Exception as error:  # the Hub's client raises many kinds, by cause
        raise FileNotFoundError(
            f"{path}: found neither a folder here nor such a model on the Hub ({error})"
        ) from error


# Of a repository on the Hub: not the same weights again at its root, in half precision or for other programs.
_NEEDED = ["*.json", "*.txt", "*/diffusion_pytorch_model*", "*/model*", "diffusion_pytorch_model*"]
_NEEDED += ["README.md"]  # the card, for its licence
_COPIES = ["*.fp16.*", "*.non_ema.*", "*.msgpack", "*.onnx*"]


def read_model(folder: Path, classes: Mapping[str, type]) -> nn.Module:
    """The model of a diffusers folder, one of ``classes`` by the names that config.json may give.

    Strict: a weight missing or left over is an error. Weights saved as pickles are read without running
    what they say.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder}: found no config.json, expected a diffusers model or pipeline folder")
    name = json.loads(config_file.read_text(encoding="utf-8")).get("_class_name")
    if name not in classes:
        raise ValueError(f"{config_file}: found network class {name!r}, expected one of {sorted(classes)}")
    try:
        model, info = classes[name].from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers raises many kinds here; one clear kind leaves
        raise ValueError(f"{folder}: the checkpoint cannot be read ({error})") from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    if wrong := {kind: keys for kind, keys in info.items() if keys and kind in kinds}:
        raise ValueError(f"{folder}: weights and config.json do not agree: {wrong}")
    return model


def read_scheduler(folder: Path):
    """The scheduler of a pipeline, by its own class; ValueError for one that is no Gaussian diffusion in
    discrete steps, or that predicts or clips what the book has no terms for."""
    file = folder / "scheduler_config.json"
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
        scheduler = getattr(diffusers, str(name)).from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{file}: the scheduler cannot be read ({error})") from error
    if not hasattr(scheduler, "betas"):
        raise ValueError(f"{file}: found {name}, expected a scheduler with betas (DDPM, DDIM, PNDM, ...)")
    found = scheduler.config.get("prediction_type", "epsilon")
    if found not in PREDICTIONS:
        raise ValueError(f"{file}: found prediction_type {found!r}, expected one of {PREDICTIONS}")
    if scheduler.config.get("thresholding"):
        raise ValueError(f"{file}: found thresholding, expected clip_sample or none")
    return scheduler


def diffusion_of(scheduler) -> GaussianDiffusion:
    """The process that a diffusers scheduler was configured for: its betas, clipping and fixed variance."""
    config = scheduler.config
    large = str(config.get("variance_type")).startswith("fixed_large")
    return GaussianDiffusion(
        scheduler.betas.double().numpy(),
        clip=config.get("clip_sample", False) and config.get("clip_sample_range", 1.0),
        schedule=config.get("beta_schedule", "custom"),
        variance="large" if large else "small",
    )


def ddpm_scheduler(diffusion: GaussianDiffusion, learned_variance: bool) -> DDPMScheduler:
    """The diffusers scheduler that agrees with ``diffusion``; its tables are float32."""
    names = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}
    names |= {
        name: name for name in names.values()
    }  # diffusers' own, of a process that was read from a folder
    if diffusion.schedule not in names:
        raise ValueError(f"schedule: found {diffusion.schedule!r}, expected one of {sorted(names)}")
    return DDPMScheduler(
        num_train_timesteps=diffusion.T,
        beta_schedule=names[diffusion.schedule],
        beta_start=float(diffusion.betas[0]),  # the cosine has no use for either
        beta_end=float(diffusion.betas[-1]),
        variance_type="learned_range" if learned_variance else f"fixed_{diffusion.variance}",
        timestep_spacing="linspace",
        clip_sample=bool(diffusion.clip),
        clip_sample_range=float(diffusion.clip or 1),
    )


MANIFEST = "training.json"


def check(folder: Path) -> None:
    """ValueError where a published model's weights are not those of its manifest. A folder without a manifest
    passes: it is somebody else's."""
    if not (folder / MANIFEST).is_file():
        return
    for name, expected in _manifest(folder)["sha256"].items():
        file = folder / name
        found = sha256(file) if file.is_file() else None
        if found != expected:
            what = "nothing" if found is None else f"weights with SHA-256 {found[:12]}"
            raise ValueError(
                f"{file}: found {what}, expected {expected[:12]}: the model is damaged; "
                f"`git checkout -- book/models` restores one of the book's"
            )


def _manifest(folder: Path) -> dict:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest["sha256"], dict):
            raise TypeError("sha256")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: found no manifest of a published model ({error!r}); "
            f"`git checkout -- book/models` restores one of the book's"
        ) from error
