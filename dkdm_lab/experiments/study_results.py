"""The ledger's results of studies, ``book/results/<study>/studies/seed<n>/``, looked up and as tables."""

from __future__ import annotations

from collections.abc import Iterable

from dkdm_lab.experiments.artifact import read
from dkdm_lab.experiments.ledger import LEDGER, Spread, Table, spread
from dkdm_lab.experiments.parts import NAMES, Part, ledger_folder
from dkdm_lab.experiments.study import STUDIES, get
from dkdm_lab.experiments.verdict import Verdict


def entered(study: str, name: str, **changes) -> list[dict]:
    """The ledger's results of a part, one per seed; only those with the study's settings as they are now, but
    for ``changes``."""
    found = []
    for folder in sorted(ledger_folder(STUDIES[study]).glob("seed*")):
        part = Part(get(study, **changes), name, int(folder.name.removeprefix("seed")))
        file = folder / f"{part.label}.json"
        result = read(file, LEDGER) if file.is_file() else {}
        found += [result] if result.get("settings") == part.settings else []
    return found


def by_seed(study: str, name: str, metric: str, **changes) -> dict[int, float]:
    """A score of a part, by seed, from the ledger; without the prefix that digits' scores have there."""
    prefixed = STUDIES[study].prefix + metric
    return {
        result["settings"]["seed"]: result["metrics"].get(metric, result["metrics"].get(prefixed))
        for result in entered(study, name, **changes)
    }


def over_seeds(study: str, name: str, metric: str, **changes) -> Spread | None:
    """The spread of a score of a part over the ledger's seeds; None where there are none."""
    values = by_seed(study, name, metric, **changes)
    return spread(list(values.values())) if values else None


def cell(study: str, name: str, metric: str, **changes) -> str:
    """A part's score over seeds as it stands in a table. ``parameters``, ``MiB`` and ``milliseconds`` (mean
    and deviation over all timed passes, of all seeds) are no scores but stand there too."""
    results = entered(study, name, **changes)
    if not results:
        return str(Verdict.NOT_RUN)
    if metric == "parameters":
        return f"{results[0][metric]:,}"
    if metric == "MiB":
        return f"{results[0][metric]:.2f}"
    if metric == "milliseconds":
        return str(spread([value for result in results for value in result[metric]]))
    return str(over_seeds(study, name, metric, **changes))


SCORES = ("sqrt-FID", "FID", "EMD", "MMD", "1-NN")


def table(study: str, names: Iterable[str], columns: Iterable[str], **changes) -> Table:
    """Parts of a study from the ledger, one row per part, mean and deviation over seeds."""
    names, columns = list(names), list(columns)
    rows = [[NAMES[name], *(cell(study, name, column, **changes) for column in columns)] for name in names]
    seeds = [result["settings"]["seed"] for name in names for result in entered(study, name, **changes)]
    own = STUDIES[study]
    of = ", ".join(map(str, sorted(set(seeds)))) or "none"
    head = f"Ledger, study `{study}`, seeds {of}: N = {own.samples:,}, features: {own.features}"
    return Table.of(["", *columns], rows, before=head)
