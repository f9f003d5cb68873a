"""The hyperparameter tables: the paper's values, and that every preset can be built and changed."""

import dataclasses

import pytest

from dkdm_lab.beyond.autoencoder import AUTOENCODERS
from dkdm_lab.data import DATASETS, load_labels
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.networks import NETWORKS
from dkdm_lab.pools import WARMUPS, DynamicPool


@pytest.mark.parametrize(
    "name, batch_size, iterations, teacher, student, early_stop, images, steps",
    [
        ("cifar10", 128, 200_000, "cnn-57m", "cnn-14m", True, 50_000, 1000),
        ("celeba64", 256, 100_000, "celeba-295m", "celeba-57m", True, 202_599, 100),
        ("imagenet32", 512, 500_000, "cnn-57m", "cnn-14m", False, 1_281_167, 100),
    ],
)
def test_the_papers_presets_are_tables_4_and_6(
    name, batch_size, iterations, teacher, student, early_stop, images, steps
):
    table = {
        "schedule": "cosine",
        "T": 1000,
        "batch_size": batch_size,
        "iterations": iterations,
        "lr": 1e-4,
        "rho": 0.4,
        "teacher": teacher,
        "student": student,
        "early_stop": early_stop,
        "synthetic_images": images,  # Table 4, as the next
        "synthetic_steps": steps,
        "steps": 50,  # Sec. 4.1, as the next
        "samples": 50_000,
    }
    preset = presets.get(name)
    assert {setting: getattr(preset, setting) for setting in table} == table
    assert preset.synthetic_images == DATASETS[name].sizes["train"]  # "matching the size of the original"


@pytest.mark.parametrize(
    "name, batch_size, iterations, lr, images",
    [("celebahq256", 48, 410_000, 9.6e-5, 25_000), ("ffhq256", 42, 640_000, 8.4e-5, 60_000)],
)
def test_the_papers_latent_presets_are_tables_4_and_7(name, batch_size, iterations, lr, images):
    table = {
        "T": 1000,
        "batch_size": batch_size,
        "iterations": iterations,
        "lr": lr,
        "rho": 4.0,
        "teacher": "ldm-274m",
        "student": "ldm-86m",
        "early_stop": False,
        "synthetic_images": images,  # Table 4, as the next
        "synthetic_steps": 100,
        "sampler": "ddim",
        "steps": 200,  # Sec. 4.1, as the next
        "samples": 50_000,
    }
    preset = presets.get(name)
    assert {setting: getattr(preset, setting) for setting in table} == table
    assert preset.synthetic_images == DATASETS[name].sizes["train"]
    assert preset.diffusion().betas[[0, -1]].tolist() == pytest.approx(
        [0.0015, 0.0195]
    )  # of LDM's configuration


def test_the_presets_of_the_book_exist():
    own = ["toy", "digits", "digits-pools", "digits-moves", "digits-latent", "digits-classes", "fashion"]
    own += ["cifar16", "cifar10-short"]
    papers = ["cifar10", "celeba64", "imagenet32", "celebahq256", "ffhq256"]
    assert list(PRESETS) == own + papers


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_networks(name):
    preset = presets.get(name)
    assert preset.name == name
    assert preset.student in NETWORKS
    assert preset.teacher in {*NETWORKS, "exact"}
    assert preset.autoencoder in {*AUTOENCODERS, None}
    if preset.classes and preset.data == "digits":
        assert set(load_labels("digits").tolist()) == set(range(preset.classes))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_process_and_a_pool(name):
    preset = presets.get(name)
    process = preset.diffusion()
    assert (process.T, process.schedule, process.clip) == (preset.T, preset.schedule, preset.clip)
    assert len(process.timesteps(preset.steps, preset.sampler)) == preset.steps
    assert len(process.timesteps(preset.synthetic_steps, preset.sampler)) == preset.synthetic_steps
    assert preset.warmup in WARMUPS
    teacher = type("Teacher", (), {"shape": (2,), "eval": lambda self: self})()
    pool = DynamicPool(process, teacher, preset.batch_size, rho=preset.rho, warmup=preset.warmup)
    assert pool.size == round(preset.rho * preset.T * preset.batch_size)


@pytest.mark.parametrize("name", PRESETS)
def test_live_settings_only_shorten(name):
    own, live = presets.get(name), presets.get(name, live=True)
    differs = {f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(live, f.name)}
    assert differs == own.live.keys()
    assert all(getattr(live, name) < getattr(own, name) for name in differs - {"pipeline", "teacher_seed"})
    assert live.pipeline in (own.pipeline, live.teacher if name == "digits" else f"{name}-teacher")


def test_changes_come_after_the_live_settings():
    preset = presets.get("digits", live=True, iterations=7)
    assert preset.iterations == 7
    assert preset.teacher_iterations == PRESETS["digits"].live["teacher_iterations"]
    assert PRESETS["digits"].iterations != 7


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset: found 'mnist', expected one of toy, digits, "):
        presets.get("mnist")


@pytest.mark.parametrize("setting", ["learning_rate", "name", "live"])
def test_an_unknown_setting_is_refused(setting):
    with pytest.raises(ValueError, match=rf"preset digits: found no setting '{setting}', expected one of"):
        presets.get("digits").replace(**{setting: 1})
