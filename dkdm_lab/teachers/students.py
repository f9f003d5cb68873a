"""Students: which network a word stands for, and a teacher's own architecture at another width."""

from __future__ import annotations

import json
import math
from pathlib import Path

from diffusers import UNet2DModel
from torch import nn

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.families import NETWORK_CLASSES
from dkdm_lab.networks.registry import NETWORKS


def fresh_student(which: str, teacher: Denoiser) -> Denoiser:
    """A student with weights of its own, see :meth:`Pipeline.student`."""
    network = teacher.network
    kind, config = network_of(which, network)
    changes = {"out_channels": teacher.channels * (1 + teacher.learns_variance)}
    if teacher.family.packed:  # a token's, whose outputs are as its inputs
        changes = {"out_channels": None}
    if config.get("sample_size") is None and not teacher.family.packed:
        changes["sample_size"] = network.config.get("sample_size") or teacher.terms.size
    if kind is UNet2DModel and teacher.condition == "class":
        changes["num_class_embeds"] = network.config.get("num_class_embeds")
    own = kind.from_config({**public(config), **changes})
    if own.config.in_channels != network.config.in_channels:
        raise ValueError(
            f"student {which}: found {own.config.in_channels} channels, but the teacher's samples "
            f"have {network.config.in_channels}"
        )
    student = Denoiser(own, teacher.diffusion, teacher.prediction, terms=teacher.terms)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {which}: found samples of {student.shape}, but the teacher's are {teacher.shape}"
        )
    if student.condition != teacher.condition:
        raise ValueError(
            f"student {which}: it takes {student.condition or 'no condition'}, but the teacher takes "
            f"{teacher.condition or 'none'}"
        )
    return student


def network_of(which: str, teacher: nn.Module) -> tuple[type, dict]:
    """The class and the configuration that ``which`` names, see :meth:`Pipeline.student`."""
    if which in NETWORKS:
        network = NETWORKS[which]()
        return type(network), dict(network.config)
    for word, change in (("x", scaled), ("depth", shallower)):
        if which.startswith(word):
            try:
                factor = float(which.removeprefix(word))
            except ValueError:
                factor = math.nan
            if not 0 < factor <= 4:
                raise ValueError(f"student: found {which!r}, expected a factor in (0, 4], as {word}0.5")
            return type(teacher), change(dict(teacher.config), factor)
    file = Path(which)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(
            f"student: found {which!r}, expected a factor as x0.5 or depth0.5, a config.json, or one of "
            f"{', '.join(NETWORKS)}"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return NETWORK_CLASSES[config["_class_name"]], config
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: not the configuration of a network that can be a student ({error!r})"
        ) from error


def public(config: dict) -> dict:
    """Without diffusers' note of which values were defaults, by which it would undo a change of them."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def scaled(config: dict, factor: float) -> dict:
    """A network's configuration at another width, rounded to what its norms and attention heads divide."""
    config = public(config)
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
    elif "num_cross_attention_heads" in config:  # SANA: the same width cut into heads of two sizes
        sizes = config["attention_head_dim"], config["cross_attention_head_dim"]
        unit = math.lcm(*sizes)
        width = unit * max(1, round(sizes[0] * config["num_attention_heads"] * factor / unit))
        config["num_attention_heads"], config["num_cross_attention_heads"] = (width // size for size in sizes)
        config["cross_attention_dim"] = width
    elif "num_kv_heads" in config:  # Lumina2: several heads share a key
        shared = config["num_attention_heads"] // config["num_kv_heads"]
        size = config["hidden_size"] // config["num_attention_heads"]
        config["num_kv_heads"] = max(1, round(config["num_kv_heads"] * factor))
        config["num_attention_heads"] = shared * config["num_kv_heads"]
        config["hidden_size"] = size * config["num_attention_heads"]
    elif "num_attention_heads" in config:  # diffusers' transformers, whose text comes in their own width
        old = config["num_attention_heads"] * config["attention_head_dim"]
        config["num_attention_heads"] = max(1, round(config["num_attention_heads"] * factor))
        new = config["num_attention_heads"] * config["attention_head_dim"]
        for name in ("caption_projection_dim", "cross_attention_dim"):
            if config.get(name) == old:
                config[name] = new
    elif "num_heads" in config:  # ours
        width = config["hidden_size"] // config["num_heads"]
        config["num_heads"] = max(1, round(config["num_heads"] * factor))
        config["hidden_size"] = width * config["num_heads"]
    else:
        config["width"] = max(1, round(config["width"] * factor))
    return config


_DEPTHS = ("layers_per_block", "num_layers", "num_single_layers", "num_refiner_layers", "depth")
_DEPTHS += ("num_mmdit_layers", "num_single_dit_layers")


def shallower(config: dict, factor: float) -> dict:
    """A network's configuration with another number of blocks of the same width, at least one of each."""

    def fewer(blocks):
        if isinstance(blocks, (list, tuple)):
            return [fewer(each) for each in blocks]
        return max(1, round(blocks * factor)) if blocks else blocks

    config = public(config)
    return {name: fewer(value) if name in _DEPTHS else value for name, value in config.items()}


def go_on_from(student: Denoiser, begin: Denoiser, folder: str) -> None:
    """Give a student the weights that it had in ``folder``; ValueError where its network is another."""
    own, old = student.network.state_dict(), begin.network.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in old.items()}:
        raise ValueError(
            f"{folder}: found {type(begin.network).__name__} of {begin.parameter_count:,} parameters, "
            f"expected the network that student names, {type(student.network).__name__} of "
            f"{student.parameter_count:,}"
        )
    student.network.load_state_dict(old)


def keep_less(network: nn.Module) -> None:
    """Gradient checkpointing; ValueError for a network that has none."""
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise ValueError(
            f"checkpointing: found {type(network).__name__}, which knows nothing of it, expected a network "
            "of diffusers"
        )
    network.enable_gradient_checkpointing()


def begin_as(student: Denoiser, teacher: Denoiser) -> str:
    """Give a student its teacher's weights wherever it has one of the same name and shape; says how many."""
    theirs, own = teacher.network.state_dict(), student.network.state_dict()
    fitting = {
        key: theirs[key] for key, value in own.items() if key in theirs and theirs[key].shape == value.shape
    }
    if not fitting:
        raise ValueError(
            "init: found no weight of the student that its teacher has in the same name and shape, "
            "expected a student of the same widths, as depth0.5"
        )
    student.network.load_state_dict({**own, **fitting})
    return f"; {len(fitting)} of the student's {len(own)} tensors begin as its teacher's"
