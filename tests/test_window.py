"""The window's script: what it would make, what travels, and that nothing is lost or overwritten."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dkdm_lab.experiments import ledger, presets, speed
from dkdm_lab.experiments.runs import Run
from dkdm_lab.system.files import write_json

ROOT = Path(__file__).parents[1]


def _script():
    spec = importlib.util.spec_from_file_location("window", ROOT / "workflow" / "window.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["window"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


window = _script()
CIFAR16 = presets.get("cifar16", pipeline=None)  # whatever lies in book/models
SHORT = presets.get("cifar10-short")


def options_of(job):
    return " ".join(job.command)


def by_name(jobs):
    found = {job.name: job for job in jobs}
    assert len(found) == len(jobs)
    return found


def every_need_comes_first(jobs):
    seen = set()
    for job in jobs:
        assert set(job.after) <= seen
        seen.add(job.name)
    return True


# -- the lists -----------------------------------------------------------------------------------------


def test_the_first_window_makes_the_ledger_then_more_samples_then_measures(tmp_path):
    jobs = window.window_1(CIFAR16, {}, (0, 1, 2), 10_000, tmp_path)
    assert every_need_comes_first(jobs)
    by_name(jobs)
    runs = [job for job in jobs if job.timed]
    # Eight students of three seeds, six more of one; the teacher, its FID', its images: each of it twice.
    assert len(runs) == 2 * (8 * 3 + 6 + 3)
    more = ["samples=10000" in options_of(job) for job in runs]
    assert more == sorted(more) and sum(more) == len(runs) / 2
    assert [job.name for job in jobs if job.alone] == [
        "step-cifar10-switches-dynamic",
        "step-cifar10-switches-data-based",
    ]
    assert jobs[-2:] == [job for job in jobs if job.alone]


def test_what_the_ledger_has_is_not_made_again_but_what_others_need_of_it_is(tmp_path):
    every = window.window_1(CIFAR16, {}, (0,), 10_000, tmp_path)
    names = [job.name.removeprefix("cifar16/") for job in every if job.timed and "FID'" not in job.name]
    free = next(name for name in names if name.startswith("data-free") and "samples" not in name)
    have = {name: {"against_teacher": {}} for name in names if name != free}
    jobs = [job for job in window.window_1(CIFAR16, have, (0,), 10_000, tmp_path) if job.timed]
    assert [options_of(job).split("--method ")[1].split()[0] for job in jobs] == [
        "teacher",
        "synthetic",
        "data-free",
    ]
    assert ["--ledger" in job.command for job in jobs] == [False, False, True]
    del have[names[0]]["against_teacher"]  # of the teacher: it is there, its FID' is not
    primed = [job for job in window.window_1(CIFAR16, have, (0,), 10_000, tmp_path) if "FID'" in job.name]
    assert len(primed) == 1 and "--against-teacher" in primed[0].command


def test_a_shipped_teacher_is_no_job_of_its_own_for_others(monkeypatch, tmp_path):
    monkeypatch.setattr("dkdm_lab.experiments.shipped_models.fingerprint", lambda name: "0" * 12)
    preset = presets.get("cifar16")
    jobs = by_name(window.window_1(preset, {}, (0,), 10_000, tmp_path))
    assert jobs["cifar16/dynamic-seed0-rho=1.0"].after == ()
    assert jobs["cifar16/data-free-seed0"].after == ("cifar16/synthetic-seed0",)
    assert jobs["cifar16/teacher-seed0"].after == ("cifar16/synthetic-seed0",)  # of its FID'


def test_the_second_window_first_trains_the_teacher_and_measures(tmp_path):
    teacher, plan = window.window_2(SHORT, {}, (0,), None, tmp_path)
    assert teacher.name == "cifar10-short/teacher-seed0" and "--ledger" in teacher.command
    assert plan.alone and plan.after == (teacher.name,)
    assert window.window_2(SHORT, {"teacher-seed0": {}}, (0,), None, tmp_path)[0].after == ()


PLAN = {
    "students": {
        "dynamic-seed0": {"iterations": 3000},
        "dynamic-seed0-rho=0.04-stride=100": {"iterations": 3100},
        "data-free-seed0": {"iterations": 1900},
        "data-based-seed0": {"iterations": 4000},
    }
}


def test_then_students_have_the_iterations_of_the_plan(tmp_path):
    have = {"teacher-seed0": {}}
    jobs = by_name(window.window_2(SHORT, have, (0,), PLAN, tmp_path))
    students = {name for name in jobs if "iterations=" in name}
    assert students == {
        "cifar10-short/dynamic-seed0-iterations=3000",
        "cifar10-short/dynamic-seed0-iterations=3100-rho=0.04-stride=100",
        "cifar10-short/data-free-seed0-iterations=1900",
        "cifar10-short/data-based-seed0-iterations=4000",
    }
    primed = {name for name, job in jobs.items() if "--against-teacher" in job.command}
    assert primed == {
        "cifar10-short/teacher-seed0, FID'",
        "cifar10-short/dynamic-seed0-iterations=3000",
        "cifar10-short/data-free-seed0-iterations=1900",
    }
    assert every_need_comes_first(jobs.values())


def test_the_third_window_has_the_other_seeds_and_the_same_teacher(tmp_path):
    jobs = window.window_2(SHORT, {"teacher-seed0": {"against_teacher": {}}}, (1, 2), PLAN, tmp_path)
    assert sum("iterations=" in job.name for job in jobs) == 8
    teachers = [job for job in jobs if "/teacher-" in job.name]
    assert [job.name for job in teachers] == ["cifar10-short/teacher-seed0"]
    assert "--ledger" not in teachers[0].command  # entered before; here only if it was not carried along


# -- equal time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "step", "iterations"), [(0.0, 0.0625, 1200), (25.0, 0.0625, 800), (4.9, 0.25, 280)]
)
def test_what_comes_before_is_paid_in_iterations(before, step, iterations):
    assert speed.iterations_within(75.0, before, step) == iterations


def test_a_time_too_short_for_one_iteration_is_refused():
    with pytest.raises(ValueError, match="seconds: found 10, expected at least 12"):
        speed.iterations_within(10.0, 11.0, 1.0)


def test_the_measurement_has_an_entry_for_each_student(monkeypatch):
    seconds = {"dynamic": 0.05, "data-based": 0.02}
    before = {"dynamic": 5.0, "data-based": 0.0, "data-free": 25.0}
    cost = lambda preset, method: speed.Cost(seconds[method], {}, None, 0)  # noqa: E731
    monkeypatch.setattr(speed, "training_cost", lambda p, m: cost(p, "data-based" if m == "data-free" else m))
    monkeypatch.setattr(speed, "seconds_before", lambda preset, method: before[method])
    monkeypatch.setattr("dkdm_lab.system.provenance.provenance", dict)
    found = window.equal_time(SHORT, 75.0)["students"]
    assert {name: one["iterations"] for name, one in found.items()} == {
        "dynamic-seed0": 1400,
        "dynamic-seed0-rho=0.04-stride=100": 1400,
        "data-free-seed0": 2500,
        "data-based-seed0": 3750,
    }
    assert found.keys() == PLAN["students"].keys()


def test_seconds_before_are_those_of_the_warm_up_or_the_images(monkeypatch):
    preset = presets.get("digits", batch_size=4, rho=0.05, synthetic_images=600)
    assert speed.seconds_before(preset, "data-based") == 0
    assert speed.seconds_before(preset, "iterative") >= 0
    assert speed.seconds_before(preset, "dynamic") > 0
    monkeypatch.setattr(speed, "sampling_seconds", lambda name, n, steps, repeats: 2.0)
    assert speed.seconds_before(preset, "data-free") == 2.0 * 600 / 256


def test_the_ledger_ignores_iterations_where_students_have_the_same_time(tmp_path, monkeypatch, yardstick):
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path))
    for preset, iterations in (("cifar10-short", 1234), ("digits", 1234)):
        run = Run(presets.get(preset, iterations=iterations), "dynamic")
        write_json(
            tmp_path / preset / f"{run.name}.json",
            {"run": run.name, "settings": run.settings, "metrics": {presets.get(preset).metric: 7.0}},
        )
    assert ledger.by_seed("cifar10-short", "FID", {"method": "dynamic"}) == {0: 7.0}
    assert ledger.by_seed("cifar10-short", "FID", {"method": "dynamic", "iterations": 99}) == {}
    assert ledger.by_seed("digits", "digits-FID", {"method": "dynamic"}) == {}
    assert "students of the same time" in ledger.table("cifar10-short")


# -- the data ------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Images and weights of chance, packed in small files; with what went in."""
    monkeypatch.setattr(window, "TILE", 20)
    monkeypatch.setattr(window, "PIECE", 1000)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (53, 8, 6, 3), np.uint8)  # neither square nor a whole last row
    weights = tmp_path / "weights.pth"
    weights.write_bytes(random.normal(size=2500).astype(np.float32).tobytes() + b"end")
    manifest = window.pack_data(images, weights, tmp_path / "parts", part=32_000)
    return images, weights.read_bytes(), tmp_path / "parts", manifest


