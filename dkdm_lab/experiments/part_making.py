"""How the parts of a study are made: guides, sets of images, VAEs and classifiers."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dkdm_lab import networks
from dkdm_lab.beyond.classifier import Classifier, accuracy, train_classifier
from dkdm_lab.beyond.loss_guided_synthesis import ClassifierLosses, VAELosses, synthesise
from dkdm_lab.beyond.vae import LVAE, sample_vae, train_vae
from dkdm_lab.data.images import to_model
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.artifact import RESULT, is_whole, read, record_files
from dkdm_lab.experiments.speed import seconds_of
from dkdm_lab.metrics.scores import compare
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system.files import write_json
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.training import train

if TYPE_CHECKING:
    from dkdm_lab.experiments.parts import Part

TIMED = 100  # images of one timed pass of a VAE, and how often it is timed
POINTS = 50  # kept of a training's losses


def make(part: Part, folder: Path, progress: bool) -> None:
    """Make a part in a new folder, or copy it from the book, after the parts that it is made from."""
    kept, restored = part.published, "`git checkout -- book/models` restores it"
    found = read(kept / RESULT, restored, ("settings",)) if (kept / RESULT).is_file() else None
    if found is not None and found["settings"] == part.settings:
        if is_whole(kept, part.outputs):
            shutil.copytree(kept, folder)
            return
    for need in part.needs():
        need.result(progress)
    started, resuming = time.perf_counter(), part.status == "resumable"
    folder.mkdir()
    makers = {
        "guide": _make_guide,
        "images": _make_images,
        "vae": _make_vae,
        "classifier": _make_classifier,
    }
    outcome = makers[part.kind](part, folder, progress)
    record_files(folder, part.outputs)
    wall = {"wall_s": round(time.perf_counter() - started, 1)}
    wall |= {"resumed": True} if resuming else {}  # then it counts the last leg only
    made = {"settings": part.settings, **outcome, **wall, "made_with": provenance()}
    write_json(folder / RESULT, made)


def shown(part: Part, progress: bool = True) -> Tensor | None:
    """The images that a teacher or a student is trained on; None for one that learns from noise alone."""
    if part.teaches or part.name.endswith("-real"):
        return part.study.split().train
    if part.name.endswith("-noise"):
        return None
    return part.need("images").images(progress)


def _make_guide(part: Part, folder: Path, progress: bool) -> dict:
    if part.pipeline:
        return {"pipeline": part.pipeline}
    s = part.study
    diffusion = presets.get(s.data).diffusion()
    images = s.others() if part.name == "guide-unseen" else s.split().train
    source = NoisedImages(diffusion, images, s.guide_batch_size, seed=part.seed + 1, device=device())
    torch.manual_seed(part.seed)
    network = networks.build(s.guide).to(device())
    trained, history = train(
        network, source, diffusion, s.guide_iterations, lr=s.guide_lr, ema=s.guide_ema,
        checkpoint=part.folder / "checkpoints", checkpoint_every=500,
        progress=progress, description=part.title,
    )  # fmt: skip
    trained.save_pretrained(folder / "model", diffusion)
    return {"parameters": trained.parameter_count, "loss": _thinned(history.loss)}


def _make_images(part: Part, folder: Path, progress: bool) -> dict:
    s, labels, of_classes = part.study, None, part.name == "images-classes"
    guide = part.need("guide").model(progress)
    if of_classes:
        teacher, student = (part.need(f"classifier-{name}").model() for name in ("teacher", "unguided"))
        losses = ClassifierLosses(teacher, student, s.class_batch_norm, s.classification, s.adversarial)
        labels = torch.arange(s.images) % len(s.classes)
    else:
        teacher = part.need("vae").model()
        losses = VAELosses(teacher, s.reconstruction, s.kl, s.batch_norm)
    found = synthesise(
        guide, losses, s.images, steps=s.steps, step_size=_step_size(part), labels=labels,
        conditions=guide.prompts(list(s.prompts)) if guide.denoiser.condition == "text" else None,
        guidance=s.guidance, cutmix=of_classes and s.cutmix, resize=True,
        batch_size=s.synthesis_batch_size, seed=part.seed + 2, progress=progress,
    )  # fmt: skip
    np.savez(folder / "images.npz", x=found.images.numpy())
    test = s.split().test[: s.samples]
    return {
        "metrics": compare(found.images[: len(test)], test, s.features),
        "images": len(found.images),
        "t": found.t,
        "losses": {name: [round(v, 5) for v in values] for name, values in found.losses.items()},
    }


def _step_size(part: Part) -> float:
    if part.name == "images-classes":
        return part.study.class_step_size
    return 0.0 if part.name.startswith("images-unguided") else part.study.step_size


def _make_vae(part: Part, folder: Path, progress: bool) -> dict:
    s, images = part.study, shown(part, progress)
    split = s.split()
    torch.manual_seed(part.seed)
    vae = LVAE(
        in_channels=split.train.shape[1],
        sample_size=split.train.shape[-1],
        width=s.teacher_width if part.teaches else s.width,
        levels=s.levels,
        latent_channels=s.latent_channels,
    ).to(device())
    losses = train_vae(
        vae, images, s.teacher_iterations if part.teaches else s.iterations,
        teacher=None if part.teaches else part.need("vae-teacher").model(),
        batch_size=s.batch_size, lr=s.teacher_lr if part.teaches else s.lr,
        weight_decay=s.weight_decay, blind=s.blind if "both" in part.name else 0.0, seed=part.seed + 1,
        checkpoint=part.folder / "checkpoints", progress=progress, description=part.title,
    )  # fmt: skip
    vae.save_pretrained(folder / "model")
    test = split.test[: s.samples]
    noise = vae.noise(TIMED)
    with torch.no_grad():
        misses = VAELosses(vae)(to_model(test).to(device()))["reconstruction"]
        seconds = [seconds_of(lambda: vae(noise)) for _ in range(TIMED)]
    drawn = sample_vae(vae, s.draws * len(test), seed=part.seed + 3).split(len(test))
    scores = [compare(x, test, s.features) for x in drawn]
    metrics = {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}
    return {
        "metrics": metrics | {"reconstruction": float(misses.mean())},
        "parameters": vae.parameter_count,
        "MiB": sum(file.stat().st_size for file in (folder / "model").iterdir()) / 2**20,
        "milliseconds": [round(1000 * value, 3) for value in seconds[TIMED // 10 :]],
        "loss": _thinned(losses),
    }


def untrained_classifier(part: Part) -> Classifier:
    """The classifier of a part before its training, for its weights to be read into."""
    s = part.study
    shape = tuple(s.split().train.shape[1:])
    width = s.classifier_teacher_width if part.teaches else s.classifier_width
    return Classifier(shape, len(s.classes), width)


def _make_classifier(part: Part, folder: Path, progress: bool) -> dict:
    s, images, split = part.study, shown(part, progress), part.study.split()
    torch.manual_seed(part.seed)
    classifier = untrained_classifier(part).to(device())
    losses = train_classifier(
        classifier, images, s.classifier_teacher_iterations if part.teaches else s.classifier_iterations,
        labels=split.train_labels if part.teaches else None,
        teacher=None if part.teaches else part.need("classifier-teacher").model(),
        temperature=s.temperature, lr=s.classifier_lr, seed=part.seed + 1,
        checkpoint=part.folder / "checkpoints", progress=progress, description=part.title,
    )  # fmt: skip
    torch.save(classifier.state_dict(), folder / "classifier.pt")
    return {
        "metrics": {
            "accuracy": accuracy(classifier, split.test, split.test_labels),
            "N": len(split.test),
        },
        "parameters": classifier.parameter_count,
        "loss": _thinned(losses),
    }


def _thinned(losses: list[float]) -> list[float]:
    """Means of so many equal stretches of a training's losses."""
    stretches = np.array_split(np.asarray(losses), min(POINTS, len(losses)))
    return [round(float(stretch.mean()), 5) for stretch in stretches]
