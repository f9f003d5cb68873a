"""What a distillation leaves beside its student, and that nothing of it is lost when a part of it fails."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from diffusers import DDPMPipeline
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dkdm_lab import cli, networks
from dkdm_lab.data.images import to_uint8
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks import Denoiser
from dkdm_lab.sources import Conditions
from dkdm_lab.system import figures, provenance
from dkdm_lab.system.settings import Tracker
from dkdm_lab.teachers import distill as distillation
from dkdm_lab.teachers import finishing, hub, students
from dkdm_lab.teachers.distill import Distillation, distill
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.teachers.samples import samples_of, sheet_size

T = 20
LEFT = ["README.md", "distillation.json", "history.json", "loss.png", "model_index.json", "samples.png"]


def save_teacher(folder, name="digits-53k"):
    """A teacher as the book ships them: a folder of diffusers with weights of 16 bits."""
    denoiser = networks.build(name)
    denoiser.save_pretrained(folder, GaussianDiffusion.cosine(T))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {key: value.half() for key, value in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    return denoiser, halves


@pytest.fixture
def teacher(tmp_path):
    save_teacher(tmp_path / "teacher")
    return Pipeline.from_pretrained(tmp_path / "teacher")


SETTINGS = Distillation("t", "x0.5", iterations=20, batch_size=4, rho=0.1, ema=0.5)


@pytest.fixture
def run(teacher, tmp_path):
    def run(**options):
        return distill(teacher, SETTINGS, tmp_path / "out", progress=False, **options)

    return run


@pytest.fixture
def untouched(monkeypatch):
    """Whatever trains from here on, fails."""

    def never(*arguments, **options):
        raise AssertionError("a training began")

    return lambda: monkeypatch.setattr(distillation, "train", never)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def fail(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_weights_of_sixteen_bits_are_a_network_of_32(tmp_path):
    denoiser, halves = save_teacher(tmp_path / "teacher")
    read = Denoiser.from_pretrained(tmp_path / "teacher")
    assert {p.dtype for p in read.parameters()} == {torch.float32}
    assert {b.dtype for b in read.buffers()} <= {torch.float32}
    state = read.network.state_dict()
    assert all(torch.equal(state[key], value.float()) for key, value in halves.items())
    with torch.no_grad():
        x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, T - 1])
        # Halves have 11 bits, and the error of an answer was at most 0.004 over ten seeds.
        assert_close(read(x, t)[0], denoiser.eval()(x, t)[0], atol=0.02, rtol=0)


def test_readmes_command(tmp_path):
    """As a user calls it, at a small size and in a process of its own; then plain diffusers samples it."""
    torch.manual_seed(0)
    save_teacher(tmp_path / "models" / "digits-teacher")
    command = "distill models/digits-teacher --student x0.5 --iterations 30 --batch-size 8 --out my-student"
    command += " --force"  # its weights are random
    done = subprocess.run(
        [sys.executable, "-m", "dkdm_lab", *command.split()],
        cwd=tmp_path,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    *recognised, said, speed, where = done.stdout.splitlines()
    assert where == "my-student"
    assert re.fullmatch(r"a step takes \S+ s; the other 10 about \d+ s, until \d\d:\d\d", speed)
    assert [line.split(":")[0] for line in recognised] == ["network", "predicts", "process", "conditions"]
    teacher, student = (
        DDPMPipeline.from_pretrained(tmp_path / name) for name in ("models/digits-teacher", "my-student")
    )
    theirs, own = (sum(p.numel() for p in one.unet.parameters()) for one in (teacher, student))
    assert said.startswith(f"teacher: {theirs:,} parameters; student: {own:,} (")
    assert "pool: 8 samples of 1 x 8 x 8, 0.0 MB, filled by about 8 evaluations" in said
    assert "\r" not in done.stderr  # no bar in a log
    assert names(tmp_path / "my-student") == sorted([*LEFT, "scheduler", "unet"])

    assert student.unet.dtype == torch.float32
    student.set_progress_bar_config(disable=True)
    images = student(batch_size=2, num_inference_steps=5, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()


def test_the_losses_can_be_drawn_again(run, tmp_path):
    run()
    history = json.loads((tmp_path / "out" / "history.json").read_text(encoding="utf-8"))
    assert history["iteration"] == [10, 20]
    found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))
    assert history["simple"][-1] == found["result"]["simple"]
    assert found["missing"] == []


def test_the_sheet_holds_what_both_draw_from_the_same_noise(run, teacher, tmp_path, monkeypatch):
    sheets = []
    draw = figures.sample_sheet
    monkeypatch.setattr(figures, "sample_sheet", lambda *a: sheets.append(a) or draw(*a))
    student = run()
    ((rows, columns),) = sheets
    assert list(rows) == ["teacher", "student"]
    assert columns is None
    n, steps = len(rows["teacher"]), 10  # the least there is for so short a training
    assert n == 2
    for name, denoiser in (("teacher", teacher.denoiser), ("student", student)):
        x = teacher.diffusion.sample(denoiser, n, steps, seed=SETTINGS.seed + 2)
        assert torch.equal(rows[name], to_uint8(x))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "from the same noise, column by column, in 10 steps; not selected" in card
    for picture in ("loss.png", "samples.png"):
        assert f"]({picture})" in card
        assert min(Image.open(tmp_path / "out" / picture).size) > 150


def test_a_sheet_is_small_beside_its_training(teacher):
    """At most a tenth of the teacher's evaluations, but for the least of all sheets."""
    thousand = Pipeline(Denoiser(teacher.denoiser.network, GaussianDiffusion.cosine(1000)), teacher.scheduler)
    assert sheet_size(thousand, 43_520) == (8, 50)  # README's
    for evaluations in (200, 500, 2000, 3999, 10**4, 10**6):
        for guidance, cost in ((1.0, 1), (3.0, 2)):
            columns, steps = sheet_size(thousand, evaluations, guidance)
            assert 2 <= columns <= 8
            assert 10 <= steps <= 50
            assert columns * steps * cost <= evaluations / 10 or (columns, steps) == (2, 10)
    assert sheet_size(teacher, 10**6, most=3) == (3, T)
    assert sheet_size(thousand, 10**6, most=1) == (1, 50)


