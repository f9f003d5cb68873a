"""Guided synthesis: a diffusion model makes the images that another model's own losses ask for.

The *guide* is any diffusion model with its process, in pixels or in a VAE's latents. The *losses* ask a
teacher, a VAE or a classifier, how much a half-made image looks like what it was trained on. At every step
the sample is moved down the gradient of the losses, taken through the decoder and the guide itself, and then
denoised. So Qi et al. synthesise for classifiers (DiffDFKD, arXiv:2504.00870).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dkdm_lab.beyond.vae import LVAE
from dkdm_lab.data.images import to_uint8
from dkdm_lab.networks.classifier_free_guidance import Guided
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import numbered_noise
from dkdm_lab.teachers.pipelines import Pipeline, decode_batch

CUTS = 4  # how often DiffDFKD mixes latents on the way: after each fifth of the steps but the last


# -- what a teacher asks for --------------------------------------------------------------------------


class VAELosses:
    """What a VAE asks of images, as functions of one pass over them; called as ``losses(images, labels)``.

    ``reconstruction``: the sum of squares between an image in [0, 1] and its reconstruction. ``kl``: the sum
    over levels of KL(q || p); with one level KL(q || N(0, I)). Both at the posteriors' means, without noise.
    ``batch-norm``: see :func:`batch_norm_loss`, of the encoder. weights: of each; at 0 a term is
    left out. ValueError for a VAE without batch norm that is asked for it.
    """

    def __init__(self, vae: LVAE, reconstruction: float = 1.0, kl: float = 1.0, batch_norm: float = 0.0):
        self.vae, self.shape = vae.eval(), vae.shape
        self.weights = {"reconstruction": reconstruction, "kl": kl, "batch-norm": batch_norm}
        if batch_norm:
            _batch_norms(vae.encoder)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Each term of images ``[B, C, H, W]`` in [-1, 1], ``[B]``, before weighting; labels are not used."""
        x = (images + 1) / 2
        noise = [torch.zeros_like(level) for level in self.vae.noise(len(x))]
        with _measured(self.vae.encoder, self.weights["batch-norm"]) as found:
            mean, priors, posteriors = self.vae(noise, x)
        terms = {
            "reconstruction": (x - mean).square().flatten(1).sum(1),
            "kl": sum(q.kl(p).flatten(1).sum(1) for q, p in zip(posteriors, priors, strict=True)),
        }
        return {name: terms[name] for name in terms if self.weights[name]} | _shared(found, len(x))


class ClassifierLosses:
    """What DiffDFKD asks of images on behalf of a classifier; called as ``losses(images, labels)``.

    ``batch-norm``: see :func:`batch_norm_loss`. ``classification``: cross-entropy with the labels, ``[B]``,
    that the images are to show. ``adversarial``: ``-KL(teacher || student)`` where the two agree on the
    class, for images that the student still has to learn; only with a student. The weights are theirs.
    shape: of an image; the teacher's own ``shape`` unless given, and not checked where there is none.
    ValueError for a teacher without batch norm that is asked for it.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | None = None,
        batch_norm: float = 0.1,
        classification: float = 1.0,
        adversarial: float = 1.0,
        shape: tuple[int, int, int] | None = None,
    ):
        self.teacher, self.student = teacher.eval(), None if student is None else student.eval()
        self.shape = shape or getattr(teacher, "shape", None)
        adversarial = 0.0 if student is None else adversarial
        self.weights = {
            "batch-norm": batch_norm,
            "classification": classification,
            "adversarial": adversarial,
        }
        if batch_norm:
            _batch_norms(teacher)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Each term of images ``[B, C, H, W]`` in [-1, 1], ``[B]``, before weighting."""
        if self.weights["classification"] and labels is None:
            raise ValueError("labels: found None, expected the class that each image is to show")
        with _measured(self.teacher, self.weights["batch-norm"]) as found:
            logits = self.teacher(images)
        terms = _shared(found, len(images))
        if self.weights["classification"]:
            terms["classification"] = nn.functional.cross_entropy(logits, labels, reduction="none")
        if self.weights["adversarial"]:
            theirs, ours = logits.log_softmax(1), self.student(images).log_softmax(1)
            kl = nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
            terms["adversarial"] = -kl * (theirs.argmax(1) == ours.argmax(1))
        return terms


