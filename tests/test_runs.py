"""Runs: begun, interrupted, finished; their folders, and what the system may refuse."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from dkdm_lab import networks
from dkdm_lab.data import MixtureDenoiser
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import presets, run_making, run_scores, runs
from dkdm_lab.experiments.runs import METHODS, Run
from dkdm_lab.metrics import energy_distance
from dkdm_lab.pools import DynamicPool
from dkdm_lab.sources import Replay
from dkdm_lab.system.files import write_json
from dkdm_lab.system.provenance import provenance

pytestmark = pytest.mark.usefixtures("yardstick")  # every result names the classifier's hash

TINY = {"batch_size": 16, "iterations": 20, "curve": 4, "checkpoint_every": 10, "steps": 50, "samples": 50}


def toy(method="dynamic", seed=0, **changes):
    """A run of the toy preset that takes a moment."""
    changes = {"synthetic_images": 40, "synthetic_steps": 5, **TINY, **changes}
    return Run(presets.get("toy", **changes), method, seed)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model(progress=False).parameters()])


WAITS = """
import sys, time
from pathlib import Path
from dkdm_lab.experiments import presets, runs
from dkdm_lab.experiments.runs import Run
make = Run._make
def slowly(self, progress):
    with open(sys.argv[1], "a") as log:
        log.write(self.name + "\\n")
    time.sleep(1)  # long enough for the other process to come by
    make(self, progress)
