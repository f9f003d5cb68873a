"""The sweep as a graph of files: what it would make, what it makes side by side, and what a kill costs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dkdm_lab.experiments import paper, presets
from dkdm_lab.experiments.runs import METHODS
from dkdm_lab.networks import NETWORKS
from dkdm_lab.system.options import settings_of
from dkdm_lab.system.paths import results_dir

ROOT = Path(__file__).parents[1]
TINY = "batch_size=16,iterations=20,curve=1,steps=5,samples=50,synthetic_images=40,synthetic_steps=5"
TOY = paper.sweep(presets.get("toy", **settings_of(TINY)), (0,))


@pytest.mark.parametrize("preset", [name for name in paper.CAST if name not in paper.NATURAL_SMALL])
def test_the_sweep_has_all_that_tables_claims_and_curves_look_up(preset):
    runs = paper.sweep(presets.get(preset), (0,))
    assert {network for run, _ in runs.values() for network in (run.preset.teacher, run.preset.student)} <= {
        *NETWORKS
    }
    wheres = [where for _, _, where in paper.figure_curves(preset) if where]
    wheres += [n.run(preset) for n in paper.NUMBERS if n.preset == preset and n.place != "Table 9"]
    made = [{**run.settings, "method": run.method} for run, _ in runs.values()]
    for where in wheres:
        assert any(where.items() <= settings.items() for settings in made), where


def test_what_a_run_stands_on_is_in_the_sweep():
    runs = paper.sweep(presets.get("digits"), (0, 1))
    for run, _ in runs.values():
        for needed in run.needs():
            assert needed.name in runs
    assert {run.seed for run, _ in runs.values()} == {0, 1}


def test_the_sweep_of_the_digits_looks_up_the_ledgers_own_names():
    """Nearly all of it lies there: a name built otherwise would be found missing."""
    names = paper.sweep(presets.get("digits"), (0, 1, 2))
    there = [name for name in names if (ROOT / "book" / "results" / "digits" / f"{name}.json").is_file()]
    assert len(there) > 0.9 * len(names)


def test_distances_to_the_teacher_are_asked_for_where_table_11_has_them():
    asked = [name for name, (_, primed) in paper.sweep(presets.get("digits"), (0,)).items() if primed]
    assert sorted(asked) == [
        "data-free-seed0-student=digits-teacher",
        "dynamic-seed0-student=digits-teacher",
        "teacher-seed0",
    ]


# -- Snakemake itself ----------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, cache, yardstick, monkeypatch):
    """A function that starts Snakemake on a tiny sweep of the toy, with a ledger of its own."""
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # Snakemake's own

    def start(*targets, options=()):
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile"]
        command += ["--cores", "2", "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", *options]
        command += ["--config", "preset=toy", "seeds=0", f"set={TINY}", "--", *targets]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            process_group=0,
        )

    return start


def result(method):
    """Where the toy's result of a method will lie."""
    (run,) = [run for run, _ in TOY.values() if run.method == method]
    return results_dir() / "toy" / f"{run.name}.json"


def test_a_dry_run_prints_the_graph_and_makes_nothing(sweep):
    dry = sweep(options=("--dry-run",))
    output, _ = dry.communicate()
    assert dry.returncode == 0, output
    assert re.search(rf"^run +{len(METHODS)}$", output, re.MULTILINE)
    for method in METHODS:
        assert result(method).name in output
    assert not results_dir().exists() or not any(results_dir().rglob("*.json"))


def test_a_kill_loses_nothing_that_was_finished(sweep):
    """It comes when two of the four experiments are done and another one is under way."""
    targets = [os.path.relpath(result(m), ROOT) for m in ("data-based", "shuffled", "dynamic")]
    killed = sweep(*targets)
    for line in killed.stdout:
        if line.startswith("2 of 4 steps"):
            os.killpg(killed.pid, signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    files = [result(method) for method in ("teacher", "data-based", "shuffled", "dynamic")]
    written = {file: file.stat().st_mtime_ns for file in files if file.is_file()}
    assert len(written) == 2
    second = sweep(*targets)
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert "2 of 2 steps" in output
    assert all(file.is_file() for file in files)
    assert written == {file: file.stat().st_mtime_ns for file in written}
