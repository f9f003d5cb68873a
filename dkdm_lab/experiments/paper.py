"""The paper's tables, claims and figures beside what the ledger has: what the chapters and the report show.

The paper's numbers stand in :mod:`~dkdm_lab.experiments.paper_numbers`, its claims in
:mod:`~dkdm_lab.experiments.paper_claims`, who plays which part in :mod:`~dkdm_lab.experiments.cast`, the runs
that all of it looks up in :mod:`~dkdm_lab.experiments.wanted`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.cast import (
    CAST,
    DISCARDS,
    FRACTIONS,
    LATENTS,
    NATURAL_SMALL,
    PIXELS,
    RHOS,
    SIZES,
    STORED,
    STRIDED,
    STRIDES,
    figure_curves,
    fractions_of,
    metric_name,
    ways,
)
from dkdm_lab.experiments.claims import Claim, has_results, verdict_table
from dkdm_lab.experiments.ledger import Table
from dkdm_lab.experiments.paper_claims import CLAIMS
from dkdm_lab.experiments.paper_numbers import NUMBERS
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.experiments.verdict import Verdict
from dkdm_lab.experiments.wanted import sweep
from dkdm_lab.system import figures

__all__ = [
    "CAST",
    "CLAIMS",
    "DISCARDS",
    "FRACTIONS",
    "LATENTS",
    "NATURAL_SMALL",
    "NUMBERS",
    "PIXELS",
    "RHOS",
    "SIZES",
    "STORED",
    "STRIDED",
    "STRIDES",
    "beside",
    "claims",
    "curves",
    "figure_curves",
    "numbers",
    "scores",
    "sheet",
    "sweep",
    "verdicts",
    "ways",
]


def beside(
    place: str,
    preset: str,
    metric: str | None = None,
    small: Iterable[str] = ("cifar16", "digits"),
) -> Table:
    """The paper's numbers of a table, as it ran ``preset``, beside ours there and at smaller presets; of one
    metric or of all that some preset has."""
    chosen = [
        n for n in NUMBERS if n.place == place and n.preset == preset and n.metric == (metric or n.metric)
    ]
    columns = (preset, *small)
    rows = [[n.row, n.metric, f"{n.value}", *map(n.cell, columns)] for n in chosen]
    kept = [row for row in rows if metric or set(row[3:]) != {Verdict.NOT_RUN}]
    head = _about(place, preset, columns, timed=any(n.timed for n in chosen))
    names = ["", "metric", "paper", *[f"ours, `{name}`" for name in columns]]
    return Table.of(names, kept, "ll" + "r" * (len(names) - 2), before=head, after=_folded(rows, kept))


def _about(place: str, preset: str, columns: Iterable[str], timed: bool) -> str:
    """The paragraph above a table of :func:`beside`: what makes ours comparable with the paper's, or not."""
    start = f"{place}, {preset}: the paper's numbers beside the ledger's"
    if timed:
        return f"{start}. The paper's are an A100's: on another machine only their ratio can be compared."
    sizes = ", ".join(f"{PRESETS[name].samples:,} at `{name}`" for name in columns)
    return (
        f"{start} (N = {sizes}). At the smaller presets images, networks and metric are their own: the order "
        "can be compared, the values cannot."
    )


def verdicts(chapter: str) -> Table:
    """The claims of a chapter, each with its verdict at every preset that has results."""
    return _claims([claim for claim in CLAIMS if claim.chapter == chapter], link=False)


def claims() -> Table:
    """All claims, each with the chapter that treats it."""
    return _claims(list(CLAIMS), link=True)


def _claims(chosen: list[Claim], link: bool) -> Table:
    about = [p for p in (*PIXELS, *LATENTS) if any(p in claim.about for claim in chosen)]
    run = [p for p in about if has_results(chosen, p)]
    missing = [f"`{p}`" for p in about if p not in run]
    notes = [f"Not run: {', '.join(missing)}."] if missing else []
    for p in run:
        fractions = fractions_of(p)
        if fractions != FRACTIONS and any("data-limited" in claim.text for claim in chosen):
            notes.append(f"At `{p}` data-limited training was run at {_percent(fractions)} alone.")
    return verdict_table(chosen, run, link, after=" ".join(notes))


