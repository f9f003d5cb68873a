"""Teachers of every kind: read, distilled by the command line, written, sampled by plain diffusers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dkdm_lab import cli
from dkdm_lab.networks import NETWORKS, Denoiser
from dkdm_lab.parser import parser
from dkdm_lab.teachers import distill as distillation
from dkdm_lab.teachers.distill import Distillation, distill
from dkdm_lab.teachers.pipelines import Pipeline, decode, encode
from dkdm_lab.teachers.students import scaled

T = 20
GOLDEN = Path(__file__).parent / "golden"


def unet(**changes):
    config = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return UNet2DModel(**config | changes)


def vq():
    return VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=16,
        scaling_factor=0.5,
    )


def kl():
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )


def ddpm(folder):
    DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=T)).save_pretrained(folder)
    return [], []


def adm(folder):
    with np.load(GOLDEN / "adm_new_order.npz") as arrays:
        names = [key for key in arrays.files if key.startswith("state.")]
        torch.save({key[6:]: torch.from_numpy(arrays[key]) for key in names}, folder.with_suffix(".pt"))
    return [], ["--size", "8", "--head-channels", "16", "--steps", str(T)]


def ldm_checkpoint(folder):
    with np.load(GOLDEN / "ldm.npz") as arrays:
        state = {key[6:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("state.")}
        for name in arrays["names"]:
            state[f"model.{name}"] = state.pop(f"model_ema.{name.replace('.', '')}")
    torch.save({"state_dict": state}, folder.with_suffix(".ckpt"))
    return [], ["--size", "8", "--head-channels", "16"]


def ldm(folder):
    """As diffusers wrote LDMPipeline's folders."""
    vq().save_pretrained(folder / "vqvae")
    unet().save_pretrained(folder / "unet")
    DDIMScheduler(num_train_timesteps=T, clip_sample=False).save_pretrained(folder / "scheduler")
    parts = {"vqvae": "VQModel", "unet": "UNet2DModel", "scheduler": "DDIMScheduler"}
    index = {"_class_name": "LDMPipeline", **{name: ["diffusers", kind] for name, kind in parts.items()}}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return [], []


def class_conditional(folder):
    Denoiser(unet(num_class_embeds=5)).network.save_pretrained(folder / "unet")
    DDPMScheduler(num_train_timesteps=T).save_pretrained(folder / "scheduler")
    return [], ["--null-class", "4", "--guidance", "2"]


def dit(folder):
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    scheduler = DDIMScheduler(num_train_timesteps=T, clip_sample=False)
    DiTPipeline(transformer, kl(), scheduler).save_pretrained(folder)
    return [], ["--guidance", "4"]


