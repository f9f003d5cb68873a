"""Data: real images and exact toy distributions, and ``NoisedImages``, the source of Algorithm 2."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dkdm_lab.diffusion import Batch, GaussianDiffusion, mixed, progress_bar
from dkdm_lab.files import whole


def cache_dir() -> Path:
    """``data_cache`` of this checkout, or the folder named by the variable DKDM_DATA_CACHE."""
    if "DKDM_DATA_CACHE" in os.environ:
        return Path(os.environ["DKDM_DATA_CACHE"])
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data_cache"


def to_model(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, quantised as ADM does."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def content_hash(images: Tensor) -> str:
    """Twelve hex digits of the SHA-256 of an array's bytes: what names a set of images in a cache."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:12]


@dataclass(frozen=True)
class DataSet:
    """What is known of a public set of images: enough to recognise it, and to say where it comes from."""

    shape: tuple[int, int, int]
    sizes: dict[str, int]  # images a split
    hashes: dict[str, str]  # content_hash of the images in the published order, where it is known
    source: str  # where it comes from and under which terms


DATASETS = {
    "cifar10": DataSet(
        (3, 32, 32),
        {"train": 50_000, "test": 10_000},
        {"train": "9d5c2eddadb0", "test": "177777c33ba7"},
        "torchvision downloads it: 170 MB, no licence stated, free for research",
    ),
    "fashion": DataSet(
        (1, 32, 32),
        {"train": 60_000, "test": 10_000},
        {"train": "f21823848e37", "test": "2364637858a1"},
        "torchvision downloads it: Fashion-MNIST, 30 MB, MIT licence",
    ),
    "celeba64": DataSet(
        (3, 64, 64),
        {"train": 202_599},
        {},
        "CelebA is for non-commercial research only and its host turns programs away: fetch "
        "img_align_celeba.zip (1.4 GB) from its authors' page, mmlab.ie.cuhk.edu.hk/projects/CelebA.html, "
        "and unpack it so that img_align_celeba/000001.jpg lies in the folder",
    ),
    "celebahq256": DataSet(
        (3, 256, 256),
        {"train": 25_000},
        {},
        "CelebA-HQ is for non-commercial research only: make it with its authors' scripts, "
        "github.com/tkarras/progressive_growing_of_gans, and take CompVis' training split of 25,000",
    ),
    "ffhq256": DataSet(
        (3, 256, 256),
        {"train": 60_000},
        {},
        "FFHQ is for non-commercial use (CC BY-NC-SA 4.0): fetch images1024x1024 from "
        "github.com/NVlabs/ffhq-dataset, reduce them to 256x256, and take CompVis' training split of 60,000",
    ),
    "imagenet32": DataSet(
        (3, 32, 32),
        {"train": 1_281_167},
        {},
        "ImageNet is for non-commercial research and education, after registration: fetch the downsampled "
        "train set 32x32 (npz, 3 GB) from image-net.org/download-images, and unpack it so that "
        "train_data_batch_1.npz lies in the folder",
    ),
}


def load_images(name: str, split: str = "train", n: int | None = None) -> Tensor:
    """A data set as uint8 ``[N, C, H, W]``; its first ``n`` images where ``n`` is given.

    ``digits``: scikit-learn's 1,797 real 8x8 digits, no download (one split). ``cifar16``: ``cifar10``, each
    2x2 pixels averaged to one. Any other name is a folder
    ``data_cache/<name>`` that holds one of, in this order: ``<split>.npz`` (``x``, or ADM's ``arr_0``:
    uint8 ``[N, H, W, C]``); a folder ``<split>`` of images, read in the order of their paths; or the
    files of the set's publisher, for the names in :data:`DATASETS`. Of these torchvision downloads
    ``cifar10`` and ``fashion`` where nothing lies. Fashion-MNIST's 28x28 are padded with black to 32x32.

    Errors: FileNotFoundError for a set that is not there, saying how to get it; ValueError for one that
    is not what its name says (size, number, content hash), a folder without images or with images of
    another size, and an ``n`` larger than the set.
    """
    if name == "digits":
        images = _digits()
    elif name == "cifar16":
        images = _halved(_from_folder("cifar10", split))
    else:
        images = _from_folder(name, split)
    if n is not None and not 0 < n <= len(images):
        raise ValueError(f"{name} {split}: found {len(images):,} images, expected at least n = {n:,}")
    return images if n is None else images[:n]


