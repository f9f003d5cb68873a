"""Checkpoints of ADM: two small ones made with the authors' code, and what is no such checkpoint."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dkdm_lab.teachers.single_files import load_adm

SIZES = {"new": 8, "legacy": 16}


def golden(order):
    return np.load(Path(__file__).parent / "golden" / f"adm_{order}_order.npz")


def state_of(order):
    arrays = golden(order)
    return {
        key.removeprefix("state."): torch.from_numpy(arrays[key])
        for key in arrays.files
        if key.startswith("state.")
    }


def read(file, order, new_attention_order=None):
    new = order == "new" if new_attention_order is None else new_attention_order
    return load_adm(file, SIZES[order], head_channels=16, new_attention_order=new)


@pytest.fixture
def checkpoint(tmp_path):
    """Write some state as ADM does, and return the file."""

    def write(state):
        torch.save(state, tmp_path / "adm.pt")
        return tmp_path / "adm.pt"

    return write


def greatest_error(denoiser, order):
    arrays = golden(order)
    x, t, expected = (torch.from_numpy(arrays[key]) for key in ("input", "t", "output"))
    with torch.no_grad():
        return float((torch.cat(denoiser(x, t), dim=1) - expected).abs().max())


@pytest.mark.parametrize("order", SIZES)
def test_the_authors_outputs_are_matched(order, checkpoint):
    denoiser = read(checkpoint(state_of(order)), order)
    assert not denoiser.training
    assert greatest_error(denoiser, order) < 1e-4  # measured: 3.3e-6


@pytest.mark.parametrize("order", SIZES)
def test_every_weight_has_its_place(order, checkpoint):
    state = state_of(order)
    assert read(checkpoint(state), order).parameter_count == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("order", SIZES)
def test_the_other_order_of_q_k_v_is_another_network(order, checkpoint):
    denoiser = read(checkpoint(state_of(order)), order, new_attention_order=order != "new")
    assert greatest_error(denoiser, order) > 0.1  # measured: 0.34


@pytest.mark.parametrize("order", SIZES)
def test_a_key_left_over_is_refused(order, checkpoint):
    file = checkpoint(state_of(order) | {"label_map.weight": torch.zeros(10, 128)})
    with pytest.raises(ValueError, match=r"adm.pt: .*1 keys have no place.*label_map.weight"):
        read(file, order)


@pytest.mark.parametrize(
    "key",
    [
        "time_embed.0.bias",
        "input_blocks.1.0.in_layers.0.weight",
        "input_blocks.3.1.qkv.bias",
        "middle_block.1.qkv.weight",
        "output_blocks.3.1.proj_out.weight",
        "out.0.weight",
        "out.2.weight",
    ],
)
def test_a_missing_key_is_named(key, checkpoint):
    state = state_of("new")
    del state[key]
    with pytest.raises(ValueError, match=rf"adm.pt: .*{key} is missing"):
        read(checkpoint(state), "new")


def test_no_key_at_all_can_be_missing(checkpoint):
    state = state_of("new")
    for key in list(state)[::5]:  # a fifth, of every kind: each costs a network
        file = checkpoint({name: value for name, value in state.items() if name != key})
        with pytest.raises(ValueError, match=r"adm\.pt: (U-Net: |found no )"):
            read(file, "new")


def test_weights_of_another_shape_are_refused(checkpoint):
    state = state_of("new")
    state["input_blocks.1.0.emb_layers.1.weight"] = state["input_blocks.1.0.emb_layers.1.weight"][:32]
    with pytest.raises(ValueError, match=r"(?s)adm.pt: .*down_blocks.0.resnets.0.time_emb_proj.weight"):
        read(checkpoint(state), "new")


def test_a_truncated_file_is_refused(checkpoint):
    file = checkpoint(state_of("new"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"adm.pt: not a readable checkpoint"):
        read(file, "new")


class Code:
    """What a hostile pickle holds: a call made on loading."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_pickle_with_code_is_refused_unrun(checkpoint, tmp_path):
    file = checkpoint(state_of("new") | {"code": Code(tmp_path / "ran")})
    with pytest.raises(ValueError, match=r"adm.pt: not a readable checkpoint of plain weights"):
        read(file, "new")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "foreign", [{"epoch": 3}, {"state_dict": {"conv.weight": torch.zeros(2)}}, [1, 2], torch.zeros(3)]
)
def test_a_foreign_checkpoint_is_refused(foreign, checkpoint):
    with pytest.raises(ValueError, match=r"adm.pt: found no 'input_blocks.0.0.weight', expected an ADM"):
        read(checkpoint(foreign), "new")


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_adm(tmp_path / "adm.pt")
