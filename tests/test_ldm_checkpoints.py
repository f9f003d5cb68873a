"""Checkpoints of CompVis' latent diffusion: a small one made with their own modules (golden/make_ldm.py), and
what is no such checkpoint."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.teachers.single_files import load_ldm


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "ldm.npz") as arrays:
        return {key: arrays[key] if key == "names" else torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture
def state(golden):
    """The weights in CompVis' layout. The raw ones are half the averaged ones, to tell them apart."""
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    for name in golden["names"]:
        state[f"model.{name}"] = state[f"model_ema.{name.replace('.', '')}"] / 2
    return state | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


@pytest.fixture
def checkpoint(tmp_path):
    def write(state, **others):
        torch.save({"state_dict": state, "epoch": 3, **others}, tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return write


def read(file):
    return load_ldm(file, size=8, head_channels=16)


def test_their_outputs_are_matched(golden, state, checkpoint):
    denoiser, vae, _ = read(checkpoint(state))
    assert not denoiser.training and not vae.training
    with torch.no_grad():
        eps, v = denoiser(golden["input"], golden["t"])
        latents = vae.encode(golden["image"]).latents
        decoded = vae.decode(golden["latents"]).sample
    assert v is None
    assert_close(eps, golden["output"], atol=1e-5, rtol=0)  # measured: 2e-7
    assert_close(latents, golden["latents"], atol=1e-4, rtol=0)  # measured: 3e-6
    assert_close(decoded, golden["decoded"], atol=1e-4, rtol=0)  # measured: 4e-6


def test_raw_weights_are_read_where_none_are_averaged(golden, state, checkpoint):
    raw = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    with torch.no_grad():
        eps, _ = read(checkpoint(raw))[0](golden["input"], golden["t"])
    assert float((eps - golden["output"]).abs().max()) > 0.1


def test_the_process_has_the_checkpoints_betas(state, checkpoint):
    denoiser, _, scheduler = read(checkpoint(state))
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert not scheduler.config.clip_sample
    assert_close(torch.from_numpy(denoiser.diffusion.betas), state["betas"].double(), rtol=1e-5, atol=0)
    assert denoiser.diffusion.clip is False


def test_betas_of_another_schedule_are_kept_as_they_are(state, checkpoint):
    state["betas"] = torch.from_numpy(GaussianDiffusion.cosine(50).betas).float()
    assert_close(torch.from_numpy(read(checkpoint(state))[0].diffusion.betas).float(), state["betas"])


def test_latents_are_scaled_as_the_checkpoint_says(state, checkpoint):
    assert read(checkpoint(state))[1].config.scaling_factor == 1.0
    state["scale_factor"] = torch.tensor(0.25)
    assert read(checkpoint(state))[1].config.scaling_factor == 0.25


def test_what_lightning_leaves_in_a_checkpoint_is_read_past(state, checkpoint, monkeypatch):
    """It names a callback by its class, of a package that is not there when the file is read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    kind = type("ModelCheckpoint", (), {"__module__": name})
    sys.modules[name].ModelCheckpoint = kind
    file = checkpoint(state, callbacks={kind: {"best_model_score": torch.tensor(1.0)}})
    monkeypatch.undo()
    assert read(file)[0].shape == (3, 8, 8)


def test_a_pickle_with_code_is_refused(state, checkpoint, capfd):
    class Code:
        def __reduce__(self):
            return print, ("this ran",)

    with pytest.raises(ValueError, match=r"model.ckpt: not a readable checkpoint of plain weights"):
        read(checkpoint(state, hyper_parameters=Code()))
    assert "this ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.output_blocks.1.2.conv.bias",
        "first_stage_model.encoder.conv_in.weight",
        "first_stage_model.quantize.embedding.weight",
    ],
)
def test_a_missing_key_is_named(key, state, checkpoint):
    del state[key]
    name = key.removeprefix("model.diffusion_model.")
    with pytest.raises(ValueError, match=rf"model.ckpt: .*{name} is missing"):
        read(checkpoint(state))


@pytest.mark.parametrize(
    "key", ["encoder.mid.attn_1.q.weight", "decoder.norm_out.bias", "post_quant_conv.bias"]
)
def test_a_key_missing_within_the_first_stage_is_named(key, state, checkpoint):
    del state[f"first_stage_model.{key}"]
    with pytest.raises(ValueError, match=r"(?s)model.ckpt: .*Missing key"):
        read(checkpoint(state))


@pytest.mark.parametrize(
    "key, message",
    [
        ("model.diffusion_model.extra.weight", ".*1 keys have no place.*extra.weight"),
        ("first_stage_model.encoder.down.1.attn.0.q.weight", ".*down.1.attn.0.q.weight"),
        ("cond_stage_model.embedding.weight", "found cond_stage_model.embedding.weight, expected an uncond"),
    ],
)
def test_a_key_too_many_is_named(key, message, state, checkpoint):
    state[key] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=rf"(?s)model.ckpt: {message}"):
        read(checkpoint(state))


def test_the_discriminator_of_the_first_stages_training_is_left(state, checkpoint):
    state["first_stage_model.loss.discriminator.main.0.weight"] = torch.zeros(2, 2)
    assert read(checkpoint(state))[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    "left_out, message",
    [
        ("model.", r"found 0 keys of model.diffusion_model, \d+ of first_stage_model and its betas"),
        ("first_stage_model.", r"found \d+ keys of model.diffusion_model, 0 of first_stage_model"),
        ("betas", r"first_stage_model and no betas, expected all three"),
    ],
)
def test_a_part_that_is_not_there_is_named(left_out, message, state, checkpoint):
    state = {key: value for key, value in state.items() if not key.startswith(left_out)}
    with pytest.raises(ValueError, match=message):
        read(checkpoint(state))
