"""Pipelines: any checkpoint with all that belongs to it, as a teacher; and students, written as the same kind
of pipeline, which plain diffusers loads.

A pipeline is a denoiser, its scheduler and, for some, a VAE whose latents it denoises and a text encoder. The
pool of a latent model holds latents: only what is to be looked at is decoded.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from torch import Tensor, nn

from dkdm_lab.data.images import to_model
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks.denoiser import NETWORK_CLASSES, Denoiser, as_saved
from dkdm_lab.networks.folders import ddpm_scheduler, find_folder, read_model, read_scheduler
from dkdm_lab.networks.registry import NETWORKS
from dkdm_lab.sources import Conditions
from dkdm_lab.system.files import whole_folder
from dkdm_lab.teachers.single_files import load_adm, load_ldm

_VAES = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}
_VAE_PARTS = ("vqvae", "vae")  # where a pipeline keeps it


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
    ) -> Pipeline:
        """Read a pipeline: diffusers' folder, a Hub id, an ADM file (``.pt``) or CompVis' LDM (``.ckpt``).

        A file holds weights alone. diffusion: the process of an ADM checkpoint, which it does not tell; the
        authors' are ``GaussianDiffusion.cosine(1000)``. size, head_channels, new_attention_order: as in
        :func:`load_adm` and :func:`load_ldm`. Errors: as those, and :meth:`Denoiser.from_pretrained`.
        """
        suffix = Path(path).suffix
        if suffix == ".ckpt":
            denoiser, vae, scheduler = load_ldm(path, size or 64, head_channels)
            return cls(denoiser, scheduler, vae)
        if suffix in (".pt", ".pth"):
            diffusion = diffusion or GaussianDiffusion.cosine(1000)
            denoiser = load_adm(path, size or 32, head_channels, new_attention_order)
            denoiser.diffusion = diffusion
            return cls(denoiser, ddpm_scheduler(diffusion, denoiser.learns_variance))
        folder = find_folder(path)
        denoiser = Denoiser.from_pretrained(folder)
        if denoiser.diffusion is None:
            raise ValueError(f"{folder}: found no scheduler, expected a whole pipeline's folder")
        part = next((folder / name for name in _VAE_PARTS if (folder / name).is_dir()), None)
        vae = None if part is None else read_model(part, _VAES).eval()
        if vae is not None and vae.config.latent_channels != denoiser.channels:
            raise ValueError(
                f"{folder}: found latents of {vae.config.latent_channels} channels, but the denoiser "
                f"takes {denoiser.channels}"
            )
        return cls(denoiser, read_scheduler(folder / "scheduler"), vae, folder)

    def to(self, device: str | torch.device) -> Pipeline:
        """Denoiser and VAE moved to a device."""
        self.denoiser.to(device)
        if self.vae is not None:
            self.vae.to(device)
        return self

    # -- latents and conditions -----------------------------------------------------------------------

    def decode(self, x: Tensor, batch_size: int = 32) -> Tensor:
        """Samples as images ``[N, C, H, W]`` in [-1, 1]: of a latent model decoded, of others as they are."""
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
        return Conditions(labels[labels != null], None if null is None else torch.tensor(null), dropout)

    @torch.no_grad()
    def prompts(self, prompts: list[str], dropout: float = 0.1) -> Conditions:
        """Embeddings of prompts by the pipeline's own text encoder, each computed once; null: that of ""."""
        if self.denoiser.condition != "text" or self.folder is None:
            raise ValueError(f"prompts: the denoiser takes {self.denoiser.condition or 'no condition'}")
        index = self._index()
        tokenizer, encoder = (
            getattr(transformers, index[part][1]).from_pretrained(self.folder / part)
            for part in ("tokenizer", "text_encoder")
        )
        tokens = tokenizer(
            [*prompts, ""],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        embedded = torch.cat([encoder.eval()(part)[0] for part in tokens.input_ids.split(64)])
        return Conditions(embedded[:-1], embedded[-1], dropout, names=prompts)

    # -- students -------------------------------------------------------------------------------------

    def student(self, which: str) -> Denoiser:
        """A fresh student for this teacher. which: a name of :data:`NETWORKS`; ``x0.5``, the teacher's own
        architecture at half its width; or a file, diffusers' ``config.json`` of a network.

        It predicts what the teacher predicts, learns a variance where the teacher does, and takes the same
        conditions. ValueError where its samples would have another shape than the teacher's.
        """
        teacher = self.denoiser.network
        kind, config = _network(which, teacher)
        changes = {"out_channels": self.denoiser.channels * (1 + self.denoiser.learns_variance)}
        if config.get("sample_size") is None:
            changes["sample_size"] = teacher.config.sample_size
        if kind is UNet2DModel and self.denoiser.condition == "class":
            changes["num_class_embeds"] = teacher.config.get("num_class_embeds")
        network = kind.from_config({**_public(config), **changes})
        if network.config.in_channels != self.denoiser.channels:
            raise ValueError(
                f"student {which}: found {network.config.in_channels} channels, but the teacher's samples "
                f"have {self.denoiser.channels}"
            )
        student = Denoiser(network, self.diffusion, self.denoiser.prediction)
        if student.shape != self.denoiser.shape:
            raise ValueError(
                f"student {which}: found samples of {student.shape}, but the teacher's are "
                f"{self.denoiser.shape}"
            )
        if student.condition != self.denoiser.condition:
            raise ValueError(
                f"student {which}: it takes {student.condition or 'no condition'}, but the teacher takes "
                f"{self.denoiser.condition or 'none'}"
            )
        return student

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
        card, are not the student's."""
        own = {self._part: student.network, "scheduler": self._scheduler(student)}
        if self.folder is None:
            index = {"_class_name": "DDPMPipeline" if self.vae is None else "LDMPipeline"}
            if self.vae is not None:
                self.vae.save_pretrained(folder / "vqvae")
                index["vqvae"] = ["diffusers", type(self.vae).__name__]
        else:
            index = self._index()
            named = index.keys() | set(_VAE_PARTS)
            for part in self.folder.iterdir():
                if part.is_dir() and part.name in named - own.keys():
                    shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns(".*"))
        for name, saved in own.items():
            library = type(saved).__module__
            library = "diffusers" if library.startswith("diffusers") else library
            index[name] = [library, type(saved).__name__]
        if "_class_name" in index:
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def _part(self) -> str:
        """Where a pipeline of this kind keeps its network."""
        return "unet" if self.folder is None or (self.folder / "unet").is_dir() else "transformer"

    def _index(self) -> dict:
        file = None if self.folder is None else self.folder / "model_index.json"
        return {} if file is None or not file.is_file() else json.loads(file.read_text(encoding="utf-8"))

    def _scheduler(self, student: Denoiser) -> diffusers.SchedulerMixin:
        config = dict(self.scheduler.config)
        if student.learns_variance and config.get("variance_type") == "learned":
            config["variance_type"] = "learned_range"
        return type(self.scheduler).from_config(config)


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor, batch_size: int = 32) -> Tensor:
    """Latents as a diffusion model gives them, decoded to images ``[N, C, H, W]`` in [-1, 1], on the CPU."""
    parts = (latents / vae.config.scaling_factor).split(batch_size)
    return torch.cat([vae.decode(part.to(vae.device)).sample.cpu() for part in parts])


