"""Data: real images and exact toy distributions, and ``NoisedImages``, the source of Algorithm 2."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dkdm_lab.data.folders import read_folder
from dkdm_lab.system.files import readable, whole
from dkdm_lab.system.paths import cache_dir
from dkdm_lab.system.progress import progress_bar


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
    with readable(file, "put the set there again"), np.load(file, allow_pickle=False) as arrays:
        names, labels = sorted(arrays), arrays["y"] if "y" in arrays else None
    if labels is None:
        raise ValueError(f"{file}: found arrays {names}, expected labels 'y' among them")
    return torch.from_numpy(labels.astype(np.int64))


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
        return read_folder(folder / split, None if known is None else known.shape)
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
        images = [_imagenet_batch(file) for file in files]
    if not files:
        raise FileNotFoundError(_missing(name, split, folder))
    images = np.stack(images) if name == "celeba64" else np.concatenate(images)
    if len(images) == DATASETS[name].sizes[split]:
        with whole(folder / f"{split}.npz") as file:
            np.savez(file, x=images)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _imagenet_batch(file: Path) -> np.ndarray:
    with readable(file, "fetch it again"), np.load(file, allow_pickle=False) as arrays:
        return arrays["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


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
    with readable(file, "fetch it again"), Image.open(file) as image:
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


class Shuffled:
    """Batches of indices into ``n`` samples, ``[batch_size]`` int64, without end; each pass over them is a
    fresh permutation, and what is left over at its end is left out.

    The generator may serve others too, and is theirs to save: a state is what is left of a pass.
    """

    def __init__(self, n: int, batch_size: int, generator: torch.Generator):
        if n < batch_size:
            raise ValueError(f"data: found {n} samples, expected at least one batch of {batch_size}")
        self.n, self.batch_size, self.generator = n, batch_size, generator
        self._left = torch.empty(0, batch_size, dtype=torch.int64)

    def __iter__(self) -> Shuffled:
        return self

    def __next__(self) -> Tensor:
        if not len(self._left):
            whole = self.n - self.n % self.batch_size
            self._left = torch.randperm(self.n, generator=self.generator)[:whole].view(-1, self.batch_size)
        batch, self._left = self._left[0], self._left[1:]
        return batch

    def state_dict(self) -> dict:
        """Copied: what is left of a pass is a view into all of it."""
        return {"left": self._left.clone()}

    def load_state_dict(self, state: dict) -> None:
        self._left = state["left"]