@contextlib.contextmanager
def batch_norm_loss(network: nn.Module) -> Iterator[list[Tensor]]:
    """L_bn of what passes through a network in the block: a list with a scalar for each batch norm and pass,
    ``||mean - running mean|| + ||variance - running variance||`` over channels, of the batch at its input.

    ValueError for a network without batch norm that keeps running statistics.
    """
    found: list[Tensor] = []

    def note(layer, inputs, _):
        axes = [0, *range(2, inputs[0].ndim)]
        mean, variance = inputs[0].mean(axes), inputs[0].var(axes, unbiased=False)
        found.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    hooks = [layer.register_forward_hook(note) for layer in _batch_norms(network)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    found = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not found:
        raise ValueError(
            f"L_bn: found no batch norm with running statistics in {type(network).__name__}, expected some"
        )
    return found


def _measured(network: nn.Module, weight: float):
    return batch_norm_loss(network) if weight else contextlib.nullcontext([])


def _shared(found: list[Tensor], n: int) -> dict[str, Tensor]:
    """L_bn belongs to the batch: each image is given all of it, so that none moves less in a larger batch."""
    return {"batch-norm": sum(found).expand(n)} if found else {}


# -- the loop -----------------------------------------------------------------------------------------


class Synthesis(NamedTuple):
    """images: uint8 ``[n, C, H, W]``. t: the levels visited, falling, and -1 for the finished images. losses:
    each term at each of these, a mean over the images, before the step that it asks for."""

    images: Tensor
    t: list[int]
    losses: dict[str, list[float]]


def synthesise(
    guide: Pipeline,
    losses: Callable[[Tensor, Tensor | None], dict[str, Tensor]],
    n: int,
    *,
    steps: int = 20,
    step_size: float = 1.0,
    conditions: Conditions | None = None,
    guidance: float = 3.0,
    labels: Tensor | None = None,
    cutmix: bool = False,
    resize: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Synthesis:
    """Draw ``n`` images from a guide, with DDIM, while ``losses`` pull on them.

    At each level: eps, with classifier-free guidance; ``x_0`` from it, decoded; the losses of that image;
    ``z_t <- z_t - step_size * gradient``, through decoder and guide; eps anew; DDIM's step. Every image has
    its own noise, that of :meth:`GaussianDiffusion.sample`, and its own gradient, whatever the batch size,
    but for L_bn's. ``step_size=0`` only measures: the unguided run from the same seed.

    losses: :class:`VAELosses` or :class:`ClassifierLosses`, or alike, with ``weights`` and ``shape``. steps:
    of ``ddim`` spacing, see :meth:`GaussianDiffusion.timesteps`. conditions: of a conditional guide, taken in
    turn, or by ``labels`` where these are given, ``[n]`` int64. cutmix: mix the latents of a batch
    :data:`CUTS` times, a rectangle each, labels unchanged. resize: bring the guide's images to the size that
    the losses take. Errors: ValueError where the guide's images have another shape than the losses take;
    :class:`~dkdm_lab.system.budget.OutOfTime` between two steps.
    """
    denoiser, diffusion = guide.denoiser.eval(), guide.diffusion
    device = next(denoiser.parameters()).device
    if labels is not None and len(labels) != n:
        raise ValueError(f"labels: found {len(labels)}, expected one for each of {n} images")
    levels = diffusion.timesteps(steps, "ddim")[::-1]
    cuts = {steps * k // (CUTS + 1) for k in range(1, CUTS + 1)} if cutmix else set()
    conditions = None if conditions is None else conditions.to(device)
    index = torch.arange(n) if labels is None else labels
    network = denoiser
    if conditions is not None and conditions.null is not None and guidance != 1:
        network = Guided(denoiser, guidance, conditions.null)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    done = []
    for start in progress_bar(range(0, n, batch_size), desc="synthesis", show=progress):
        part = slice(start, min(start + batch_size, n))
        size = part.stop - part.start
        given = () if conditions is None else (conditions[(index[part] % len(conditions)).to(device)],)
        wanted = None if labels is None else labels[part].to(device)
        z = numbered_noise(seed, diffusion.T, range(part.start, part.stop), denoiser.shape, device)
        for number, (level, below) in enumerate(zip(levels, [*levels[1:], -1], strict=True)):
            budget.check()  # with its gradient a step may take a minute
            t, s = (torch.full((size,), value, device=device) for value in (level, below))
            z.requires_grad_(step_size != 0)
            with torch.set_grad_enabled(step_size != 0):
                eps, _ = network(z, t, *given)
                image = _decoded(guide, diffusion.predict_x0(z, t, eps, diffusion.clip).to(z.dtype))
                terms = losses(_fitted(image, losses.shape, resize), wanted)
            _note(sums, terms, number, steps)
            with torch.no_grad():
                if step_size:
                    z = z - step_size * _gradient(terms, losses.weights, z)
                    eps, _ = network(z, t, *given)
                z = diffusion.ddim(z, t, eps, s)
                z = _cut_and_mixed(z, generator) if number + 1 in cuts else z
        with torch.no_grad():
            image = _fitted(_decoded(guide, z), losses.shape, resize).clamp(-1, 1)
            _note(sums, losses(image, wanted), steps, steps)
        done.append(to_uint8(image).cpu())
    return Synthesis(
        torch.cat(done), [*levels, -1], {name: (total / n).tolist() for name, total in sums.items()}
    )


def _decoded(guide: Pipeline, z: Tensor) -> Tensor:
    """Samples as images in [-1, 1], as :meth:`Pipeline.decode` gives them, but with their gradients."""
    z = z * guide.denoiser.terms.scale
    return z if guide.vae is None else decode_batch(guide.vae, z)


def _fitted(image: Tensor, shape: tuple[int, int, int] | None, resize: bool) -> Tensor:
    found = tuple(image.shape[1:])
    if shape is None or found == tuple(shape):
        return image
    if not resize or found[0] != shape[0]:
        hint = "; resize brings them to that size" if found[0] == shape[0] else ""
        raise ValueError(f"guide: found images of {found}, but the losses take {tuple(shape)}{hint}")
    return nn.functional.interpolate(image, shape[1:], mode="bilinear", antialias=True)


def _gradient(terms: dict[str, Tensor], weights: dict[str, float], z: Tensor) -> Tensor:
    with torch.enable_grad():
        total = sum(weights[name] * value.sum() for name, value in terms.items())
    return torch.autograd.grad(total, z)[0]


def _note(sums: dict[str, Tensor], terms: dict[str, Tensor], number: int, steps: int) -> None:
    for name, value in terms.items():
        total = sums.setdefault(name, torch.zeros(steps + 1, dtype=torch.float64))
        total[number] += float(value.detach().sum())


def _cut_and_mixed(z: Tensor, generator: torch.Generator) -> Tensor:
    """CutMix of latents ``[B, C, H, W]``: a rectangle, of a uniform share of the area, of another sample."""
    height, width = z.shape[2:]
    side = torch.rand((), generator=generator).sqrt()
    h, w = round(float(side) * height), round(float(side) * width)
    top = int(torch.randint(height - h + 1, (), generator=generator))
    left = int(torch.randint(width - w + 1, (), generator=generator))
    other = z[torch.randperm(len(z), generator=generator).to(z.device)]
    mixed = z.clone()
    mixed[:, :, top : top + h, left : left + w] = other[:, :, top : top + h, left : left + w]
    return mixed