def test_both_rows_have_the_same_conditions_and_guidance():
    diffusion = GaussianDiffusion.cosine(T)
    denoiser = Denoiser(networks.NETWORKS["digits-classes-student"](), diffusion).eval()
    pipeline = Pipeline(denoiser, networks.ddpm_scheduler(diffusion, True))
    conditions = Conditions.classes(10, null=10)
    asked = []
    network = denoiser.network.forward
    denoiser.network.forward = lambda *a, **k: asked.append(k["class_labels"]) or network(*a, **k)
    one, other = samples_of(
        {"a": denoiser, "b": denoiser}, pipeline, 2, 3, (conditions, torch.tensor([4, 9])), guidance=2.0
    ).values()
    assert torch.equal(one, other)
    assert one.dtype == torch.uint8
    assert {tuple(labels.tolist()) for labels in asked} == {(4, 9, 10, 10)}
    assert len(asked) == 2 * 3


@pytest.mark.parametrize(
    "part, where",
    [
        ("loss.png", (figures, "losses")),
        ("samples.png", (finishing, "samples_of")),
        ("the teacher's other parts", (Pipeline, "write_other_parts")),
        ("README.md", (finishing, "card")),
        ("metrics", (finishing, "compare")),
    ],
)
def test_what_fails_afterwards_costs_nothing_else(
    part, where, teacher, tmp_path, monkeypatch, untouched, inception
):
    out, evaluate = tmp_path / "out", 5 if part == "metrics" else 0

    def run(folder):
        return distill(teacher, SETTINGS, folder, evaluate=evaluate, progress=False)

    whole = run(tmp_path / "whole").state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(*where, fail)
        with pytest.raises(RuntimeError, match=f"out: the student is saved there.*{part}: OSError.*No space"):
            run(out)
    others = {"the teacher's other parts": "model_index.json"}
    assert names(out) == sorted({*LEFT, "scheduler", "unet"} - {others.get(part, part)})
    saved = Denoiser.from_pretrained(out).state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in whole.items())
    untouched()
    assert all(torch.equal(value, whole[key]) for key, value in run(out).state_dict().items())
    assert names(out) == sorted([*LEFT, "scheduler", "unet"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card == (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert ("| FID' | not measured |" in card) == (part != "metrics")
    assert "samples.png" in card and "loss.png" in card
    DDPMPipeline.from_pretrained(out)
    with pytest.raises(ValueError, match="this distillation is finished"):
        run(out)


@pytest.mark.parametrize("kill", [KeyboardInterrupt, SystemExit])
def test_killed_between_weights_and_card(kill, run, tmp_path, monkeypatch, untouched):
    """SystemExit stands for a kill: nothing of ours answers it."""

    def stop(*arguments, **options):
        raise kill

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "samples_of", stop)
        with pytest.raises(kill) as stopped:
            run()
    if kill is KeyboardInterrupt:
        assert f"stopped; the student is saved in {tmp_path / 'out'}, and the same call" in str(stopped.value)
    assert "README.md" not in names(tmp_path / "out")
    untouched()
    run()
    assert names(tmp_path / "out") == sorted([*LEFT, "scheduler", "unet"])


def test_an_export_that_fails_leaves_what_a_rerun_completes(run, tmp_path, monkeypatch):
    """Before the weights are on the disk the checkpoints are what is gone on from."""
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "write_network", fail)
        with pytest.raises(OSError, match="no space left on the disk; the same call goes on from its last"):
            run(checkpoint_every=15)
    assert names(tmp_path / "out") == [".checkpoints.lock", "checkpoints", "distillation.json"]
    run()
    assert names(tmp_path / "out") == sorted([*LEFT, "scheduler", "unet"])


def test_a_folder_that_cannot_be_renamed_is_written_into(run, tmp_path):
    """As a mount point cannot: it must stay the folder that it is."""
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat().st_ino
    run()
    assert (tmp_path / "out").stat().st_ino == before


def test_without_a_sheet(run, tmp_path, monkeypatch):
    monkeypatch.setattr(finishing, "samples_of", fail)
    run(samples=0)
    assert "samples.png" not in names(tmp_path / "out")
    assert "samples.png" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_finished_student_can_be_evaluated_later(run, tmp_path, untouched, inception, monkeypatch):
    run()
    scores = {"FID'": 12.34, "N": 5, "steps": T}
    monkeypatch.setattr(finishing, "compare", lambda teacher, student, n, *_: {**scores, "N": n})
    assert "| FID' | not measured |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    untouched()
    run(evaluate=5)
    found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))
    assert found["result"]["metrics"] == scores
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| FID' | 12.34 |" in card
    assert "samples.png" in card


