"""What a training step costs beside the bare work of its networks, and what each switch takes off it.

    python benchmarks/step.py                                                   digits, every source
    python benchmarks/step.py --preset cifar10 --set batch_size=32 --set rho=0.002
    python benchmarks/step.py --preset cifar10 --methods data-based,dynamic --switches --out step.json

*whole / parts* is the loop's own share: 1 would be a loop that costs nothing. --switches measures
channels_last, bf16 and torch.compile, alone and together, or those that it names. On a CPU only the ratios
mean something elsewhere; on a GPU milliseconds are printed, with its peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Annotated, Literal

import torch

from dkdm_lab.experiments import presets, speed
from dkdm_lab.experiments.ledger import Table
from dkdm_lab.experiments.presets import Preset
from dkdm_lab.system.files import write_json
from dkdm_lab.system.options import Command, file, listed, option, setting
from dkdm_lab.system.provenance import provenance
from dkdm_lab.system.settings import Count

METHODS = ("data-based", "iterative", "shuffled", "dynamic")
PLAIN = {"channels_last": False}
SWITCHES = {
    "plain": PLAIN,
    "channels_last": {},
    "bf16": {**PLAIN, "precision": "bf16"},
    "channels_last + bf16": {"precision": "bf16"},  # as runs train where a GPU is
    "compile": {**PLAIN, "compile": "default"},
    "all": {"precision": "bf16", "compile": "default"},
}


def measure(preset: Preset, method: str, precision: str = "no", **options) -> dict:
    """One row: the measured step, and on a GPU the peak of its memory."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    found = dataclasses.asdict(speed.overhead(preset.replace(mixed_precision=precision), method, **options))
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if gpu else {})


def main(arguments: list[str] | None = None) -> None:
    parser = Command(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--set", action="append", default=[], type=option(setting), dest="settings")
    parser.add_argument("--methods", type=listed(Literal[METHODS]), default=list(METHODS))
    parser.add_argument(
        "--switches", nargs="?", type=listed(Literal[tuple(SWITCHES)]), const=list(SWITCHES),
        default=["channels_last"],
        help=f"some of {', '.join(SWITCHES)}, comma-separated; without names each of them in turn",
    )  # fmt: skip
    parser.add("--iterations", Annotated[Count, "in each measurement"], default=8)
    parser.add("--repeats", Annotated[Count, "of which the median"], default=5)
    parser.add_argument("--out", type=option(file), help="a JSON file for all numbers")
    options = parser.parse_args(arguments)
    try:
        preset = presets.get(options.preset).replace(**dict(options.settings))
    except ValueError as error:
        parser.error(str(error))
    switches = {name: SWITCHES[name] for name in options.switches}
    counts = {"iterations": options.iterations, "repeats": options.repeats}
    found = {
        (method, name): measure(preset, method, **switch, **counts)
        for method in options.methods
        for name, switch in switches.items()
    }
    unit = next(iter(found.values()))["whole"]
    gpu = torch.cuda.is_available()
    rows = [
        [
            method, name, f"{row['whole'] / unit:.2f}", f"{row['teacher'] / row['whole']:.0%}",
            f"{row['student'] / row['whole']:.0%}", f"{row['ratio']:.3f}",
            *([f"{1000 * row['whole']:.1f}", f"{row['peak_bytes'] / 1e9:.2f}"] if gpu else []),
        ]
        for (method, name), row in found.items()
    ]  # fmt: skip
    names = ["source", "switches", "step", "teacher", "student", "whole / parts"]
    names += ["ms a step", "peak GB"] if gpu else []
    pair = f"{preset.teacher} and {preset.student}, batch size {preset.batch_size}"
    head = f"{pair}; a step of 1 is the first line's"
    print(Table.of(names, rows, "ll" + "r" * (len(names) - 2), before=head))
    if options.out:
        results = [{"method": method, "switches": name, **row} for (method, name), row in found.items()]
        settings = dataclasses.asdict(preset)
        write_json(options.out, {"settings": settings, "results": results, "made_with": provenance()})


if __name__ == "__main__":
    sys.exit(main())
