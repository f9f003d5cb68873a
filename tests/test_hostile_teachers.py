"""Folders of somebody who means harm: nothing of them runs, nothing outside is read or copied, and each is
refused in one sentence, at once and in little memory."""

import json
import os
import re
import resource
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file
from test_pipelines import T, stable_diffusion, unet

from dkdm_lab.teachers.pipelines import Pipeline

DATA = "diffusion_pytorch_model.safetensors"
CODE = "import pathlib; pathlib.Path(__file__).with_name('it-ran').touch()\nclass Evil: pass\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "teacher"
    torch.manual_seed(0)
    DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=T)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """One with a text encoder, a tokenizer and a VAE."""
    folder = tmp_path_factory.mktemp("painter") / "teacher"
    stable_diffusion(folder)
    return folder


def edit(name, **changes):
    def change(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def replace(name, content):
    def change(folder):
        file = folder / name
        file.unlink()
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def code(change):
    """With programs that must not run wherever a loader may look for one."""

    def both(folder):
        for place in (folder, folder / "unet", folder / "scheduler"):
            for name in ("pipeline", "evil", "modeling", "scheduling", "__init__"):
                (place / f"{name}.py").write_text(CODE, encoding="utf-8")
        change(folder)

    return both


def link(name, target):
    def change(folder):
        file = folder / name
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        where = {"outside": folder.parent / "outside"}.get(target, target)
        if target == "outside":
            where.mkdir(exist_ok=True)
            (where / "secret.json").write_text('{"password": 1}', encoding="utf-8")
            where = where if "." not in name else where / "secret.json"
        file.symlink_to(where)

    return change


def fifo(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def truncate(name, size):
    def change(folder):
        os.truncate(folder / name, size)

    return change


def header(size):
    return replace(f"unet/{DATA}", struct.pack("<Q", size) + b"{}")


def pickle(folder):
    """Weights that run a program when they are unpickled."""
    (folder / "unet" / DATA).unlink()

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(folder / "it-ran"),)

    torch.save({"conv_in.weight": Code()}, folder / "unet" / "diffusion_pytorch_model.bin")


def state(change):
    def changed(folder):
        file = folder / "unet" / DATA
        weights = load_file(file)
        change(weights)
        save_file(weights, file)

    return changed


def shards(name):
    def change(folder):
        (folder / "unet" / DATA).rename(
            folder / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors"
        )
        index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
        (folder / "unet" / f"{DATA}.index.json").write_text(json.dumps(index), encoding="utf-8")

    return change


SCHEDULER, UNET, INDEX = "scheduler/scheduler_config.json", "unet/config.json", "model_index.json"
HOSTILE = {
    # a program that a loader would run
    "a pipeline for a scheduler": code(edit(SCHEDULER, _class_name="DiffusionPipeline")),
    "DDPMPipeline for a scheduler": code(edit(SCHEDULER, _class_name="DDPMPipeline")),
    "a model for a scheduler": code(edit(SCHEDULER, _class_name="UNet2DModel")),
    "a module for a scheduler": code(edit(SCHEDULER, _class_name="utils")),
    "a name of no class": code(edit(SCHEDULER, _class_name="__loader__")),
    "a scheduler of a list": code(edit(SCHEDULER, _class_name=["DDPMScheduler"])),
    "no scheduler's name": code(edit(SCHEDULER, _class_name=None)),
    "a network of a module": code(edit(UNET, _class_name="evil.Evil")),
    "a pipeline for a network": code(edit(UNET, _class_name="DiffusionPipeline")),
    "an AutoModel for a network": code(edit(UNET, _class_name="AutoModel", auto_map={"AutoModel": "evil.E"})),
    "a network of a dictionary": code(edit(UNET, _class_name={"a": 1})),
    "a library of its own": code(edit(INDEX, unet=["evil", "Evil"])),
    "a scheduler of its own": code(edit(INDEX, scheduler=["scheduling", "Evil"])),
    "a library by a path": code(edit(INDEX, unet=["../../evil", "Evil"])),
    "os for a library": code(edit(INDEX, unet=["os", "system"])),
    "a pickle that runs": pickle,
    # what lies outside
    "a part outside": edit(INDEX, **{"../outside": ["diffusers", "AutoencoderKL"]}),
    "a part of a whole path": edit(INDEX, **{"/etc": ["diffusers", "AutoencoderKL"]}),
    "a part that is no pair": edit(INDEX, vae=["diffusers"]),
    "a link to a file outside": link(UNET, "outside"),
    "a link to a folder outside": link("unet", "outside"),
    "a link to /etc/passwd": link("unet/notes.txt", "/etc/passwd"),
    "weights that are /dev/zero": link(f"unet/{DATA}", "/dev/zero"),
    "weights that are /dev/null": link(f"unet/{DATA}", "/dev/null"),
    "a scheduler that is /dev/zero": link(SCHEDULER, "/dev/zero"),
    "a link that leads nowhere": link("unet/notes.txt", "nowhere"),
    "a link to itself": link("unet/notes.txt", "notes.txt"),
    "a pipe among the weights": fifo("unet/notes.txt"),
    "a pipe for a configuration": fifo(UNET),
    "a pipe for a scheduler": fifo(SCHEDULER),
    "a shard outside": shards("../../outside/secret.safetensors"),
    "a shard that is not there": shards("diffusion_pytorch_model-00002-of-00002.safetensors"),
    # absurd sizes
    "a billion layers": edit(UNET, layers_per_block=10**9),
    "a million layers": edit(UNET, layers_per_block=10**6),
    "a thousand layers": edit(UNET, layers_per_block=1000),
    "a terabyte of width": edit(UNET, block_out_channels=[4_000_000, 8_000_000], norm_num_groups=4),
    "too many levels of a network": edit(UNET, block_out_channels=[4] * 2000),
    "a billion samples a side": edit(UNET, sample_size=10**9, in_channels=10**9),
    "infinite channels": edit(UNET, in_channels=float("inf")),
    "channels by name": edit(UNET, in_channels="three"),
    "no channels": edit(UNET, in_channels=0),
    "negative channels": edit(UNET, block_out_channels=[-8, 16]),
    "a terabyte of levels": edit(SCHEDULER, num_train_timesteps=10**12),
    "levels by name": edit(SCHEDULER, num_train_timesteps="many"),
    "no levels": edit(SCHEDULER, num_train_timesteps=0),
    "infinite betas": edit(SCHEDULER, beta_end=float("inf")),
    "betas that are no numbers": edit(SCHEDULER, beta_end=float("nan")),
    "betas above 1": edit(SCHEDULER, beta_end=7.0),
    "betas by name": edit(SCHEDULER, trained_betas="linear"),
    "a schedule of its own": edit(SCHEDULER, beta_schedule="evil"),
    "a huge configuration": replace(UNET, b'{"a": "' + b"x" * 2**21 + b'"}'),
    "a deep configuration": replace(UNET, "[" * 100_000),
    # what is no file of its kind
    "no JSON": replace(UNET, "{"),
    "a list": replace(UNET, "[]"),
    "bytes": replace(SCHEDULER, b"\xff\xfe\x00"),
    "an empty index": replace(INDEX, ""),
    "truncated weights": truncate(f"unet/{DATA}", 5000),
    "empty weights": truncate(f"unet/{DATA}", 0),
    "a header of an exabyte": header(2**60),
    "a header of a gigabyte": header(2**30),
    "a weight too few": state(lambda weights: weights.pop("conv_in.weight")),
    "a weight too many": state(lambda weights: weights.update(extra=torch.zeros(1))),
    "weights of another shape": state(lambda weights: weights.update({"conv_in.weight": torch.zeros(2, 2)})),
    "quantised weights": edit(UNET, quantization_config={"quant_method": "bitsandbytes"}),
    "weights of another network": replace(f"unet/{DATA}", b"PK\x03\x04"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_at_once_and_runs_nothing(kind, plain, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(plain, folder)
    HOSTILE[kind](folder)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        Pipeline.from_pretrained(folder)
    assert time.process_time() - begun < 10  # measured: at most 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; measured: 60,000
    said = str(refused.value)
    assert said.startswith(str(folder)) and "\n" not in said and len(said) < 1000
    assert not [found for found in tmp_path.rglob("it-ran*")]


OF_TEXT = {
    "an encoder of its own": code(edit(INDEX, text_encoder=["transformers", "AutoModel"])),
    "an encoder that is a program": code(edit(INDEX, text_encoder=["transformers", "pipeline"])),
    "a tokenizer that asks for code": code(edit(INDEX, tokenizer=["transformers", "AutoTokenizer"])),
    "a pipeline that is no pipeline": edit(INDEX, _class_name="OnnxRuntimeModel"),
    "a pipeline by no name": edit(INDEX, _class_name=7),
    "an encoder of a billion layers": edit("text_encoder/config.json", num_hidden_layers=10**9),
    "an encoder of many layers": edit("text_encoder/config.json", num_hidden_layers=10**5),
    "an encoder of a terabyte": edit("text_encoder/config.json", hidden_size=9_999_998, vocab_size=10**6),
    "an encoder that is a link": link("text_encoder/config.json", "outside"),
    "an encoder that is a pipe": fifo("text_encoder/config.json"),
    "no encoder": lambda folder: shutil.rmtree(folder / "text_encoder"),
    "truncated encoder": truncate("text_encoder/model.safetensors", 3000),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "a broken tokenizer": replace("tokenizer/tokenizer_config.json", "{"),
    "a vocabulary that is a link": link("tokenizer/vocab.txt", "outside"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_TEXT)
def test_hostile_text_parts_are_refused(kind, painter, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(painter, folder)
    OF_TEXT[kind](folder)
    begun = time.process_time()
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        Pipeline.from_pretrained(folder).prompts(["a cat"])
    assert time.process_time() - begun < 10
    assert str(refused.value).startswith(str(folder))
    assert not [found for found in tmp_path.rglob("it-ran*")]


def test_auto_map_runs_nothing_in_parts_of_known_classes(painter, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(painter, folder)
    for part, name in (("text_encoder", "config"), ("tokenizer", "tokenizer_config"), ("vae", "config")):
        (folder / part / "evil.py").write_text(CODE, encoding="utf-8")
        edit(
            f"{part}/{name}.json", auto_map={"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        )(folder)
    teacher = Pipeline.from_pretrained(folder)
    assert len(teacher.prompts(["a cat"])) == 1
    teacher.save(tmp_path / "out", teacher.student("x1"), {})
    assert not [*tmp_path.rglob("it-ran*"), *(tmp_path / "out").rglob("*.py")]


@pytest.mark.parametrize(
    "name, target",
    [
        ("vae/secret.json", "outside"),
        ("vae/zero.json", "/dev/zero"),
        ("vae/gone.json", "nowhere"),
        ("vae", "outside"),
    ],
)
def test_nothing_outside_is_exported(name, target, painter, tmp_path):
    """Also where it came there after the teacher was read."""
    folder = tmp_path / "teacher"
    shutil.copytree(painter, folder)
    teacher = Pipeline.from_pretrained(folder)
    student = teacher.student("x1")
    link(name, target)(folder)
    with pytest.raises(ValueError, match="found a "):
        teacher.save(tmp_path / "out", student, {})
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="found a "):
        Pipeline.from_pretrained(folder)


def test_the_hubs_own_links_are_fine(plain, tmp_path):
    """Its cache has all files as links to blobs beside them."""
    cache = tmp_path / "models--some-one--their-model"
    folder = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for number, file in enumerate(f for f in plain.rglob("*") if f.is_file()):
        shutil.copy(file, cache / "blobs" / str(number))
        place = folder / file.relative_to(plain)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(cache / "blobs" / str(number))
    assert Pipeline.from_pretrained(folder).denoiser.shape == (3, 8, 8)


# -- pickles, wherever one may lie, and single files of other programs ------------------------------------


class Code:
    """Makes a folder when it is unpickled, if anybody lets it."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place / "it-ran"),)


def inflated(file, weights):
    """Weights with a hundred times their bytes behind them, packed to next to nothing."""
    torch.save({**weights, "more": torch.zeros(2**20)}, file)
    with zipfile.ZipFile(file) as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)


PICKLES = {
    "that runs": lambda file, weights: torch.save({**weights, "x": Code(file.parent)}, file),
    "that is inflated": inflated,
    "of an old form that runs": lambda file, weights: torch.save(
        {**weights, "x": Code(file.parent)}, file, _use_new_zipfile_serialization=False
    ),
    "of no weights": lambda file, weights: torch.save([1, 2], file),
    "that is no pickle": lambda file, weights: file.write_bytes(b"\x80\x04."),
    "that is torn": lambda file, weights: (torch.save(weights, file), os.truncate(file, 2000)),
}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_hostile_pickle_in_any_part_is_refused(kind, part, painter, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(painter, folder)
    (safe,) = (folder / part).glob("*.safetensors")
    weights = load_file(safe)
    safe.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    PICKLES[kind](folder / part / name, weights)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as refused:
        Pipeline.from_pretrained(folder).prompts(["a cat"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert str(refused.value).startswith(str(folder / part))
    assert not [*tmp_path.rglob("it-ran*")]


def adm():
    """ADM's smallest, as its authors' program wrote it."""
    arrays = np.load(Path(__file__).parent / "golden" / "adm_new_order.npz")
    names = [name for name in arrays.files if name.startswith("state.")]
    return {name.removeprefix("state."): torch.from_numpy(arrays[name]) for name in names}


def ldm(**more):
    unet = {f"model.diffusion_model.{name}": value for name, value in adm().items()}
    first = {f"first_stage_model.{name}": torch.zeros(4, 4, 3, 3) for name in (
        "encoder.conv_in.weight", "decoder.conv_out.weight", "encoder.conv_out.weight",
        "encoder.down.0.block.0.conv1.weight", "encoder.down.0.block.0.conv2.weight")}  # fmt: skip
    first["first_stage_model.quantize.embedding.weight"] = torch.zeros(8, 4)
    return {"state_dict": {**unet, **first, "betas": torch.linspace(0.001, 0.02, 10), **more}}


def huge(*shape):
    """A tensor of any shape over one number."""
    return torch.zeros(1).expand(*shape)


def wide():
    """A network of 20,000 channels, by weights that say so and are no larger than they must be."""
    found = adm() | {"input_blocks.0.0.weight": torch.zeros(20_000, 3, 3, 3)}
    return found | {
        key: torch.zeros(20_000, 1, 1, 1)
        for key in found
        if re.fullmatch(r"input_blocks\.\d+\.0\.out_layers\.3\.weight", key)
    }


def saved(state):
    return lambda file: torch.save(state(), file)


FILES = {
    "a.pt that runs": lambda file: PICKLES["that runs"](file, adm()),
    "a.ckpt that runs": lambda file: torch.save({"state_dict": adm(), "x": Code(file.parent)}, file),
    "a.pt that is inflated": lambda file: inflated(file, adm()),
    "a.ckpt that is inflated": lambda file: inflated(file, ldm()),
    "a.pt that is /dev/zero": lambda file: file.symlink_to("/dev/zero"),
    "a.ckpt that is /dev/zero": lambda file: file.symlink_to("/dev/zero"),
    "a.pt that is a pipe": os.mkfifo,
    "a.pt that is a folder": Path.mkdir,
    "a.pt that leads to itself": lambda file: file.symlink_to(file.name),
    "a.pt that is empty": Path.touch,
    "a.pt of a list": saved(lambda: [torch.zeros(1)]),
    "a.pt of numbers": saved(lambda: adm() | {"out.2.weight": 3}),
    "a.pt of words": saved(lambda: dict.fromkeys(adm(), "x")),
    "a.pt of numbers for names": saved(lambda: dict(enumerate(adm().values()))),
    "a.pt without its end": saved(lambda: {k: v for k, v in adm().items() if not k.startswith("out.2")}),
    "a.pt without its middle": saved(lambda: {k: v for k, v in adm().items() if "middle" not in k}),
    "a.pt with one block": saved(lambda: {"input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3)}),
    "a.pt with scalars": saved(lambda: {k: torch.zeros(()) for k in adm()}),
    "a.pt with sparse weights": saved(lambda: adm() | {"x": torch.zeros(2, 2).to_sparse()}),
    "a.pt of a terabyte": saved(lambda: adm() | {"input_blocks.0.0.weight": huge(10**6, 10**5, 3, 3)}),
    "a.pt of a wide network": saved(wide),
    "a.pt of a billion blocks": saved(lambda: adm() | {"input_blocks.999999999.0.weight": torch.zeros(1)}),
    "a.pt of very many blocks": saved(lambda: adm() | {f"input_blocks.{'9' * 5000}.0": torch.zeros(1)}),
    "a.pt of no channels": saved(lambda: adm() | {"input_blocks.0.0.weight": torch.zeros(0, 3, 3, 3)}),
    "a.ckpt of a billion levels": saved(
        lambda: ldm(**{"first_stage_model.encoder.down.999999999.block.0.conv1.weight": torch.zeros(1)})
    ),
    "a.ckpt of a terabyte": saved(
        lambda: ldm(**{"first_stage_model.encoder.down.0.block.0.conv1.weight": huge(10**6, 10**5, 3, 3)})
    ),
    "a.ckpt of a wide first stage": saved(
        lambda: ldm(**{"first_stage_model.encoder.down.0.block.0.conv1.weight": torch.zeros(30_000, 1, 1, 1)})
    ),
    "a.ckpt of many codes": saved(
        lambda: ldm(**{"first_stage_model.quantize.embedding.weight": huge(10**9, 100)})
    ),
    "a.ckpt of no numbers": saved(lambda: ldm(scale_factor="x")),
    "a.ckpt with nothing in it": saved(lambda: {"state_dict": {}}),
    "a.ckpt with a list in it": saved(lambda: {"state_dict": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_of_another_program_is_refused_at_once(kind, tmp_path):
    file = tmp_path / kind.split()[0]
    FILES[kind](file)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((ValueError, FileNotFoundError, OSError)) as refused:
        Pipeline.from_pretrained(file, size=8, head_channels=16)
    assert time.process_time() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert not [*tmp_path.rglob("it-ran*")]
