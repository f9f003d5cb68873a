"""Chapters without a browser: papermill runs each in a process of its own, several side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dkdm_lab.experiments import ledger, presets
from dkdm_lab.experiments.preset import Preset
from dkdm_lab.system.paths import BOOK, cache_dir
from dkdm_lab.system.settings import Count, Levels, Seed, accept, kind, kinds

DEFAULT_PRESET = "digits"


def chapters(which: list[str] | None = None, book: Path = BOOK) -> list[Path]:
    """The sources of the book's chapters, all or those whose name or number is listed, in order."""
    sources = sorted(book.glob("[0-9][0-9]_*.py"))
    if which is None:
        return sources
    by_name = {source.stem: source for source in sources} | {source.stem[:2]: source for source in sources}
    for name in which:
        if name not in by_name:
            raise ValueError(f"chapter: found {name!r}, expected one of {', '.join(s.stem for s in sources)}")
    return sorted({by_name[name] for name in which})


# What the parameters of chapters may be, by their names.
_PARAMETERS = {
    "preset": str, "latent": str, "labelled": str, "study": str, "live": bool, "seed": Seed,
    "iterations": Count, "T": Levels, "seeds": tuple[Seed, ...], "places": tuple[str, ...], "clock": bool,
    "changes": dict, "adjust": dict,
}  # fmt: skip


def _parameters(preset: str, settings: dict, known: Iterable[str]) -> dict:
    """Papermill's parameters: those that chapters name, and settings of the preset as their ``changes``, all
    checked as the command line checks them."""
    own = {name: value for name, value in settings.items() if name in known}
    changes = {name: value for name, value in settings.items() if name not in known}
    for name, value in own.items():
        if name in _PARAMETERS:
            accept(name, kind(_PARAMETERS[name]), value)
    if unknown := [name for name in changes if name not in kinds(Preset)]:
        try:
            presets.get(preset).replace(**{unknown[0]: None})
        except ValueError as error:
            raise ValueError(f"no chapter has such a parameter ({', '.join(known)}) and {error}") from error
    for name in ("preset", "latent", "labelled"):
        presets.get(own.get(name, DEFAULT_PRESET))
    presets.get(own.get("preset", preset)).replace(**{**own.get("changes", {}), **changes})
    if "study" in own or "adjust" in own:
        from dkdm_lab.experiments import studies

        studies.get(own.get("study", "digits"), **own.get("adjust", {}))
    return {
        **({} if preset == DEFAULT_PRESET else {"preset": preset, "live": False}),
        **({"changes": changes} if changes else {}),
        **own,
    }


def run_chapters(
    preset: str = DEFAULT_PRESET,
    which: list[str] | None = None,
    settings: dict | None = None,
    book: Path = BOOK,
    jobs: int = 1,
) -> list[Path]:
    """Execute chapters, ``jobs`` at a time; returns the notebooks written, in the chapters' order.

    Side by side each has its share of the cores. Runs that several chapters need are made once: the others
    wait for them.

    The default preset without ``settings`` renews the book's own notebooks; anything else is written to
    ``data_cache/batch/<preset>/``, so that the committed book stays what it is. settings: parameters of the
    chapters, or settings of the preset; a name that is neither is refused before anything runs. What another
    preset's runs found is entered into the ledger, where the chapters of any preset show it.

    A chapter that fails leaves its notebook as it was; what ran is kept in ``data_cache/failed/``, those
    that were not begun stay so, and RuntimeError names the first that failed.
    """
    # Reading notebooks takes seconds to import, and who asks for the chapters' names reads none.
    from dkdm_lab.notebook.execute import parameter_names

    if jobs < 1:
        raise ValueError(f"jobs: found {jobs}, expected at least 1")
    if presets.get(preset).data == "toy":
        raise ValueError(
            f"preset {preset}: the chapters show images, and it has none; they use it by themselves where "
            "points say more (its runs: dkdm run --ledger --preset toy)"
        )
    sources = chapters(which, book)
    known = sorted(set().union(*map(parameter_names, sources)))
    parameters = _parameters(preset, settings or {}, known)
    folder = book if not parameters else cache_dir() / "batch" / preset
    targets = [folder / f"{source.stem}.ipynb" for source in sources]
    failures = cache_dir() / "failed"
    failed: list[str] = []
    at_work: list[subprocess.Popen] = []
    share = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ if jobs == 1 else {**os.environ, "OMP_NUM_THREADS": str(share)}

    def run(number: int) -> None:
        source = sources[number]
        if failed:
            return
        # In one piece, whoever else prints.
        print(f"[{number + 1}/{len(sources)}] {source.stem}\n", end="", flush=True)
        mine = {name: value for name, value in parameters.items() if name in parameter_names(source)}
        # One process a chapter: kernels leak, and a crash takes no other chapter along.
        execute = [sys.executable, "-m", "dkdm_lab.notebook.execute"]
        command = [*execute, source, targets[number], failures, repr(mine)]
        child = subprocess.Popen(command, env=environment)
        at_work.append(child)
        if child.wait():
            failed.append(source.stem)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(run, range(len(sources))))
        except KeyboardInterrupt:
            failed.append("stopped")
            for child in at_work:
                child.terminate()
            raise
    if failed:
        raise RuntimeError(f"{failed[0]} failed; the chapters not yet begun were not run")
    if preset != DEFAULT_PRESET:
        for file in ledger.enter_finished(preset):
            print(f"ledger: {preset}/{file.name}", flush=True)
    return targets
