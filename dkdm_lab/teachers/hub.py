"""A student, pushed to the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

# What a folder has beside the student while something is made of it.
_NOT_THE_STUDENTS = ["checkpoints/*", ".*", "*.new*"]


def require(name: str) -> None:
    """ValueError where nothing could be pushed to a repository of this name: asked before a training."""
    try:
        validate_repo_id(name)
        HfApi().whoami()
    except Exception as error:  # the Hub's client raises many kinds, by cause
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"push_to_hub: found {name!r}, to which nothing can be pushed from here ({why}); expected the "
            "name of a repository, and `hf auth login` once"
        ) from error


def push(folder: Path, name: str) -> None:
    """Put a finished student's folder into a repository, which is made where there is none."""
    HfApi().create_repo(name, exist_ok=True)
    HfApi().upload_folder(
        repo_id=name, folder_path=folder, ignore_patterns=_NOT_THE_STUDENTS,
        commit_message="A student, distilled without a data set",
    )  # fmt: skip
