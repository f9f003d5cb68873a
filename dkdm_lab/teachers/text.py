"""Prompts as a pipeline's own text encoders see them: embedded once, by diffusers' own ``encode_prompt``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from torch import Tensor

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.families import pack
from dkdm_lab.networks.folders import build_within, look_through, plausible, shards_within, weights_of
from dkdm_lab.networks.schedulers import read_json
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget

# Nothing else is ever made from what a file names.
ENCODERS = """
BertModel CLIPTextModel CLIPTextModelWithProjection Gemma2Model T5EncoderModel UMT5EncoderModel
""".split()
TOKENIZERS = """
BertTokenizer BertTokenizerFast CLIPTokenizer CLIPTokenizerFast GemmaTokenizer GemmaTokenizerFast
LlamaTokenizer LlamaTokenizerFast PreTrainedTokenizerFast T5Tokenizer T5TokenizerFast TokenizersBackend
""".split()


@dataclass(frozen=True)
class Text:
    """How a kind of pipeline embeds prompts. parts: what each place of its ``encode_prompt``'s answer is to
    the network. before: arguments that stand behind the prompts. guided: whether it can be told that no
    second prompt is wanted. tokens: the most that its longest tokenizer takes; None: as CLIP's."""

    parts: dict[int, str]
    before: int = 0
    guided: bool = True
    tokens: int | None = None


_EMBEDDED, _MASK, _POOLED = "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
PIPELINES = {
    "StableDiffusionPipeline": Text({0: _EMBEDDED}),
    "StableDiffusionXLPipeline": Text({0: _EMBEDDED, 2: "text_embeds"}, before=1),
    "PixArtAlphaPipeline": Text({0: _EMBEDDED, 1: _MASK}, tokens=120),
    "PixArtSigmaPipeline": Text({0: _EMBEDDED, 1: _MASK}, tokens=300),
    "SanaPipeline": Text({0: _EMBEDDED, 1: _MASK}, tokens=300),
    "AuraFlowPipeline": Text({0: _EMBEDDED}, tokens=256),
    "StableDiffusion3Pipeline": Text({0: _EMBEDDED, 2: _POOLED}, before=2, tokens=256),
    "FluxPipeline": Text({0: _EMBEDDED, 1: _POOLED}, before=1, guided=False, tokens=512),
    "Lumina2Pipeline": Text({0: _EMBEDDED, 1: _MASK}, tokens=256),
}


