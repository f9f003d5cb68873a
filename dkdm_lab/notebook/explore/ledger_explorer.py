"""Every number of the ledger, and where it comes from."""

from __future__ import annotations

import html

from IPython.display import HTML

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.experiments.runs import METHODS
from dkdm_lab.notebook.explore.look import (
    Control,
    Exploration,
    captioned,
    fragments_html,
    panels,
)
from dkdm_lab.system.figures import COLOURS

OWN, ALL = "the preset's own", "all"


class LedgerExplorer(Exploration):
    """A metric of a preset's runs by method and seed, and how each number was made.

    preset: the first one shown. The twin shows, for each preset, the metric that decides there.
    """

    title = "Ledger: every number, and how it was made"

    def __init__(self, preset: str = "digits"):
        found = [name for name in PRESETS if ledger.results(name)]
        if not found:
            raise ValueError("ledger: found no results at all, expected some in book/results")
        metrics = _metrics(preset) if preset in found else [""]
        seeds = sorted({r["settings"]["seed"] for name in found for r in ledger.results(name)})
        super().__init__(
            {
                "preset": Control("preset", found, preset),
                "metric": Control("metric", metrics, metrics[0]),
                "settings": Control("settings", [OWN, ALL], OWN, [OWN]),
                "methods": Control("methods", METHODS, METHODS, several=True),
                "seeds": Control("seeds", seeds, tuple(seeds), several=True),
            }
        )

    def changed(self, names: set[str]) -> None:
        metrics = _metrics(self.state["preset"])
        if list(self.controls["metric"].options) == metrics:
            return
        self.controls["metric"] = Control("metric", metrics, metrics[0])
        self.state["metric"] = metrics[0]
        if "metric" in self.widgets:
            self.widgets["metric"].options = metrics

    @property
    def rows(self) -> dict[str, list[tuple[float, dict]]]:
        """The chosen numbers with their results, by method and by what is not the preset's own."""
        chosen, metric = self.state, self.state["metric"]
        rows: dict[str, list[tuple[float, dict]]] = {}
        for result in ledger.results(chosen["preset"], {} if chosen["settings"] == OWN else None):
            settings, value = result["settings"], _value(result, metric)
            if value is None or settings["method"] not in chosen["methods"]:
                continue
            if settings["seed"] in chosen["seeds"]:
                others = result["run"].partition(f"-seed{settings['seed']}")[2].removeprefix("-")
                rows.setdefault(f"{settings['method']} {others}".strip(), []).append((value, result))
        by_mean = {name: ledger.spread([value for value, _ in found]).mean for name, found in rows.items()}
        return {name: rows[name] for name in sorted(rows, key=by_mean.get)}

    def view(self) -> str:
        preset, metric, rows = self.state["preset"], self.state["metric"], self.rows
        if not rows:
            return f"<p>Preset {html.escape(preset)}: no such run has {html.escape(metric)}.</p>"
        spreads = {name: ledger.spread([value for value, _ in found]) for name, found in rows.items()}
        lines = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{spreads[name]}</td>"
            f"<td>{_provenance(found, preset)}</td></tr>"
            for name, found in rows.items()
        )
        head = (
            f"<tr><th>method</th><th>{html.escape(metric)}</th><th>each seed, and how it was made</th></tr>"
        )
        return f'{self._figure(rows)}<div style="overflow-x:auto"><table>{head}{lines}</table></div>'

    def _figure(self, rows: dict[str, list[tuple[float, dict]]]) -> str:
        figure, (axis,) = panels((6.4,), 0.28 * len(rows) + 0.9)
        for place, (name, found) in enumerate(reversed(rows.items())):
            values = [value for value, _ in found]
            axis.plot(values, [place] * len(values), "o", color=COLOURS.get(name.split(" ")[0], "#888888"))
        axis.set_yticks(range(len(rows)), list(reversed(rows)))
        axis.set(xlabel=self.state["metric"], ylim=(-0.6, len(rows) - 0.4))
        if all(value > 0 for found in rows.values() for value, _ in found):
            axis.set_xscale("log")
        text = f"Preset {self.state['preset']}: {self.state['metric']}, a point per seed."
        return captioned(figure, text)

    def twin(self) -> HTML:
        first, presets = dict(self.state), list(self.controls["preset"].options)
        views = []
        for preset in presets:
            self.set(preset=preset)
            views.append(self.view())
        self.set(preset=first["preset"])
        return fragments_html(views, {"preset": presets}, [presets.index(first["preset"])])


def _metrics(preset: str) -> list[str]:
    """The metrics that a preset's results have, the one that decides first; a prime stands for those against
    the teacher's own distribution."""
    found: dict[str, None] = {PRESETS[preset].metric: None}
    for result in ledger.results(preset):
        found |= dict.fromkeys(name for name in result["metrics"] if not name.startswith("N"))
        own = result.get("against_teacher", {})
        found |= dict.fromkeys(f"{name}'" for name in own if not name.startswith("N"))
    return list(found)


def _value(result: dict, metric: str) -> float | None:
    kind, name = ("against_teacher", metric[:-1]) if metric.endswith("'") else ("metrics", metric)
    return result.get(kind, {}).get(name)


def _provenance(found: list[tuple[float, dict]], preset: str) -> str:
    """A folded line per number: seed, value, and with what it was made."""
    lines = []
    for value, result in sorted(found, key=lambda pair: pair[1]["settings"]["seed"]):
        made, metrics = result["made_with"], result["metrics"]
        counts = f"N = {metrics['N']:,}, " if "N" in metrics else ""
        steps = f"{result['settings']['steps']} sampling steps, " if "steps" in result["settings"] else ""
        text = (
            f"{counts}{steps}{made['hardware']}, torch {made['torch']}, "
            f"diffusers {made['diffusers']}, commit {made['commit']}, {result['wall_s']:,.0f} s; "
            f"book/results/{preset}/{result['run']}.json"
        )
        lines.append(
            f"<details><summary>seed {result['settings']['seed']}: {value:.4g}</summary>"
            f"{html.escape(text)}</details>"
        )
    return "".join(lines)
