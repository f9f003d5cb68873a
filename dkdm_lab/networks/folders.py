"""Folders of diffusers' models: found, looked through before anything in them is trusted, read.

Two layouts exist: a folder for each part of a pipeline, and the first one of all, with the configuration of
the network, that of the scheduler and the weights side by side.
"""

from __future__ import annotations

import contextlib
import math
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import logging
from huggingface_hub import list_repo_files, snapshot_download
from safetensors import safe_open
from torch import nn
from torch.nn.modules import module as hooks

from dkdm_lab.networks.schedulers import read_json
from dkdm_lab.system.files import sha256


def find_folder(path: str | Path) -> Path:
    """A folder here, or what a Hub id names, fetched into the Hub's cache."""
    local = Path(path)
    if local.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise ValueError(
            f"{path}: a bare list of weights, not diffusers' folder; read it with load_adm() or load_ldm()"
        )
    if local.exists():
        if not local.is_dir():
            raise ValueError(f"{path}: found a file, expected a diffusers model or pipeline folder")
        check(local)
        return local
    try:
        copies = COPIES + _again(list_repo_files(str(path)))
        return Path(snapshot_download(str(path), allow_patterns=NEEDED, ignore_patterns=copies))
    except Exception as error:  # the Hub's client raises many kinds, by cause
        raise FileNotFoundError(
            f"{path}: found neither a folder here nor such a model on the Hub ({error})"
        ) from error


# Of a repository on the Hub: the parts of a pipeline and its tokenizers, never a program, and not the same
# weights again at its root, in half precision, as pickles beside safetensors, or for other programs.
NEEDED = ["*.json", "*.txt", "README.md"]
NEEDED += ["diffusion_pytorch_model*", "*/diffusion_pytorch_model*", "*/model*", "*/pytorch_model*"]
NEEDED += ["*/spiece.model", "*/tokenizer.model"]
COPIES = ["*.py", "*.fp16.*", "*.fp16-*", "*.bf16.*", "*.non_ema.*", "*.ema.*", "*.msgpack", "*.onnx*"]
COPIES += ["*.ckpt", "*.h5", "*.pb", "*flax*", "*openvino*"]


def _again(files: list[str]) -> list[str]:
    """The pickles of a repository whose folders have the same weights as safetensors."""
    plain = re.compile(r"model(-\d+-of-\d+)?\.safetensors$")
    safe = {name.rpartition("/")[0] for name in files if plain.search(name)}
    return [name for name in files if ".bin" in name and name.rpartition("/")[0] in safe]


def part_of(folder: Path, names: tuple[str, ...], file: str) -> Path | None:
    """Where a part of a pipeline lies: in a folder of one of ``names``, or, as ``file`` says, flat."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    return folder if (folder / file).is_file() else None


def look_through(part: Path, folder: Path) -> None:
    """ValueError where an entry of ``part`` is not a file or folder of ``folder`` itself: a symbolic link
    that leaves it or leads nowhere, a pipe, a device. Links of the Hub's cache to its own blobs are fine."""
    inside = [folder.resolve()]
    if folder.parent.name == "snapshots":
        inside.append(folder.parents[1].resolve())
    for entry in (part, *part.iterdir()):
        try:
            target = entry.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{entry}: found a link that leads nowhere, expected a file") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{entry}: found a pipe or a device, expected a file")
        if not any(target.is_relative_to(place) for place in inside):
            raise ValueError(
                f"{entry}: found a link that leaves {folder}, expected a file in it; copy it there"
            )


# -- weights ------------------------------------------------------------------------------------------

_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(\.(?P<a>[a-z]\w*))?(?P<shard>-\d+-of-\d+)?"
    r"(\.(?P<b>(?!safetensors|bin)[a-z]\w*))?\.(?P<form>safetensors|bin)(?P<index>\.index(\.(?P<c>\w+))?\.json)?"
)


@dataclass(frozen=True)
class Weights:
    """The files of one model's weights. variant: as "fp16", None for the plain ones."""

    files: tuple[Path, ...]
    variant: str | None

    @property
    def counts(self) -> tuple[int, int]:
        """How many numbers and how many tensors they hold, at most."""
        numbers = tensors = 0
        for file in self.files:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]
                numbers += sum(map(math.prod, shapes))
                tensors += len(shapes)
            elif file.suffix == ".bin":
                numbers += file.stat().st_size
                tensors += file.stat().st_size // 64  # a pickle's entry takes more
        return numbers, tensors


def weights_of(part: Path, variant: str | None = None) -> Weights:
    """The weights of a model: plain ones where there are some, else those of the only variant; safetensors
    before pickles. ValueError where there are none, or several variants to choose from."""
    found: dict[str | None, dict[str, list[Path]]] = {}
    for file in sorted(part.iterdir()):
        if match := _WEIGHTS.fullmatch(file.name):
            kind = next(filter(None, (match["a"], match["b"], match["c"])), None)
            found.setdefault(kind, {}).setdefault(match["form"], []).append(file)
    variants = sorted(filter(None, found))
    if variant is not None and variant not in found:
        raise ValueError(
            f"{part}: found no weights of variant {variant!r}, expected one of {variants or 'none'}"
        )
    if variant is None and None not in found:
        if len(variants) != 1:
            raise ValueError(
                f"{part}: found weights in the variants {', '.join(variants)}, expected --variant to name one"
                if variants
                else f"{part}: found no weights, expected *model.safetensors or *model.bin"
            )
        variant = variants[0]
    forms = found[variant]
    return Weights(tuple(forms.get("safetensors") or forms["bin"]), variant)