def load_labels(name: str, split: str = "train") -> Tensor:
    """The class of each image that :func:`load_images` gives, ``[N]`` int64: of the digits, and of
    ``cifar10`` (which are also those of ``cifar16``) and ``fashion``, from ``y`` of ``<split>.npz`` or their
    publishers' files; ValueError for other sets, and for a file without ``y``."""
    if name == "digits":
        from sklearn.datasets import load_digits

        return torch.from_numpy(load_digits().target)
    name = "cifar10" if name == "cifar16" else name
    if name not in ("cifar10", "fashion"):
        raise ValueError(f"labels: found {name!r}, expected digits, cifar10 or fashion; no others are read")
    file = cache_dir() / name / f"{split}.npz"
    if not file.is_file():
        return torch.as_tensor(_by_torchvision(name, split, cache_dir() / name).targets)
    with np.load(file, allow_pickle=False) as arrays:
        if "y" not in arrays:
            raise ValueError(f"{file}: found arrays {sorted(arrays)}, expected labels 'y' among them")
        return torch.from_numpy(arrays["y"].astype(np.int64))


def _digits() -> Tensor:
    from sklearn.datasets import load_digits

    grey = load_digits().images  # 17 grey levels, 0..16
    return torch.from_numpy(np.rint(grey * (255 / 16)).astype(np.uint8))[:, None]