def stable_diffusion(folder):
    torch.manual_seed(0)
    words = [*"abcdefghijklmnopqrstuvwxyz ", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    words += ["<unk>", "<|startoftext|>", "<|endoftext|>"]
    made = folder.parent / "words"
    made.mkdir()
    (made / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8"
    )
    (made / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(made, model_max_length=12)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        eos_token_id=len(words) - 1,
        bos_token_id=len(words) - 2,
        pad_token_id=len(words) - 1,
    )
    denoiser = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    StableDiffusionPipeline(
        vae=kl(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=PNDMScheduler(num_train_timesteps=T, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a cat\n\na red dog\n", encoding="utf-8")
    return ["--prompts", str(prompts)], ["--guidance", "3"]


KINDS = {
    "adm": adm,
    "class-conditional": class_conditional,
    "ddpm": ddpm,
    "dit": dit,
    "ldm": ldm,
    "ldm-checkpoint": ldm_checkpoint,
    "stable-diffusion": stable_diffusion,
}


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(kind, folder):
    """Two samples of an exported folder, by diffusers alone."""
    if kind in ("adm", "ddpm"):
        return silent(DDPMPipeline.from_pretrained(folder))(2, num_inference_steps=3, output_type="np").images
    if kind == "dit":
        pipeline = silent(DiTPipeline.from_pretrained(folder))
        return pipeline([3, 7], num_inference_steps=3, output_type="np").images
    if kind == "stable-diffusion":
        pipeline = silent(StableDiffusionPipeline.from_pretrained(folder))
        return pipeline(["a cat", "a dog"], num_inference_steps=3, output_type="np").images
    network = UNet2DModel.from_pretrained(folder / "unet")
    labels = torch.tensor([0, 3]) if kind == "class-conditional" else None
    scheduler_class = DDPMScheduler if kind == "class-conditional" else DDIMScheduler
    scheduler = scheduler_class.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(3)
    x = torch.randn(2, *Denoiser(network).shape)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t, class_labels=labels).sample, t, x).prev_sample
        if kind.startswith("ldm"):
            vae = VQModel.from_pretrained(folder / "vqvae")
            x = vae.decode(x / vae.config.scaling_factor).sample
    return x.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def made(tmp_path):
    """A teacher of some kind, and the command that distils it."""

    def make(kind):
        torch.manual_seed(0)
        folder = tmp_path / "teacher"
        prompts, options = KINDS[kind](folder)
        (teacher,) = tmp_path.glob("teacher*")
        sizes = ["--iterations", "4", "--batch-size", "4", "--rho", "0.1", "--stride", "2", "--ema", "0.5"]
        sizes.append("--force")  # its weights are random
        return teacher, ["distill", str(teacher), "--out", str(tmp_path / "out"), *sizes, *prompts, *options]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_any_teacher_is_distilled_to_what_diffusers_samples(kind, made, tmp_path, capsys):
    teacher, command = made(kind)
    before = sorted(file.name for file in tmp_path.iterdir())
    assert cli.main([*command, "--student", "x0.5"]) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*before, "out"])
    images = sample(kind, out)
    assert images.shape[0] == 2
    assert np.isfinite(images).all()

    card = (out / "README.md").read_text(encoding="utf-8")
    assert str(teacher) in card
    assert "**No data set was used**" in card
    assert "rho = 0.1, strides of 2 steps |" in card
    found = json.loads((out / "distillation.json").read_text(encoding="utf-8"))
    assert found["settings"]["student"] == "x0.5"
    assert found["result"]["parameters"] < 0.7 * found["result"]["teacher_parameters"]
    assert not (out / "checkpoints").exists()
    if not teacher.suffix:  # the other parts are the teacher's, to the byte
        for file in teacher.glob("vae/*"):
            assert (out / "vae" / file.name).read_bytes() == file.read_bytes()
    again = Pipeline.from_pretrained(out)
    assert again.denoiser.parameter_count == found["result"]["parameters"]


def test_the_command_trains_in_sixteen_bits_and_compiled(made, tmp_path, monkeypatch):
    """By a compiler that changes nothing, for the real one takes a minute."""
    _, command = made("ddpm")
    compiled = []

    def note(call, *, mode):
        compiled.append(mode)
        return call

    monkeypatch.setattr(torch, "compile", note)
    faster = ["--mixed-precision", "bf16", "--compile"]
    assert cli.main([*command, "--student", "x0.5", *faster]) == 0
    assert compiled == ["default"] * 2  # the student and its teacher
    found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))
    assert found["settings"]["mixed_precision"] == "bf16"
    assert DDPMPipeline.from_pretrained(tmp_path / "out").unet.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_the_teachers_own_width_starts_with_its_shape(kind, made):
    _, command = made(kind)
    pipeline = cli._teacher(parser().parse_args([*command, "--student", "x1"]))
    student = pipeline.student("x1")
    expected = {key: value.shape for key, value in pipeline.denoiser.network.state_dict().items()}
    assert {key: value.shape for key, value in student.network.state_dict().items()} == expected
    assert (student.shape, student.condition) == (pipeline.denoiser.shape, pipeline.denoiser.condition)


