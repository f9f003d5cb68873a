"""What the ways to fill a pool cost, and what their students are worth at equal iterations.

    python benchmarks/warmup.py                                     digits, three seeds: hours on a CPU
    python benchmarks/warmup.py --seeds 0 --set iterations=500

Teacher evaluations, seconds as a share of the full warm-up's, and the score of the student that the pool then
trains. Runs lie in data_cache: finished ones are read, interrupted ones go on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Literal

from dkdm_lab.experiments import ledger, presets, speed
from dkdm_lab.experiments.presets import Preset
from dkdm_lab.experiments.runs import Run
from dkdm_lab.pools import WARMUPS
from dkdm_lab.system.files import write_json
from dkdm_lab.system.options import Command, file, listed, option, setting
from dkdm_lab.system.provenance import provenance
from dkdm_lab.system.settings import Seed


def measure(preset: Preset, warmup: str, seeds: list[int]) -> dict:
    """One way to fill the pool: its cost, the median over seeds, and each seed's score."""
    runs = [Run(preset.replace(warmup=warmup), "dynamic", seed) for seed in seeds]
    seconds, evaluations = [], 0
    for run in runs:
        pool = run.source()
        seconds.append(speed.seconds_of(pool.fill))
        evaluations = pool.evaluations
    scores = {run.seed: run.result()["metrics"][preset.metric] for run in runs}
    return {"evaluations": evaluations, "seconds": statistics.median(seconds), "scores": scores}


def main(arguments: list[str] | None = None) -> None:
    parser = Command(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--set", action="append", default=[], type=option(setting), dest="settings")
    parser.add_argument("--warmups", type=listed(Literal[WARMUPS]), default=list(WARMUPS))
    parser.add_argument("--seeds", type=listed(Seed), default=[0, 1, 2])
    parser.add_argument("--out", type=option(file), help="a JSON file for all numbers")
    options = parser.parse_args(arguments)
    try:
        preset = presets.get(options.preset).replace(**dict(options.settings))
    except ValueError as error:
        parser.error(str(error))
    found = {warmup: measure(preset, warmup, options.seeds) for warmup in options.warmups}
    first = next(iter(found.values()))
    rows = [
        [
            warmup,
            f"{row['evaluations']:,}",
            f"{row['evaluations'] / first['evaluations']:.3f}",
            f"{row['seconds'] / first['seconds']:.3f}",
            str(ledger.spread(list(row["scores"].values()))),
        ]
        for warmup, row in found.items()
    ]
    names = ["warm-up", "teacher evaluations", "of the first's", "seconds, of the first's", preset.metric]
    print(ledger.Table.of(names, rows))
    if options.out:
        write_json(options.out, {"preset": preset.name, "warmups": found, "made_with": provenance()})


if __name__ == "__main__":
    sys.exit(main())
