"""Writes the reference pages that follow from the code: commands.md and hyperparameters.md.

python book/write_pages.py
"""

import argparse
from pathlib import Path

import torch

from dkdm_lab import networks
from dkdm_lab.experiments.ledger import Table
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.parser import parser

BOOK = Path(__file__).parent


def commands() -> str:
    """Every command of `dkdm` with its options, from the parser itself."""
    asked = parser()
    (choices,) = (
        a for a in asked._actions if isinstance(a, argparse._SubParsersAction)
    )
    lines = [
        "# Command line",
        f"`dkdm`: {asked.description} `dkdm COMMAND --help` says the same in a terminal.",
    ]
    for summary in choices._choices_actions:
        command = choices.choices[summary.dest]
        lines += [
            f"## dkdm {summary.dest}",
            _sentence(command.description or summary.help),
        ]
        rows = [
            (_spelled(a), _help(a)) for a in command._actions if a.dest != "help"
        ]
        if rows:
            lines.append(Table.of(["option", "what it says"], rows, align="ll"))
        if command.epilog:
            lines.append(_plain(command.epilog))
    return "\n\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return _plain(text[0].upper() + text[1:] + ("" if text.endswith(".") else "."))


def _plain(text: str) -> str:
    """Text whose angle brackets are no HTML, and whose bars end no cell."""
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _spelled(action: argparse.Action) -> str:
    """How an option is typed."""
    name = ", ".join(action.option_strings) or action.metavar or action.dest
    if not action.option_strings or action.nargs == 0:
        return f"`{name}`"
    value = (
        "{" + ",".join(action.choices) + "}"
        if action.choices
        else action.metavar or action.dest.upper()
    )
    value = f"[{value}]" if action.nargs == "?" else value
    return f"`{name} {value}`".replace("|", "\\|")


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    untold = (
        None,
        False,
        argparse.SUPPRESS,
    )  # by identity: 0 is a default worth telling
    told = (
        "default" in text
        or any(action.default is one for one in untold)
        or action.default == []
    )
    if not told:
        text += f" (default: {action.default})"
    if action.required and action.option_strings:
        text += " (required)"
    return _plain(text.strip())


# What the paper's tables say, to stand beside the presets: {row: (preset's value, the paper's, by preset)}.
TABLE_6 = {
    "diffusion steps": (
        "T",
        {"cifar10": 1000, "celeba64": 1000, "imagenet32": 1000},
    ),
    "noise schedule": (
        "schedule",
        dict.fromkeys(("cifar10", "celeba64", "imagenet32"), "cosine"),
    ),
    "batch size": (
        "batch_size",
        {"cifar10": 128, "celeba64": 256, "imagenet32": 512},
    ),
    "iterations": (
        "iterations",
        {"cifar10": 200_000, "celeba64": 100_000, "imagenet32": 500_000},
    ),
    "learning rate": (
        "lr",
        dict.fromkeys(("cifar10", "celeba64", "imagenet32"), 1e-4),
    ),
    "early stop": (
        "early_stop",
        {"cifar10": True, "celeba64": True, "imagenet32": False},
    ),
    "rho": ("rho", dict.fromkeys(("cifar10", "celeba64", "imagenet32"), 0.4)),
}
TABLE_7 = {
    "diffusion steps": ("T", {"celebahq256": 1000, "ffhq256": 1000}),
    "noise schedule": ("schedule", {"celebahq256": "linear", "ffhq256": "linear"}),
    "batch size": ("batch_size", {"celebahq256": 48, "ffhq256": 42}),
    "iterations": ("iterations", {"celebahq256": 410_000, "ffhq256": 640_000}),
    "learning rate": ("lr", {"celebahq256": 9.6e-5, "ffhq256": 8.4e-5}),
    "early stop": ("early_stop", {"celebahq256": False, "ffhq256": False}),
    "rho": ("rho", {"celebahq256": 4, "ffhq256": 4}),
}
SIZES_6 = {
    "cifar10": {"teacher": "57M", "student": "14M"},
    "celeba64": {"teacher": "295M", "student": "57M"},
    "imagenet32": {"teacher": "57M", "student": "14M"},
}
SIZES_7 = {
    name: {"teacher": "274M", "student": "86M"}
    for name in ("celebahq256", "ffhq256")
}
# Channels and residual blocks of Table 8; multipliers 1, 2, 2, 2 and attention at 16 and 8 for all.
TABLE_8 = {
    "cnn-57m": ("57M", 128, 3),
    "cnn-44m": ("44M", 128, 2),
    "cnn-32m": ("32M", 96, 3),
    "cnn-24m": ("24M", 96, 2),
    "cnn-14m": ("14M", 64, 3),
}
TABLE_10 = {"vit-19m": ("19M", 7, 2, 384, 6)}
OURS = ("digits", "digits-latent", "fashion", "cifar16", "cifar10-short")