@pytest.mark.parametrize(
    "iterations, lr", [(1, 1e-3), (300, 1e-3), (2_000, 5e-4), (10_000, 1e-4), (200_000, 1e-4)]
)
def test_a_short_training_takes_larger_steps(iterations, lr, teacher, tmp_path, monkeypatch):
    """And the default of 10,000 iterations takes Table 6's."""
    asked = []

    class Enough(Exception):
        pass

    def note(*arguments, **options):
        asked.append(options["lr"])
        raise Enough

    monkeypatch.setattr(distillation, "train", note)
    for number, given in enumerate((None, 3e-4)):
        settings = Distillation("t", "x0.5", iterations, batch_size=4, rho=0.1, lr=given)
        with pytest.raises(Enough):
            distill(teacher, settings, tmp_path / str(number), progress=False)
    assert asked == [lr, 3e-4]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--evaluate", "3"], "images: found 3, expected at least 5"),
        (["--evaluate", "10"], "found no Inception weights, and could not download them"),
    ],
)
def test_what_cannot_end_well_is_refused_before_it_begins(
    options, message, teacher, tmp_path, monkeypatch, capsys, untouched
):
    monkeypatch.setattr("dkdm_lab.metrics.inception.load_state_dict_from_url", fail)
    untouched()
    command = ["distill", str(tmp_path / "teacher"), "--student", "x0.5", "--out", str(tmp_path / "out")]
    command.append("--force")
    assert cli.main([*command, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_is_refused_before_it_begins(teacher, tmp_path, untouched):
    untouched()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="a file stands where a folder is expected; choose another place"):
        distill(teacher, SETTINGS, tmp_path / "file" / "out", progress=False)


def head(folder):
    return metadata_load(folder / "README.md")


def test_the_card_carries_the_teachers_licence(run, tmp_path):
    card = "---\nlicense: other\nlicense_name: little\nlicense_link: https://example.org/l\ntags: [x]\n---\n"
    (tmp_path / "teacher" / "README.md").write_text(f"{card}# The teacher's own words\n", encoding="utf-8")
    (tmp_path / "teacher" / "notes.bin").write_text("", encoding="utf-8")
    run()
    found = head(tmp_path / "out")
    assert (found["license"], found["license_name"]) == ("other", "little")
    assert found["license_link"] == "https://example.org/l"
    assert found["tags"] == ["diffusion", "distillation", "data-free", "dkdm"]
    assert found["pipeline_tag"] == "unconditional-image-generation"
    assert "base_model" not in found  # nobody knows whether a folder is published, and where
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "gives its licence as `little`" in text
    assert "The teacher's own words" not in text
    assert "notes.bin" not in names(tmp_path / "out")


@pytest.mark.parametrize("card", [None, "no head at all", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_a_card_without_a_licence(card, run, tmp_path):
    if card is not None:
        (tmp_path / "teacher" / "README.md").write_text(card, encoding="utf-8")
    run()
    assert "license" not in head(tmp_path / "out")
    assert "Ask its makers before you pass this student on" in (tmp_path / "out" / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_teacher_from_the_hub_is_the_base_model(tmp_path):
    folder = tmp_path / "models--some-one--their-model" / "snapshots" / "0123"
    save_teacher(folder)
    teacher = Pipeline.from_pretrained(folder)
    distill(teacher, SETTINGS, tmp_path / "out", progress=False)
    assert head(tmp_path / "out")["base_model"] == "some-one/their-model"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "scaled_linear"])
def test_a_student_is_saved_with_the_process_of_a_teacher_that_was_read(schedule, tmp_path):
    """As README's Python does: the process has diffusers' names then."""
    process = getattr(GaussianDiffusion, schedule)(100)  # in so few steps as T linear ones end in pure noise
    networks.build("digits-53k").save_pretrained(tmp_path / "teacher", process)
    teacher = Denoiser.from_pretrained(tmp_path / "teacher")
    networks.build("digits-53k").save_pretrained(tmp_path / "student", teacher.diffusion)
    student = Denoiser.from_pretrained(tmp_path / "student")
    # The betas pass through diffusers' float32.
    np.testing.assert_allclose(student.diffusion.betas, process.betas, rtol=1e-5)
    assert (student.diffusion.clip, student.diffusion.variance) == (process.clip, process.variance)


# -- a student trained further, in parts, with less memory -----------------------------------------------


def test_a_finished_student_is_trained_further(run, teacher, tmp_path, capsys):
    """It begins with the weights it had; with no step of any length it keeps them."""
    lines, first = [], run(samples=0).state_dict()
    settings = dataclasses.replace(SETTINGS, lr=1e-12, ema=0.0, continued=str(tmp_path / "out"))
    more = distill(teacher, settings, tmp_path / "more", progress=False, samples=0, report=lines.append)
    for key, value in more.state_dict().items():
        assert_close(value, first[key], atol=1e-9, rtol=0)
    assert lines[0].endswith(f"; it goes on after 20 iterations of {tmp_path / 'out'}")
    card = (tmp_path / "more" / "README.md").read_text(encoding="utf-8")
    assert f"| iterations | 20 of batch size 4, after 20 of {tmp_path / 'out'} |" in card
    command = [
        "distill",
        str(tmp_path / "teacher"),
        "--student",
        "x0.5",
        "--continue",
        str(tmp_path / "more"),
    ]
    command += ["--iterations", "2", "--batch-size", "2", "--rho", "0.1", "--samples", "0", "--force"]
    assert cli.main([*command, "--out", str(tmp_path / "third")]) == 0
    assert "it goes on after 40 iterations" in capsys.readouterr().out
    assert Denoiser.from_pretrained(tmp_path / "out").state_dict().keys() == first.keys()  # left as it was


def test_what_cannot_be_continued_is_refused(run, teacher, tmp_path):
    with pytest.raises(ValueError, match="out: found no finished student there, expected one to continue"):
        go_on(teacher, tmp_path)
    run(samples=0)
    with pytest.raises(ValueError, match=r"out: found UNet2DModel of .* parameters, expected the network"):
        go_on(teacher, tmp_path, student="x1")
    file = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"num_train_timesteps": 50}), encoding="utf-8")
    with pytest.raises(ValueError, match="found a student that predicts epsilon at 50 levels"):
        go_on(teacher, tmp_path)
    with pytest.raises(ValueError, match="init: found 'teacher', expected 'random' where a student is"):
        go_on(teacher, tmp_path, init="teacher")


