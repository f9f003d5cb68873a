"""Every family of teachers in every layout, as a table: what it is recognised as, and that it works, or the
sentence by which it is refused. The table is kept in book/results/teachers.json, where chapter 16 finds it;
`python tests/test_every_teacher.py` writes it anew."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, PixArtAlphaPipeline
from safetensors.torch import load_file, save_file
from test_families import PAINTERS
from test_layouts import NONSENSE, flat
from test_pipelines import KINDS, T, silent, stable_diffusion, unet

from dkdm_lab.system.paths import results_dir
from dkdm_lab.teachers import check
from dkdm_lab.teachers.pipelines import Pipeline

TABLE = Path("teachers.json")
PROMPTS = ["a red cat", "a dog"]


def painter(kind):
    return lambda folder: silent(PAINTERS[kind](folder)).save_pretrained(folder)


def pixart_alpha(folder):
    """As of up to 512 pixels, which is not told of an image's size."""
    parts = PAINTERS["PixArtSigma"](folder).components
    silent(PixArtAlphaPipeline(**parts)).save_pretrained(folder)


def stable_diffusion_2(folder):
    stable_diffusion(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    found = json.loads(file.read_text(encoding="utf-8")) | {"prediction_type": "v_prediction"}
    file.write_text(json.dumps(found), encoding="utf-8")


def flow_unet(folder):
    unet().save_pretrained(folder / "unet")
    FlowMatchEulerDiscreteScheduler(T, shift=3.0).save_pretrained(folder / "scheduler")


def edm_unet(folder):
    unet().save_pretrained(folder / "unet")
    EDMEulerScheduler(num_train_timesteps=T).save_pretrained(folder / "scheduler")


FAMILIES = {
    "DDPM": KINDS["ddpm"],
    "DDPM, flat": lambda folder: flat(folder, unet(), DDPMScheduler(num_train_timesteps=T), pickled=False),
    "ADM file": KINDS["adm"],
    "U-Net with labels": KINDS["class-conditional"],
    "LDM": KINDS["ldm"],
    "LDM file": KINDS["ldm-checkpoint"],
    "DiT": KINDS["dit"],
    "Stable Diffusion 1": stable_diffusion,
    "Stable Diffusion 2, v": stable_diffusion_2,
    "Stable Diffusion XL": painter("StableDiffusionXL"),
    "Playground v2.5, EDM": painter("Playground"),
    "PixArt-alpha": pixart_alpha,
    "PixArt-sigma": painter("PixArtSigma"),
    "Stable Diffusion 3": painter("StableDiffusion3"),
    "FLUX.1": painter("Flux"),
    "SANA": painter("Sana"),
    "AuraFlow": painter("AuraFlow"),
    "Lumina2": painter("Lumina2"),
    "U-Net that predicts velocity": flow_unet,
    "U-Net of EDM": edm_unet,
}
OPTIONS = {
    "ADM file": {"size": 8, "head_channels": 16},
    "LDM file": {"size": 8, "head_channels": 16},
    "FLUX.1": {"size": 8},
}
FILES = ("ADM file", "LDM file")


# -- layouts: what becomes of each file of weights ------------------------------------------------------


def half(file):
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()
    }
    save_file(state, file.with_name(f"{file.stem}.fp16.safetensors"), metadata={"format": "pt"})


def pickled(file):
    stem = "pytorch_model" if file.stem == "model" else file.stem
    torch.save(load_file(file), file.with_name(f"{stem}.bin"))


def sharded(file):
    state = load_file(file)
    shards, keys = {}, sorted(state)
    for number, some in enumerate((keys[::2], keys[1::2]), 1):
        name = f"{file.stem}-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in some}, file.with_name(name), metadata={"format": "pt"})
        shards |= dict.fromkeys(some, name)
    index = {"metadata": {"total_size": sum(v.nbytes for v in state.values())}, "weight_map": shards}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index), encoding="utf-8")


LAYOUTS = {"as saved": None, "fp16 alone": half, "pickles": pickled, "shards": sharded}


def lay_out(folder, layout):
    for file in [*folder.rglob("*.safetensors")] if LAYOUTS[layout] else ():
        LAYOUTS[layout](file)
        file.unlink()


