"""What of a teacher's folder belongs to a student's: the parts that ``model_index.json`` names, and of those
the configuration and one form of the weights. Nothing else is copied, and nothing from outside the folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dkdm_lab.networks.folders import look_through, weights_of
from dkdm_lab.networks.schedulers import read_json

_INDEX = "model_index.json"
_SMALL = re.compile(
    r"(config|scheduler_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|"
    r"preprocessor_config|generation_config|chat_template)\.json|merges\.txt|vocab\.txt|(spiece|tokenizer)\.model"
)
_LIBRARIES = re.compile(r"diffusers|transformers|stable_diffusion|dkdm_lab(\.\w+)*")


def read_index(folder: Path | None) -> dict:
    """A pipeline's ``model_index.json``; nothing where it has none. ValueError where it names parts by what
    is no name, of other libraries, or a LoRA lies beside them that nobody would apply."""
    if folder is None:
        return {}
    if loras := sorted(folder.glob("*lora*.safetensors")):
        raise ValueError(
            f"{loras[0]}: found a LoRA beside the pipeline, which would not be applied; fuse it into the "
            "weights (fuse_lora() of diffusers, then save_pretrained()) or move it away"
        )
    if not (folder / _INDEX).is_file():
        return {}
    index = read_json(folder / _INDEX)
    for part, named in parts_of(index).items():
        if not re.fullmatch(r"[a-z]\w*", part) or len(named) != 2:
            raise ValueError(
                f"{folder / _INDEX}: found a part {part!r}: {named!r}, expected [library, class]"
            )
        library, name = named
        if (library, name) != (None, None) and not (
            isinstance(library, str) and isinstance(name, str) and _LIBRARIES.fullmatch(library)
        ):
            raise ValueError(
                f"{folder / _INDEX}: found {part} of {library!r}, expected diffusers or transformers"
            )
    return index


def parts_of(index: dict) -> dict[str, list]:
    """The parts that an index names, with library and class."""
    return {part: named for part, named in index.items() if isinstance(named, list) and part[:1] != "_"}


def copy_parts(folder: Path, out: Path, index: dict, without: set[str], bare: tuple[str, ...]) -> None:
    """Copy the parts that ``index`` names from ``folder`` to ``out``; of a folder without an index those of
    ``bare`` that are there."""
    named = [part for part, what in parts_of(index).items() if what[1] is not None]
    for part in sorted({*named, *(() if index else bare)} - without):
        if (folder / part).is_dir():
            copy_part(folder / part, out / part, folder)


def copy_part(part: Path, out: Path, folder: Path) -> None:
    """Configuration, vocabulary and one form of the weights, under the names of plain ones."""
    look_through(part, folder)
    out.mkdir()
    for file in part.iterdir():
        if file.is_file() and _SMALL.fullmatch(file.name):
            shutil.copyfile(file, out / file.name)
    if any(file.suffix in (".safetensors", ".bin") for file in part.iterdir()):
        weights = weights_of(part)
        for file in weights.files:
            # The shards of a variant keep the names by which their index knows them.
            plain = re.search(r"-\d+-of-\d+", file.name)
            name = (
                file.name if plain or not weights.variant else file.name.replace(f".{weights.variant}", "", 1)
            )
            shutil.copyfile(file, out / name)
