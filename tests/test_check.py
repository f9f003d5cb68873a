"""What is said of a teacher before it is distilled: the trained ones in book/models pass, and what they
become under a wrong option, or with random weights, does not."""

import functools

import numpy as np
import pytest
import torch

from dkdm_lab import cli
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.system.paths import models_dir
from dkdm_lab.teachers import check, single_files
from dkdm_lab.teachers.pipelines import Pipeline

TRAINED = ("digits-teacher", "cifar16-teacher", "digits-classes-teacher", "digits-latent-teacher")


@pytest.fixture(scope="module")
def teachers():
    return {name: Pipeline.from_pretrained(models_dir() / name) for name in TRAINED}


def conditions(teacher):
    return teacher.classes(10) if teacher.denoiser.condition == "class" else None


@pytest.mark.parametrize("name", TRAINED)
def test_trained_teachers_pass_and_random_weights_do_not(name, teachers):
    teacher = teachers[name]
    found = check.require(teacher, conditions(teacher))
    assert found.near_noise < 0.02  # measured: 0.0005 to 0.0031
    torch.manual_seed(1)
    network = type(teacher.denoiser.network).from_config(teacher.denoiser.network.config)
    random = Pipeline(teacher.denoiser.around(network).eval(), teacher.scheduler, teacher.vae)
    problems = check.answers(random, conditions(teacher)).problems
    assert any("near pure noise" in problem for problem in problems)
    assert any("as with random weights" in problem for problem in problems)


@pytest.mark.parametrize("name, other", [("digits-teacher", "linear"), ("cifar16-teacher", "linear"),
                                         ("digits-latent-teacher", "cosine"),
                                         ("digits-latent-teacher", "linear")])  # fmt: skip
def test_another_schedule_is_noticed(name, other, teachers):
    teacher = teachers[name]
    wrong = teacher.denoiser.around(teacher.denoiser.network).eval()
    wrong.diffusion = getattr(GaussianDiffusion, other)(teacher.diffusion.T, clip=teacher.diffusion.clip)
    with pytest.raises(
        ValueError, match=r"(takes the noise for|leaves .* of the noise|level 4% of T away).*--force"
    ):
        check.require(Pipeline(wrong, teacher.scheduler, teacher.vae))