@torch.no_grad()
def embed(
    folder: Path,
    denoiser: Denoiser,
    others: dict,
    prompts: list[str],
    dropout: float,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> tuple[Conditions, dict | None]:
    """Prompts as conditions of ``denoiser``, whose null one is that of "", and the layout of each.

    folder: of the pipeline. others: its VAE, scheduler and so on, by the names of its parts. Errors:
    ValueError for a pipeline, a tokenizer or a text encoder of an unknown class, for one that cannot be
    read, and for prompts that are longer than all its tokenizers take, by their numbers."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ValueError(
            f"{folder / 'model_index.json'}: found {name!r}, expected one of {', '.join(PIPELINES)}"
        )
    text, kind = PIPELINES[name], getattr(diffusers, name)
    parts = {part: named[1] for part, named in index.items() if _is_text(part) and named[1] is not None}
    loaded = {part: _read(folder, part, what).to(device) if "encoder" in part else _read(folder, part, what)
              for part, what in parts.items()}  # fmt: skip
    _limit(loaded)
    _refuse_too_long(prompts, loaded, text.tokens)
    pipeline = _pipeline(kind, {**others, **loaded})

    asked = inspect.signature(kind.__call__).parameters

    def encode(some: list[str]) -> dict[str, Tensor]:
        behind = [None] * text.before
        if name == "StableDiffusionPipeline":
            behind = [device, 1]
        options = {} if name == "StableDiffusionPipeline" else {"device": device}
        if text.guided:
            options["do_classifier_free_guidance"] = False
        if some != [""] and "complex_human_instruction" in asked:  # SANA's words before each prompt
            options["complex_human_instruction"] = asked["complex_human_instruction"].default
        found = pipeline.encode_prompt(some, *behind, **options)
        return {part: found[place].float().cpu() for place, part in text.parts.items()}

    try:
        starts = budget.each(range(0, len(prompts), batch_size))
        batches = [encode(prompts[at : at + batch_size]) for at in starts]
        null = encode([""])
    except Exception as error:  # of libraries that raise many kinds
        raise ValueError(f"{folder}: its text encoders cannot embed prompts ({error})") from error
    embedded = {part: torch.cat([batch[part] for batch in batches]) for part in null}
    if name == "StableDiffusionXLPipeline":
        if index.get("force_zeros_for_empty_prompt", True):
            null = {part: torch.zeros_like(value) for part, value in null.items()}
        side = float(
            pipeline.vae_scale_factor * denoiser.shape[-1]
        )  # as the pipeline itself says of an image of its own size
        size = torch.tensor([[side, side, 0, 0, side, side]])
        embedded["time_ids"], null["time_ids"] = size.expand(len(prompts), 6), size
    if len(embedded) == 1:
        return Conditions(embedded[_EMBEDDED], null[_EMBEDDED][0], dropout, names=prompts), None
    (values, layout), (nothing, _) = pack(embedded), pack(null)
    return Conditions(values, nothing[0], dropout, names=prompts), layout


def _is_text(part: str) -> bool:
    return part.startswith(("text_encoder", "tokenizer"))


def _read(folder: Path, part: str, name: str):
    """A tokenizer or a text encoder, of a class on the list alone; no program of theirs is ever run."""
    place, known = folder / part, TOKENIZERS if part.startswith("tokenizer") else ENCODERS
    if name not in known or not hasattr(transformers, name):  # some are of other versions
        raise ValueError(
            f"{folder / 'model_index.json'}: found {part} {name!r}, expected one of {', '.join(known)}"
        )
    if not place.is_dir():
        raise ValueError(f"{place}: found nothing there, expected the {name} that model_index.json names")
    look_through(place, folder)
    kind, options = getattr(transformers, name), {"local_files_only": True, "trust_remote_code": False}
    try:
        if known is TOKENIZERS:
            return kind.from_pretrained(place, **options)
        config = kind.config_class.from_dict(_config(place))
        weights = weights_of(place)
        shards_within(weights)
        build_within(lambda: kind(config), weights.counts, place / "config.json")
        encoder = kind.from_pretrained(place, variant=weights.variant, **options)
    except ValueError as error:
        if str(error).startswith(str(place)):
            raise
        raise ValueError(f"{place}: the {name} cannot be read ({error})") from error
    except Exception as error:  # transformers raises many kinds here
        raise ValueError(f"{place}: the {name} cannot be read ({error})") from error
    return encoder.float().eval()  # it may lie there in 16 bits, and its embeddings go to a network of 32


def _config(place: Path) -> dict:
    config = read_json(place / "config.json")
    plausible(place / "config.json", config)
    if "quantization_config" in config:
        raise ValueError(f"{place / 'config.json'}: found quantised weights, expected them in 16 or 32 bits")
    return config


def _limit(loaded: dict) -> None:
    """Give tokenizers that name no longest text that of their encoder's positions."""
    for part, tokenizer in loaded.items():
        encoder = loaded.get(part.replace("tokenizer", "text_encoder"))
        positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        if part.startswith("tokenizer") and positions and tokenizer.model_max_length > positions:
            tokenizer.model_max_length = positions


def _refuse_too_long(prompts: list[str], loaded: dict, tokens: int | None) -> None:
    tokenizers = [value for part, value in loaded.items() if part.startswith("tokenizer")]
    limits = [min(one.model_max_length, tokens or 10**6) for one in tokenizers]
    if not tokenizers:
        raise ValueError("prompts: found no tokenizer in the pipeline, expected one that reads them")
    for number, prompt in enumerate(prompts, 1):
        lengths = [len(one(prompt).input_ids) for one in tokenizers]
        if all(length > limit for length, limit in zip(lengths, limits, strict=True)):
            raise ValueError(
                f"prompts: found {min(lengths)} tokens in number {number}, expected at most {max(limits)}: "
                "the rest would be cut off without a word"
            )


def _pipeline(kind: type, parts: dict):
    """A pipeline made of parts that were read; what it wants beside them is None."""
    wanted: dict[str, Callable] = inspect.signature(kind.__init__).parameters
    given = {name: parts.get(name) for name, what in wanted.items() if name != "self" and (
        name in parts or what.default is inspect.Parameter.empty)}  # fmt: skip
    if "requires_safety_checker" in wanted:
        given["requires_safety_checker"] = False
    return kind(**given)


def read_prompts(file: str | Path) -> list[str]:
    """The lines of a text file, but for empty ones; ValueError where there are none."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: found no text in UTF-8 ({error}), expected one prompt a line") from error
    prompts = [line for line in map(str.strip, lines) if line]
    if not prompts:
        raise ValueError(f"{file}: found no prompts, expected one a line")
    return prompts
