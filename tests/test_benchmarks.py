"""The benchmarks: that they run and what their rows say, not how fast this machine is."""

import importlib.util
import json
from pathlib import Path

import pytest

from dkdm_lab.experiments import presets, speed
from dkdm_lab.pools import WARMUPS

pytestmark = pytest.mark.usefixtures("yardstick")  # a run names the classifier's hash

TINY = ["--set", "batch_size=16", "--set", "rho=0.05"]


def benchmark(name):
    file = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(printed):
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]


def test_a_step_is_measured_beside_its_parts(capsys, tmp_path):
    out = tmp_path / "step.json"
    benchmark("step").main([*TINY, "--iterations", "1", "--repeats", "1", "--out", str(out)])
    rows = rows_of(capsys.readouterr().out)
    assert [row["source"] for row in rows] == ["data-based", "iterative", "shuffled", "dynamic"]
    assert [row["teacher"] == "0%" for row in rows] == [True, False, False, False]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["settings"]["batch_size"] == 16 and "commit" in found["made_with"]
    for result in found["results"]:
        parts = result["teacher"] + result["student"]
        assert result["ratio"] == pytest.approx(result["whole"] / parts)


def test_the_ratio_is_of_what_ran_side_by_side(monkeypatch):
    """By a clock that this test moves: each look at it is a second later than the one before."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(speed, "_moment", lambda: float(next(ticks)))
    preset = presets.get("digits", batch_size=4, rho=0.05)
    found = speed.overhead(preset, "dynamic", iterations=2, repeats=3)
    assert (found.whole, found.teacher, found.student, found.ratio) == (0.5, 0.5, 0.5, 0.5)


def test_switches_are_measured_alone_and_together(monkeypatch, capsys):
    module, asked = benchmark("step"), []

    def overhead(preset, method, **options):
        asked.append((method, preset.mixed_precision, options["channels_last"], options.get("compile")))
        return speed.Overhead(2.0, 0.5, 1.0, 4 / 3)

    monkeypatch.setattr(speed, "overhead", lambda *a, **o: overhead(*a, **{"channels_last": True, **o}))
    module.main(["--methods", "dynamic", "--switches"])
    assert asked == [
        ("dynamic", "no", False, None),
        ("dynamic", "no", True, None),
        ("dynamic", "bf16", False, None),
        ("dynamic", "bf16", True, None),
        ("dynamic", "no", False, "default"),
        ("dynamic", "bf16", True, "default"),
    ]
    assert rows_of(capsys.readouterr().out)[0]["whole / parts"] == "1.333"


def test_an_unknown_switch_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark("step").main(["--switches", "bf16,fast"])
    assert "--switches: found 'fast', expected one of plain, channels_last, bf16, " in capsys.readouterr().err


def test_warm_ups_are_compared_by_cost_and_score(capsys, tmp_path):
    out, changes = tmp_path / "warmup.json", {
        "teacher": "digits-53k", "student": "digits-53k", "teacher_iterations": 1, "iterations": 2,
        "batch_size": 4, "rho": 0.05, "samples": 20, "curve": 1, "steps": 5,
    }  # fmt: skip
    settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    benchmark("warmup").main(["--out", str(out), "--seeds", "0,1", *settings])
    rows, found = rows_of(capsys.readouterr().out), json.loads(out.read_text(encoding="utf-8"))["warmups"]
    assert [row["warm-up"] for row in rows] == list(WARMUPS) == list(found)
    size = 5 * 4
    assert found["harvest"]["evaluations"] == size < found["respaced"]["evaluations"] <= 10 * size
    assert 25 * size < found["full"]["evaluations"] < 75 * size  # 49.5 a sample on average
    assert set(found["full"]["scores"]) == {"0", "1"}
    assert float(rows[2]["of the first's"]) == pytest.approx(size / found["full"]["evaluations"], abs=1e-3)


def test_the_energy_that_moves_leave_is_printed_by_method(capsys, tmp_path):
    """64 samples of 64 numbers show what is lost, not more: the bounds are five deviations wide."""
    out = tmp_path / "moves.json"
    sizes = ["--T", "20", "--s2", "0.25", "--strides", "4", "--dimensions", "64", "--samples", "64"]
    benchmark("moves").main([*sizes, "--out", str(out)])
    rows = rows_of(capsys.readouterr().out)
    names = ["small", "small", "large", "analytic", "ddim", "learned", "stretched"]
    assert [row["variance"] for row in rows[::2]] == names
    turned = {
        row["variance"]: row["turned"] for row in json.loads(out.read_text(encoding="utf-8"))["results"][1:]
    }
    assert turned["small"][1] < 0.75 and turned["large"][1] > 1.25
    assert 0.85 < turned["analytic"][1] < 1.15
