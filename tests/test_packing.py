"""Packs: what travels, that a moved run ends as one that stayed, and what is refused before anything is
written."""

import json
import shutil
import tarfile

import pytest
import torch

from dkdm_lab.cli import main
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import packing, presets
from dkdm_lab.experiments.packing import FORMAT, pack, unpack
from dkdm_lab.experiments.runs import Run
from dkdm_lab.pools import DynamicPool
from dkdm_lab.system import budget
from dkdm_lab.system.budget import OutOfTime
from dkdm_lab.system.files import alone, write_json
from dkdm_lab.system.seeds import restore

pytestmark = pytest.mark.usefixtures("yardstick")  # every result names the classifier's hash

TINY = {
    **{"batch_size": 16, "iterations": 20, "curve": 4, "checkpoint_every": 3, "steps": 5, "samples": 50},
    **{"synthetic_images": 600, "synthetic_steps": 5},
}


def toy(method="dynamic", **changes):
    return Run(presets.get("toy", **{**TINY, **changes}), method)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model(progress=False).parameters()])


def outcome(run):
    result = run.result(progress=False)
    return {key: result.get(key) for key in ("metrics", "curve", "loss", "teacher_evaluations", "settings")}


def stop(run, monkeypatch, at):
    """Leave a run after so many steps of its process: turns, steps of a sampler or of a warm-up."""
    seconds = [0.0]

    def tick(*arguments, original=GaussianDiffusion.step):
        seconds[0] += 1
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(budget, "now", lambda: seconds[0])
        patch.setattr(GaussianDiffusion, "step", tick)
        with budget.budget(at / 60), pytest.raises(OutOfTime):
            run.result(progress=False)
    assert run.status == "resumable"
    return run


@pytest.fixture
def elsewhere(tmp_path, cache, monkeypatch):
    """A function that goes to another machine's data_cache, empty or as it was left."""

    def go(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        shutil.copy(cache / "digits-classifier.pt", folder)
        monkeypatch.setenv("DKDM_DATA_CACHE", str(folder))
        return folder

    return go


def files_in(folder):
    """Everything in a data_cache but locks, by path, with what is in it."""
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".lock"
    }


# -- there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, at",
    [({}, 10 + 5 + 5 + 2), ({"early_stop": True}, 10 + 5 + 5 + 5 + 5 + 2)],
    ids=["", "early stop"],
)
def test_a_run_under_way_ends_elsewhere_as_if_it_had_stayed(
    changes, at, tmp_path, cache, elsewhere, monkeypatch
):
    """It moves under way, is finished there, and moves back."""
    run = toy(**changes)
    stayed = outcome(run), weights(run)
    shutil.rmtree(cache / "runs")
    iteration = stop(run, monkeypatch, at).iteration
    assert 5 < iteration < 20
    assert len(list((run.folder / "checkpoints").glob("[0-9]*"))) == 2
    manifest = pack("toy", tmp_path / "pack")
    (about,) = manifest["folders"].values()
    assert (about["finished"], about["iteration"]) == (False, iteration)
    assert {name.split("/")[1] for name in about["files"] if name.startswith("checkpoints")} == {
        f"{iteration:09d}"
    }
    assert ("model/unet/config.json" in about["files"]) == bool(changes)

    elsewhere("gpu")
    assert unpack(tmp_path / "pack") == [f"toy/{run.name}: at iteration {iteration}, unpacked"]
    assert run.iteration == iteration
    assert outcome(run) == stayed[0]
    assert torch.equal(weights(run), stayed[1])
    pack("toy", tmp_path / "back")

    monkeypatch.setenv("DKDM_DATA_CACHE", str(cache))
    lines = unpack(tmp_path / "back")
    assert f"toy/{run.name}: finished, unpacked" in lines
    assert not (run.folder / "checkpoints").exists()
    assert outcome(run) == stayed[0]
    assert torch.equal(weights(run), stayed[1])
    assert not list(cache.glob(".new-*"))