def _percent(fractions: Iterable[float]) -> str:
    return " and ".join(f"{fraction:.0%}" for fraction in fractions)


def numbers(place: str, small: Iterable[str] = ("cifar16", "digits")) -> Table:
    """The numbers of one of the paper's tables that somebody has run here, with ours at its own preset, and
    at smaller ones beside those of the table's first; one line stands for all that nobody has run."""
    chosen = [n for n in NUMBERS if n.place == place]
    rows = []
    for n in chosen:
        others = [n.cell(preset) if n.preset == chosen[0].preset else "" for preset in small]
        if n.ours(n.preset) or set(others) - {"", Verdict.NOT_RUN}:
            rows.append([n.preset, n.row, n.metric, f"{n.value:g}", n.cell(n.preset), n.verdict, *others])
    names = ["preset", "", "metric", "paper", "ours", "verdict", *[f"`{preset}`" for preset in small]]
    return Table.of(names, rows, "lllrrl" + "r" * (len(names) - 6), after=_folded(chosen, rows))


def scores(preset: str, metric: str) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds of a metric, as Table 2 calls it, for each of :func:`ways` that
    was run; the deviation of one seed is 0."""
    found = {
        name: ledger.over_seeds(preset, metric_name(metric, preset), where)
        for name, where in ways(preset).items()
    }
    return {name: (s.mean, 0.0 if math.isnan(s.std) else s.std) for name, s in found.items() if s is not None}


def sheet(preset: str, rows: Mapping[str, Mapping] | None = None, seed: int = 0, n: int = 12):
    """Samples of the ledger's runs of a seed, one row per run (default: :func:`ways`), column by column from
    the same noise; or a line that says that none was run."""
    rows = ways(preset) if rows is None else rows
    found = {name: ledger.samples(preset, dict(where)).get(seed) for name, where in rows.items()}
    shown = {name: images[:n] for name, images in found.items() if images is not None}
    return (
        figures.sample_sheet(shown)
        if shown
        else Table(f"Samples at `{preset}`, seed {seed}: {Verdict.NOT_RUN}.")
    )


def _folded(chosen: list, found: list) -> str:
    """The one line that stands for rows without any result."""
    missing = len(chosen) - len(found)
    return f"Not run at any of these presets: {missing} of {len(chosen)} rows." if missing else ""


def curves(presets: Iterable[str] = ("digits", "cifar16", "cifar10")) -> Table:
    """The curves of the paper's figures that somebody has run here, with our last score at each preset, and
    FID' for Fig. 9; one line stands for all that nobody has run."""
    runs = {preset: {(place, what): run for place, what, run in figure_curves(preset)} for preset in presets}
    chosen = list(dict.fromkeys(curve for of_preset in runs.values() for curve in of_preset))
    rows = []
    for place, what in chosen:
        primes = ("", "'") if place == "Fig. 9" else ("",)
        cells = []
        for preset, of_preset in runs.items():
            run = of_preset.get((place, what), {"method": "none"})
            if run is None:
                cells.append("in its chapter")
                continue
            scores = [ledger.cell(preset, PRESETS[preset].metric + prime, run) for prime in primes]
            cells.append(" and ".join(scores) if set(scores) != {Verdict.NOT_RUN} else str(Verdict.NOT_RUN))
        if set(cells) != {Verdict.NOT_RUN}:
            rows.append([place, what, *cells])
    names = ["figure", "curve", *[f"{PRESETS[p].metric} at its end, `{p}`" for p in presets]]
    return Table.of(names, rows, "ll" + "r" * (len(names) - 2), after=_folded(chosen, rows))
