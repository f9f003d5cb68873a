"""The trained teachers in ``book/models``, which the book distils: found, checked and written.

Each is a folder of a diffusers pipeline with weights in 16 bits, a card, and ``training.json``: how it was
trained, what it scored, and the SHA-256 of its weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from dkdm_lab.networks.folders import MANIFEST, _manifest, check
from dkdm_lab.system.files import sha256, whole_folder, write_json
from dkdm_lab.system.paths import models_dir

_CIFAR = "CIFAR-10's 50,000 training images (Krizhevsky, 2009; no licence stated, free for research)"
# What each was trained on, for its card.
_DATA = {
    "cifar10": _CIFAR,
    "cifar16": f"{_CIFAR}, each 2x2 pixels averaged to one",
    "digits": (
        "scikit-learn's 1,797 handwritten digits, 8x8 (the test part of UCI's Optical Recognition of "
        "Handwritten Digits, CC BY 4.0)"
    ),
}


def find(name: str) -> Path:
    """The folder of a model of the book, checked. FileNotFoundError for a name that none has; ValueError for
    one whose weights are not what was published."""
    folder = _place(name)
    check(folder)
    return folder


def _place(name: str) -> Path:
    folder = models_dir() / name
    if not (folder / MANIFEST).is_file():
        have = ", ".join(sorted(file.parent.name for file in models_dir().glob(f"*/{MANIFEST}"))) or "none"
        raise FileNotFoundError(
            f"{folder}: found no model of the book there, expected one of those in book/models ({have}); "
            f"`git checkout -- book/models` restores them"
        )
    return folder


def fingerprint(name: str) -> str:
    """Twelve hex digits that say which weights a model of the book has, by its manifest: whoever reads them
    checks them. FileNotFoundError for a name that none has."""
    digests = sorted(_manifest(_place(name))["sha256"].values())
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def publish(run, folder: str | Path) -> Path:
    """Write the model of a finished run to ``folder``: weights in 16 bits, card and manifest. The folder
    appears whole or not at all; ValueError where it holds anything already, or the run is not finished."""
    from dkdm_lab.networks.schedulers import ddpm_scheduler
    from dkdm_lab.teachers.pipelines import Pipeline

    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: found files there, expected an empty or a new folder")
    if run.status != "finished":
        raise ValueError(f"{run.folder}: found a run that is {run.status}, expected a finished one")
    result, model, vae = run.result(), run.model().cpu(), run.vae()
    for network in (model.network, vae):
        if network is not None:
            nn.Module.half(network)  # diffusers' own warns of layers that are not there
    with whole_folder(folder) as new:
        if vae is None:
            model.save_pretrained(new, run.diffusion)
        else:
            scheduler = ddpm_scheduler(run.diffusion, model.learns_variance)
            if run.preset.sampler == "ddim":
                scheduler = _as_ddim(scheduler)
            Pipeline(model, scheduler, vae.cpu()).save(new, model, {})
        for file in new.rglob("config.json"):
            config = json.loads(file.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)  # where it lay on this machine
            write_json(file, config)
        weights = sorted(str(file.relative_to(new)) for file in new.rglob("*.safetensors"))
        kept = ("settings", "metrics", "of_iteration", "parameters", "wall_s", "made_with")
        manifest = {
            "sha256": {name: sha256(new / name) for name in weights},
            "variance": "learned" if model.learns_variance else "fixed",
            **{key: result[key] for key in kept},
        }
        write_json(new / MANIFEST, manifest)
        (new / "README.md").write_text(_card(folder.name, manifest), encoding="utf-8")
    return folder


def _as_ddim(scheduler):
    """The same process for DDIM, whose levels are whole strides from 0."""
    from diffusers import DDIMScheduler

    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "clip_sample")
    return DDIMScheduler(**{name: scheduler.config[name] for name in names}, timestep_spacing="leading")


def _card(name: str, manifest: dict) -> str:
    """The model card, as the Hub shows it."""
    settings, made = manifest["settings"], manifest["made_with"]
    scored = "Its scores are in the book, of these weights as they are.\n\n"
    if counts := manifest["metrics"]:
        scores = "\n".join(f"| {name} | {value:.3f} |" for name, value in counts.items() if name[0] != "N")
        scored = f"""Scores of {counts["N"]:,} samples in {settings["steps"]} steps against \
{counts["N_reference"]:,} training images, before the weights were rounded to 16 bits:

| metric | |
|---|--:|
{scores}

Metrics that begin with `digits-` are in the features of a small digit classifier and stand alone.
"""
    flips = ", half of the images mirrored" if settings["flip"] else ""
    clipped = ", x_0 clipped to [-1, 1]" if settings["clip"] else ""
    in_latents = (
        f"; in the latents of a small autoencoder, `{settings['autoencoder']}`, which lies here too"
        if (settings.get("autoencoder"))
        else ""
    )
    network = f"U-Net `{settings['teacher']}`, {manifest['parameters']:,} parameters"
    network += f", {manifest['variance']} variance"
    network += f", takes {settings['classes']} labels and one for none" if settings.get("classes") else ""
    loaded = "`DDPMPipeline.from_pretrained` of diffusers loads and samples it."
    if settings.get("autoencoder"):
        loaded = loaded.replace("DDPM", "LDM")
    elif settings.get("classes"):
        loaded = '`UNet2DModel.from_pretrained(..., subfolder="unet")` of diffusers loads it.'
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [diffusion, dkdm]
---

# {name}

A small teacher of the book *DKDM Lab*, so that its chapters can do what they are about: train a new diffusion
model from an existing one, without any data set. It is no end in itself.

{loaded} `dkdm distill book/models/{name} --student x0.5 --out DIR` makes it smaller.

| | |
|---|---|
| trained on | {_DATA[settings["data"]]} |
| network | {network}; weights in 16 bits |
| process | {settings["schedule"]} schedule, T = {settings["T"]:,}{clipped}{in_latents} |
| training | Algorithm 2 (L_hybrid), {settings["teacher_iterations"]:,} iterations of batch size \
{settings["batch_size"]}{flips}, AdamW at {settings["teacher_lr"]:g}, EMA {settings["teacher_ema"]:g}, seed \
{settings["seed"]} |
| hardware | {made["hardware"]} |
| made with | torch {made["torch"]}, diffusers {made["diffusers"]}, commit {made["commit"]} |

{scored}The weights are under this repository's licence, Apache-2.0.
"""