def test_a_synthetic_set_travels_with_all_its_parts_and_whole(tmp_path, cache, elsewhere, monkeypatch):
    run = stop(toy("synthetic"), monkeypatch, 12)
    assert run.iteration == 512
    pack("toy", tmp_path / "pack")
    elsewhere("gpu")
    unpack(tmp_path / "pack")
    drawn = []
    sample = GaussianDiffusion.sample
    monkeypatch.setattr(
        GaussianDiffusion, "sample", lambda self, *a, **k: drawn.append(a[1]) or sample(self, *a, **k)
    )
    images = run.images(progress=False)
    assert drawn == [88]
    pack("toy", tmp_path / "back")
    monkeypatch.setenv("DKDM_DATA_CACHE", str(cache))
    unpack(tmp_path / "back")
    assert torch.equal(run.images(), images)


def test_the_runs_of_some_methods_can_travel_alone(tmp_path):
    toy().result(progress=False)
    toy("synthetic").result(progress=False)
    manifest = pack("toy", tmp_path / "pack", methods=("teacher", "synthetic"))
    assert {about["settings"]["method"] for about in manifest["folders"].values()} == {"synthetic"}
    with pytest.raises(ValueError, match="methods: found 'fast'"):
        pack("toy", tmp_path / "other", methods=("fast",))


def test_parts_are_small_and_together_the_tar(tmp_path, elsewhere, monkeypatch):
    assert packing.PART == 15_000_000
    monkeypatch.setattr(packing, "PART", 100_000)
    run = toy("data-based")
    run.result(progress=False)
    manifest = pack("toy", tmp_path / "pack")
    sizes = [part["bytes"] for part in manifest["parts"]]
    assert len(sizes) > 3
    assert set(sizes[:-1]) == {100_000}
    assert max(file.stat().st_size for file in (tmp_path / "pack").iterdir()) <= 100_000
    before = files_in(run.folder)
    elsewhere("gpu")
    unpack(tmp_path / "pack")
    assert files_in(run.folder) == before


def test_what_a_pack_holds_says_nothing_of_where_it_was_made(tmp_path, cache, monkeypatch):
    stop(toy(), monkeypatch, 22)
    pack("toy", tmp_path / "pack")
    content = b"".join(file.read_bytes() for file in sorted((tmp_path / "pack").iterdir()))
    assert str(tmp_path).encode() not in content
    with tarfile.open(tmp_path / "pack" / "runs.tar.001") as tar:  # plain tar, where there is one part
        assert all((member.uid, member.uname) == (0, "") for member in tar)


def test_the_digits_take_their_yardstick_along(tmp_path, cache, elsewhere):
    tiny = {**TINY, "teacher_iterations": 4, "samples": 20}
    Run(presets.get("digits", **tiny), "teacher").result(progress=False)
    manifest = pack("digits", tmp_path / "pack", statistics=True)
    assert [name.split("/")[0] for name in manifest["others"]] == ["digits-classifier.pt", "statistics"]
    gpu = elsewhere("gpu")
    (gpu / "digits-classifier.pt").unlink()
    unpack(tmp_path / "pack")
    assert (gpu / "digits-classifier.pt").read_bytes() == (cache / "digits-classifier.pt").read_bytes()
    assert len(list((gpu / "statistics").iterdir())) == 1
    other = torch.load(gpu / "digits-classifier.pt", weights_only=True)
    torch.save({name: value + 1 for name, value in other.items()}, gpu / "digits-classifier.pt")
    with pytest.raises(ValueError, match=r"digits-classifier\.pt: this digits classifier is not the pack's"):
        unpack(tmp_path / "pack")


