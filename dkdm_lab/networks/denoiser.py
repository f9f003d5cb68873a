"""Networks: the paper's by name, small ones for the book, and the ``Denoiser`` that makes any of them,
and any checkpoint of diffusers, answer ``(x_t, t) -> eps, v``.

The CNNs are ADM's, written as configurations of diffusers' ``UNet2DModel``, equal to the authors' to
the last parameter (Tables 6, 8); the DiT is Table 10's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import (
    DDPMPipeline,
    DiTTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks.dit import DiT
from dkdm_lab.networks.folders import (
    PREDICTIONS,
    ddpm_scheduler,
    diffusion_of,
    find_folder,
    read_model,
    read_scheduler,
)
from dkdm_lab.networks.mlp import MLP
from dkdm_lab.system.files import whole_folder

Answer = tuple[Tensor, Tensor | None]  # a denoiser's eps and v


class Denoiser(nn.Module):
    """Any network as the book's denoiser: ``eps, v = denoiser(x_t, t)``, or ``denoiser(x_t, t, condition)``.

    network: called as ``network(x, t).sample`` with ``out_channels`` 2C (learned variance: the second
    half is ``v`` in [-1, 1]) or C (``v`` is None). x_t: ``[B, C, ...]``; t: ``[B]`` int64, 0-based.
    condition: class labels ``[B]`` int64 or text embeddings ``[B, L, D]``, for networks that take them.

    diffusion: the process it was trained for, as its scheduler says; None for a bare network.
    prediction: what it predicts, one of :data:`PREDICTIONS`; eps is worked out from it. variance:
    ``"learned_range"``, ADM's and the book's; or ``"learned"``, where its second half is the variance itself.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion | None = None,
        prediction: str = "epsilon",
        variance: str = "learned_range",
    ):
        super().__init__()
        self.network = network
        config = network.config
        self.channels = config.in_channels
        outputs = config.out_channels or self.channels
        if outputs not in (self.channels, 2 * self.channels):
            raise ValueError(
                f"network: found {outputs} output channels, expected {self.channels} "
                f"(eps) or {2 * self.channels} (eps and v)"
            )
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: found {prediction!r}, expected one of {PREDICTIONS}")
        self.learns_variance = outputs == 2 * self.channels
        self.diffusion, self.prediction, self.variance = diffusion, prediction, variance
        if diffusion is None and (prediction, variance) != ("epsilon", "learned_range"):
            raise ValueError(f"diffusion: found None, expected the process, to read {prediction}, {variance}")
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # sources drop conditions, and know which
        network.to(memory_format=torch.channels_last)  # convolutions are faster so, on a CPU too

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        size = self.network.config.get("sample_size")
        if size is None:
            return (self.channels,)
        height, width = (size, size) if isinstance(size, int) else size
        return (self.channels, height, width)

    @property
    def condition(self) -> str | None:
        """What it is conditioned on: ``"class"``, ``"text"`` or None."""
        if isinstance(self.network, UNet2DConditionModel):
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
        names = {"class": "class_labels", "text": "encoder_hidden_states"}
        given = {} if condition is None else {names[self.condition]: condition}
        out = self.network(x_t, t, **given).sample
        out, v = out.chunk(2, dim=1) if self.learns_variance else (out, None)
        if self.prediction != "epsilon":
            out = self.diffusion.predict_eps(self.prediction, x_t, t, out)
        if v is not None and self.variance == "learned":
            v = self.diffusion.share_of(v.clamp(min=1e-20).log(), t)
        return out, v

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
        scheduler = ddpm_scheduler(diffusion, self.learns_variance)
        with whole_folder(folder) as new, as_saved(self.network) as network:
            if isinstance(network, UNet2DModel) and self.condition is None:
                DDPMPipeline(network, scheduler).save_pretrained(new)
            else:
                network.save_pretrained(new / "unet")
                scheduler.save_pretrained(new / "scheduler")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Denoiser:
        """Load a diffusers pipeline or model folder, or a Hub id; in eval mode.

        Its scheduler's configuration says what the network predicts and becomes its ``diffusion``; a model
        folder without a scheduler is taken to predict eps. Errors: FileNotFoundError where nothing is found;
        ValueError for a foreign, truncated or unsupported checkpoint, naming the file.
        """
        local = find_folder(path)
        diffusion, options = None, {}
        if (local / "scheduler").is_dir():
            scheduler = read_scheduler(local / "scheduler")
            diffusion = diffusion_of(scheduler)
            learned = scheduler.config.get("variance_type") == "learned"
            options["prediction"] = scheduler.config.get("prediction_type", "epsilon")
            options["variance"] = "learned" if learned else "learned_range"
        folder = next((f for name in ("unet", "transformer") if (f := local / name).is_dir()), local)
        return cls(read_model(folder, NETWORK_CLASSES), diffusion, **options).eval()


def at_least_float32(answer: Answer) -> Answer:
    """An answer out of the half precision that autocast leaves it in; what follows is no network's work."""
    return tuple(x if x is None or x.dtype == torch.float64 else x.float() for x in answer)


# -- reading and writing diffusers' folders -----------------------------------------------------------


@contextlib.contextmanager
def as_saved(network: nn.Module) -> Iterator[nn.Module]:
    """A network with its weights laid out as safetensors wants them, for as long as the block lasts."""
    network.to(memory_format=torch.contiguous_format)
    try:
        yield network
    finally:
        network.to(memory_format=torch.channels_last)


NETWORK_CLASSES = {kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, DiT, MLP)} | {
    "DiTTransformer2DModel": DiTTransformer2DModel,
    "Transformer2DModel": DiTTransformer2DModel,  # its name in pipelines before diffusers 0.29
}