def test_a_stopped_distillation_goes_on(made, tmp_path, monkeypatch):
    """Stopped after its third step and called again, it ends with the weights of one that was not."""
    teacher, _ = made("class-conditional")
    pipeline = Pipeline.from_pretrained(teacher)
    settings = Distillation("t", "x0.5", iterations=6, batch_size=4, rho=0.1, ema=0.5, guidance=2.0)

    def run(out):
        return distill(pipeline, settings, out, pipeline.classes(4), checkpoint_every=2, progress=False)

    whole = run(tmp_path / "whole").state_dict()
    step, calls = torch.optim.AdamW.step, []

    def stop(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    assert any((tmp_path / "out" / "checkpoints").iterdir())
    monkeypatch.undo()
    resumed = run(tmp_path / "out").state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_latents_are_decoded_as_the_pipeline_decodes(made):
    teacher, _ = made("ldm")
    pipeline = Pipeline.from_pretrained(teacher)
    assert pipeline.denoiser.shape == (3, 8, 8)
    latents = torch.randn(5, 3, 8, 8)
    images = decode(pipeline.vae, latents, batch_size=2)
    assert images.shape == (5, 3, 16, 16)
    with torch.no_grad():
        assert_close(images, pipeline.vae.decode(latents / 0.5).sample)
    assert_close(images, pipeline.decode(latents))


def test_images_are_encoded_to_the_diffusions_latents(made):
    teacher, _ = made("ldm")
    vae = Pipeline.from_pretrained(teacher).vae
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = vae.encode(images / 127.5 - 1).latents * 0.5
    assert_close(encode(vae, images, batch_size=2), expected)


def test_a_kl_encoder_gives_its_mean(made):
    teacher, _ = made("dit")
    pipeline = Pipeline.from_pretrained(teacher)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = pipeline.vae.encode(images / 127.5 - 1).latent_dist.mean * 0.18215
    assert_close(encode(pipeline.vae, images), expected)


def test_prompts_are_embedded_as_the_pipeline_does(made):
    teacher, _ = made("stable-diffusion")
    conditions = Pipeline.from_pretrained(teacher).prompts(["a cat", "red dog"])
    pipeline = StableDiffusionPipeline.from_pretrained(teacher)
    expected, null = pipeline.encode_prompt(["a cat", "red dog"], "cpu", 1, True)
    assert_close(conditions.values, expected)
    assert_close(conditions.null, null[0])
    assert not torch.allclose(expected[0], expected[1])


def test_the_labels_of_a_class_conditional_teacher(made):
    teacher, _ = made("class-conditional")
    pipeline = Pipeline.from_pretrained(teacher)
    assert pipeline.classes(2).values.tolist() == [0, 1, 3, 4]
    assert pipeline.classes(2).null == 2
    assert pipeline.classes().null is None
    with pytest.raises(ValueError, match="null class: found 7, expected one of the network's 5 labels"):
        pipeline.classes(7)


def test_a_dits_null_class_comes_after_its_last(made):
    teacher, _ = made("dit")
    conditions = Pipeline.from_pretrained(teacher).classes()
    assert (len(conditions), int(conditions.null)) == (1000, 1000)


def test_a_student_can_be_a_named_network(tmp_path):
    DDPMPipeline(
        unet(sample_size=32, out_channels=6), DDPMScheduler(num_train_timesteps=T, variance_type="learned")
    ).save_pretrained(tmp_path / "teacher")
    pipeline = Pipeline.from_pretrained(tmp_path / "teacher")
    student = pipeline.student("vit-19m")
    assert student.learns_variance and student.shape == (3, 32, 32)
    assert student.variance == "learned_range"  # a raw variance has no good beginning


def test_a_student_learns_no_variance_that_its_teacher_does_not(tmp_path):
    ddpm_teacher = DDPMPipeline(unet(sample_size=32), DDPMScheduler(num_train_timesteps=T))
    ddpm_teacher.save_pretrained(tmp_path / "teacher")
    pipeline = Pipeline.from_pretrained(tmp_path / "teacher")
    assert not any(pipeline.student(name).learns_variance for name in ("cnn-14m", "vit-19m"))


def test_a_student_can_be_a_configuration_file(made, tmp_path):
    teacher, _ = made("class-conditional")
    UNet2DModel.from_config(unet(block_out_channels=(4, 8)).config).save_config(tmp_path / "small")
    student = Pipeline.from_pretrained(teacher).student(str(tmp_path / "small" / "config.json"))
    assert student.network.config.block_out_channels == [4, 8]
    assert student.condition == "class"  # as many labels as the teacher's


def test_a_student_predicts_what_its_teacher_predicts(tmp_path):
    scheduler = DDPMScheduler(
        num_train_timesteps=T, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    DDPMPipeline(unet(), scheduler).save_pretrained(tmp_path / "teacher")
    pipeline = Pipeline.from_pretrained(tmp_path / "teacher")
    student = pipeline.student("x0.5")
    assert student.prediction == "v_prediction"
    pipeline.save(tmp_path / "out", student, {})
    assert DDPMPipeline.from_pretrained(tmp_path / "out").scheduler.config.prediction_type == "v_prediction"
    with torch.no_grad():
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([2, T - 1])
        assert_close(Pipeline.from_pretrained(tmp_path / "out").denoiser(x, t)[0], student.eval()(x, t)[0])


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("celeba")])
def test_every_architecture_has_half_a_width(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
        half = type(network).from_config(scaled(dict(network.config), 0.5))
    ratio = sum(p.numel() for p in half.parameters()) / sum(p.numel() for p in network.parameters())
    assert 0.15 < ratio < 0.55


def no_pipeline(teacher, tmp_path):
    (tmp_path / "empty").mkdir()
    return [str(tmp_path / "empty")], "empty: found no config.json, expected a diffusers"


def no_scheduler(teacher, tmp_path):
    shutil.rmtree(teacher / "scheduler")
    return [], "teacher: found no scheduler, expected a whole pipeline's folder"


def other_prediction(teacher, tmp_path):
    file = teacher / "scheduler" / "scheduler_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"prediction_type": "flow"}),
        encoding="utf-8",
    )
    return [], "scheduler_config.json: found prediction_type 'flow', expected one of"