def hyperparameters() -> str:
    """The presets beside Tables 6, 7, 8 and 10."""
    parts = [
        "# Hyperparameters",
        "The presets of `dkdm_lab.experiments.presets` beside the paper's tables. A cell with one value is "
        "the same in both; where they differ it says *ours* and *paper*.",
        "## Table 6: pixel space",
        _beside(TABLE_6, SIZES_6),
        "## Table 7: latent space",
        "The paper's *linear* is the schedule of latent diffusion, linear in the square root of beta; the "
        "code calls it `scaled_linear`.",
        _beside(TABLE_7, SIZES_7),
        "## Table 8: five sizes on CIFAR-10",
        "Channel multipliers 1, 2, 2, 2, attention at 16 and 8, heads of 32 channels, dropout 0.3 for all.",
        Table.of(
            [
                "network",
                "paper's name",
                "channels",
                "residual blocks",
                "parameters here",
            ],
            [
                [
                    f"`{name}`",
                    size,
                    str(channels),
                    str(blocks),
                    f"{_parameters(name):,}",
                ]
                for name, (size, channels, blocks) in TABLE_8.items()
            ],
        ),
        "## Table 10: the ViT",
        Table.of(
            [
                "network",
                "paper's name",
                "layers",
                "patch",
                "hidden size",
                "heads",
                "parameters here",
            ],
            [
                [f"`{n}`", *map(str, row), f"{_parameters(n):,}"]
                for n, row in TABLE_10.items()
            ],
        ),
        "## The presets for small machines",
        "They have no counterpart in the paper; what `make book` changes for its few minutes is the preset's "
        "`live`.",
        _ours(),
    ]
    return "\n\n".join(parts) + "\n"


def _beside(table: dict, sizes: dict) -> Table:
    """The rows of a table of the paper, each with the presets' values."""
    names = list(sizes)
    rows = []
    for role in ("teacher", "student"):
        rows.append(
            [
                role,
                *(
                    f"`{getattr(PRESETS[name], role)}`, {_parameters(getattr(PRESETS[name], role)):,} "
                    f"parameters (paper: {sizes[name][role]})"
                    for name in names
                ),
            ]
        )
    for label, (setting, paper) in table.items():
        cells = []
        for name in names:
            here = getattr(PRESETS[name], setting)
            same = here == paper[name] or (here, paper[name]) == (
                "scaled_linear",
                "linear",
            )
            cells.append(
                _text(here)
                if same
                else f"ours {_text(here)}, paper {_text(paper[name])}"
            )
        rows.append([label, *cells])
    return Table.of(
        ["", *(f"`{name}`" for name in names)], rows, align="l" * (len(names) + 1)
    )


def _ours() -> Table:
    settings = (
        "T",
        "schedule",
        "batch_size",
        "teacher",
        "student",
        "iterations",
        "lr",
        "ema",
        "rho",
        "steps",
    )
    rows = [
        [s, *(_text(getattr(PRESETS[name], s)) for name in OURS)] for s in settings
    ]
    return Table.of(
        ["", *(f"`{name}`" for name in OURS)], rows, align="l" * (len(OURS) + 1)
    )


def _text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _parameters(name: str) -> int:
    with torch.device("meta"):  # shapes alone
        return networks.build(name).parameter_count


PAGES = {"commands.md": commands, "hyperparameters.md": hyperparameters}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (BOOK / name).write_text(make(), encoding="utf-8")