def test_a_damaged_newest_checkpoint_stays_and_the_one_before_it_travels(tmp_path, monkeypatch):
    run = stop(toy(), monkeypatch, 22)
    older, newest = sorted((run.folder / "checkpoints").glob("[0-9]*"))
    (newest / "shared.pt").write_bytes(b"")
    (about,) = pack("toy", tmp_path / "pack")["folders"].values()
    assert about["iteration"] == int(older.name)


def test_a_generator_of_another_kind_of_device_is_seeded_from_the_state():
    """A GPU's state has 16 bytes."""
    drawn = []
    for state in (torch.arange(16), torch.arange(16), torch.arange(16) + 1):
        generator = torch.Generator()
        restore(generator, state.to(torch.uint8))
        drawn.append(torch.rand(3, generator=generator))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    generator = torch.Generator().manual_seed(1)
    state, expected = generator.get_state(), torch.rand(3, generator=generator)
    restore(generator, state)
    assert torch.equal(torch.rand(3, generator=generator), expected)


def test_a_pool_from_a_gpu_goes_on(exact_teacher, diffusion):
    one, other = (DynamicPool(diffusion, exact_teacher, 4, rho=0.1, seed=seed) for seed in (0, 1))
    next(one)
    gpu = torch.arange(16, dtype=torch.uint8)
    other.load_state_dict(one.state_dict() | {"generator": gpu, "chooser": gpu})
    assert torch.equal(other.x, one.x)
    assert torch.isfinite(next(other).x_t).all()


# -- what is refused ----------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A pack of a run at an early iteration, which lies here too."""
    run = stop(toy(), monkeypatch, 22)
    pack("toy", tmp_path / "pack")
    return run, tmp_path / "pack"