@torch.no_grad()
def encode(vae: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """uint8 images ``[N, C, H, W]`` as the latents of a diffusion model, on the CPU; of those that a KL
    encoder allows the mean."""
    latents = []
    for part in images.split(batch_size):
        found = vae.encode(to_model(part).to(vae.device))
        found = found.latents if isinstance(vae, VQModel) else found.latent_dist.mean
        latents.append(found.cpu() * vae.config.scaling_factor)
    return torch.cat(latents)


def _network(which: str, teacher: nn.Module) -> tuple[type, dict]:
    """The class and the configuration that ``which`` names, see :meth:`Pipeline.student`."""
    if which in NETWORKS:
        network = NETWORKS[which]()
        return type(network), dict(network.config)
    if which.startswith("x"):
        try:
            factor = float(which[1:])
        except ValueError:
            factor = math.nan
        if not 0 < factor <= 4:
            raise ValueError(f"student: found {which!r}, expected a factor in (0, 4], as x0.5")
        return type(teacher), scaled(dict(teacher.config), factor)
    file = Path(which)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(
            f"student: found {which!r}, expected a factor as x0.5, a config.json, or one of "
            f"{', '.join(NETWORKS)}"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return NETWORK_CLASSES[config["_class_name"]], config
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: not the configuration of a network that can be a student ({error!r})"
        ) from error


def read_prompts(file: str | Path) -> list[str]:
    """The lines of a text file, but for empty ones; ValueError where there are none."""
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{file}: found no prompts, expected one a line")
    return prompts


def _public(config: dict) -> dict:
    """Without diffusers' note of which values were defaults, by which it would undo a change of them."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def scaled(config: dict, factor: float) -> dict:
    """A network's configuration at another width, rounded to what its norms and attention heads divide."""
    config = _public(config)
    if "block_out_channels" in config:
        levels = len(config["block_out_channels"])
        heads = config.get("num_attention_heads") or config.get("attention_head_dim") or 1
        heads = heads if isinstance(heads, (list, tuple)) else [heads] * levels
        groups = config.get("norm_num_groups") or 1
        config["block_out_channels"] = tuple(
            unit * max(1, round(width * factor / unit))
            for width, head in zip(config["block_out_channels"], heads, strict=True)
            if (unit := math.lcm(groups, head))
        )
    elif "num_attention_heads" in config:  # diffusers' DiT
        config["num_attention_heads"] = max(1, round(config["num_attention_heads"] * factor))
    elif "num_heads" in config:  # ours
        width = config["hidden_size"] // config["num_heads"]
        config["num_heads"] = max(1, round(config["num_heads"] * factor))
        config["hidden_size"] = width * config["num_heads"]
    else:
        config["width"] = max(1, round(config["width"] * factor))
    return config
