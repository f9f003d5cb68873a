"""The ledger, ``book/results/<preset>/*.json``: every number the book quotes, with how it was made."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dkdm_lab.experiments.artifact import ON_THE_WAY, Artifact, read
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.experiments.runs import METHODS, Run
from dkdm_lab.experiments.verdict import Verdict
from dkdm_lab.system.files import whole, write_json
from dkdm_lab.system.paths import cache_dir, results_dir

# What to do where one of its files cannot be read.
# Mean squared difference of a student's eps from its teacher's on noised real images: in the quarter of the
# levels with the least noise, and in the next ones.
EPS_ERRORS = ("eps-error-1", "eps-error-2", "eps-error-3", "eps-error-4")
LEDGER = "`git checkout -- book/results` restores the book's; a result of your own is entered again"


def enter(artifact: Artifact, against_teacher: bool = False) -> Path:
    """Copy the result of a run or a part of a study into the ledger (making it first if need be); returns
    the file, whose name says what differs from the preset or the study. against_teacher: measure FID' of a
    run too (Sec. 12); where it was measured it goes along."""
    file, result = artifact.ledger_file, artifact.result()
    if against_teacher or (artifact.folder / "against_teacher.json").is_file():
        result["against_teacher"] = artifact.against_teacher()
    write_json(file, result)
    if (shown := artifact.folder / "samples.png").is_file():
        with whole(file.with_suffix(".png")) as copy:
            shutil.copyfile(shown, copy)
    return file


def enter_finished(preset: str) -> list[Path]:
    """Enter every finished run of a preset that lies in data_cache; returns the files written."""
    entered = []
    for file in sorted((cache_dir() / "runs" / preset).glob("*/result.json")):
        settings = read(file, keys=("settings",))["settings"]
        changes = {k: v for k, v in settings.items() if k not in ("preset", "method", "seed")}
        entered.append(enter(Run(PRESETS[preset].replace(**changes), settings["method"], settings["seed"])))
    return entered


def results(preset: str, where: dict | None = None) -> list[dict]:
    """A preset's results, by name: all of them; or those whose settings are the preset's own but for
    ``where``, which may name the method and the seed too."""
    files = sorted((results_dir() / preset).glob("*.json"))
    found = [read(file, LEDGER, ("settings", "metrics")) for file in files]
    return found if where is None else [result for result in found if _has(result["settings"], preset, where)]


def samples(preset: str, where: dict) -> dict[int, Tensor]:
    """Samples of each result that :func:`results` finds, by seed, uint8 ``[N, C, H, W]``: the same noise
    for each method of a seed. Results without kept samples are left out."""
    found = {}
    for result in results(preset, where):
        file = results_dir() / preset / f"{result['run']}.png"
        if file.is_file():
            strip = torch.from_numpy(np.array(Image.open(file)))
            strip = strip[None] if strip.ndim == 2 else strip.permute(2, 0, 1)
            images = strip.split(strip.shape[1], dim=2)  # square ones, side by side
            found[result["settings"]["seed"]] = torch.stack(images)
    return found


def measured(preset: str) -> list[dict]:
    """What ``dkdm measure`` found of a preset's speed, one result per seed."""
    files = sorted((results_dir() / preset / "measured").glob("*.json"))
    return [read(file, LEDGER) for file in files]


def on_gpu(name: str) -> dict:
    """What a GPU measured, from ``book/results/gpu/<name>.json``; its ``note`` says what not to quote."""
    return read(results_dir() / "gpu" / f"{name}.json", LEDGER)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (nan for one value) of ``n`` seeds; printed as "mean ± std",
    the mean to three significant digits."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        digits = max(0, 2 - math.floor(math.log10(abs(self.mean)))) if self.mean else 2
        spread = "" if self.n < 2 else f" ± {self.std:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def spread(values: list[float]) -> Spread:
    """The spread of some values, one per seed."""
    return Spread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values)
    )


def by_seed(preset: str, metric: str, where: dict) -> dict[int, float]:
    """A metric of one method's results, by seed; ``where`` names the method and what differs. A metric
    with a prime, as ``digits-FID'``, is the one against the teacher's own distribution; :data:`EPS_ERRORS`
    are the errors of a student's eps against its teacher's, by quarter of the levels."""
    values = {}
    for result in results(preset, where):
        kind, name = ("against_teacher", metric[:-1]) if metric.endswith("'") else ("metrics", metric)
        found = result.get(kind, {})
        if metric in EPS_ERRORS:
            found = dict(zip(EPS_ERRORS, result.get("teacher_error", ()), strict=False))
        if name in found:
            values[result["settings"]["seed"]] = found[name]
    return values