def change(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def no_manifest(folder):
    (folder / "manifest.json").unlink()


def other_version(folder):
    change(folder, format=FORMAT + 1)


def half_a_manifest(folder):
    (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text(encoding="utf-8")[:-100], encoding="utf-8"
    )


def another_list(folder):
    change(folder, parts=[{"name": "runs.tar.001"}])


def out_of_the_folder(folder):
    change(folder, others={"../../etc/passwd": "0"})


def more_than_there_is(folder):
    change(folder, others={"statistics/x.pt": "0"})


def unknown_preset(folder):
    change(folder, preset="nobody")


def missing_part(folder):
    (folder / "runs.tar.001").unlink()


def short_part(folder):
    file = folder / "runs.tar.001"
    file.write_bytes(file.read_bytes()[:-1])


def one_bit(folder):
    content = bytearray((folder / "runs.tar.001").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "runs.tar.001").write_bytes(content)


@pytest.mark.parametrize(
    "damage, message",
    [
        (no_manifest, "pack: found no manifest.json, expected a folder that dkdm pack wrote"),
        (other_version, rf"pack: found a pack of format {FORMAT + 1}, expected {FORMAT}; pack it anew"),
        (half_a_manifest, r"manifest.json: this manifest is damaged \("),
        (another_list, r"manifest.json: this manifest is damaged \("),
        (
            out_of_the_folder,
            r"manifest.json: this manifest is damaged \(found the path '\.\./\.\./etc/passwd'",
        ),
        (more_than_there_is, "pack: (runs|statistics).* is not what the manifest says"),
        (unknown_preset, "pack: found a pack of preset 'nobody', expected one of toy, "),
        (missing_part, "runs.tar.001: this part of the pack is missing"),
        (short_part, "runs.tar.001: this part of the pack is damaged"),
        (one_bit, "runs.tar.001: this part of the pack is damaged"),
    ],
)
def test_a_pack_that_is_not_sound_is_refused_and_nothing_written(damage, message, packed, elsewhere):
    damage(packed[1])
    gpu = elsewhere("gpu")
    before = files_in(gpu)
    with pytest.raises(ValueError, match=message):
        unpack(packed[1])
    assert files_in(gpu) == before


def further_on(run, monkeypatch):
    stop(run, monkeypatch, 3)
    return (
        r"the run here is further on \(at iteration \d+\) than the pack's \(at iteration 7\); move the folder"
    )


def finished(run, monkeypatch):
    run.result(progress=False)
    return r"the run here is further on \(finished\) than the pack's \(at iteration 7\)"


def other_settings(run, monkeypatch):
    file = run.folder / "settings.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | {"lr": 0.5})
    return "this run was made with lr = 0.5, expected 0.003; move the folder away to take the pack's"


def something_else(run, monkeypatch):
    (run.folder / "settings.json").unlink()
    return "found other files here than the pack's; move the folder away"


@pytest.mark.parametrize("happened", [further_on, finished, other_settings, something_else])
def test_what_lies_here_is_not_overwritten(happened, packed, cache, monkeypatch):
    run, folder = packed
    assert run.iteration == 7
    message = happened(run, monkeypatch)
    before = files_in(cache)
    with pytest.raises(ValueError, match=message):
        unpack(folder)
    assert files_in(cache) == before


def test_a_run_that_is_less_far_is_replaced(packed, cache, monkeypatch):
    run, folder = packed
    shutil.rmtree(run.folder)
    stop(run, monkeypatch, 12)
    assert 0 < run.iteration < 7
    assert unpack(folder) == [f"toy/{run.name}: at iteration 7, unpacked"]
    assert run.iteration == 7
    assert unpack(folder) == [f"toy/{run.name}: at iteration 7, already here"]


def test_two_results_of_one_run_are_not_mixed_up(tmp_path, cache, elsewhere):
    run = toy("data-based")
    run.result(progress=False)
    pack("toy", tmp_path / "pack")
    run.folder.joinpath("against_teacher.json").write_text("{}", encoding="utf-8")
    pack("toy", tmp_path / "scored")
    elsewhere("gpu")
    unpack(tmp_path / "pack")
    assert unpack(tmp_path / "scored") == [f"toy/{run.name}: finished, unpacked"]  # it has a score more
    assert unpack(tmp_path / "pack") == [f"toy/{run.name}: finished, already here"]
    assert (run.folder / "against_teacher.json").is_file()
    write_json(
        run.folder / "result.json",
        json.loads((run.folder / "result.json").read_text(encoding="utf-8")) | {"wall_s": 0},
    )
    with pytest.raises(ValueError, match="the run here is finished with another result than the pack's"):
        unpack(tmp_path / "pack")


def test_a_run_at_work_is_neither_packed_nor_replaced(packed, tmp_path, elsewhere):
    run, folder = packed
    message = "another process is at work here; wait for it, or stop it"
    with alone(run.folder), pytest.raises(RuntimeError, match=message):
        pack("toy", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    elsewhere("gpu")
    with alone(run.folder), pytest.raises(RuntimeError, match=message):
        unpack(folder)
    assert not run.folder.exists()


def test_the_commands_say_what_they_did_and_what_is_wrong(packed, tmp_path, capsys):
    run, folder = packed
    assert main(["pack", "--preset", "toy", "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert f"toy/{run.name}: at iteration 7\n" in said
    assert "again: 1 parts, " in said
    assert main(["pack", "--preset", "toy", "--out", str(folder)]) == 1
    assert "pack: found other files there, expected an empty or a new folder" in capsys.readouterr().err
    assert main(["pack", "--preset", "digits", "--out", str(tmp_path / "none")]) == 1
    assert "digits: found no run to pack, finished or with a checkpoint" in capsys.readouterr().err
    assert main(["pack", "--preset", "nobody", "--out", str(tmp_path / "none")]) == 1
    assert "preset: found 'nobody'" in capsys.readouterr().err
    assert main(["unpack", str(folder)]) == 0
    assert f"toy/{run.name}: at iteration 7, already here" in capsys.readouterr().out
    assert main(["unpack", str(tmp_path)]) == 1
    assert "found no manifest.json" in capsys.readouterr().err