def test_data_come_back_to_the_bit_in_files_that_are_small_enough(packed):
    images, raw, folder, manifest = packed
    assert len(manifest["parts"]) > 1
    assert all((folder / part["name"]).stat().st_size <= 32_000 for part in manifest["parts"])
    x, weights, name = window.unpack_data(folder)
    assert np.array_equal(x, images) and x.dtype == np.uint8
    assert (weights, name) == (raw, "weights.pth")


def test_unpacking_fills_the_cache_and_leaves_what_is_there(packed, cache):
    images, raw, folder, manifest = packed
    window.place_data(folder)
    assert np.array_equal(np.load(cache / "cifar10" / "train.npz")["x"], images)
    assert (cache / "weights.pth").read_bytes() == raw
    (folder / manifest["parts"][0]["name"]).unlink()
    window.place_data(folder)  # all is there


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_part_is_refused_in_one_sentence_and_nothing_is_written(packed, cache, capsys, damage):
    _, _, folder, manifest = packed
    part = folder / manifest["parts"][1]["name"]
    data = bytearray(part.read_bytes())
    data[700] ^= 1
    part.unlink() if damage == "missing" else part.write_bytes(data)
    assert window.main(["unpack", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"window: {part}: found ") and line.endswith("carry this part again")
    assert not any(cache.rglob("*.npz"))


def test_what_is_no_folder_of_data_is_refused(tmp_path, capsys):
    assert window.main(["unpack", str(tmp_path)]) == 1
    assert "expected what `window.py data` wrote" in capsys.readouterr().err


# -- running -------------------------------------------------------------------------------------------


def job(name, code, **options):
    return window.Job(name, ("-c", code), timed=False, **options)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(window, "START", 0.0)
    monkeypatch.setattr(window, "GATHER", 0.0)
    return window.Clock(1.0)


def test_jobs_wait_for_what_they_need_and_a_failure_costs_only_what_needs_it(clock, tmp_path, capsys):
    log = tmp_path / "order"
    note = f"open({str(log)!r}, 'a').write"
    jobs = [
        job("slow", f"import time; time.sleep(0.5); {note}('slow ')"),
        job("needs slow", f"{note}('needs ')", after=("slow",)),
        job("fails", "raise SystemExit('a reason')"),
        job("needs fails", f"{note}('never ')", after=("fails",)),
        job("measures", f"{note}('alone ')", alone=True),
        job("last", f"{note}('last ')", after=("measures",)),
    ]
    done = window.run_jobs(jobs, clock, 3, tmp_path / "logs", lambda: None)
    assert done == {"slow", "needs slow", "measures", "last"}
    assert log.read_text(encoding="utf-8") == "slow needs alone last "
    printed = capsys.readouterr().out
    assert "FAILED: fails: a reason" in printed and "not begun: needs fails" in printed


def test_the_window_ends_in_time_and_starts_nothing_more(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(window, "START", 0.0)
    monkeypatch.setattr(window, "GATHER", 3.0)
    clock = window.Clock(4.0 / 60)
    jobs = [job("endless", "import time; time.sleep(60)"), job("later", "", after=("endless",))]
    started = time.monotonic()
    assert window.run_jobs(jobs, clock, 2, tmp_path, lambda: None) == set()
    assert time.monotonic() - started < 30  # 4 were asked for; a busy machine is slow
    printed = capsys.readouterr().out
    assert "stopped: endless" in printed and "not begun: later" in printed


# -- home again ----------------------------------------------------------------------------------------


def test_what_a_window_made_is_put_into_the_book_and_nothing_is_overwritten(tmp_path):
    work, out, book = tmp_path / "work", tmp_path / "out", tmp_path / "book"
    write_json(work / "results" / "cifar16" / "dynamic-seed0.json", {"FID": 1})
    (work / "models" / "small").mkdir(parents=True)
    (work / "models" / "small" / "weights").write_bytes(b"123")
    out.mkdir()
    window.gather(work, out)
    assert len(window.take(out, book)) == 2
    assert json.loads((book / "results" / "cifar16" / "dynamic-seed0.json").read_text(encoding="utf-8")) == {
        "FID": 1
    }
    assert (book / "models" / "small" / "weights").read_bytes() == b"123"
    assert window.take(out, book) == []  # the same once more
    (book / "models" / "small" / "weights").write_bytes(b"mine")
    write_json(work / "results" / "cifar16" / "iterative-seed0.json", {"FID": 2})
    window.gather(work, out)
    with pytest.raises(ValueError, match="weights: found another file there"):
        window.take(out, book)
    assert not (book / "results" / "cifar16" / "iterative-seed0.json").exists()
    assert len(window.take(out, book, replace=True)) == 2
    assert (book / "models" / "small" / "weights").read_bytes() == b"123"


def test_a_folder_that_no_window_left_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found no results\.tar"):
        window.take(tmp_path, tmp_path / "book")