def over_seeds(preset: str, metric: str, where: dict) -> Spread | None:
    """The spread of :func:`by_seed` over its seeds; None where there are none."""
    values = by_seed(preset, metric, where)
    return spread(list(values.values())) if values else None


def summary(preset: str, metric: str, where: dict | None = None) -> dict[str, Spread]:
    """The spread of a metric over the ledger's seeds, by method.

    Only results with the preset's own settings count, but for those that ``where`` names.
    """
    found = {m: over_seeds(preset, metric, {**(where or {}), "method": m}) for m in METHODS}
    return {method: spread for method, spread in found.items() if spread}


def _has(settings: dict, preset: str, where: dict) -> bool:
    """Whether a result has the settings ``where`` and is otherwise the preset's own; how often it was
    scored on the way makes no difference, nor do the iterations where students have the same time."""
    own = dataclasses.asdict(PRESETS[preset]) | where
    free = ON_THE_WAY | ({"iterations"} - where.keys() if PRESETS[preset].equal_time else set())
    return (
        all(value == own[name] for name, value in settings.items() if name in own and name not in free)
        and where.keys() <= settings.keys()
    )


def cell(preset: str, metric: str, where: dict) -> str:
    """A metric of one method over the ledger's seeds, as it stands in a table: a spread, or "not run"."""
    return str(over_seeds(preset, metric, where) or Verdict.NOT_RUN)


class Table(str):
    """A Markdown table that a notebook shows as one."""

    @classmethod
    def of(cls, names, rows, align: str = "", before: str = "", after: str = "") -> Table:
        """names: of the columns. rows: of cells, text. align: ``l`` or ``r`` for each column; by default all
        but the first are numbers, set to the right. before, after: paragraphs around the table."""
        align = align or "l" + "r" * (len(names) - 1)
        rule = "|" + "|".join({"l": "---", "r": "--:"}[side] for side in align) + "|"
        head, *lines = ("| " + " | ".join(cells) + " |" for cells in (names, *rows))
        return cls("\n\n".join(filter(None, (before, "\n".join([head, rule, *lines]), after))))

    def _repr_markdown_(self) -> str:
        return str(self)


# Chapter 6's five ways and their teacher.
WAYS = ("teacher", "data-based", "data-free", "iterative", "shuffled", "dynamic")


def table(preset: str, methods: tuple[str, ...] = WAYS, where: dict | None = None) -> Table:
    """The ledger's results of a preset: mean and sample standard deviation over seeds, best first.

    where: settings other than the preset's own, as in :func:`summary`.
    """
    found = results(preset, where or {})
    rows, metrics = [], [m for m in (found[0]["metrics"] if found else {}) if not m.startswith("N")]
    for method in methods:
        mine = [r for r in found if r["settings"]["method"] == method]
        if mine:
            seeds = ", ".join(str(r["settings"]["seed"]) for r in mine)
            values = [[r["metrics"][m] for r in mine if m in r["metrics"]] for m in metrics]
            spreads = [spread(each) if each else "not finite" for each in values]
            cost = mine[0].get("teacher_evaluations", 0)
            rows.append((spreads[0], [method, *map(str, spreads), f"{cost:,}", seeds]))
    if not rows:
        return Table(f"Ledger, preset `{preset}`: {Verdict.NOT_RUN}.")
    own = PRESETS[preset]
    training = "the same time" if own.equal_time else f"{own.iterations:,} iterations"
    head = (
        f"Ledger, preset `{preset}`: students of {training}, {own.steps} sampling steps, N = {own.samples:,}"
    )
    best_first = [cells for _, cells in sorted(rows, key=lambda row: getattr(row[0], "mean", math.inf))]
    return Table.of(["method", *metrics, "teacher evaluations", "seeds"], best_first, before=head)


def write_readme(readme: Path) -> None:
    """Put the digits' table between README's two marks."""
    text = readme.read_text(encoding="utf-8")
    begin, end = "<!-- results: written by `dkdm readme` from book/results/ -->\n", "<!-- end of results -->"
    if begin not in text or end not in text:
        raise ValueError(f"{readme}: found no place for the table, expected the lines {begin!r} and {end!r}")
    before, rest = text.split(begin)
    readme.write_text(before + begin + table("digits") + "\n" + end + rest.split(end)[1], encoding="utf-8")