def as_adm(network):
    """A UNet2DModel's weights under ADM's names, in the new order of q, k and v."""
    state, own = {}, dict(network.state_dict())

    def move(new, old):
        for part in ("weight", "bias"):
            state[f"{old}.{part}"] = own.pop(f"{new}.{part}")

    def resnet(new, old):
        pairs = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1")]
        pairs += [("norm2", "out_layers.0"), ("conv2", "out_layers.3")]
        for theirs, adm in pairs:
            move(f"{new}.{theirs}", f"{old}.{adm}")
        if f"{new}.conv_shortcut.weight" in own:
            move(f"{new}.conv_shortcut", f"{old}.skip_connection")

    def attention(new, old):
        move(f"{new}.group_norm", f"{old}.norm")
        move(f"{new}.to_out.0", f"{old}.proj_out")
        state[f"{old}.proj_out.weight"] = state[f"{old}.proj_out.weight"][..., None]
        for part in ("weight", "bias"):
            qkv = torch.cat([own.pop(f"{new}.to_{letter}.{part}") for letter in "qkv"])
            state[f"{old}.qkv.{part}"] = qkv[..., None] if part == "weight" else qkv

    config = network.config
    move("time_embedding.linear_1", "time_embed.0")
    move("time_embedding.linear_2", "time_embed.2")
    move("conv_in", "input_blocks.0.0")
    if network.class_embedding is not None:
        state["label_emb.weight"] = own.pop("class_embedding.weight")
    levels, blocks, number = len(config.block_out_channels), config.layers_per_block, 1
    for level, kind in enumerate(config.down_block_types):
        for block in range(blocks):
            resnet(f"down_blocks.{level}.resnets.{block}", f"input_blocks.{number}.0")
            if "Attn" in kind:
                attention(f"down_blocks.{level}.attentions.{block}", f"input_blocks.{number}.1")
            number += 1
        if level < levels - 1:
            resnet(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{number}.0")
            number += 1
    resnet("mid_block.resnets.0", "middle_block.0")
    attention("mid_block.attentions.0", "middle_block.1")
    resnet("mid_block.resnets.1", "middle_block.2")
    number = 0
    for up, kind in enumerate(config.up_block_types):
        for block in range(blocks + 1):
            resnet(f"up_blocks.{up}.resnets.{block}", f"output_blocks.{number}.0")
            if "Attn" in kind:
                attention(f"up_blocks.{up}.attentions.{block}", f"output_blocks.{number}.1")
            if up < levels - 1 and block == blocks:
                resnet(f"up_blocks.{up}.upsamplers.0", f"output_blocks.{number}.{2 if 'Attn' in kind else 1}")
            number += 1
    move("conv_norm_out", "out.0")
    move("conv_out", "out.2")
    assert not own
    return state


@pytest.fixture(autouse=True)
def groups_of_eight(monkeypatch):
    """The book's networks have 8 groups a norm, and ADM's always 32."""
    monkeypatch.setattr(single_files, "adm_unet", functools.partial(single_files.adm_unet, groups=8))


@pytest.fixture(scope="module")
def adm(teachers, tmp_path_factory):
    """The book's teacher of natural images as an ADM file, and its right options."""
    file = tmp_path_factory.mktemp("adm") / "cifar16.pt"
    torch.save(as_adm(teachers["cifar16-teacher"].denoiser.network), file)
    return str(file), ["--size", "16", "--head-channels", "16"]


def test_an_adm_file_with_the_right_options_passes(adm, teachers, capsys):
    file, right = adm
    teacher = Pipeline.from_pretrained(file, size=16, head_channels=16)
    own = teachers["cifar16-teacher"].denoiser
    x, t = torch.randn(2, *own.shape), torch.tensor([3, 900])
    with torch.no_grad():
        torch.testing.assert_close(teacher.denoiser(x, t), own(x, t))
    assert cli.main(["inspect", file, *right, "--student", "x0.5"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("network: UNet2DModel, 1,3") and said[0].endswith("samples of 3 x 16 x 16")
    assert said[1:4] == [
        "predicts: epsilon, and a variance",
        "process: cosine, T = 1,000, alpha_bar from 1 to 2.4e-09, x_0 clipped to 1",
        "conditions: none",
    ]
    assert said[4].startswith("student: UNet2DModel, ") and "block_out_channels [16, 32, 32]" in said[4]
    assert said[5:] == [
        "pool: 5,120 samples, 15.7 MB, at batch size 128; about 5,120 evaluations of the teacher fill it",
        "answers: as a trained teacher's",
    ]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--legacy-attention"], "with q, k and v in the other order; expected no --legacy-attention"),
        (["--schedule", "linear"], "it takes the noise for less than it is"),
        (["--steps", "4000"], "near pure noise, where eps is nearly x_t, its eps is off by"),
        (["--size", "32"], "expected --size 16 or less"),
        (["--size", "8"], "expected --size 16 or more"),
        (["--head-channels", "64"], "expected --head-channels 16"),
    ],
)
def test_an_adm_file_with_a_wrong_option_is_refused_before_training(adm, wrong, message, tmp_path, capsys):
    file, right = adm
    command = ["distill", file, *right, *wrong, "--student", "x0.5", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert message in said and "--force distils it all the same" in said
    assert not (tmp_path / "out").exists()
    assert cli.main(["inspect", file, *right, *wrong]) == 1


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_teacher_is_not_taken_for_one_of_other_options(name, teachers):
    """Neither of another order, nor size, nor number of heads; and with its own order it is found out."""
    teacher = teachers[name]
    network = teacher.denoiser.network
    config, heads = dict(network.config), network.config.attention_head_dim
    size, given = teacher.denoiser.shape[-1], conditions(teacher)

    def read(new_attention_order=True, head_channels=heads, size=size, legacy=False):
        """Weights in the new order, or in the other, as they are read with one option or another."""
        state = dict(network.state_dict())
        if new_attention_order == legacy:
            for key in [key for key in state if ".to_q." in key]:
                letters = [key.replace(".to_q.", f".to_{letter}.") for letter in "qkv"]
                parts = torch.cat([state[letter] for letter in letters])
                each = parts.unflatten(0, (-1, 3, heads)).unbind(1)
                state |= {letter: part.flatten(0, 1) for letter, part in zip(letters, each, strict=True)}
        other = type(network).from_config(
            {**config, "attention_head_dim": head_channels, "sample_size": size}
        )
        try:
            other.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(error) from error
        return Pipeline(teacher.denoiser.around(other).eval(), teacher.scheduler)

    assert check.other_options("file.pt", read(), given, read, heads, True) is None
    wrong = check.other_options("file.pt", read(False), given, read, heads, False)
    assert wrong.endswith("with q, k and v in the other order; expected no --legacy-attention")
    for side, message in ((size // 2, f"--size {size} or more"), (2 * size, f"--size {size} or less")):
        wrong = check.other_options(
            "file.pt", read(size=side), given, functools.partial(read, size=side), heads, True
        )
        assert wrong.endswith(f"expected {message}")


def test_no_more_is_asked_at_once_than_the_denoiser_may(teachers, monkeypatch):
    """For a check must fit where a distillation does."""
    teacher, sizes = teachers["digits-teacher"], []
    network = teacher.denoiser.network
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k))
    monkeypatch.setattr(teacher.denoiser, "at_once", 3)
    check.answers(teacher)
    assert max(sizes) == 3


def test_nothing_is_asked_where_the_top_is_not_pure_noise(teachers):
    """As of Stable Diffusion, whose last level has some of the signal left: there x_t is not the answer."""
    teacher = teachers["digits-latent-teacher"]
    denoiser = teacher.denoiser.around(teacher.denoiser.network).eval()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # of Stable Diffusion
    denoiser.diffusion = GaussianDiffusion(betas, clip=False)
    assert denoiser.diffusion.alpha_bar[-1] > 1e-3
    shifted = Pipeline(denoiser, teacher.scheduler)
    assert check.other_options("file.ckpt", shifted, None, lambda **_: pytest.fail("read"), 8, True) is None


def test_an_adm_file_with_labels_needs_no_null_class(teachers, tmp_path, capsys):
    file = tmp_path / "classes.pt"
    torch.save(as_adm(teachers["digits-classes-teacher"].denoiser.network), file)
    command = ["distill", str(file), "--size", "8", "--head-channels", "8", "--student", "x0.5"]
    command += ["--steps", "100", "--iterations", "2", "--batch-size", "2", "--rho", "0.1", "--samples", "0"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert "conditions: 11 labels\n" in capsys.readouterr().out
    assert Pipeline.from_pretrained(tmp_path / "out").denoiser.condition == "class"


def test_answers_that_are_not_finite_are_named():
    bad = check.Answers(float("nan"), (0.1,) * 6, (0.9,) * 6, 0.0, 1.0)
    assert bad.problems == ["it answers with numbers that are not finite"]
    sound = check.Answers(
        0.001, (0.4, 0.3, 0.1, 0.05, 0.02, 0.01), (0.6, 0.7, 0.9, 0.95, 0.98, 0.99), 0.01, 0.5
    )
    assert not sound.problems


def test_the_exact_teacher_of_a_gaussian_keeps_the_identity():
    """The best answer of a process is orthogonal to its error: r + b = 1."""
    diffusion = GaussianDiffusion.cosine(100, clip=False)
    x0 = 0.5 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    for level in (10, 50, 90):
        t = torch.full((20_000,), level)
        alpha_bar = diffusion.alpha_bar[level]
        x_t = diffusion.q_sample(x0, t, eps)
        best = np.sqrt(1 - alpha_bar) / (0.25 * alpha_bar + 1 - alpha_bar) * x_t
        r, b = (best - eps).square().mean() / eps.square().mean(), (best * eps).mean() / eps.square().mean()
        assert float(r + b) == pytest.approx(1, abs=0.02)  # measured: 0.006
