"""Teachers' folders in every layout that is met: read, or refused in one sentence; and what of them a student
is written with."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from safetensors.torch import load_file, save_file
from test_pipelines import T, kl, stable_diffusion, unet
from torch.testing import assert_close

from dkdm_lab import cli
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks import Denoiser, folders
from dkdm_lab.system.budget import Stopped
from dkdm_lab.teachers import samples
from dkdm_lab.teachers.distill import Distillation, content, default_batch_size, distill
from dkdm_lab.teachers.pipelines import Pipeline, decode, encode

DATA = "diffusion_pytorch_model"


def halves(file, variant="fp16"):
    """A file of weights as one of 16 bits, under the name of a variant."""
    state = {key: value.half() for key, value in load_file(file).items()}
    save_file(state, file.with_name(f"{file.stem}.{variant}.safetensors"), metadata={"format": "pt"})


def flat(folder, network, scheduler, pickled=True):
    """As google/ddpm-cifar10-32 and -cat-256 lie on the Hub: everything side by side, weights as a pickle."""
    network.save_pretrained(folder, safe_serialization=not pickled)
    scheduler.save_pretrained(folder)
    kinds = {"unet": type(network).__name__, "scheduler": type(scheduler).__name__}
    index = {"_class_name": "DDPMPipeline", **{part: ["diffusers", kind] for part, kind in kinds.items()}}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "teacher"


def answer(denoiser, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(2, *denoiser.shape)
    with torch.no_grad():
        return x, denoiser(x, torch.tensor([3, T - 2]))[0]


@pytest.mark.parametrize("pickled", [True, False])
def test_a_flat_folder_is_read_distilled_and_exported_as_diffusers_has_it(folder, tmp_path, pickled):
    network = unet()
    flat(folder, network, DDPMScheduler(num_train_timesteps=T, variance_type="fixed_large"), pickled)
    teacher = Pipeline.from_pretrained(folder)
    assert (teacher.diffusion.T, teacher.diffusion.variance, teacher.diffusion.clip) == (T, "large", 1.0)
    x, eps = answer(teacher.denoiser)
    theirs = DDPMPipeline.from_pretrained(folder, use_safetensors=not pickled).unet
    with torch.no_grad():
        assert_close(eps, theirs(x, torch.tensor([3, T - 2])).sample)
    command = ["distill", str(folder), "--student", "x0.5", "--out", str(tmp_path / "out"), "--force"]
    command += ["--iterations", "2", "--batch-size", "2", "--rho", "0.1", "--samples", "0"]
    assert cli.main(command) == 0
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "README.md", "distillation.json", "history.json", "loss.png", "model_index.json", "scheduler", "unet",
    ]  # fmt: skip
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "out")) is DDPMPipeline


def test_the_attention_of_the_first_diffusers_is_read(folder):
    """Its weights had other names when google's checkpoints were written."""
    network = unet()
    flat(folder, network, DDPMScheduler(num_train_timesteps=T))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = network.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    torch.save(state, folder / f"{DATA}.bin")
    x, eps = answer(Denoiser.from_pretrained(folder))
    with torch.no_grad():
        assert_close(eps, network(x, torch.tensor([3, T - 2])).sample)


def test_a_class_conditional_teacher_without_a_null_class(folder, tmp_path):
    unet(num_class_embeds=5).save_pretrained(folder / "unet")
    DDPMScheduler(num_train_timesteps=T).save_pretrained(folder / "scheduler")
    teacher = Pipeline.from_pretrained(folder)
    labels = teacher.classes()
    assert labels.values.tolist() == [0, 1, 2, 3, 4] and labels.null is None
    settings = Distillation("t", "x0.5", iterations=2, batch_size=2, rho=0.1)
    distill(teacher, settings, tmp_path / "out", labels, progress=False, samples=0)
    assert teacher.classes(2).values.tolist() == [0, 1, 3, 4]