# -- the table ------------------------------------------------------------------------------------------


def make(family, folder):
    """The teacher's folder or file."""
    torch.manual_seed(0)
    FAMILIES[family](folder)
    (teacher,) = (found for found in folder.parent.glob("teacher*"))
    return teacher


def read(family, path):
    """A teacher, and its prompts or labels."""
    teacher = Pipeline.from_pretrained(path, **OPTIONS.get(family, {}))
    kind = teacher.denoiser.condition
    if kind is None:
        return teacher, None
    return teacher, teacher.prompts(PROMPTS) if kind == "text" else teacher.classes()


def row(teacher, conditions):
    """What is said of a teacher, without its process, whose T is that of a test."""
    said = dict(line.split(": ", 1) for line in check.describe(teacher, None, conditions))
    return {
        "network": type(teacher.denoiser.network).__name__,
        "predicts": said["predicts"],
        "conditions": said["conditions"],
        "decoder": said.get("decoder", "none"),
    }


def refusal(kind, plain, folder):
    """The sentence that a folder without sense is refused by."""
    shutil.copytree(plain, folder)
    change, _ = NONSENSE[kind]
    change(folder)
    with pytest.raises(ValueError) as refused:
        Pipeline.from_pretrained(folder)
    return str(refused.value).replace(str(folder), "TEACHER")


def table(scratch):
    """All of it: ``{"read": {family: row}, "layouts": [...], "refused": {kind: sentence}}``."""
    found = {"read": {}, "layouts": list(LAYOUTS), "refused": {}}
    for number, family in enumerate(FAMILIES):
        (scratch / f"family{number}").mkdir()
        found["read"][family] = row(*read(family, make(family, scratch / f"family{number}" / "teacher")))
    KINDS["ddpm"](scratch / "plain")
    for number, kind in enumerate(NONSENSE):
        found["refused"][kind] = refusal(kind, scratch / "plain", scratch / f"refused{number}")
    return found


@pytest.fixture(scope="module")
def kept():
    return json.loads((results_dir() / TABLE).read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_read_in_every_layout(family, kept, tmp_path):
    """To the last bit, or to that of 16; and its student of half the width is written and read again."""
    torch.manual_seed(0)
    original = make(family, tmp_path / "teacher")
    first, conditions = read(family, original)
    assert row(first, conditions) == kept["read"][family]
    expected = first.denoiser.network.state_dict()
    for number, layout in enumerate(LAYOUTS if family not in FILES else ()):
        folder = tmp_path / f"layout{number}"
        shutil.copytree(original, folder)
        lay_out(folder, layout)
        teacher, found = read(family, folder)
        rounded = layout == "fp16 alone"
        for key, value in teacher.denoiser.network.state_dict().items():
            assert torch.equal(value, expected[key].half().float() if rounded else expected[key])
        assert row(teacher, found) == kept["read"][family]
        if found is not None:  # measured for fp16: 0.004 at most
            torch.testing.assert_close(
                found.values, conditions.values, atol=0.02 if rounded else 0.0, rtol=0.0
            )
        teacher.save(folder / "out", teacher.student("x0.5"), {})
        again = Pipeline.from_pretrained(folder / "out", **OPTIONS.get(family, {}))
        assert row(again, found) == kept["read"][family]
        if found is not None and teacher.denoiser.condition == "text":  # its encoders went along
            assert len(again.prompts(PROMPTS)) == 2


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_refusal_is_that_of_the_table(kind, kept, tmp_path):
    KINDS["ddpm"](tmp_path / "plain")
    assert refusal(kind, tmp_path / "plain", tmp_path / "teacher") == kept["refused"][kind]


def test_the_table_has_each_row_once(kept):
    assert set(kept["read"]) == set(FAMILIES) and set(kept["refused"]) == set(NONSENSE)
    assert kept["layouts"] == list(LAYOUTS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        text = json.dumps(table(Path(scratch)), indent=1) + "\n"
    (results_dir() / TABLE).write_text(text, encoding="utf-8")
    sys.stdout.write(text)