def not_inflated(file: Path) -> None:
    """ValueError for weights in a pickle that unpack to more than they take on the disk: torch compresses
    none, and who does may mean to fill the memory."""
    if file.suffix == ".safetensors" or not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as opened:
            size = sum(entry.file_size for entry in opened.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return  # torch has better words for what it cannot read
    if size > file.stat().st_size:
        raise ValueError(
            f"{file}: found {size:,} bytes packed into {file.stat().st_size:,}, expected weights as they are"
        )


_MOST_NUMBER, _MOST_ENTRIES = 10**7, 1000


def plausible(file: Path, config: dict) -> None:
    """ValueError for numbers that no network has, before one is built from them."""

    def look(name: str, value) -> None:
        if isinstance(value, int | float) and abs(value) > _MOST_NUMBER and "max_length" not in name:
            raise ValueError(f"{file}: found {name} = {value!r}, expected at most {_MOST_NUMBER:,}")
        if isinstance(value, list | dict):
            if len(value) > _MOST_ENTRIES:
                raise ValueError(f"{file}: found {len(value):,} entries of {name}, expected a few")
            for each in value.values() if isinstance(value, dict) else value:
                look(name, each)

    for name, value in config.items():
        look(name, value)
    size, patch = config.get("sample_size"), config.get("patch_size")
    if isinstance(size, int) and isinstance(patch, int) and patch > 0:
        widths = (config.get(name) for name in ("num_attention_heads", "attention_head_dim"))
        width = math.prod(value if isinstance(value, int) else 1 for value in widths)
        if (size // patch) ** 2 * width > 2**27:  # of positions, which are worked out, not read
            raise ValueError(
                f"{file}: found positions of {size} x {size} in patches of {patch}, expected fewer"
            )


def build_within(build, counts: tuple[int, int], file: Path) -> None:
    """Build a network on the meta device, where it takes no memory, and stop as soon as it is larger than its
    weights: ValueError. build: makes the network. counts: of the weights' numbers and tensors, at most."""
    numbers, tensors = counts
    most = {"numbers": 2 * numbers + 10**6, "tensors": 4 * tensors + 1000, "modules": 50 * tensors + 10_000}
    seen = dict.fromkeys(most, 0)

    class TooLarge(Exception):
        pass

    def note(**more: int) -> None:
        for name, count in more.items():
            seen[name] += count
            if seen[name] > most[name]:
                raise TooLarge

    def parameter(_module, _name, value):
        note(numbers=0 if value is None else value.numel(), tensors=1)

    handles = (
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_module_registration_hook(lambda *_: note(modules=1)),
    )
    try:
        with torch.device("meta"):
            build()
    except TooLarge as error:
        raise ValueError(
            f"{file}: found the configuration of a network that is larger than its weights, "
            f"{numbers:,} numbers at most; expected one that they fill"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def read_model(folder: Path, classes: Mapping[str, type], variant: str | None = None) -> nn.Module:
    """The model of a diffusers folder, one of ``classes`` by the names that config.json may give, in float32.

    Strict: a weight missing or left over is an error. Weights saved as pickles are read without running
    what they say. variant: of the weights, as of :func:`weights_of`. ValueError names the file.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder}: found no config.json, expected a diffusers model or pipeline folder")
    config = read_json(config_file)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"{config_file}: found network class {name!r}, expected one of {sorted(classes)}")
    if "quantization_config" in config:
        raise ValueError(f"{config_file}: found quantised weights, expected them in 16 or 32 bits")
    plausible(config_file, config)
    weights = weights_of(folder, variant)
    shards_within(weights)
    try:
        with quiet():
            build_within(lambda: classes[name].from_config(config), weights.counts, config_file)
            model, info = classes[name].from_pretrained(
                folder,
                output_loading_info=True,
                low_cpu_mem_usage=False,
                local_files_only=True,
                variant=weights.variant,
                use_safetensors="safetensors" in weights.files[0].name,
            )
    except ValueError as error:
        if str(error).startswith(str(folder)):  # ours
            raise
        raise ValueError(f"{folder}: the checkpoint cannot be read ({shortened(error)})") from error
    except Exception as error:  # diffusers raises many kinds here; one clear kind leaves
        raise ValueError(f"{folder}: the checkpoint cannot be read ({shortened(error)})") from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    if wrong := {kind: list(keys)[:5] for kind, keys in info.items() if keys and kind in kinds}:
        raise ValueError(f"{folder}: weights and config.json do not agree: {wrong}")
    return nn.Module.float(model)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No chatter of diffusers beside what is said here of the same."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def shards_within(weights: Weights) -> None:
    """ValueError where an index of weights names a file outside its folder, or one that is not there, or
    where one of them unpacks to more than it is."""
    names = {file.name for file in weights.files}
    for file in weights.files:
        not_inflated(file)
        if file.suffix == ".json":
            shards = read_json(file).get("weight_map")
            if not isinstance(shards, dict) or not {str(shard) for shard in shards.values()} <= names:
                raise ValueError(
                    f"{file}: found shards that are not in its folder, expected {len(names) - 1} of them"
                )


def shortened(error: BaseException) -> str:
    """What a library says of an error, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


# -- models that this project published ---------------------------------------------------------------

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
                f"{file}: found {what}, expected {str(expected)[:12]}: the model is damaged; "
                f"`git checkout -- book/models` restores one of the book's"
            )


def _manifest(folder: Path) -> dict:
    file = folder / MANIFEST
    try:
        manifest = read_json(file)
        if not isinstance(manifest["sha256"], dict):
            raise TypeError("sha256")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: found no manifest of a published model ({error!r}); "
            f"`git checkout -- book/models` restores one of the book's"
        ) from error
