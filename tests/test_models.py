"""The trained teachers in book/models: written, found, checked, and distilled by runs."""

import json

import pytest
import torch
from diffusers import DDPMPipeline

from dkdm_lab.data import load_images, to_model
from dkdm_lab.experiments import ledger, presets, run_scores, shipped_models
from dkdm_lab.experiments.runs import SHOWN, Run
from dkdm_lab.networks import Denoiser, folders
from dkdm_lab.teachers.pipelines import Pipeline

pytestmark = pytest.mark.usefixtures("yardstick")

TINY = {
    "batch_size": 16, "teacher_iterations": 4, "iterations": 4, "curve": 1, "steps": 4, "samples": 30,
    "rho": 0.04, "teacher": "digits-student", "student": "digits-53k", "synthetic_images": 20,
    "synthetic_steps": 4,
}  # fmt: skip


def digits(method="teacher", seed=0, **changes):
    return Run(presets.get("digits", **{**TINY, **changes}), method, seed)


@pytest.fixture
def box(tmp_path, monkeypatch):
    """An empty book/models, with one model published into it; returns its folder."""
    monkeypatch.setattr(shipped_models, "models_dir", lambda: tmp_path / "models")
    run = digits()
    run.result(progress=False)
    return shipped_models.publish(run, tmp_path / "models" / "small-teacher")


def test_a_published_model_is_its_run_in_16_bits(box):
    own, found = digits().model(), Denoiser.from_pretrained(box)
    for a, b in zip(own.parameters(), found.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b, a.half().float(), rtol=0, atol=0)
    assert (found.diffusion.T, found.diffusion.schedule) == (100, "squaredcos_cap_v2")
    assert (box / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 2.1 * own.parameter_count
    pictures = DDPMPipeline.from_pretrained(box)(batch_size=2, num_inference_steps=2, output_type="np")
    assert pictures.images.shape == (2, 8, 8, 1)


def test_a_published_model_says_how_it_was_made_and_not_where(box, tmp_path):
    for file in box.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes()
    manifest = json.loads((box / "training.json").read_text(encoding="utf-8"))
    assert manifest["settings"] == digits().settings
    assert manifest["metrics"] == digits().result()["metrics"]
    card = (box / "README.md").read_text(encoding="utf-8")
    assert "1,797 handwritten digits" in card and "CC BY 4.0" in card and "4 iterations" in card
    assert f"| digits-FID | {manifest['metrics']['digits-FID']:.3f} |" in card


def test_a_teacher_may_be_published_without_scores(box, tmp_path):
    """They are measured on what was published."""
    run = digits(seed=1, curve=0)
    assert run.result(progress=False)["metrics"] == {}
    card = (shipped_models.publish(run, tmp_path / "unscored") / "README.md").read_text(encoding="utf-8")
    assert "Its scores are in the book" in card and "digits-FID" not in card
    for changes in ({"curve": -1}, {"curve": 0, "early_stop": True}):
        with pytest.raises(ValueError, match=f"curve: found {changes['curve']}, expected"):
            digits(**changes)


def test_a_run_not_finished_and_a_folder_in_use_are_refused(box, tmp_path):
    with pytest.raises(ValueError, match="found a run that is not begun, expected a finished one"):
        shipped_models.publish(digits(seed=5), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="small-teacher: found files there, expected an empty"):
        shipped_models.publish(digits(), box)


def test_a_model_that_is_missing_is_named(box):
    with pytest.raises(FileNotFoundError, match=r"big-teacher: found no model .* \(small-teacher\)"):
        shipped_models.find("big-teacher")
    with pytest.raises(ValueError, match=r"pipeline: found 'big-teacher'.*: found no model"):
        digits("dynamic", pipeline="big-teacher").result(progress=False)


def flip_a_byte(file):
    images = bytearray(file.read_bytes())
    images[-1] ^= 1
    file.write_bytes(images)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


def remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off, remove])
@pytest.mark.parametrize("ask", [Denoiser.from_pretrained, Pipeline.from_pretrained, folders.check])
def test_damaged_weights_are_refused(box, damage, ask):
    damage(box / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"safetensors: found .*: the model is damaged"):
        ask(box)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 3}'])