Run._make = slowly
tiny = dict(batch_size=16, iterations=5, curve=1, steps=5, samples=50)
Run(presets.get("toy", **tiny), "dynamic").result(progress=False)
"""


def test_two_processes_make_a_run_once(tmp_path):
    """The second waits and reads."""
    command = [sys.executable, "-c", WAITS, str(tmp_path / "log")]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    made = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert len(made) == 1


# -- what a run is ------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method: found 'magic', expected one of teacher, synthetic, "):
        Run(presets.get("toy"), "magic")


def test_a_name_tells_method_seed_and_every_setting_that_is_not_the_presets():
    assert Run(presets.get("digits"), "dynamic", 3).name == "dynamic-seed3"
    changed = Run(presets.get("digits", rho=0.2, warmup="full"), "dynamic", 3)
    assert changed.name == "dynamic-seed3-warmup=full-rho=0.2"


def test_a_setting_that_does_not_concern_a_method_is_not_in_its_name():
    assert Run(presets.get("digits", rho=0.2), "iterative").name == "iterative-seed0"


def test_runs_with_other_settings_lie_in_other_folders(cache):
    assert toy().folder.parent == cache / "runs" / "toy"
    assert len({toy(rho=rho, seed=seed).folder for rho in (0.2, 0.4) for seed in (0, 1)}) == 4


def test_how_often_a_run_is_scored_is_not_in_its_name():
    assert toy(curve=2).name == toy(curve=4).name
    toy(curve=2).result(progress=False)
    assert toy(curve=4).status == "finished"


def test_results_from_before_a_setting_existed_still_count():
    """As the ledger's first: they were made with what is now the setting's value for them."""
    run = toy("data-based")
    run.result(progress=False)
    file = run.folder / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for later in ("flip", "early_stop", "reference_images"):
        assert later in settings
        del settings[later]
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert run.status == "finished"
    with pytest.raises(ValueError, match="made with flip = False, expected True"):
        changed = toy("data-based", flip=True)
        shutil.copytree(run.folder, changed.folder)
        changed.status  # noqa: B018


# -- not begun, finished ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_from_not_begun_to_finished(method):
    run = toy(method)
    assert run.status == "not begun"
    result = run.result(progress=False)
    assert run.status == "finished"
    assert result["settings"] == run.settings
    assert result["metrics"].keys() == {"energy-distance", "N"}
    assert result["metrics"]["N"] == (40 if method == "synthetic" else 50)
    assert result["wall_s"] >= 0
    assert result["made_with"] == provenance()


def test_a_result_counts_what_it_cost():
    evaluations = {m: toy(m).result(progress=False)["teacher_evaluations"] for m in METHODS if m != "teacher"}
    assert evaluations == {
        "synthetic": 40 * 5,
        "data-based": 0,
        "data-limited": 40 * 5,
        "data-free": 40 * 5,
        "iterative": 20 * 16,
        "shuffled": 20 * 16 + 20,  # a harvest of 16 samples in 10 intervals: 2 chains
        "dynamic": 20 * 16 + 40 * 16,
    }


def test_the_synthetic_set_is_made_once_and_shared(monkeypatch):
    images = toy("synthetic").images(progress=False)
    assert images.shape == (40, 2)
    assert torch.equal(toy("data-free").source(progress=False).data, images)
    monkeypatch.setattr(GaussianDiffusion, "sample", None)  # calling it would fail
    mixed = toy("data-limited", real_fraction=0.25).source(progress=False).data
    synthetic = {tuple(point) for point in images.tolist()}
    assert sum(tuple(point) in synthetic for point in mixed.tolist()) == 30
    assert len(mixed) == 40


def test_a_synthetic_set_is_no_model():
    with pytest.raises(ValueError, match="synthetic: this run has images, not a model"):
        toy("synthetic").model()


def test_early_stopping_keeps_the_best_point_and_its_model(monkeypatch):
    values = iter([3.0, 1.0, 2.0, 4.0])
    marks = []

    def scored(run, denoiser, last):
        marks.append(torch.cat([p.detach().flatten() for p in denoiser.parameters()]))
        return {"energy-distance": next(values), "N": 50}

    monkeypatch.setattr(run_scores, "score_model", scored)
    run = toy(early_stop=True)
    result = run.result(progress=False)
    assert (result["metrics"]["energy-distance"], result["of_iteration"]) == (1.0, 10)
    assert torch.equal(weights(run), marks[1])
    assert len(result["curve"]) == 4


NAN, INF = float("nan"), float("inf")


def scores_of(monkeypatch, *values):
    """Let the evaluations of a training find these scores."""
    left = iter(values)
    monkeypatch.setattr(
        run_scores, "score_model", lambda *_, last: {"energy-distance": next(left), "precision": NAN, "N": 50}
    )


@pytest.mark.parametrize(
    "values, best",
    [((NAN, 3.0, 1.0, 2.0), 15), ((2.0, NAN, NAN, NAN), 5), ((INF, NAN, -INF, 4.0), 20)],
    ids=["first", "all but the first", "infinite"],
)
def test_a_score_that_is_not_finite_never_wins(values, best, monkeypatch):
    scores_of(monkeypatch, *values)
    run = toy(early_stop=True)
    result = run.result(progress=False)
    assert result["of_iteration"] == best
    assert result["metrics"] == {"energy-distance": values[best // 5 - 1], "N": 50}
    assert result["not_finite"] == ["precision"]
    found = [point["energy-distance"] for point in result["curve"]]
    assert found == [value if abs(value) < INF else None for value in values]
    text = (run.folder / "result.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    _, drawn = runs.curve(result, "energy-distance")
    assert [math.isnan(value) for value in drawn] == [value is None for value in found]


@pytest.mark.parametrize("values, early_stop", [((NAN,) * 4, True), ((1.0, 1.0, 1.0, NAN), False)])
def test_a_run_without_a_finite_score_says_so(values, early_stop, monkeypatch):
    scores_of(monkeypatch, *values)
    result = toy(early_stop=early_stop).result(progress=False)
    assert result["metrics"] == {"N": 50} and "energy-distance" in result["not_finite"]


@pytest.mark.parametrize("method", ["synthetic", "teacher"])
def test_what_is_scored_without_a_training_says_so_too(method, monkeypatch):
    monkeypatch.setattr(run_scores, "energy_distance", lambda *_: NAN)
    assert toy(method).result(progress=False)["not_finite"] == ["energy-distance"]


def test_a_distance_to_the_teacher_that_is_no_number_is_not_kept(monkeypatch):
    run = toy("synthetic")
    run.result(progress=False)
    monkeypatch.setattr(run_scores, "energy_distance", lambda *_: INF)
    with pytest.raises(FloatingPointError, match="found no finite energy-distance"):
        toy("teacher").against_teacher(progress=False)
    assert not list(run.folder.parent.rglob("against_teacher.json"))


def gone(file):
    file.unlink()


def one_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def shorter(file):
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("damage", [gone, one_bit, shorter])
@pytest.mark.parametrize("method, name", [("data-based", "*.safetensors"), ("synthetic", "images.npz")])
def test_a_finished_run_whose_model_is_gone_or_changed_is_made_anew(method, name, damage):
    run = toy(method, iterations=2, curve=1, steps=2)
    before = run.result(progress=False)
    (file,) = run.folder.rglob(name)
    content = file.read_bytes()
    damage(file)
    assert run.status == "not begun"
    again = run.result(progress=False)
    assert {**again, "wall_s": 0} == {**before, "wall_s": 0}
    assert run.status == "finished" and file.read_bytes() == content


def test_a_run_from_before_files_were_written_down_needs_its_model():
    run = toy("data-based", iterations=2, curve=1, steps=2)
    run.result(progress=False)
    (run.folder / "files.json").unlink()
    assert run.status == "finished"
    (weights_file,) = run.folder.rglob("*.safetensors")
    weights_file.unlink()  # its configuration stays
    assert run.status == "not begun"
    shutil.rmtree(run.folder / "model")
    assert run.status == "not begun"


@pytest.mark.parametrize("known_files", [True, False])
def test_what_was_said_of_a_lost_model_does_not_vouch_for_the_next(known_files, monkeypatch):
    """Wherever the second training is stopped, the first one's result and FID' are not taken for its own."""
    run = toy("data-based", iterations=2, curve=1, steps=2)
    run.against_teacher(progress=False)
    shutil.rmtree(run.folder / "model")
    if not known_files:
        (run.folder / "files.json").unlink()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_making, "_finish", killed)  # after the new model is saved
    with pytest.raises(KeyboardInterrupt):
        run.result(progress=False)
    assert (run.folder / "model").is_dir() and run.status != "finished"
    monkeypatch.undo()
    run.result(progress=False)
    assert run.status == "finished" and not (run.folder / "against_teacher.json").exists()


def test_the_distance_to_the_teacher_is_measured_against_its_synthetic_set(monkeypatch):
    run = toy()
    found = run.against_teacher(progress=False)
    x = run.diffusion.sample(run.model(progress=False), 50, 50, seed=3)
    assert found["energy-distance"] == energy_distance(x, toy("synthetic").images(progress=False))
    monkeypatch.setattr(run_scores, "evaluation_samples", None)  # calling it would fail
    assert run.against_teacher(progress=False) == found


def test_cost_adds_up_in_operations():
    """By hand: three evaluations of the student a sample, and every evaluation of the teacher."""
    tiny = {**TINY, "teacher_iterations": 4, "iterations": 4, "curve": 1, "rho": 0.02}
    preset = presets.get("digits", **tiny, synthetic_images=20, synthetic_steps=5)
    student, teacher = networks.flops("digits-student"), networks.flops("digits-teacher")
    of_data = 4 * 16 * 3 * student
    assert runs.cost(Run(preset, "data-based").result(progress=False)) == of_data
    data_free = Run(preset, "data-free").result(progress=False)
    assert runs.cost(data_free) == of_data + 20 * 5 * teacher
    assert runs.cost(data_free, 2) == of_data / 2 + 20 * 5 * teacher
    dynamic = Run(preset, "dynamic").result(progress=False)
    pool = 2 * 16
    assert dynamic["teacher_evaluations"] >= 4 * 16 + pool
    assert runs.cost(dynamic) == of_data + dynamic["teacher_evaluations"] * teacher
    assert runs.cost(dynamic, 0) == (dynamic["teacher_evaluations"] - 4 * 16) * teacher


def test_a_result_holds_the_curve_and_the_losses():
    result = toy().result(progress=False)
    iterations, values = runs.curve(result, "energy-distance")
    assert iterations == [5, 10, 15, 20]
    assert values[-1] == result["metrics"]["energy-distance"]
    assert result["loss"]["iteration"] == [10, 20]
    assert result["parameters"] == 75_268
    assert result["student_evaluations"] == 20 * 16


def test_a_finished_run_is_read_and_not_done_again(monkeypatch):
    run = toy()
    result = run.result(progress=False)
    monkeypatch.setattr(run_making, "train", None)  # calling it would fail
    assert toy().result(progress=False) == result
    assert isinstance(run.model(progress=False), torch.nn.Module)


def test_a_finished_run_keeps_only_what_is_read_later():
    run = toy()
    run.result(progress=False)
    kept = ["files.json", "model", "result.json", "settings.json"]
    assert sorted(p.name for p in run.folder.iterdir()) == kept


def test_the_same_run_gives_the_same_numbers(cache):
    results = []
    for _ in range(2):
        result = toy().result(progress=False)
        results.append(({**result, "wall_s": None}, weights(toy())))
        shutil.rmtree(cache / "runs")
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_another_seed_is_another_run():
    assert not torch.equal(weights(toy(seed=0)), weights(toy(seed=1)))


@pytest.mark.parametrize("method", ["data-based", "data-free", "iterative", "dynamic"])
def test_the_seed_decides_the_source_too(method):
    first, again, other = (next(toy(method, seed).source(progress=False)).x_t for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_seed_decides_the_synthetic_data():
    first, again, other = (toy("data-free", seed).source(progress=False).data for seed in (0, 0, 1))
    assert len(first) == 40
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_pool_of_larger_turns_holds_as_many_samples_and_is_shown_in_the_presets_batches():
    source = toy(rho=0.08, turns=4, replay=3).source(progress=False)
    assert isinstance(source, Replay) and (source.batch_size, source.times) == (16, 3)
    assert isinstance(source.source, DynamicPool)
    assert (source.source.batch_size, source.source.size) == (64, toy(rho=0.08).source(progress=False).size)
    assert isinstance(toy().source(progress=False), DynamicPool)


def test_answers_that_are_replayed_cost_nothing():
    """20 iterations of 16: 10 turns of 16 or 2 of 64, where each answer is shown twice or three times."""
    found = {}
    for turns, replay in ((1, 1), (1, 2), (4, 3)):
        run = toy(rho=0.08, turns=turns, replay=replay)
        harvest = 13 * 10  # 13 chains of 10 steps give the 128 samples
        found[turns, replay] = run.result(progress=False)["teacher_evaluations"] - harvest
    assert found == {(1, 1): 20 * 16, (1, 2): 10 * 16, (4, 3): 2 * 64}
    assert run.name == "dynamic-seed0-batch_size=16-samples=50-iterations=20-rho=0.08-turns=4-replay=3"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"replay": 0}, "replay: found 0, expected a whole number from 1"),
        ({"replay": 1.5}, "replay: found 1.5, expected a whole number from 1"),
        ({"turns": 0}, "turns: found 0, expected a whole number from 1"),
        (
            {"turns": 5, "rho": 0.04},
            r"turns: found 5, expected at most the batches of the pool, rho \* T = 4",
        ),
    ],
)
def test_a_replay_that_cannot_be_is_refused_where_it_is_set(changes, message):
    with pytest.raises(ValueError, match=message):
        presets.get("toy", **changes)


def test_the_toys_teacher_is_exact():
    assert isinstance(toy("teacher").model(), MixtureDenoiser)


def test_students_of_one_seed_share_their_teacher():
    """On digits, end to end: the teacher is trained by the first student that needs it, and scored in
    the features of the digits."""
    tiny = {**TINY, "teacher_iterations": 4, "iterations": 4, "curve": 1, "rho": 0.02}
    preset = presets.get("digits", **tiny)
    first = Run(preset, "dynamic").result(progress=False)
    assert first["metrics"].keys() == {
        "digits-FID",
        "digits-precision",
        "digits-recall",
        "N",
        "N_reference",
    }
    teacher = Run(preset, "teacher")
    assert teacher.status == "finished"
    before = (teacher.folder / "result.json").stat().st_mtime_ns
    Run(preset, "shuffled").result(progress=False)
    assert (teacher.folder / "result.json").stat().st_mtime_ns == before
    assert Run(preset, "dynamic", seed=1).teacher_run().status == "not begun"


# -- interrupted --------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, batch):
    """Stop the process, as far as the run can tell, at the n-th batch of a pool."""
    original, count = DynamicPool.__next__, iter(range(1, 1000))

    def stop(pool):
        if next(count) == batch:
            raise KeyboardInterrupt
        return original(pool)

    monkeypatch.setattr(DynamicPool, "__next__", stop)


@pytest.mark.parametrize(
    "batch, status",
    [(4, "not begun"), (8, "resumable"), (18, "resumable")],
    ids=["before anything", "after a score", "after more of them"],
)
def test_an_interrupted_run_ends_as_the_unbroken_one(batch, status, cache, monkeypatch):
    unbroken = toy().result(progress=False), weights(toy())
    shutil.rmtree(cache / "runs")
    with monkeypatch.context() as patch:
        interrupt_at(patch, batch)
        with pytest.raises(KeyboardInterrupt):
            toy().result(progress=False)
    assert toy().status == status
    resumed = toy().result(progress=False)
    assert toy().status == "finished"
    assert torch.equal(weights(toy()), unbroken[1])
    for part in ("metrics", "curve", "loss", "teacher_evaluations", "settings"):
        assert resumed[part] == unbroken[0][part]


# -- folders made otherwise ---------------------------------------------------------------------------


def change_settings(run, **changes):
    file = run.folder / "settings.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("ask", ["status", "result", "model"])
def test_a_folder_made_with_other_settings_is_refused(ask):
    run = toy()
    run.result(progress=False)
    change_settings(run, lr=0.5)
    message = rf"{run.folder}: this run was made with lr = 0.5, expected {run.preset.lr}; move the folder"
    with pytest.raises(ValueError, match=message):
        getattr(run, ask) if ask == "status" else getattr(run, ask)(progress=False)


def test_a_folder_of_a_preset_since_changed_is_refused(monkeypatch):
    """The name is the same then, and only the settings tell."""
    monkeypatch.setitem(presets.PRESETS, "toy", presets.get("toy", **TINY))
    run = Run(presets.get("toy"), "dynamic")
    run.result(progress=False)
    assert run.folder.name == "dynamic-seed0"
    monkeypatch.setitem(presets.PRESETS, "toy", presets.get("toy", rho=0.2))
    changed = Run(presets.get("toy"), "dynamic")
    assert changed.folder.name == "dynamic-seed0"
    with pytest.raises(ValueError, match=r"made with rho = 0.4, expected 0.2"):
        changed.result(progress=False)


def test_a_setting_that_an_older_folder_does_not_know_is_named():
    run = toy()
    run.result(progress=False)
    settings = run.settings
    del settings["warmup"]
    (run.folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match="made with warmup = None, expected 'harvest'"):
        run.result(progress=False)


# -- provenance ---------------------------------------------------------------------------------------


def test_provenance_tells_how_a_number_was_made():
    found = provenance()
    assert found.keys() == {
        *("python", "torch", "diffusers", "accelerate", "torch-fidelity", "numpy"),
        *("hardware", "commit"),
    }
    assert all(isinstance(value, str) and value for value in found.values())


@pytest.mark.parametrize(
    "said, commit", [("0123456789ab", "0123456789ab"), ("", "unknown"), (None, "unknown")]
)
def test_a_copy_without_its_history_is_told_its_commit(said, commit, monkeypatch):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr("dkdm_lab.system.provenance.subprocess.run", no_git)
    monkeypatch.delenv("DKDM_COMMIT", raising=False)
    if said is not None:
        monkeypatch.setenv("DKDM_COMMIT", said)
    assert provenance()["commit"] == commit


# -- what the system refuses --------------------------------------------------------------------------

# Its own process, for it gives up its rights and the size of what it may write.
REFUSED = """
import json, os, resource, sys
from pathlib import Path
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.runs import Run
from dkdm_lab.system.checkpoint import Checkpoints