def test_a_pipeline_in_half_precision_is_a_teacher_of_32_bits(folder, tmp_path):
    stable_diffusion(folder)
    for file in (folder / "unet" / f"{DATA}.safetensors", folder / "text_encoder" / "model.safetensors"):
        halves(file)
        file.unlink()
    teacher = Pipeline.from_pretrained(folder)
    assert {p.dtype for p in teacher.denoiser.parameters()} == {torch.float32}
    prompts = teacher.prompts(["a cat", "a red dog"])
    assert prompts.values.dtype == torch.float32
    x = torch.randn(2, *teacher.denoiser.shape)
    with torch.no_grad():
        assert teacher.denoiser(x, torch.tensor([1, 2]), prompts.values)[0].dtype == torch.float32
    # Their only variant is exported under the plain name, which diffusers looks for.
    teacher.save(tmp_path / "out", teacher.student("x1"), {})
    assert (tmp_path / "out" / "text_encoder" / "model.safetensors").is_file()
    DiffusionPipeline.from_pretrained(tmp_path / "out")


def test_a_variant_is_chosen_by_name_where_there_are_several(folder):
    DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=T)).save_pretrained(folder)
    file = folder / "unet" / f"{DATA}.safetensors"
    plain = load_file(file)
    for variant, factor in (("fp16", 2.0), ("non_ema", 3.0)):
        state = {key: factor * value for key, value in plain.items()}
        save_file(state, file.with_name(f"{DATA}.{variant}.safetensors"), metadata={"format": "pt"})

    def first(variant):
        read = Denoiser.from_pretrained(folder, variant).network.state_dict()
        return float(next(iter(read.values())).flatten()[0])

    assert first("fp16") == pytest.approx(2 * first(None))
    assert first("non_ema") == pytest.approx(3 * first(None))
    command = ["distill", str(folder), "--student", "x1", "--init", "teacher", "--force", "--samples", "0"]
    command += ["--iterations", "1", "--batch-size", "2", "--rho", "0.1", "--lr", "1e-9", "--ema", "0"]
    assert cli.main([*command, "--variant", "fp16", "--out", str(folder.parent / "out")]) == 0
    student = next(iter(Denoiser.from_pretrained(folder.parent / "out").network.state_dict().values()))
    assert float(student.flatten()[0]) == pytest.approx(2 * first(None), rel=1e-5)
    file.unlink()
    with pytest.raises(ValueError, match="found weights in the variants fp16, non_ema, expected --variant"):
        Denoiser.from_pretrained(folder)
    with pytest.raises(ValueError, match="found no weights of variant 'bf16', expected one of"):
        Denoiser.from_pretrained(folder, "bf16")


def test_sharded_weights_are_read(folder):
    network = unet()
    network.save_pretrained(folder / "unet", max_shard_size="20KB")
    assert (folder / "unet" / f"{DATA}.safetensors.index.json").is_file()
    DDPMScheduler(num_train_timesteps=T).save_pretrained(folder / "scheduler")
    read = Denoiser.from_pretrained(folder).network.state_dict()
    assert all(torch.equal(value, read[key]) for key, value in network.state_dict().items())


def test_a_network_without_a_size_asks_for_one(folder):
    DDPMPipeline(unet(sample_size=None), DDPMScheduler(num_train_timesteps=T)).save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"config.json: found sample_size null, expected .* say it by --size"
    ):
        Pipeline.from_pretrained(folder)
    teacher = Pipeline.from_pretrained(folder, size=16)
    assert teacher.denoiser.shape == (3, 16, 16) == teacher.student("x0.5").shape


def test_a_vaes_shift_and_statistics_are_those_of_the_pipeline():
    vae = kl()
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        mean = vae.encode(images / 127.5 - 1).latent_dist.mean
    vae.register_to_config(shift_factor=0.25)
    assert_close(encode(vae, images), (mean - 0.25) * 0.18215)
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert_close(decode(vae, latents), vae.decode(latents / 0.18215 + 0.25).sample)
    middle, spread = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae.register_to_config(latents_mean=middle, latents_std=spread)
    channels = torch.tensor(middle).view(4, 1, 1), torch.tensor(spread).view(4, 1, 1)
    assert_close(encode(vae, images), (mean - channels[0]) * 0.18215 / channels[1])
    with torch.no_grad():
        expected = vae.decode(latents * channels[1] / 0.18215 + channels[0]).sample
    assert_close(decode(vae, latents), expected)