def offline(teacher, tmp_path):
    return ["nobody/nothing"], "nobody/nothing: found neither a folder here nor such a model on the Hub"


@pytest.mark.parametrize("damage", [no_pipeline, no_scheduler, other_prediction, offline])
def test_what_is_no_teacher_is_refused(damage, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    teacher, command = made("ddpm")
    instead, message = damage(teacher, tmp_path)
    command[1:2] = instead or command[1:2]
    assert cli.main([*command, "--student", "x0.5"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (
            "ddpm",
            ["--student", "cnn-14m"],
            "student cnn-14m: found samples of (3, 32, 32), but the teacher's",
        ),
        (
            "ddpm",
            ["--student", "digits-student"],
            "student digits-student: found 1 channels, but the teacher's",
        ),
        (
            "ddpm",
            ["--student", "resnet"],
            "student: found 'resnet', expected a factor as x0.5 or depth0.5, a config.json",
        ),
        ("ddpm", ["--student", "x9"], "student: found 'x9', expected a factor in (0, 4], as x0.5"),
        (
            "ddpm",
            ["--student", "x1", "--prompts", "p.txt"],
            "--prompts: found p.txt, but the teacher takes no",
        ),
        ("dit", ["--student", "toy-student"], "student toy-student: found 2 channels, but the teacher's"),
        (
            "class-conditional",
            ["--student", "x1", "--null-class", "9"],
            "null class: found 9, expected one of",
        ),
    ],
)
def test_what_does_not_fit_is_refused(kind, options, message, made, tmp_path, capsys):
    _, command = made(kind)
    assert cli.main([*command, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_text_teacher_needs_prompts(made, tmp_path, capsys):
    _, command = made("stable-diffusion")
    (tmp_path / "prompts.txt").write_text("\n \n", encoding="utf-8")
    assert cli.main([*command, "--student", "x0.5"]) == 1
    assert "prompts.txt: found no prompts, expected one a line" in capsys.readouterr().err
    at = command.index("--prompts")
    assert cli.main([*command[:at], *command[at + 2 :], "--student", "x0.5"]) == 1
    assert "--prompts: found None, but the teacher takes text" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(made, tmp_path, capsys):
    _, command = made("ddpm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("", encoding="utf-8")
    assert cli.main([*command, "--student", "x0.5"]) == 1
    assert "out: found other files there, expected an empty or a new folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("asked, size, stride", [({}, 4, 2), ({"rho": 0.4, "stride": 1}, 32, 1)])  # T = 20
def test_the_pool_is_small_and_strides_unless_the_papers_is_asked_for(
    asked, size, stride, made, tmp_path, monkeypatch
):
    teacher, _ = made("ddpm")
    pipeline, pools = Pipeline.from_pretrained(teacher), []
    train = distillation.train

    def note(student, source, *arguments, **options):
        pools.append(source)
        return train(student, source, *arguments, **options)

    monkeypatch.setattr(distillation, "train", note)
    settings = Distillation("t", "x0.5", iterations=1, batch_size=4, **asked)
    distill(pipeline, settings, tmp_path / "out", progress=False)
    assert (pools[0].size, pools[0].stride) == (size, stride)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("strides of 2 steps" in card) == (stride == 2)


def test_a_finished_distillation_is_left_alone(made, tmp_path, capsys):
    _, command = made("ddpm")
    assert cli.main([*command, "--student", "x0.5"]) == 0
    assert cli.main([*command, "--student", "x0.5"]) == 1
    assert "this distillation is finished" in capsys.readouterr().err
    assert cli.main([*command, "--student", "x1"]) == 1
    assert "begun with student = 'x0.5', expected 'x1'" in capsys.readouterr().err


def test_a_distillation_begun_before_a_setting_came_goes_by_what_it_was_then(made, tmp_path, capsys):
    _, command = made("ddpm")
    assert cli.main([*command, "--student", "x0.5"]) == 0
    file = tmp_path / "out" / "distillation.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    del found["settings"]["stride"], found["settings"]["mixed_precision"]
    file.write_text(json.dumps(found), encoding="utf-8")
    assert cli.main([*command, "--student", "x0.5"]) == 1
    assert "begun with stride = 1, expected 2" in capsys.readouterr().err
    assert cli.main([*command, "--student", "x0.5", "--stride", "1"]) == 1
    assert "this distillation is finished" in capsys.readouterr().err

    del found["settings"]["variance"]  # the teacher learns none
    file.write_text(json.dumps(found), encoding="utf-8")
    assert cli.main([*command, "--student", "x0.5", "--stride", "1"]) == 1
    assert "begun with variance = 'small', expected None" in capsys.readouterr().err
    assert cli.main([*command, "--student", "x0.5", "--stride", "1", "--variance", "small"]) == 1
    assert "this distillation is finished" in capsys.readouterr().err


def test_the_variance_of_moves_is_passed_on_and_recorded(made, tmp_path, capsys):
    _, command = made("ddpm")
    assert cli.main([*command, "--student", "x0.5", "--variance", "learned"]) == 1
    assert "variance: found 'learned', but the teacher learns none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main([*command, "--student", "x0.5", "--variance", "ddim"]) == 0
    assert (
        json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))["settings"][
            "variance"
        ]
        == "ddim"
    )