def go_on(teacher, tmp_path, **changes):
    settings = dataclasses.replace(SETTINGS, continued=str(tmp_path / "out"), **changes)
    distill(teacher, settings, tmp_path / "more", progress=False, samples=0)


def test_another_beginning_is_another_distillation(run, teacher, tmp_path):
    """Also under the same name."""
    run(samples=0)
    go_on(teacher, tmp_path)
    with pytest.raises(ValueError, match="this distillation is finished"):
        go_on(teacher, tmp_path)
    file = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 2 for key, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="begun with another content of the continued student's weights"):
        go_on(teacher, tmp_path)


def test_a_batch_in_parts_asks_for_no_more_than_a_part(teacher, tmp_path, monkeypatch):
    """Of as large a pool; a part at a time goes through teacher and student."""
    pools, sizes, train = [], [], distillation.train

    def note(student, source, *arguments, **options):
        pools.append(source)
        forward = student.network.forward
        student.network.forward = lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k)
        return train(student, source, *arguments, **options)

    monkeypatch.setattr(distillation, "train", note)
    for number, accumulate in enumerate((1, 2)):
        settings = dataclasses.replace(SETTINGS, accumulate=accumulate, iterations=3)
        distill(teacher, settings, tmp_path / str(number), progress=False, samples=0)
    assert sizes == [4] * 3 + [2] * 6
    assert pools[0].size == pools[1].size == 8
    with pytest.raises(ValueError, match="accumulate: found 3, expected a divisor of the batch size, 4"):
        dataclasses.replace(SETTINGS, accumulate=3)
    with pytest.raises(ValueError, match="accumulate: found 3, expected a divisor of the batch size, 128"):
        distill(teacher, Distillation("t", "x0.5", accumulate=3), tmp_path / "none", progress=False)