def test_the_decoder_goes_where_the_denoiser_goes(folder):
    stable_diffusion(folder)
    teacher = Pipeline.from_pretrained(folder).to("meta")
    assert {p.device.type for part in (teacher.vae, teacher.denoiser) for p in part.parameters()} == {"meta"}


def test_an_evaluation_holds_a_batch_of_samples_and_8_bits_of_all_images(folder, monkeypatch):
    stable_diffusion(folder)
    teacher, seen, scored = Pipeline.from_pretrained(folder), [], []
    forward = teacher.vae.decode
    monkeypatch.setattr(teacher.vae, "decode", lambda x: seen.append(len(x)) or forward(x))
    monkeypatch.setattr(samples, "score", lambda *images, **_: scored.extend(images) or {"FID": 0.0})
    samples.compare(teacher, teacher.denoiser, 7, teacher.prompts(["a cat"]), batch_size=3)
    assert seen == [3, 3, 1] * 2
    assert [(one.dtype, one.shape) for one in scored] == [(torch.uint8, (7, 3, 16, 16))] * 2


# -- what makes no sense is said before any training ---------------------------------------------------


def saved(scheduler):
    return lambda folder: scheduler.save_pretrained(folder / "scheduler")


def lora(folder):
    save_file({"x": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")


def other(**changes):
    def change(folder):
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def named(name):
    def change(folder):
        file = folder / "model_index.json"
        file.write_text(
            json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"_class_name": name}), encoding="utf-8"
        )

    return change


