"""Every kind of training and what is made of it, killed at moments of chance: it ends as if it never was.

A moment is a call: of a step of an optimiser, or of one of the functions by which anything comes to the disk.
So a kill falls between any two of them, and the same ones every time.
"""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile

import pytest
import torch

from dkdm_lab import networks
from dkdm_lab.cli import main
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import part_making, presets, studies
from dkdm_lab.experiments.runs import Run
from dkdm_lab.experiments.studies import Part
from dkdm_lab.system.paths import cache_dir
from dkdm_lab.teachers.distill import Distillation, distill
from dkdm_lab.teachers.pipelines import Pipeline

# Forked from a process that has imported all this already.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["dkdm_lab.experiments.studies", "dkdm_lab.teachers.distill", "dkdm_lab.cli"])

# Of each kind; more for a long night. With the four sources of test_survival.py these are 47 at the least.
KILLS = int(os.environ.get("DKDM_KILLS", "6"))
RUN = {"batch_size": 16, "iterations": 12, "curve": 2, "checkpoint_every": 3, "steps": 3, "samples": 20}
STUDY = {
    **{"samples": 20, "draws": 1, "guide_iterations": 12, "guide_batch_size": 8, "teacher_width": 4},
    **{"teacher_iterations": 12, "batch_size": 8, "classifier_teacher_iterations": 12},
    **{"classifier_teacher_width": 4},
}


def run(method, **changes):
    return Run(presets.get("toy", **RUN | changes), method).result(progress=False)


def part(name):
    return Part(studies.get("digits", **STUDY), name).result(progress=False)


def study():
    """The command, for several parts one after the other, into a ledger."""
    os.environ["DKDM_LEDGER"] = str(cache_dir() / "ledger")
    words = [f"--set={name}={value}" for name, value in STUDY.items()]
    assert main(["study", "digits", "--seeds=0", "--parts=vae-teacher,classifier-teacher", *words]) == 0


def autoencoder():
    Run(presets.get("digits-latent"), "teacher").vae(progress=False)


def export():
    """A distillation, to its folder with card and pictures."""
    asked = Distillation("teacher", "digits-53k", iterations=6, batch_size=4, rho=0.1)
    teacher = Pipeline.from_pretrained(cache_dir() / "teacher")
    try:
        distill(teacher, asked, cache_dir() / "out", checkpoint_every=2, progress=False, samples=2)
    except ValueError as error:
        assert "this distillation is finished" in str(error)  # killed after its last write


KINDS = {
    "student": lambda: run("dynamic", warmup="respaced"),
    "teacher": lambda: run("data-based", early_stop=True, curve=3),
    "synthetic set": lambda: run("synthetic", synthetic_images=300, synthetic_steps=2),
    "autoencoder": autoencoder,
    "guide": lambda: part("guide-unseen"),
    "VAE": lambda: part("vae-teacher"),
    "classifier": lambda: part("classifier-teacher"),
    "study": study,
    "export": export,
}
# Where a process can be killed: before each call of these.
PLACES = [(os, name) for name in ("fsync", "replace", "rename", "rmdir", "mkdir", "unlink")]
PLACES += [(tempfile, "mkdtemp"), (shutil, "rmtree"), (torch.optim.Optimizer, "zero_grad")]


def child(kind, cache, at, counted):
    """Make one kind in a cache, and be killed at a call; or else leave how many there were."""
    torch.set_num_threads(1)
    os.environ["DKDM_DATA_CACHE"] = str(cache)
    part_making.TIMED = 2
    train = part_making.train_vae, part_making.train_classifier, part_making.train
    part_making.train_vae, part_making.train_classifier = (
        lambda *a, _train=_train, **k: _train(*a, **k, checkpoint_every=3) for _train in train[:2]
    )
    part_making.train = lambda *a, **k: train[2](*a, **k | {"checkpoint_every": 3})
    calls = itertools.count(1)
    passed = 0

    def counting(real):
        def call(*arguments, **options):
            nonlocal passed
            passed = next(calls)
            if passed == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for owner, name in PLACES:
        setattr(owner, name, counting(getattr(owner, name)))
    KINDS[kind]()
    with open(counted, "w", encoding="utf-8") as file:
        file.write(str(passed))


def made(kind, cache, at, counted):
    process = CHILDREN.Process(target=child, args=(kind, cache, at, counted))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


# What differs between two times that the same is made.
CLOCKS = {"wall_s", "milliseconds", "made_with", "resumed"}


def contents(cache):
    """Every file of a cache, but for locks, by its bytes; JSON without its clocks."""
    found = {}
    for file in sorted(cache.rglob("*")):
        if not file.is_file() or file.suffix == ".lock":
            continue
        content = file.read_bytes()
        if file.suffix == ".json":
            value = json.loads(content)
            content = (
                {k: v for k, v in value.items() if k not in CLOCKS} if isinstance(value, dict) else value
            )
        found[file.relative_to(cache).as_posix()] = content
    return found


@pytest.fixture
def caches(tmp_path, yardstick, cache):
    """Two caches alike: with the classifier, and a teacher to distil."""
    networks.build("digits-student").save_pretrained(cache / "teacher", GaussianDiffusion.cosine(20))
    for name in ("undisturbed", "killed"):
        shutil.copytree(cache, tmp_path / name)
    return tmp_path / "undisturbed", tmp_path / "killed"


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_as_undisturbed_and_without_litter(kind, caches, tmp_path):
    undisturbed, killed = caches
    counted, moments, kills = tmp_path / "calls", random.Random(kind), 0
    assert made(kind, undisturbed, 0, counted)
    length = int(counted.read_text(encoding="utf-8"))
    while not made(kind, killed, moments.randint(1, length // 2) if kills < KILLS else 0, counted):
        kills += 1
    assert kills >= 3  # the later ones may come after its end
    assert made(kind, killed, 0, counted)  # the next start finds it finished, and cleans up
    assert contents(killed) == contents(undisturbed)
    assert not [
        path for path in killed.rglob("*") if path.name.startswith(".new-") or path.name == "checkpoints"
    ]