def test_a_damaged_manifest_is_refused(box, text):
    (box / "training.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"training.json: found no manifest of a published model"):
        Denoiser.from_pretrained(box)


def test_a_folder_of_somebody_else_has_no_manifest(tmp_path):
    digits().result(progress=False)
    folders.check(digits().folder / "model")


# -- as the teacher of runs ---------------------------------------------------------------------------

BOXED = {"pipeline": "small-teacher", "teacher_seed": 0}


def test_runs_distil_it_and_no_teacher_is_trained(box, cache):
    for method in ("teacher", "dynamic", "data-free"):
        digits(method, **BOXED).result(progress=False)
    trained = {f.name for f in (cache / "runs" / "digits").iterdir() if (f / "model").is_dir()}
    assert all("pipeline" in name for name in trained if name.startswith(("dynamic", "data-free")))
    assert not (digits("teacher", **BOXED).folder / "model").exists()


def test_a_run_knows_which_weights_taught_it(box):
    run = digits("dynamic", **BOXED)
    assert run.settings["pipeline_weights"] == shipped_models.fingerprint("small-teacher")
    assert "teacher_iterations" not in run.settings  # the card says it
    run.result(progress=False)
    other = digits(seed=1)
    other.result(progress=False)
    for file in sorted(box.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    box.rmdir()
    shipped_models.publish(other, box)
    with pytest.raises(ValueError, match="this run was made with pipeline_weights = "):
        run.status  # noqa: B018


def test_one_teacher_and_one_synthetic_set_serve_all_seeds(box):
    run = digits("data-free", seed=2, **BOXED)
    assert [(needed.method, needed.seed) for needed in run.needs()] == [("teacher", 0), ("synthetic", 0)]
    own = digits("data-free", seed=2)
    assert [(needed.method, needed.seed) for needed in own.needs()] == [("teacher", 2), ("synthetic", 2)]


# -- what a run leaves to look at and to compare ------------------------------------------------------


def test_a_run_keeps_samples_to_look_at(box, tmp_path, monkeypatch):
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path / "results"))
    run = digits("dynamic", **BOXED)
    ledger.enter(run)
    where = {k: v for k, v in {**TINY, **BOXED}.items() if k in run.settings}
    shown = ledger.samples("digits", {"method": "dynamic", **where})
    assert shown.keys() == {0} and shown[0].shape == (SHOWN, 1, 8, 8)
    assert torch.equal(
        shown[0], run_scores.evaluation_samples(run, run.model())[:SHOWN]
    )  # the first of those that were scored


def test_the_error_against_the_teacher_is_none_for_the_teacher_itself(box):
    run = digits("dynamic", **BOXED)
    teacher = run.teacher_run().model()
    assert run_scores.teacher_error(run, teacher)["teacher_error"] == [0.0] * 4


def test_the_error_against_the_teacher_is_by_quarter_of_the_levels(box):
    """A denoiser that is wrong by 0.1 in one quarter alone has the error there, and 0.01."""
    run = digits("dynamic", **BOXED)
    teacher = run.teacher_run().model()

    def wrong_in_the_third(x_t, t):
        eps, v = teacher(x_t, t)
        return eps + 0.1 * ((t >= 50) & (t < 75)).float().view(-1, 1, 1, 1), v

    found = run_scores.teacher_error(run, wrong_in_the_third)
    assert found["teacher_error"] == pytest.approx([0, 0, 0.01, 0], abs=1e-6)
    result = run.result(progress=False)
    assert len(result["teacher_error"]) == 4 and result["teacher_error_images"] == 1024


def test_scores_on_the_way_may_be_cheaper(box):
    run = digits("dynamic", curve=2, curve_samples=10, **BOXED)
    result = run.result(progress=False)
    first, last = result["curve"]
    assert first.keys() == {"iteration", "digits-FID@10"}
    assert {"digits-FID", "digits-FID@10", "digits-precision", "N"} < last.keys()
    assert digits("dynamic", curve=2, curve_samples=None, **BOXED).name == run.name
    with pytest.raises(ValueError, match="curve_samples: found 10, expected None with early_stop"):
        digits("dynamic", curve_samples=10, early_stop=True)


def test_cifar16_is_cifar10_at_half_its_side(cache):
    import numpy as np

    generator = np.random.default_rng(0)
    own = generator.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    (cache / "cifar10").mkdir()
    np.savez(cache / "cifar10" / "train.npz", x=own)
    from dkdm_lab import data

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS["cifar10"].hashes, "train", data.content_hash(
            torch.from_numpy(own).permute(0, 3, 1, 2)))  # fmt: skip
        found = load_images("cifar16", n=100)
    assert found.shape == (100, 3, 16, 16) and found.dtype == torch.uint8
    expected = own[:100].reshape(100, 16, 2, 16, 2, 3).mean((2, 4))
    difference = found.permute(0, 2, 3, 1).double().numpy() - expected
    assert difference.min() > -0.5 and difference.max() <= 0.5  # a half is rounded up
    assert to_model(found).abs().max() <= 1
