"""Which runs the book looks up: what is to be made to fill all cells of its tables and figures."""

from __future__ import annotations

from collections.abc import Iterable

from dkdm_lab.experiments.cast import (
    CAST,
    FIXED,
    FRACTIONS,
    LATENTS,
    MOVED_SIZES,
    MOVED_STRIDES,
    NATURAL_SMALL,
    REPLAYED,
    REPLAYS,
    RHOS,
    SIZES,
    STORED,
    STRIDED,
    STRIDES,
    figure_curves,
    run_of,
)
from dkdm_lab.experiments.paper_numbers import NUMBERS
from dkdm_lab.experiments.presets import PRESETS, Preset
from dkdm_lab.experiments.runs import METHODS, Run


def _natural(name: str) -> list[tuple[dict, bool]]:
    """The rows of the small presets of natural images, in the order in which they are to be made."""
    rows = [(run_of("teacher"), True), (run_of("dynamic"), True), (run_of("dynamic", **STRIDED), False)]
    rows += [(run_of("data-free"), True), (run_of("data-based"), False)]
    if name == "cifar16":
        rows += [(run_of("shuffled"), False), (run_of("iterative"), False)]
        rows += [(run_of("data-limited", real_fraction=f), False) for f in CAST[name]["fractions"]]
    return rows


def _natural_once(name: str) -> list[tuple[dict, bool]]:
    """What is made for the first seed only, to begin with."""
    if name != "cifar16":
        return []
    rows = [(run_of("dynamic", rho=rho), False) for rho in RHOS if rho != PRESETS[name].rho]
    rows += [(run_of(method, discard=0.5), False) for method in ("iterative", "shuffled", "dynamic")]
    return [*rows, (run_of("dynamic", student=CAST[name]["ViT"]), False)]


def sweep(preset: Preset, seeds: Iterable[int]) -> dict[str, tuple[Run, bool]]:
    """Every run that the numbers, claims and curves above look up at a preset, with those that they stand on:
    what is to be made to fill all cells of the book. By name; with each, whether its FID' is looked up too.
    A preset without a part in the paper has one run of each method, a class-conditional one a teacher and its
    student."""
    wheres = [(run_of(method), False) for method in METHODS]
    if preset.classes:
        wheres = [(run_of("teacher"), False), (run_of("dynamic"), False)]
    elif preset.name in LATENTS:
        wheres = [
            (n.run(preset.name), False) for n in NUMBERS if (n.place, n.preset) == ("Table 3", "celebahq256")
        ]
    elif preset.name == "digits-pools":
        wheres = [(run_of("dynamic", rho=SIZES[1], stride=k), False) for k in STRIDES]
        wheres += [(run_of("dynamic", rho=rho, stride=k), False) for rho in SIZES for k in (1, 10)]
        wheres += [(run_of("dynamic", storage=storage), False) for storage in STORED]
    elif preset.name == "digits-moves":
        pools = [{"rho": rho, "stride": k} for rho in MOVED_SIZES for k in MOVED_STRIDES]
        wheres = [(run_of("dynamic", **pool), False) for pool in pools]
        wheres += [(run_of("dynamic", **pool, variance=FIXED[pool["stride"]]), False) for pool in pools]
        wheres += [(run_of("dynamic", **REPLAYED, **replay), False) for replay in REPLAYS]
    elif preset.name in NATURAL_SMALL:
        wheres = _natural(preset.name)
    elif preset.name in CAST:
        cast = CAST[preset.name]
        wheres = [(run_of("data-based"), False)]
        wheres += [(run_of("data-limited", real_fraction=f), False) for f in FRACTIONS]
        wheres += [(where, place == "Fig. 9") for place, _, where in figure_curves(preset.name) if where]
        wheres += [(run_of("data-free", student=cast["CNN"]), True)]
        for teacher in ("CNN", "ViT"):
            pairs = [{"teacher": cast[teacher], "student": s} for s in (cast["student"], cast["ViT"])]
            wheres += [(run_of("teacher", teacher=cast[teacher]), False)]
            wheres += [
                (run_of(method, **pair), False) for method in ("data-free", "dynamic") for pair in pairs
            ]
        wheres += [
            (number.run(preset.name), number.metric.endswith("'"))
            for number in NUMBERS
            if number.preset == preset.name and number.place != "Table 9"  # which is measured
        ]
    found: dict[str, tuple[Run, bool]] = {}
    once = _natural_once(preset.name)
    for number, seed in enumerate(seeds):
        for where, primed in [*wheres, *(once if number == 0 else [])]:
            changes = {name: value for name, value in where.items() if name != "method"}
            run = Run(preset.replace(**changes), where["method"], seed).shared()
            for each in run.needs():
                found.setdefault(each.name, (each, False))
            _, before = found.get(run.name, (run, False))
            found[run.name] = run, primed or before
    return found
