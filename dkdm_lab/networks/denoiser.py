"""Networks: the paper's by name, small ones for the book, and the ``Denoiser`` that makes any of them,
and any checkpoint of diffusers, answer ``(x_t, t) -> eps, v``.

The CNNs are ADM's, written as configurations of diffusers' ``UNet2DModel``, equal to the authors' to
the last parameter (Tables 6, 8); the DiT is Table 10's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks.families import NETWORK_CLASSES, Terms, ask, family_of, refuse, unpack
from dkdm_lab.networks.folders import find_folder, look_through, part_of, read_model
from dkdm_lab.networks.mlp import MLP
from dkdm_lab.networks.schedulers import (
    PREDICTIONS,
    ddpm_scheduler,
    diffusion_of,
    edm_levels,
    flow_levels,
    flow_scale,
    is_edm,
    read_json,
    read_scheduler,
)
from dkdm_lab.system.files import whole_folder

Answer = tuple[Tensor, Tensor | None]  # a denoiser's eps and v


class Denoiser(nn.Module):
    """Any network as the book's denoiser: ``eps, v = denoiser(x_t, t)``, or ``denoiser(x_t, t, condition)``.

    network: called as ``network(x, t).sample`` with ``out_channels`` 2C (learned variance: the second
    half is ``v`` in [-1, 1]) or C (``v`` is None). x_t: ``[B, C, ...]``; t: ``[B]`` int64, 0-based.
    condition: class labels ``[B]`` int64, text embeddings ``[B, L, D]``, or, for networks that take more than
    one thing, rows that :func:`~dkdm_lab.networks.families.pack` made.

    diffusion: the process it was trained for, as its scheduler says; None for a bare network.
    prediction: what it predicts, one of :data:`PREDICTIONS`; eps is worked out from it. variance:
    ``"learned_range"``, ADM's and the book's; or ``"learned"``, where its second half is the variance itself.
    terms: how it is asked, as far as its configuration does not say.

    at_once: the most samples that it evaluates together; None for as many as it is given.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion | None = None,
        prediction: str = "epsilon",
        variance: str = "learned_range",
        terms: Terms | None = None,
    ):
        super().__init__()
        self.network, self.terms = network, terms or Terms()
        self.family = family_of(network)
        config = network.config
        self.channels = config.in_channels // (4 if self.family.packed else 1)
        outputs = (config.out_channels or config.in_channels) // (4 if self.family.packed else 1)
        if outputs not in (self.channels, 2 * self.channels):
            more = ": a model that is given an image too?" if outputs < self.channels else ""
            raise ValueError(
                f"network: found {outputs} output channels, expected {self.channels} "
                f"(eps) or {2 * self.channels} (eps and v){more}"
            )
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: found {prediction!r}, expected one of {PREDICTIONS}")
        self._has_second_half = outputs == 2 * self.channels
        self.learns_variance = self._has_second_half and not self.family.cuts
        self.diffusion, self.prediction, self.variance = diffusion, prediction, variance
        if diffusion is None and (prediction, variance) != ("epsilon", "learned_range"):
            raise ValueError(f"diffusion: found None, expected the process, to read {prediction}, {variance}")
        self.register_buffer("_times", self.terms.times, persistent=False)
        self.at_once: int | None = None
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # sources drop conditions, and know which
        network.to(memory_format=memory_format())

    def around(self, network: nn.Module) -> Denoiser:
        """A denoiser that asks and reads another network as this one does its own."""
        return Denoiser(network, self.diffusion, self.prediction, self.variance, self.terms)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        size = self.network.config.get("sample_size") or self.terms.size
        if size is None:
            return (self.channels,)
        height, width = (size, size) if isinstance(size, int) else size
        return (self.channels, height, width)

    @property
    def condition(self) -> str | None:
        """What it is conditioned on: ``"class"``, ``"text"`` or None."""
        if self.family.text:
            return "text"
        config = self.network.config
        classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
        return "class" if classes else None

    @property
    def parameter_count(self) -> int:
        """Trainable and fixed parameters together, as the paper counts them."""
        return sum(p.numel() for p in self.parameters())

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if x_t.ndim < 2 or x_t.shape[1] != self.channels:
            raise ValueError(f"x_t: found shape {tuple(x_t.shape)}, expected [B, {self.channels}, ...]")
        if (condition is None) != (self.condition is None):
            found = "None" if condition is None else f"shape {tuple(condition.shape)}"
            raise ValueError(f"condition: found {found}, but the network takes {self.condition or 'none'}")
        most = self.at_once
        if most is None or len(x_t) <= most:
            return self._answer(x_t, t, condition)
        conditions = condition.split(most) if condition is not None else [None] * -(-len(x_t) // most)
        answers = [
            self._answer(*part) for part in zip(x_t.split(most), t.split(most), conditions, strict=True)
        ]
        return tuple(None if one[0] is None else torch.cat(one) for one in zip(*answers, strict=True))

    def _answer(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Answer:
        flow = self.prediction == "flow_prediction"
        x = x_t * _like(flow_scale(self.diffusion, t), x_t) if flow else x_t
        dtype = next(self.network.parameters()).dtype
        given = {name: self._as(value, dtype) for name, value in self._given(condition).items()}
        time = t if self._times is None else self._times[t]
        out = ask(self.network, self.family, self.terms, x.to(dtype), time, given)
        out = out if dtype in (torch.float32, torch.float64) else out.float()
        out, v = out.chunk(2, dim=1) if self._has_second_half else (out, None)
        v = v if self.learns_variance else None
        if self.prediction != "epsilon":
            out = self.diffusion.predict_eps(self.prediction, x_t, t, out)
        if v is not None and self.variance == "learned":
            v = self.diffusion.share_of(v.clamp(min=1e-20).log(), t)
        return out, v

    @staticmethod
    def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    def _given(self, condition: Tensor | None) -> dict[str, Tensor]:
        """A condition by the names of the network's arguments."""
        if condition is None:
            return {}
        if self.terms.layout is not None:
            return unpack(condition, self.terms.layout)
        return {self.family.text[0] if self.family.text else "class_labels": condition}

    def compile_network(self, mode: str) -> None:
        """Compile the network where it stands, by `torch.compile` in one of its modes: "default", or
        "reduce-overhead", which records CUDA graphs. Weights, names and what is saved stay as they are; a
        copy is not compiled. RuntimeError for an unknown mode."""
        self.network.compile(mode=mode)

    def save_pretrained(self, folder: str | Path, diffusion: GaussianDiffusion) -> None:
        """Write diffusers' own folder format, so that ``DDPMPipeline.from_pretrained(folder)`` samples it.

        The folder appears whole or not at all. A network that ``DDPMPipeline`` cannot sample (MLP, DiT, a
        conditional one) is written in the same layout, ``unet/`` and ``scheduler/``, and read back by
        :meth:`from_pretrained`.
        """
        folder = Path(folder)
        scheduler = self.terms.scheduler
        if scheduler is None and self.prediction == "flow_prediction":
            raise ValueError("terms: found no scheduler, expected a flow's own, to save its network with")
        if scheduler is None:
            scheduler = ddpm_scheduler(diffusion, self.learns_variance, self.prediction)
        with whole_folder(folder) as new, as_saved(self.network) as network:
            if isinstance(network, UNet2DModel) and self.condition is None and self.terms.scheduler is None:
                DDPMPipeline(network, scheduler).save_pretrained(new)
            else:
                network.save_pretrained(new / "unet")
                scheduler.save_pretrained(new / "scheduler")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, variant: str | None = None, size: int | None = None
    ) -> Denoiser:
        """Load a diffusers pipeline or model folder, in either layout, or a Hub id; in eval mode.

        Its scheduler's configuration says what the network predicts and becomes its ``diffusion``; a model
        folder without a scheduler is taken to predict eps. variant: of the weights, as "fp16"; None: the
        plain ones, or the only ones. size: of a sample's side, where the configuration has none. Errors:
        FileNotFoundError where nothing is found; ValueError for a foreign, truncated or unsupported
        checkpoint, naming the file.
        """
        local = find_folder(path)
        folder = part_of(local, ("unet", "transformer"), "config.json") or local
        noise = part_of(local, ("scheduler",), "scheduler_config.json")
        for part in {local, folder, noise} - {None}:
            look_through(part, local)
        scheduler = None if noise is None else read_scheduler(noise)
        file = folder / "config.json"
        if file.is_file():
            refuse(read_json(file), str(file))
        network = read_model(folder, NETWORK_CLASSES, variant)
        try:
            return cls(network, *_process(network, scheduler, size)).eval()
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def _process(network: nn.Module, scheduler, size: int | None) -> tuple:
    """A network's process, prediction, variance and terms, as its scheduler says."""
    config, family = network.config, family_of(network)
    size = _size(network, size)
    if scheduler is None:
        return None, "epsilon", "learned_range", Terms(size=size)
    terms = Terms(size=size)
    if is_edm(scheduler):
        times = edm_levels(scheduler).timesteps.flip(0).float()
        negative = scheduler.config.prediction_type == "epsilon"
        terms = dataclasses.replace(
            terms, times=times, scheduler=scheduler, negative=negative, scale=scheduler.config.sigma_data
        )
        return diffusion_of(scheduler), "v_prediction", "learned_range", terms
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        learned = scheduler.config.get("variance_type") == "learned"
        prediction = scheduler.config.get("prediction_type", "epsilon")
        return diffusion_of(scheduler), prediction, "learned" if learned else "learned_range", terms
    patch = 2 if family.packed else config.get("patch_size") or 1
    sides = size or config.get("sample_size") or 1
    height, width = (sides, sides) if isinstance(sides, int) else sides
    sequence = (height // patch) * (width // patch)
    times = flow_levels(scheduler, sequence).timesteps.flip(0).float()
    terms = dataclasses.replace(terms, times=times, scheduler=scheduler)
    return diffusion_of(scheduler, sequence), "flow_prediction", "learned_range", terms


def _size(network: nn.Module, asked: int | None) -> int | None:
    """The side of a sample where its configuration does not say it; ValueError where nobody does."""
    if isinstance(network, MLP):
        return None
    own = network.config.get("sample_size")
    if own is None and asked is None:
        raise ValueError("found sample_size null, expected the side of a sample; say it by --size")
    if own is None and family_of(network).packed and asked % 2:
        raise ValueError(f"size: found {asked}, expected an even number, for its tokens are 2 x 2")
    return asked if own is None else None


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def memory_format() -> torch.memory_format:
    """How networks' weights lie in memory: the way in which convolutions are fastest.

    That is ``channels_last`` on a GPU, and on a CPU with AVX-512. Without it the plain order is faster, on
    the one machine that was measured: with the 57M teacher by 4 %, with the 14M student by 25 %. Results
    differ by rounding. The variable DKDM_MEMORY_FORMAT, channels_last or contiguous, overrules this.
    """
    asked = os.environ.get("DKDM_MEMORY_FORMAT")
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    if asked is not None and asked not in formats:
        raise ValueError(f"DKDM_MEMORY_FORMAT: found {asked!r}, expected channels_last or contiguous")
    fast = torch.cuda.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return formats[asked or ("channels_last" if fast else "contiguous")]


def at_least_float32(answer: Answer) -> Answer:
    """Cast an answer to float32: losses and moves must not be computed in the half precision of autocast."""
    return tuple(x if x is None or x.dtype == torch.float64 else x.float() for x in answer)


# -- reading and writing diffusers' folders -----------------------------------------------------------


@contextlib.contextmanager
def as_saved(network: nn.Module) -> Iterator[nn.Module]:
    """A network with its weights laid out as safetensors wants them, for as long as the block lasts."""
    network.to(memory_format=torch.contiguous_format)
    try:
        yield network
    finally:
        network.to(memory_format=memory_format())