cache = Path(os.environ["DKDM_DATA_CACHE"])
tiny = json.loads(sys.argv[1])
said = {}

def attempt(what, **changes):
    run = Run(presets.get("toy", **{**tiny, **changes}), "dynamic")
    try:
        run.result(progress=False)
        message = "finished"
    except OSError as error:
        message = str(error)
    files = sorted(path.name for path in run.folder.rglob("*")) if run.folder.exists() else []
    said[what] = {"message": message, "folder": str(run.folder), "files": files}

usual = resource.getrlimit(resource.RLIMIT_FSIZE)
write = Checkpoints.write
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, usual[1]))  # a student's weights have 300 kB
attempt("checkpoint", checkpoint_every=5)
Checkpoints.write = lambda *arguments: None
attempt("model")
resource.setrlimit(resource.RLIMIT_FSIZE, usual)
Checkpoints.write = write
attempt("afterwards")

os.environ["DKDM_DATA_CACHE"] = str(cache / "locked")
(cache / "locked").mkdir(mode=0o555)
if os.getuid() == 0:
    os.setuid(65534)
attempt("permission")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def refused(trained_classifier):
    """What runs say, and what is left of them, when the system refuses to write."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copy(trained_classifier, folder)
        root = Path(__file__).parents[1]
        environment = {**os.environ, "DKDM_DATA_CACHE": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", REFUSED, json.dumps(TINY)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "what, reason",
    [
        ("checkpoint", "the file is larger than allowed here"),
        ("model", "the file is larger than allowed here"),
        ("permission", "no permission to write"),
    ],
)
def test_a_refusal_to_write_names_the_folder_and_the_way_out(what, reason, refused):
    assert refused[what]["message"].endswith(
        f"{refused[what]['folder']}: {reason}; runs need a writable data_cache with space "
        "(set DKDM_DATA_CACHE to use another folder)"
    )


@pytest.mark.parametrize(
    "what, left", [("checkpoint", ["settings.json"]), ("model", ["curve.json", "settings.json"])]
)
def test_nothing_half_written_stays(what, left, refused):
    assert [name for name in refused[what]["files"] if name != ".checkpoints.lock"] == left


def test_a_run_without_permission_leaves_nothing(refused):
    assert refused["permission"]["files"] == []


def test_once_there_is_space_the_run_goes_on(refused):
    assert refused["afterwards"]["message"] == "finished"
    assert "result.json" in refused["afterwards"]["files"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "result.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "result.json", {"new": object()})
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir() if "result" in p.name] == ["result.json"]


def test_a_file_in_the_place_of_a_folder_is_said_to_be_one(cache):
    (cache / "runs").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"runs/toy/dynamic.*: a file stands where a folder is expected"):
        toy().result(progress=False)