def test_gradient_checkpointing_changes_no_weight(teacher, tmp_path, monkeypatch):
    calls = []
    again = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or again(*a, **k)
    )
    plain = distill(teacher, SETTINGS, tmp_path / "plain", progress=False, samples=0)
    assert not calls
    less = distill(teacher, SETTINGS, tmp_path / "less", progress=False, samples=0, checkpointing=True)
    assert calls
    for one, other in zip(plain.parameters(), less.parameters(), strict=True):
        assert_close(one, other)
    with pytest.raises(ValueError, match="checkpointing: found DiT, which knows nothing of it"):
        students.keep_less(networks.NETWORKS["vit-19m"]())


@pytest.mark.parametrize("name, message", [("cuda", "expected one of cpu"), ("tpu", "expected one of cpu")])
def test_a_device_that_is_not_there_is_refused(name, message, tmp_path, capsys):
    save_teacher(tmp_path / "teacher")
    assert cli.main(["inspect", str(tmp_path / "teacher"), "--device", name]) == 1
    assert capsys.readouterr().err == f"dkdm: device: found {name!r}, {message}\n"


def test_a_device_is_used_as_long_as_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        with provenance.on(name):
            assert str(provenance.device()) == name
    assert provenance.device().type == "cuda" and chosen == ["cuda:1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="found 'cpu' in one of several processes"), provenance.on("cpu"):
        pass


def test_a_tracker_is_told_the_losses(run, tmp_path):
    """TensorBoard's own reader finds them again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second

    run(samples=0, log_with="tensorboard")
    (file,) = (tmp_path / "out" / "logs" / "dkdm").glob("events*")
    events = EventAccumulator(str(file)).Reload()
    history = json.loads((tmp_path / "out" / "history.json").read_text(encoding="utf-8"))
    for name in ("loss", "simple", "vlb"):
        found = events.Scalars(name)
        assert [event.step for event in found] == history["iteration"]
        assert_close(torch.tensor([event.value for event in found]), torch.tensor(history[name]))


def test_a_tracker_that_is_not_installed_is_refused_before_it_begins(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dkdm_lab.training.get_available_trackers", lambda: ["tensorboard"])
    command = ["distill", str(tmp_path / "teacher"), "--student", "x0.5", "--force", "--log-with", "wandb"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said == "dkdm: log_with: found wandb, which is not installed here, expected tensorboard\n"
    assert not (tmp_path / "out").exists()
    assert set(get_args(Tracker)) == set(LOGGER_TYPE_TO_CLASS)


# -- the Hub --------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(monkeypatch):
    """What a Hub that is reached by nobody was asked: the names of repositories and the files put there."""
    asked = []

    class Hub:
        def whoami(self):
            pass

        def create_repo(self, name, exist_ok):
            asked.append(name)

        def upload_folder(self, repo_id, folder_path, ignore_patterns, commit_message):
            files = [str(f.relative_to(folder_path)) for f in folder_path.rglob("*") if f.is_file()]
            asked.append(sorted(filter_repo_objects(files, ignore_patterns=ignore_patterns)))

    monkeypatch.setattr(hub, "HfApi", Hub)
    return asked, Hub


def test_a_student_is_pushed_once_all_of_it_is_saved(run, tmp_path, pushed, untouched):
    asked, _ = pushed
    run(push_to_hub="some-one/student")
    name, files = asked
    assert name == "some-one/student"
    assert set(files) >= {*LEFT, "unet/config.json", "scheduler/scheduler_config.json"}
    assert not [file for file in files if "checkpoint" in file or file.startswith(".")]
    untouched()
    with pytest.raises(ValueError, match="this distillation is finished"):
        run(push_to_hub="some-one/student")
    run(push_to_hub="some-one/other")
    assert asked[2] == "some-one/other"


def test_a_push_that_fails_leaves_the_student(run, tmp_path, pushed, untouched, monkeypatch):
    _, Hub = pushed
    with monkeypatch.context() as patch:
        patch.setattr(Hub, "upload_folder", fail)
        with pytest.raises(
            RuntimeError, match=r"out: the student is saved there, .*its copy at a/b on the Hub: OSError"
        ):
            run(push_to_hub="a/b")
    assert names(tmp_path / "out") == sorted([*LEFT, "scheduler", "unet"])
    DDPMPipeline.from_pretrained(tmp_path / "out")
    untouched()
    run(push_to_hub="a/b")
    assert pushed[0][-2:][0] == "a/b"


@pytest.mark.parametrize("name", ["no name", "a/b/c", "a/b"])
def test_a_push_that_cannot_be_is_refused_before_it_begins(
    name, teacher, tmp_path, pushed, monkeypatch, untouched
):
    untouched()
    monkeypatch.setattr(pushed[1], "whoami", fail)
    with pytest.raises(ValueError, match=f"push_to_hub: found '{name}', to which nothing can be pushed"):
        distill(teacher, SETTINGS, tmp_path / "out", progress=False, push_to_hub=name)
    assert not (tmp_path / "out").exists()


# -- where the student is written -----------------------------------------------------------------------


def test_the_student_may_be_written_into_the_folder_one_is_in(teacher, tmp_path, monkeypatch):
    """Which cannot be renamed, as a container's volume cannot."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("os.rename", fail)
    distill(teacher, SETTINGS, ".", progress=False)
    assert names(tmp_path / "here") == sorted([*LEFT, "scheduler", "unet"])
    with pytest.raises(ValueError, match="this distillation is finished"):
        distill(teacher, SETTINGS, ".", progress=False)


@pytest.mark.parametrize("at", range(4))
def test_killed_while_the_student_is_put_in_place(at, run, teacher, tmp_path, monkeypatch):
    """At each entry of it: the same call ends with the same weights, and leaves no litter."""
    whole = distill(teacher, SETTINGS, tmp_path / "whole", progress=False, samples=0).state_dict()
    replace, seen = os.replace, []

    def kill(source, target):
        if ".new" in str(source):
            seen.append(target)
            if len(seen) == at + 1:
                raise SystemExit  # nothing of ours answers it
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", kill)
        with pytest.raises(SystemExit):
            run(samples=0, checkpoint_every=15)
    assert len(seen) == at + 1
    assert all(torch.equal(value, whole[key]) for key, value in run(samples=0).state_dict().items())
    assert names(tmp_path / "out") == sorted({*LEFT, "scheduler", "unet"} - {"samples.png"})
