"""Pipelines: any checkpoint with all that belongs to it, as a teacher; and students, written as the same kind
of pipeline, which plain diffusers loads.

A pipeline is a denoiser, its scheduler and, for some, a VAE whose latents it denoises and a text encoder. The
pool of a latent model holds latents: only what is to be looked at is decoded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel
from torch import Tensor, nn

from dkdm_lab.data.images import to_model
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks.denoiser import Denoiser, as_saved
from dkdm_lab.networks.folders import find_folder, look_through, part_of, read_model
from dkdm_lab.networks.schedulers import ddpm_scheduler, read_scheduler
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget
from dkdm_lab.system.files import whole_folder
from dkdm_lab.teachers import text
from dkdm_lab.teachers.export import copy_parts, read_index
from dkdm_lab.teachers.single_files import load_adm, load_ldm
from dkdm_lab.teachers.students import fresh_student

_VAES = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL, "AutoencoderDC": AutoencoderDC}
_VAE_PARTS = ("vqvae", "vae")  # where a pipeline keeps it
# What pipelines give to a network beside noise and words.
_OUT_OF_REACH = {
    "Inpaint": "an inpainting pipeline, whose network is given an image too",
    "Img2Img": "an image-to-image pipeline, a refiner for instance, which begins at an image",
    "Upscale": "an upscaler, whose network is given an image too",
    "SuperResolution": "an upscaler, whose network is given an image too",
    "ControlNet": "a pipeline whose network is given an image too",
    "Kandinsky": "a decoder of image embeddings, which no prompt gives",
    "ImageVariation": "a decoder of image embeddings, which no prompt gives",
    "Video": "a video model", "Animate": "a video model", "Wan": "a video model", "CogVideo": "a video model",
    "Mochi": "a video model", "LTX": "a video model", "Audio": "an audio model", "Music": "an audio model",
    "LatentConsistency": "a teacher of few steps, which knows no step from one level to the next",
    "Consistency": "a teacher of few steps, which knows no step from one level to the next",
    "IFPipeline": "the first of a cascade, whose steps are thresholded by their own quantiles",
    "HunyuanDiT": "a transformer that is told sizes and styles beside its two texts, for which no source is",
    "ScoreSde": "a process in continuous time",
}  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """A diffusion model with what belongs to it.

    denoiser: with its ``diffusion``. scheduler: diffusers' own. vae: decodes the latents of a latent model,
    else None. folder: of diffusers' pipeline it was read from, with its other parts; None for a bare file.
    """

    denoiser: Denoiser
    scheduler: diffusers.SchedulerMixin
    vae: nn.Module | None = None
    folder: Path | None = None

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The process it was trained for."""
        return self.denoiser.diffusion

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        diffusion: GaussianDiffusion | None = None,
        size: int | None = None,
        head_channels: int = 32,
        new_attention_order: bool = True,
        variant: str | None = None,
        dtype: str = "float32",
    ) -> Pipeline:
        """Read a pipeline: diffusers' folder, a Hub id, an ADM file (``.pt``) or CompVis' LDM (``.ckpt``).

        A file holds weights alone. diffusion: the process of an ADM checkpoint, which it does not tell; the
        authors' are ``GaussianDiffusion.cosine(1000)``. size, head_channels, new_attention_order: as in
        :func:`load_adm` and :func:`load_ldm`; size and variant of a folder: as in
        :meth:`Denoiser.from_pretrained`. dtype: in which the denoiser computes. Errors: as those; ValueError
        for what is out of reach.
        """
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype: found {dtype!r}, expected float32, bfloat16 or float16")
        if Path(path).suffix in (".ckpt", ".pt", ".pth"):
            found = cls._from_file(Path(path), diffusion, size, head_channels, new_attention_order)
        else:
            found = cls._from_folder(find_folder(path), size, variant)
        if dtype != "float32":
            nn.Module.to(found.denoiser.network, getattr(torch, dtype))
        return found

    @classmethod
    def _from_file(cls, path: Path, diffusion, size, head_channels, new_attention_order) -> Pipeline:
        if path.suffix == ".ckpt":
            denoiser, vae, scheduler = load_ldm(path, size or 64, head_channels)
            return cls(denoiser, scheduler, vae)
        diffusion = diffusion or GaussianDiffusion.cosine(1000)
        denoiser = load_adm(path, size or 32, head_channels, new_attention_order)
        denoiser.diffusion = diffusion
        return cls(denoiser, ddpm_scheduler(diffusion, denoiser.learns_variance))

    @classmethod
    def _from_folder(cls, folder: Path, size: int | None, variant: str | None) -> Pipeline:
        index = read_index(folder)
        name = str(index.get("_class_name"))
        for word, what in _OUT_OF_REACH.items():
            if word in name:
                raise ValueError(
                    f"{folder / 'model_index.json'}: found {name}, {what}; expected a pipeline that makes "
                    "images from noise, with labels or prompts or without"
                )
        noise = part_of(folder, ("scheduler",), "scheduler_config.json")
        if noise is None and (folder / "config.json").is_file() | any(
            (folder / part).is_dir() for part in ("unet", "transformer")
        ):
            raise ValueError(f"{folder}: found no scheduler, expected a whole pipeline's folder")
        denoiser = Denoiser.from_pretrained(folder, variant, size)
        if denoiser.diffusion is None:
            raise ValueError(f"{folder}: found no scheduler, expected a whole pipeline's folder")
        vae = cls._vae(folder, index, denoiser.channels, variant)
        return cls(denoiser, denoiser.terms.scheduler or read_scheduler(noise), vae, folder)

    @staticmethod
    def _vae(folder: Path, index: dict, channels: int, variant: str | None) -> nn.Module | None:
        part = next((folder / name for name in _VAE_PARTS if (folder / name).is_dir()), None)
        named = [name for name in _VAE_PARTS if index.get(name, [None, None])[1] is not None]
        if part is None or (index and not named):
            if named:
                raise ValueError(
                    f"{folder / named[0]}: found nothing there, but model_index.json names a {named[0]}"
                )
            return None
        look_through(part, folder)
        vae = read_model(part, _VAES, variant).eval()
        if vae.config.latent_channels != channels:
            raise ValueError(
                f"{folder}: found latents of {vae.config.latent_channels} channels, but the denoiser "
                f"takes {channels}"
            )
        return vae

    def to(self, device: str | torch.device) -> Pipeline:
        """Denoiser and VAE moved to a device."""
        self.denoiser.to(device)
        if self.vae is not None:
            self.vae.to(device)
        return self

    # -- latents and conditions -----------------------------------------------------------------------

    def decode(self, x: Tensor, batch_size: int = 32) -> Tensor:
        """Samples as images ``[N, C, H, W]`` in [-1, 1]: of a latent model decoded, of others as they are."""
        x = x * self.denoiser.terms.scale
        return x if self.vae is None else decode(self.vae, x, batch_size)

    def classes(self, null: int | None = None, dropout: float = 0.1) -> Conditions:
        """The labels of a class-conditional model. null: the label that stands for none, where the network
        has one among its own; diffusers' DiT has one after its last class."""
        config = self.denoiser.network.config
        if self.denoiser.condition != "class":
            raise ValueError(f"classes: the denoiser takes {self.denoiser.condition or 'no condition'}")
        if config.get("num_embeds_ada_norm"):
            return Conditions.classes(config.num_embeds_ada_norm, config.num_embeds_ada_norm, dropout)
        labels = torch.arange(config.num_class_embeds)
        if null is not None and null not in labels:
            raise ValueError(f"null class: found {null}, expected one of the network's {len(labels)} labels")
        return Conditions(
            labels if null is None else labels[labels != null],
            None if null is None else torch.tensor(null),
            dropout,
        )

    def prompts(
        self, prompts: list[str], dropout: float = 0.1, device: str | torch.device = "cpu"
    ) -> Conditions:
        """Embeddings of prompts by the pipeline's own text encoders, each computed once, on a device in
        batches, and kept on the host; null: that of "". Errors: as of :func:`~dkdm_lab.teachers.text.embed`.
        """
        if self.denoiser.condition != "text" or self.folder is None:
            raise ValueError(f"prompts: the denoiser takes {self.denoiser.condition or 'no condition'}")
        others = {self._part: self.denoiser.network, "scheduler": self.scheduler, "vae": self.vae}
        found, layout = text.embed(self.folder, self.denoiser, others, prompts, dropout, device)
        self.denoiser.terms = dataclasses.replace(self.denoiser.terms, layout=layout)
        return found

    # -- students -------------------------------------------------------------------------------------

    def student(self, which: str) -> Denoiser:
        """A fresh student for this teacher. which: a name of :data:`NETWORKS`; ``x0.5``, the teacher's own
        architecture at half its width; or a file, diffusers' ``config.json`` of a network.

        It predicts what the teacher predicts, learns a variance where the teacher does, and takes the same
        conditions. ValueError where its samples would have another shape than the teacher's.
        """
        return fresh_student(which, self.denoiser)

    def save(self, folder: str | Path, student: Denoiser, files: Mapping[str, str]) -> None:
        """Write a student as the kind of pipeline its teacher is, with the teacher's other parts (VAE, text
        encoder). files: text by name, as README.md, the card. The folder appears whole or not at all."""
        with whole_folder(Path(folder)) as new:
            new.mkdir()
            self.write_network(new, student)
            self.write_other_parts(new, student)
            for name, text in files.items():
                (new / name).write_text(text, encoding="utf-8")

    def write_network(self, folder: Path, student: Denoiser) -> None:
        """What :meth:`Denoiser.from_pretrained` reads: a student's weights and its scheduler."""
        with as_saved(student.network) as network:
            network.save_pretrained(folder / self._part)
        self._scheduler(student).save_pretrained(folder / "scheduler")

    def write_other_parts(self, folder: Path, student: Denoiser) -> None:
        """What the teacher's pipeline has beside network and scheduler, as its VAE and text encoder, and
        ``model_index.json``, by which diffusers knows the whole. Other files of the teacher's folder, as its
        card or its optimiser's state, are not the student's."""
        own = {self._part: student.network, "scheduler": self._scheduler(student)}
        index = read_index(self.folder)
        if self.folder is None:
            index = {"_class_name": "DDPMPipeline" if self.vae is None else "LDMPipeline"}
            if self.vae is not None:
                self.vae.save_pretrained(folder / "vqvae")
                index["vqvae"] = ["diffusers", type(self.vae).__name__]
        else:
            copy_parts(self.folder, folder, index, set(own), _VAE_PARTS)
        for name, saved in own.items():
            library = type(saved).__module__
            library = "diffusers" if library.startswith("diffusers") else library
            index[name] = [library, type(saved).__name__]
        if "_class_name" in index:
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def _part(self) -> str:
        """Where a pipeline of this kind keeps its network."""
        named = read_index(self.folder)
        transformer = self.folder is not None and (self.folder / "transformer").is_dir()
        return "transformer" if transformer or "transformer" in named else "unet"

    def _scheduler(self, student: Denoiser) -> diffusers.SchedulerMixin:
        config = dict(self.scheduler.config)
        if student.learns_variance and config.get("variance_type") == "learned":
            config["variance_type"] = "learned_range"
        return type(self.scheduler).from_config(config)


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor, batch_size: int = 32, timed: bool = True) -> Tensor:
    """Latents as a diffusion model gives them, decoded to images ``[N, C, H, W]`` in [-1, 1], on the CPU.
    timed: whether a budget of minutes may end it between two batches."""
    images = []
    parts = latents.split(batch_size)
    for part in budget.each(parts) if timed else parts:
        images.append(decode_batch(vae, part).float().cpu())
    return torch.cat(images)


def decode_batch(vae: nn.Module, latents: Tensor) -> Tensor:
    """A batch of latents as images in [-1, 1], on the VAE's device and in its precision; with gradients."""
    mean, scale = _latent_terms(vae, latents)
    return vae.decode((latents / scale + mean).to(vae.device, vae.dtype)).sample


@torch.no_grad()
def encode(vae: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """uint8 images ``[N, C, H, W]`` as the latents of a diffusion model, on the CPU; of those that a KL
    encoder allows the mean."""
    latents = []
    for part in budget.each(images.split(batch_size)):
        found = vae.encode(to_model(part).to(vae.device, vae.dtype))
        if isinstance(vae, VQModel):
            found = found.latents
        else:
            found = found.latent if isinstance(vae, AutoencoderDC) else found.latent_dist.mean
        found = found.float().cpu()
        mean, scale = _latent_terms(vae, found)
        latents.append((found - mean) * scale)
    return torch.cat(latents)


def _latent_terms(vae: nn.Module, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """What is subtracted from a VAE's latents, and what they are then multiplied with, for a diffusion
    model: a mean and a scale of each channel where the VAE has them, else its shift and its scale."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor
    mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
    return mean, config.scaling_factor / std