SHORT = {"num_train_timesteps": T}
NONSENSE = {
    "zero terminal SNR with eps": (
        saved(DDPMScheduler(rescale_betas_zero_snr=True, **SHORT)),
        "scheduler_config.json: found a last level without any signal and prediction_type 'epsilon'",
    ),
    "zero terminal SNR with eps, by its betas": (
        saved(DDIMScheduler(trained_betas=[*[0.1] * 9, 1.0], num_train_timesteps=10)),
        "scheduler_config.json: found a last level without any signal",
    ),
    "continuous time": (
        saved(EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction", **SHORT)),
        "scheduler_config.json: found timestep_type 'continuous', expected 'discrete'",
    ),
    "a flow's sigmas with eps": (
        saved(DPMSolverMultistepScheduler(use_flow_sigmas=True, **SHORT)),
        "found use_flow_sigmas with prediction_type 'epsilon', expected 'flow_prediction'",
    ),
    "a flow's prediction without its sigmas": (
        saved(DPMSolverMultistepScheduler(prediction_type="flow_prediction", **SHORT)),
        "found prediction_type 'flow_prediction' without the sigmas of a flow",
    ),
    "few steps": (saved(LCMScheduler(**SHORT)), "found LCMScheduler, a teacher of few steps"),
    "few steps, by its network": (other(time_cond_proj_dim=8), "time_cond_proj_dim 8, a teacher of few"),
    "thresholding": (saved(DDPMScheduler(thresholding=True, **SHORT)), "found thresholding, expected"),
    "a LoRA": (lora, "pytorch_lora_weights.safetensors: found a LoRA beside the pipeline"),
    "labels by time": (other(class_embed_type="timestep"), "found class_embed_type 'timestep', for which"),
    "inpainting": (named("StableDiffusionInpaintPipeline"), "StableDiffusionInpaintPipeline, an inpainting"),
    "a refiner": (named("StableDiffusionXLImg2ImgPipeline"), "an image-to-image pipeline, a refiner"),
    "an upscaler": (named("StableDiffusionUpscalePipeline"), "found StableDiffusionUpscalePipeline, an upsc"),
    "video": (named("AnimateDiffPipeline"), "found AnimateDiffPipeline, a video model; expected a pipeline"),
    "audio": (named("StableAudioPipeline"), "found StableAudioPipeline, an audio model"),
    "image embeddings": (named("KandinskyV22Pipeline"), "a decoder of image embeddings"),
    "HunyuanDiT": (named("HunyuanDiTPipeline"), "found HunyuanDiTPipeline, a transformer that is told sizes"),
    "DeepFloyd IF": (named("IFPipeline"), "found IFPipeline, the first of a cascade, whose steps are thresh"),
    "EDM that predicts samples": (
        saved(EDMDPMSolverMultistepScheduler(prediction_type="sample", **SHORT)),
        "found prediction_type 'sample', expected 'epsilon' or 'v_prediction'",
    ),
    "EDM without noise": (
        saved(EDMEulerScheduler(sigma_min=0.0, **SHORT)),
        "found sigmas from 0.0 to 80.0 for data of 0.5, expected them to rise from 1e-6 or more",
    ),
    "score SDE": (named("ScoreSdeVePipeline"), "found ScoreSdeVePipeline, a process in continuous time"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "teacher"
    DDPMPipeline(unet(), DDPMScheduler(**SHORT)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused_in_a_sentence(kind, plain, folder, capsys, tmp_path):
    shutil.copytree(plain, folder)
    change, message = NONSENSE[kind]
    change(folder)
    assert cli.main(["distill", str(folder), "--student", "x0.5", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dkdm: ") and message in said and str(folder) in said
    assert said.count("\n") == 1  # one sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("long", ["a" * 40, "a cat and a dog and a rat"])
def test_prompts_that_would_be_cut_are_refused(folder, long):
    stable_diffusion(folder)
    with pytest.raises(ValueError, match=r"prompts: found \d+ tokens in number 2, expected at most 12"):
        Pipeline.from_pretrained(folder).prompts(["a cat", long])


def test_a_tokenizer_without_a_longest_text_has_its_encoders(folder):
    stable_diffusion(folder)
    before = Pipeline.from_pretrained(folder).prompts(["a cat"]).values
    file = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["model_max_length"]
    file.write_text(json.dumps(config), encoding="utf-8")
    assert_close(Pipeline.from_pretrained(folder).prompts(["a cat"]).values, before)


def test_parts_that_are_none_stay_none(folder, tmp_path):
    stable_diffusion(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["safety_checker"] == [None, None]
    teacher = Pipeline.from_pretrained(folder)
    teacher.save(tmp_path / "out", teacher.student("x1"), {})
    assert json.loads((tmp_path / "out" / "model_index.json").read_text(encoding="utf-8"))[
        "safety_checker"
    ] == [None, None]


# -- what decides a distillation is recorded by its content --------------------------------------------


def settings(**changes):
    return Distillation("t", **{"student": "x0.5", "iterations": 2, "batch_size": 2, "rho": 0.1, **changes})


def other_prompts(teacher):
    return teacher, teacher.prompts(["a cat", "a blue dog"])


def other_weights(teacher):
    with torch.no_grad():
        next(teacher.denoiser.parameters()).mul_(1 + 1e-6)
    return teacher, teacher.prompts(["a cat", "a red dog"])


def other_betas(teacher):
    prompts = teacher.prompts(["a cat", "a red dog"])
    denoiser = teacher.denoiser
    denoiser.diffusion = GaussianDiffusion(denoiser.diffusion.betas * (1 + 1e-6), clip=False)
    return teacher, prompts


@pytest.mark.parametrize(
    "change, what",
    [
        (other_prompts, "prompts or labels"),
        (other_weights, "the teacher's weights"),
        (other_betas, "the teacher's schedule"),
    ],
)
def test_a_resumed_run_takes_nothing_else_under_the_same_names(change, what, folder, tmp_path):
    stable_diffusion(folder)
    teacher = Pipeline.from_pretrained(folder)
    first = teacher.prompts(["a cat", "a red dog"])
    distill(teacher, settings(), tmp_path / "out", first, progress=False, samples=0)
    with pytest.raises(ValueError, match="this distillation is finished"):
        distill(teacher, settings(), tmp_path / "out", first, progress=False, samples=0)
    teacher, conditions = change(teacher)
    with pytest.raises(ValueError, match=f"out: this distillation was begun with another content of {what}"):
        distill(teacher, settings(), tmp_path / "out", conditions, progress=False, samples=0)


def test_a_stopped_run_takes_no_shorter_list_of_prompts(folder, tmp_path, monkeypatch):
    """Of which its pool has numbers that are no longer there."""
    stable_diffusion(folder)
    teacher = Pipeline.from_pretrained(folder)

    def run(prompts):
        distill(teacher, settings(), tmp_path / "out", prompts, progress=False, samples=0, checkpoint_every=1)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dkdm_lab.training._Loop._asked_to_leave", lambda _: Stopped)
        run(teacher.prompts(["a cat", "a red dog"]))
    assert any((tmp_path / "out" / "checkpoints").iterdir())
    with pytest.raises(ValueError, match="begun with another content of prompts or labels"):
        run(teacher.prompts(["a cat"]))
    run(teacher.prompts(["a cat", "a red dog"]))


def test_another_null_class_is_another_distillation(folder):
    unet(num_class_embeds=5).save_pretrained(folder / "unet")
    DDPMScheduler(**SHORT).save_pretrained(folder / "scheduler")
    teacher = Pipeline.from_pretrained(folder)
    found = [content(teacher, teacher.classes(null)) for null in (None, 3, 4, 4)]
    assert found[2] == found[3]
    assert len({json.dumps(one) for one in found}) == 3


# -- what is exported -----------------------------------------------------------------------------------


def test_only_what_the_index_names_is_exported(folder, tmp_path):
    stable_diffusion(folder)
    litter = [
        "optimizer.bin", "v1-5-pruned.safetensors", "logs/events", "unet/optimizer.pt", "vae/notes.txt",
        f"vae/{DATA}.non_ema.safetensors", f"vae/{DATA}.bin", "text_encoder/model.fp16.safetensors",
        "checkpoint-500/model.safetensors", "other/config.json", "text_encoder/run.py", "vae/old/config.json",
    ]  # fmt: skip
    for name in litter:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 100)
    teacher = Pipeline.from_pretrained(folder)
    teacher.save(tmp_path / "out", teacher.student("x0.5"), {})
    found = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert not found & set(litter)
    assert {"vae/config.json", f"vae/{DATA}.safetensors", "text_encoder/model.safetensors"} <= found
    DiffusionPipeline.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("schedule", ["laplace", "sigmoid", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_any_process_that_was_read_can_be_saved_with(schedule, prediction, folder, tmp_path):
    """Also one that diffusers has no name for, and zero terminal SNR."""
    zero = {"rescale_betas_zero_snr": True} if prediction == "v_prediction" else {}
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction, **SHORT, **zero)
    DDPMPipeline(unet(), scheduler).save_pretrained(folder)
    teacher = Denoiser.from_pretrained(folder)
    teacher.save_pretrained(tmp_path / "out", teacher.diffusion)
    again = Denoiser.from_pretrained(tmp_path / "out")
    assert again.prediction == prediction
    assert_close(
        torch.from_numpy(again.diffusion.betas), torch.from_numpy(teacher.diffusion.betas), atol=1e-6, rtol=0
    )


# -- the Hub, batches, precision ------------------------------------------------------------------------

ON_THE_HUB = [
    "model_index.json", "README.md", f"{DATA}.bin", "config.json", "scheduler/scheduler_config.json",
    f"unet/{DATA}.safetensors", "text_encoder/pytorch_model.bin", "text_encoder_2/model.safetensors",
    "tokenizer/spiece.model", "tokenizer/tokenizer.model", "tokenizer/merges.txt", "tokenizer/vocab.json",
    f"transformer/{DATA}-00001-of-00002.safetensors",
]  # fmt: skip
NOT_OURS = [
    "pipeline.py", "unet/modeling.py", f"unet/{DATA}.fp16.safetensors", "v1-5-pruned.ckpt",
    "v1-5-pruned-emaonly.safetensors", "unet/flax_model.msgpack", "text_encoder/model.fp16.safetensors",
    "text_encoder/tf_model.h5", "vae_decoder/model.onnx", "optimizer.pt", f"unet/{DATA}.non_ema.bin",
    "text_encoder/model.fp16-00001-of-00002.safetensors", "samples/cat.png",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ON_THE_HUB, *NOT_OURS])
def test_of_a_repository_on_the_hub_what_is_needed_is_fetched(name):
    from huggingface_hub.utils import filter_repo_objects

    fetched = list(filter_repo_objects([name], allow_patterns=folders.NEEDED, ignore_patterns=folders.COPIES))
    assert bool(fetched) == (name in ON_THE_HUB)


def test_both_forms_of_the_same_weights_are_not_fetched(monkeypatch):
    """A pickle stays away where the same weights are there as safetensors."""
    asked = []
    files = [
        "unet/config.json",
        f"unet/{DATA}.safetensors",
        f"unet/{DATA}.bin",
        "vae/config.json",
        f"vae/{DATA}.bin",
    ]
    monkeypatch.setattr(folders, "list_repo_files", lambda name: files)
    monkeypatch.setattr(folders, "snapshot_download", lambda name, **options: asked.append(options) or "/")
    folders.find_folder("some-one/their-model")
    assert f"unet/{DATA}.bin" in asked[0]["ignore_patterns"]
    assert f"vae/{DATA}.bin" not in asked[0]["ignore_patterns"]


def test_the_teacher_is_never_asked_for_more_than_a_batch(plain, tmp_path, monkeypatch):
    teacher, sizes = Pipeline.from_pretrained(plain), []
    forward = teacher.denoiser.network.forward
    monkeypatch.setattr(
        teacher.denoiser.network, "forward", lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k)
    )
    distill(teacher, settings(batch_size=3, rho=0.5), tmp_path / "out", progress=False, samples=0)
    assert max(sizes) == 3 and sum(sizes) >= 30 + 2 * 3  # a pool of 30, and two turns


def test_a_batch_follows_from_the_size_of_the_teacher(plain):
    teacher = Pipeline.from_pretrained(plain)

    def size(parameters):
        class Denoiser:
            parameter_count = parameters

        return default_batch_size(dataclasses.replace(teacher, denoiser=Denoiser()))

    found = [size(n) for n in (14e6, 57e6, 100e6, 274e6, 860e6, 2.6e9, 12e9, 1e12)]
    assert found == [128, 128, 128, 32, 8, 4, 1, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_teacher_may_compute_in_16_bits(dtype, plain, tmp_path):
    whole, half = Pipeline.from_pretrained(plain), Pipeline.from_pretrained(plain, dtype=dtype)
    assert {p.dtype for p in half.denoiser.parameters()} == {getattr(torch, dtype)}
    (_, expected), (_, found) = answer(whole.denoiser), answer(half.denoiser)
    assert found.dtype == torch.float32 and 0 < float((found - expected).abs().max()) < 0.05
    student = distill(half, settings(), tmp_path / "out", progress=False, samples=0)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="dtype: found 'int4', expected float32"):
        Pipeline.from_pretrained(plain, dtype="int4")


def test_a_student_of_fewer_blocks_begins_as_its_teacher(tmp_path, folder):
    DDPMPipeline(unet(layers_per_block=2), DDPMScheduler(**SHORT)).save_pretrained(folder)
    teacher, lines = Pipeline.from_pretrained(folder), []
    student = distill(
        teacher, settings(student="depth0.5", init="teacher", lr=1e-9, ema=0.0), tmp_path / "out",
        progress=False, samples=0, report=lines.append,
    )  # fmt: skip
    theirs = teacher.denoiser.network.state_dict()
    assert student.network.config.layers_per_block == 1
    assert_close(student.network.state_dict()["conv_in.weight"], theirs["conv_in.weight"])
    assert "of the student's" in lines[0]
    with pytest.raises(ValueError, match="init: found 'vae', expected one of random, teacher"):
        distill(teacher, settings(init="vae"), tmp_path / "other", progress=False)