def _halved(images: Tensor) -> Tensor:
    """uint8 images at half their side: the mean of each 2x2 pixels, a half rounded up."""
    n, c, h, w = images.shape
    sums = images.view(n, c, h // 2, 2, w // 2, 2).sum((3, 5), dtype=torch.int16)
    return ((sums + 2) // 4).to(torch.uint8)


def _from_folder(name: str, split: str) -> Tensor:
    known, folder = DATASETS.get(name), cache_dir() / name
    if known is None and not folder.is_dir():
        raise ValueError(
            f"data set: found {name!r}, expected digits, {', '.join(DATASETS)}, or the name of a folder in "
            f"{cache_dir()} with {split}.npz or a folder {split} of images"
        )
    if known is not None and split not in known.sizes:
        raise ValueError(f"{name} split: found {split!r}, expected one of {', '.join(known.sizes)}")
    if (folder / f"{split}.npz").is_file():
        images = _from_npz(folder / f"{split}.npz")
    elif (folder / split).is_dir():  # a user's own images: any number, so no hash
        return _from_images(folder / split, None if known is None else known.shape)
    elif known is None:
        raise ValueError(f"{folder}: found neither {split}.npz nor a folder {split} of images")
    else:
        images = _from_publisher(name, split, folder)
    if known is None:
        return images
    if known.shape[1:] == (32, 32) and images.shape[2:] == (28, 28):
        images = nn.functional.pad(images, (2, 2, 2, 2))
    found, expected = tuple(images.shape), (known.sizes[split], *known.shape)
    if found != expected:
        raise ValueError(f"{folder}: found {split} images {found}, expected {expected}")
    if split in known.hashes and (found := content_hash(images)) != known.hashes[split]:
        raise ValueError(
            f"{folder}: found {split} images with hash {found}, expected {known.hashes[split]}; "
            "keep a set of your own under a name of its own"
        )
    return images


def _from_npz(file: Path) -> Tensor:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            key = next((key for key in ("x", "arr_0") if key in arrays), None)
            if key is None:
                raise ValueError(f"found arrays {sorted(arrays)}, expected 'x' or 'arr_0'")
            images = arrays[key]
    except Exception as error:  # zipfile, numpy and zlib each have their own kind for a broken file
        raise ValueError(f"{file}: the images cannot be read ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"{file}: found {images.dtype} {images.shape}, expected uint8 [N, H, W, C]")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _from_images(folder: Path, shape: tuple[int, int, int] | None) -> Tensor:
    """Every image under ``folder``; without a ``shape`` the first decides."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise ValueError(f"{folder}: found no images, expected .png, .jpg, .jpeg or .webp files")
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                grey = shape[0] == 1 if shape else opened.mode in ("1", "L", "I;16")
                image = np.asarray(opened.convert("L" if grey else "RGB"))
        except OSError as error:  # Pillow's own kind for what is no image is one too
            raise ValueError(f"{file}: cannot be read as an image ({error})") from error
        image = torch.from_numpy(image.copy())
        image = image[None] if grey else image.permute(2, 0, 1)
        shape = shape or tuple(image.shape)
        if tuple(image.shape) != shape:
            found, expected = ("x".join(map(str, size)) for size in (image.shape[1:], shape[1:]))
            raise ValueError(f"{file}: found an image of {found} (height x width), expected {expected}")
        images.append(image)
    return torch.stack(images)


def _from_publisher(name: str, split: str, folder: Path) -> Tensor:
    """A public set from the files its authors publish; the two slow ones are kept as one .npz after."""
    if name in ("cifar10", "fashion"):
        images = np.asarray(_by_torchvision(name, split, folder).data)
        return torch.from_numpy(images.reshape(len(images), *images.shape[1:3], -1)).permute(0, 3, 1, 2)
    if name == "celeba64":
        files = sorted((folder / "img_align_celeba").glob("*.jpg"))
        images = [_centre_crop(file, 64) for file in progress_bar(files, desc=name, show=len(files) > 5000)]
    elif name != "imagenet32":
        files = images = []  # of these two a folder of images is what there is
    else:
        files = sorted(folder.glob("train_data_batch_*.npz"), key=lambda file: int(file.stem.split("_")[-1]))
        images = [np.load(f)["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for f in files]
    if not files:
        raise FileNotFoundError(_missing(name, split, folder))
    images = np.stack(images) if name == "celeba64" else np.concatenate(images)
    if len(images) == DATASETS[name].sizes[split]:
        with whole(folder / f"{split}.npz") as file:
            np.savez(file, x=images)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _by_torchvision(name: str, split: str, folder: Path):
    """A set of torchvision's, downloaded where it is not there."""
    from torchvision.datasets import CIFAR10, FashionMNIST

    kind = {"cifar10": CIFAR10, "fashion": FashionMNIST}[name]
    try:
        return kind(folder, train=split == "train", download=True)
    except Exception as error:  # no network, a broken file: torchvision raises several kinds
        missing = _missing(name, split, folder)
        raise FileNotFoundError(f"{missing} (the download failed: {error})") from error


def _missing(name: str, split: str, folder: Path) -> str:
    return (
        f"{folder}: found no {name} images. {DATASETS[name].source}. "
        f"Or put {split}.npz or a folder {split} of images there"
    )


def _centre_crop(file: Path, size: int) -> np.ndarray:
    """An image's centre as ADM takes it: halved by boxes while it can be, then bicubic, then cropped."""
    with Image.open(file) as image:
        image = image.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def mix(real: Tensor, synthetic: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """The set of data-limited training (Sec. 4.1): ``synthetic``, with ``fraction`` of it replaced by real
    images. As many images as ``synthetic`` has, both parts drawn without replacement."""
    if not 0 < fraction < 1:
        raise ValueError(f"real fraction: found {fraction}, expected a number between 0 and 1")
    n_real = round(fraction * len(synthetic))
    if n_real > len(real):
        raise ValueError(f"real images: found {len(real):,}, expected at least {n_real:,} for {fraction:.0%}")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(synthetic), generator=generator)[n_real:]
    return torch.cat([real[torch.randperm(len(real), generator=generator)[:n_real]], synthetic[kept]])


def shuffled(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of indices into ``n`` samples, ``[batch_size]`` int64, without end; each pass over them is a
    fresh permutation, and what is left over at its end is left out."""
    if n < batch_size:
        raise ValueError(f"data: found {n} samples, expected at least one batch of {batch_size}")
    while True:
        yield from torch.randperm(n, generator=generator).split(batch_size)[: n // batch_size]


NULL = -1  # where the index of a condition is expected: the null condition


class Conditions:
    """What samples are conditioned on: a list of class labels ``[K]`` or of text embeddings ``[K, L, D]``.

    Sources keep a sample's condition as its index here. null: the condition that stands for none, shaped as
    one of ``values``; without it nothing is dropped and nothing can be guided. dropout: the share of a batch
    whose condition is replaced by the null one, as classifier-free guidance is trained. names: what each is
    called, as the prompts behind embeddings; None where nobody can say, and for labels, which are numbers.
    """

    def __init__(
        self,
        values: Tensor,
        null: Tensor | None = None,
        dropout: float = 0.1,
        names: Sequence[str] | None = None,
    ):
        if len(values) == 0:
            raise ValueError("conditions: found none, expected at least one")
        if null is not None and null.shape != values.shape[1:]:
            raise ValueError(
                f"null condition: found shape {tuple(null.shape)}, expected {tuple(values.shape[1:])}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: found {dropout}, expected a share in [0, 1)")
        if names is not None and len(names) != len(values):
            raise ValueError(f"names: found {len(names)}, expected one for each of {len(values)} conditions")
        self.values, self.null, self.names = values, null, names
        self.dropout = 0.0 if null is None else dropout
        self._table = values if null is None else torch.cat([values, null[None]])  # NULL is its last row

    @classmethod
    def classes(cls, count: int, null: int | None = None, dropout: float = 0.1) -> Conditions:
        """The labels 0 to ``count`` - 1; null: the label that stands for none."""
        return cls(torch.arange(count), None if null is None else torch.tensor(null), dropout)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The conditions of these indices, :data:`NULL` among them, as the network takes them."""
        return self._table[index]

    def to(self, device: str | torch.device) -> Conditions:
        """The same on another device."""
        null = None if self.null is None else self.null.to(device)
        return Conditions(self.values.to(device), null, self.dropout, self.names)


class NoisedImages:
    """Algorithm 2's batches: real (or synthetic) samples, uniform t, fresh noise. An endless iterator.

    data: uint8 images ``[N, C, H, W]``, scaled to [-1, 1] batch by batch, or float samples ``[N, ...]``
    used as they are. flip: mirror each image left to right half of the time, as ADM trains. Each pass
    over the data is a fresh permutation. conditions, labels: for a conditional network, what there is, and
    ``[N]`` int64, which of it each sample has. Same interface as the pools.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        data: Tensor,
        batch_size: int,
        flip: bool = False,
        conditions: Conditions | None = None,
        labels: Tensor | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        if len(data) < batch_size:
            raise ValueError(f"data: found {len(data)} samples, expected at least one batch of {batch_size}")
        if conditions is not None and (labels is None or len(labels) != len(data)):
            found = "None" if labels is None else len(labels)
            raise ValueError(f"labels: found {found}, expected one for each of {len(data)} samples")
        self.diffusion, self.data, self.batch_size, self.device = diffusion, data, batch_size, device
        self.flip, self.labels = flip, labels
        self.conditions = None if conditions is None else conditions.to(device)
        self.evaluations = 0  # of a teacher; none here
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.data.shape[1:])

    def __iter__(self) -> NoisedImages:
        return self

    def __next__(self) -> Batch:
        if len(self._order) < self.batch_size:
            self._order = torch.randperm(len(self.data), generator=self._generator)
        index, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        x0 = self.data[index]
        observed = x0.dtype == torch.uint8
        x0 = to_model(x0) if observed else x0
        if self.flip:
            mirrored = torch.rand(len(x0), 1, 1, 1, generator=self._generator) < 0.5
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        t = torch.randint(self.diffusion.T, (len(x0),), generator=self._generator)
        noise = torch.randn(x0.shape, generator=self._generator)
        x0, t, noise = x0.to(self.device), t.to(self.device), noise.to(self.device)
        x_t = self.diffusion.q_sample(x0, t, noise)
        condition = None
        if self.conditions is not None:
            dropped = torch.rand(len(index), generator=self._generator) < self.conditions.dropout
            condition = self.conditions[torch.where(dropped, NULL, self.labels[index]).to(self.device)]
        return Batch(x_t, t, noise, self.diffusion.q_posterior(x0, x_t, t), observed, condition)

    def state_dict(self) -> dict:
        """Everything that decides the next batches."""
        return {"generator": self._generator.get_state(), "order": self._order}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])
        self._order = state["order"]

    def load_shards(self, states: list[dict], rank: int, ranks: int) -> None:
        """Go on after a training by another number of ranks: each has another part of the data now, and
        begins to go through it in a new order."""
        self._generator.set_state(states[rank % len(states)]["generator"])
        branch(self._generator, rank)


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Go on where a generator's state was taken. A GPU draws other numbers than a CPU: where the state is of
    the other kind, the generator is seeded anew from it."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state.cpu())
    else:
        digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "big"))


def branch(generator: torch.Generator, rank: int) -> None:
    """Seed a generator anew from what it would have drawn next and a rank."""
    drawn = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generator.manual_seed(mixed(drawn, rank))


@dataclass(frozen=True)
class GaussianMixture:
    """Equal isotropic Gaussians, ``means`` ``[K, D]`` and one ``std``: a distribution whose optimal
    denoiser is known in closed form, so that a teacher needs no training and has no error."""

    means: Tensor
    std: float

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, std: float = 0.08) -> GaussianMixture:
        """``modes`` Gaussians evenly on a circle in the plane."""
        angles = torch.arange(modes) * (2 * math.pi / modes)
        return cls(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact samples, ``[n, D]`` float32."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.means), (n,), generator=generator)
        return self.means[which] + self.std * torch.randn(n, self.means.shape[1], generator=generator)

    def denoiser(self, diffusion: GaussianDiffusion, learned: bool = True) -> MixtureDenoiser:
        """The exact teacher for this distribution. learned: whether it answers with a variance too."""
        return MixtureDenoiser(self, diffusion, learned)


@dataclass(frozen=True)
class LowRankGaussian:
    """``N(mean, std^2 I + sum_k w_k w_k^T)``: data whose every moment is known at every level.

    mean: of any shape, which is that of a sample. directions: the ``w_k``, ``[K, *shape]`` and at most as
    many as a sample has numbers; without any the Gaussian is isotropic.
    """

    mean: Tensor
    std: float
    directions: Tensor | None = None

    @property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """``U`` ``[D, K]``, orthonormal, and the covariance's eigenvalues along its columns ``[K]``, float64;
        across them it is ``std^2``."""
        D = self.mean.numel()
        if self.directions is None:
            return torch.zeros(D, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        U, scale, _ = torch.linalg.svd(self.directions.double().reshape(-1, D).T, full_matrices=False)
        return U, scale.square() + self.std**2

    def energy(self, alpha_bar: Tensor) -> Tensor:
        """``E|x_t|^2 / D`` of data that are noised to levels of ``alpha_bar``, in float64; its shape."""
        _, along = self.spectrum
        D = self.mean.numel()
        covariance = (along.sum() + (D - len(along)) * self.std**2) / D
        return alpha_bar.double() * (self.mean.double().square().mean() + covariance - 1) + 1

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact samples, ``[n, *shape]`` float32."""
        generator = torch.Generator().manual_seed(seed)
        x = self.mean + self.std * torch.randn(n, *self.mean.shape, generator=generator)
        if self.directions is not None:
            along = torch.randn(n, len(self.directions), generator=generator)
            x = x + torch.tensordot(along, self.directions, 1)
        return x

    def denoiser(self, diffusion: GaussianDiffusion, learned: bool = True) -> LowRankGaussianDenoiser:
        """The exact teacher for this distribution. learned: whether it answers with a variance too."""
        return LowRankGaussianDenoiser(self, diffusion, learned)


class ExactDenoiser(nn.Module):
    """The optimal denoiser of a known distribution: ``(x_t, t) -> eps, v``, the best that Eqs. 4 and 12 can
    say; v is None where it learns no variance.

    eps follows from E[x_0 | x_t] by Eq. 4. v follows from Var[x_0 | x_t]: the best diagonal Gaussian
    for ``x_{t-1}`` has the variance ``beta_tilde + coef_x0^2 Var[x_0 | x_t]``, solved for v in Eq. 12.
    That can be above Eq. 12's range: between a mixture's modes (on the ring by 1.5% on average where it is
    most, and far from all data without limit), and wherever data vary by more than 1. v ends at 1 there:
    respaced steps would magnify the rest.
    """

    def __init__(self, diffusion: GaussianDiffusion, learned: bool = True):
        super().__init__()
        self.diffusion, self.learns_variance = diffusion, learned

    def posterior(self, x: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """``E[x_0 | x_t]`` and each coordinate's ``Var[x_0 | x_t]`` for ``x_t`` ``[B, D]`` at ``[B, 1]``, in
        float64."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x_t.double().flatten(1)
        log_alpha_bar = self.diffusion.log_alpha_bar(t)[:, None].double()
        root, noise = torch.exp(0.5 * log_alpha_bar), -torch.expm1(log_alpha_bar)
        mean, variance = self.posterior(x, log_alpha_bar)
        eps = (x - root * mean) / noise.sqrt()
        if not self.learns_variance:
            return eps.view(x_t.shape).to(x_t.dtype), None
        c = self.diffusion.transition(t)
        low, high = c.log_beta_tilde[:, None].double(), c.log_beta[:, None].double()
        best = torch.log(c.beta_tilde[:, None] + c.coef_x0[:, None] ** 2 * variance)
        # Where the two bounds meet, v has no effect and no definition.
        v = 2 * (best - low) / (high - low).clamp(min=1e-12) - 1
        return tuple(out.view(x_t.shape).to(x_t.dtype) for out in (eps, v.clamp(-1, 1)))


class MixtureDenoiser(ExactDenoiser):
    """The optimal denoiser of a mixture."""

    def __init__(self, mixture: GaussianMixture, diffusion: GaussianDiffusion, learned: bool = True):
        super().__init__(diffusion, learned)
        self.mixture = mixture
        self.register_buffer("means", mixture.means.double())

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.means.shape[1],)

    def posterior(self, x: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        root, noise = torch.exp(0.5 * log_alpha_bar), -torch.expm1(log_alpha_bar)
        data_variance = self.mixture.std**2
        total = torch.exp(log_alpha_bar) * data_variance + noise  # of x_t around each scaled mean
        offset = x[:, None] - root[:, :, None] * self.means  # [B, K, D]
        weight = torch.softmax(-0.5 * offset.square().sum(-1) / total, dim=1)[:, :, None]
        centre = self.means + (root * data_variance / total)[:, :, None] * offset  # E[x_0 | x_t, k]
        mean = (weight * centre).sum(1)
        variance = data_variance * noise / total + (weight * (centre - mean[:, None]).square()).sum(1)
        return mean, variance


class LowRankGaussianDenoiser(ExactDenoiser):
    """The optimal denoiser of one Gaussian: linear, with the same variance for every sample of a level."""

    def __init__(self, data: LowRankGaussian, diffusion: GaussianDiffusion, learned: bool = True):
        super().__init__(diffusion, learned)
        self.data = data
        U, along = data.spectrum
        self.register_buffer("mean", data.mean.double().flatten())
        self.register_buffer("U", U)
        self.register_buffer("along", along)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.mean.shape)

    def posterior(self, x: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        root, alpha_bar, noise = (
            torch.exp(0.5 * log_alpha_bar),
            log_alpha_bar.exp(),
            -torch.expm1(log_alpha_bar),
        )
        # The covariance over that of x_t, across the directions [B, 1] and along them [B, K].
        across, along = (c / (alpha_bar * c + noise) for c in (self.data.std**2, self.along))
        offset = x - root * self.mean
        mean = self.mean + root * (across * offset + ((along - across) * (offset @ self.U)) @ self.U.T)
        variance = noise * (across + (along - across) @ self.U.square().T)
        return mean, variance
