"""The families of pipelines that people have, each as a small one of its own classes: read, walked through by
the pool as by the pipeline itself, distilled, and sampled by plain diffusers from the export."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from test_pipelines import kl, silent, stable_diffusion, unet
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from dkdm_lab import cli
from dkdm_lab.networks import NETWORK_CLASSES, Denoiser
from dkdm_lab.networks.families import unpack
from dkdm_lab.networks.schedulers import diffusion_of, flow_levels, flow_scale, read_scheduler
from dkdm_lab.pools import IterativePool, ShuffledPool
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.training import train

T = 12
WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "red", "dog", "on"]


def words(length=64):
    """A tokenizer of a few words, as those of T5 and Gemma are used."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],  # as theirs; transformers 4 would add a third
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def t5(kind=T5EncoderModel, config=T5Config):
    return kind(config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def gemma():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma2Model(Gemma2Config(vocab_size=8, head_dim=8, num_key_value_heads=1, **sizes))


def clip(folder, projected=True):
    """A CLIP tokenizer and encoder."""
    made = folder.parent / "clip-words"
    if not made.is_dir():
        letters = [*"abcdefghijklmnopqrstuvwxyz ", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
        known = [*letters, "<unk>", "<|startoftext|>", "<|endoftext|>"]
        made.mkdir()
        (made / "vocab.json").write_text(
            json.dumps({word: number for number, word in enumerate(known)}), encoding="utf-8"
        )
        (made / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(made, model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=56, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, eos_token_id=55, bos_token_id=54, pad_token_id=55, projection_dim=16,
    )  # fmt: skip
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(channels, **options):
    made = kl() if channels == 4 else AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=channels,
    )  # fmt: skip
    made.register_to_config(**options)
    return made


HEADS = {"num_attention_heads": 4, "attention_head_dim": 8}


def sd3(folder):
    network = SD3Transformer2DModel(
        sample_size=8, in_channels=16, out_channels=16, num_layers=1, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=32, pos_embed_max_size=8, **HEADS,
    )  # fmt: skip
    first, second = clip(folder), clip(folder)
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(T, shift=3.0), vae(16, shift_factor=0.06), first[1],
        first[0],
        second[1], second[0], t5(T5EncoderModel, lambda **o: T5Config(**o | {"d_model": 32})), words(),
    )  # fmt: skip


def flux(folder):
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, joint_attention_dim=16, pooled_projection_dim=16,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4), **HEADS,
    )  # fmt: skip
    tokenizer, encoder = clip(folder, projected=False)
    scheduler = FlowMatchEulerDiscreteScheduler(T, shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae(4, shift_factor=0.1), encoder, tokenizer, t5(), words(), network)


def sana(folder):
    network = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, sample_size=16, num_cross_attention_heads=2,
        cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=16, **HEADS,
    )  # fmt: skip
    block = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    kinds = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    decoder = AutoencoderDC(
        latent_channels=4, encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        attention_head_dim=8, scaling_factor=0.41, **block, **layers, **kinds,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        T, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(words(400), gemma(), decoder, network, scheduler)


def aura(folder):
    network = AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, joint_attention_dim=16,
        caption_projection_dim=32, pos_embed_max_size=16, **HEADS,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(T, shift=1.73)
    return AuraFlowPipeline(words(), t5(UMT5EncoderModel, UMT5Config), vae(4), network, scheduler)


def lumina2(folder):
    network = Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=32, num_layers=1, num_refiner_layers=1,
        num_attention_heads=4, num_kv_heads=2, multiple_of=8, axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=16,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(T, shift=6.0)
    return Lumina2Pipeline(network, scheduler, vae(4, shift_factor=0.1), gemma(), words(300))


def pixart(folder):
    network = PixArtTransformer2DModel(
        num_layers=1, cross_attention_dim=32, sample_size=8, caption_channels=16, norm_num_groups=4, **HEADS
    )
    return PixArtSigmaPipeline(words(400), t5(), vae(4), network, DPMSolverMultistepScheduler(T))


def sdxl(folder):
    first, second = clip(folder, projected=False), clip(folder)
    network = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 * 6 + 16,
        use_linear_projection=True,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(T, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        vae(4), first[1], second[1], first[0], second[0], network, scheduler, add_watermarker=False
    )


def playground(folder):
    """SDXL preconditioned as EDM, as Playground v2.5 is; its VAE has a mean and a standard deviation."""
    parts = dict(sdxl(folder).components)
    parts["scheduler"] = EDMDPMSolverMultistepScheduler(num_train_timesteps=T)
    parts["vae"] = vae(4, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


PAINTERS = {
    "StableDiffusion3": sd3, "Flux": flux, "Sana": sana, "AuraFlow": aura, "Lumina2": lumina2,
    "PixArtSigma": pixart, "StableDiffusionXL": sdxl, "Playground": playground,
}  # fmt: skip
FLOWS = ("StableDiffusion3", "Flux", "Sana", "AuraFlow", "Lumina2")


@pytest.fixture
def made(tmp_path):
    def make(kind):
        torch.manual_seed(0)
        folder = tmp_path / "teacher"
        pipeline = PAINTERS[kind](folder)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):  # several begin with layers of zeros, which say nothing
                for parameter in part.parameters():
                    if parameter.ndim > 1:
                        torch.nn.init.normal_(parameter, std=0.1)
        silent(pipeline).save_pretrained(folder)
        return folder

    return make


def read(folder, kind):
    teacher = Pipeline.from_pretrained(folder, size=8 if kind == "Flux" else None)
    return teacher, teacher.prompts(["a red cat", "a dog"])


def states_of(pipeline, x, prompts, side=16, **options):
    """Every state of a pipeline's own walk from ``x`` under each prompt."""
    states = [x]
    pipeline(
        prompts, latents=x.clone(), height=side, width=side, num_inference_steps=T, output_type="latent",
        callback_on_step_end=lambda _p, _i, _t, found: states.append(found["latents"].clone()) or {},
        **options,
    )  # fmt: skip
    return states


@pytest.mark.parametrize("kind", FLOWS)
def test_the_pool_walks_as_the_pipeline_itself(kind, made):
    """By its own call, prompts and all: one Euler step a turn, from noise to the sample, at every level."""
    folder = made(kind)
    teacher, conditions = read(folder, kind)
    pipeline = silent(DiffusionPipeline.from_pretrained(folder))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(teacher.scheduler.config)
    pool = IterativePool(
        teacher.diffusion,
        teacher.denoiser,
        2,
        conditions=conditions,
        variance="ddim",
        shape=teacher.denoiser.shape,
    )
    pool.fill()
    pool.c = torch.tensor([0, 1])
    x = pool.x.clone()
    options = {} if kind in ("Flux",) else {"guidance_scale": 1.0}
    options |= {"use_resolution_binning": False, "side": 32} if kind == "Sana" else {}
    if kind == "Lumina2":  # which chooses other levels; the scheduler's own are as good
        options["sigmas"] = np.linspace(1, pipeline.scheduler.sigma_min, T)
    start = FluxPipeline._pack_latents(x, 2, 4, 8, 8) if kind == "Flux" else x
    expected = states_of(pipeline, start, conditions.names, **options)
    pool.conditions.dropout = 0.0
    for number, t in enumerate(range(T - 1, -1, -1)):
        found = pool.x * flow_scale(teacher.diffusion, torch.tensor([t])).float().view(1, 1, 1, 1)
        state = expected[number]
        state = FluxPipeline._unpack_latents(state, 16, 16, 2) if kind == "Flux" else state
        # Measured: at most 2e-6 over the families; float32 sums on other ways.
        assert_close(found, state, atol=1e-5, rtol=1e-5)
        next(pool)
    assert len(expected) == T + 1


# The schedulers of the public models, and how many tokens one of their images has: SD3 Medium and FLUX.1-dev
# at 1,024 pixels, FLUX at 256 too, SANA, which solves its flow by another method, AuraFlow, Lumina2.
PUBLIC = {
    "StableDiffusion3": (FlowMatchEulerDiscreteScheduler(1000, shift=3.0), 4096),
    "Flux": (FlowMatchEulerDiscreteScheduler(1000, shift=3.0, use_dynamic_shifting=True), 4096),
    "Flux, small": (FlowMatchEulerDiscreteScheduler(1000, shift=3.0, use_dynamic_shifting=True), 256),
    "Sana": (
        DPMSolverMultistepScheduler(
            1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        1024,
    ),
    "AuraFlow": (FlowMatchEulerDiscreteScheduler(1000, shift=1.73), 4096),
    "Lumina2": (FlowMatchEulerDiscreteScheduler(1000, shift=6.0), 4096),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_move_is_the_schedulers_step_at_each_of_a_thousand_levels(name, tmp_path):
    """Whatever the velocity."""
    published, sequence = PUBLIC[name]
    published.save_pretrained(tmp_path)
    scheduler = read_scheduler(tmp_path)
    diffusion, levels = diffusion_of(scheduler, sequence), flow_levels(scheduler, sequence)
    assert diffusion.T == len(levels.timesteps) == 1000
    if name == "Sana":  # its own solver ends a little lower, at 0.003 and not at 0.009
        published.set_timesteps(1000)
        assert_close(levels.sigmas[:-1], published.sigmas[:-1], atol=6e-3, rtol=0)
    y, v, t = torch.randn(1000, 4, 2, 2), torch.randn(1000, 4, 2, 2), torch.arange(1000)
    expected = [
        levels.step(v[t : t + 1], levels.timesteps[999 - t], y[t : t + 1], return_dict=False)[0]
        for t in range(999, -1, -1)
    ]
    own = flow_scale(diffusion, t).view(-1, 1, 1, 1)
    below = torch.cat([torch.ones(1, 1, 1, 1), own[:-1]])
    x = y / own.float()
    moved = diffusion.ddim(x, t, diffusion.predict_eps("flow_prediction", x, t, v), t - 1)
    assert_close(moved * below.float(), torch.cat(expected[::-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", PAINTERS)
def test_a_student_equal_to_its_teacher_has_no_loss(kind, made):
    teacher, conditions = read(made(kind), kind)
    same = teacher.denoiser.around(teacher.denoiser.network)
    pool = ShuffledPool(teacher.diffusion, teacher.denoiser, 2, conditions=conditions)
    _, history = train(same, pool, teacher.diffusion, 2, lr=0.0, log_every=1, progress=False)
    assert history.simple == [0.0] * 2


@pytest.mark.parametrize("kind", PAINTERS)
def test_a_family_is_distilled_to_what_diffusers_samples(kind, made, tmp_path, capsys):
    folder = made(kind)
    (tmp_path / "prompts.txt").write_text("a red cat\na dog\n", encoding="utf-8")
    command = ["distill", str(folder), "--student", "x0.5", "--prompts", str(tmp_path / "prompts.txt")]
    command += ["--out", str(tmp_path / "out"), "--iterations", "2", "--batch-size", "2", "--rho", "0.1"]
    command += ["--force", "--samples", "0", *(["--size", "8"] if kind == "Flux" else [])]
    assert cli.main(command) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))["result"]
    assert 0 < found["simple"] < 1e3
    assert found["parameters"] < 0.8 * found["teacher_parameters"]
    pipeline = silent(DiffusionPipeline.from_pretrained(tmp_path / "out"))
    if kind in FLOWS:
        assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    options = {"use_resolution_binning": False} if kind in ("Sana", "PixArtSigma") else {}
    side, drawn = {"Sana": (32, 32), "Lumina2": (64, 16)}.get(kind, (16, 16))  # Lumina2 knows VAEs of 8 alone
    images = pipeline(
        "a cat", height=side, width=side, num_inference_steps=2, output_type="np", **options
    ).images
    assert images.shape == (1, drawn, drawn, 3) and np.isfinite(images).all()


@pytest.mark.parametrize("kind", ["StableDiffusionXL", "PixArtSigma"])
def test_it_is_asked_as_its_pipeline_asks(kind, made):
    """The first evaluation of a pipeline's own call, to the arguments."""
    folder = made(kind)
    teacher, conditions = read(folder, kind)
    pipeline = silent(DiffusionPipeline.from_pretrained(folder))
    pipeline.scheduler = DDIMScheduler(T, clip_sample=False, beta_schedule="scaled_linear")
    network = pipeline.unet if kind == "StableDiffusionXL" else pipeline.transformer
    asked, forward = [], network.forward

    def note(x, *arguments, **options):
        found = forward(x, *arguments, **options)
        asked.append((x, arguments[0] if arguments else options["timestep"], found[0]))
        return found

    network.forward = note
    options = {"use_resolution_binning": False} if kind == "PixArtSigma" else {}
    states_of(pipeline, torch.randn(2, 4, 8, 8), conditions.names, guidance_scale=1.0, **options)
    x, t, output = asked[0]
    with torch.no_grad():
        eps, v = teacher.denoiser(x, t.long().expand(2), conditions[torch.arange(2)])
    assert v is None
    assert_close(eps, output[:, :4], atol=1e-5, rtol=1e-5)


def test_an_sdxl_without_its_first_encoder(made):
    """As refiners have it: ``[null, null]`` in the index."""
    folder = made("StableDiffusionXL")
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config | {"cross_attention_dim": 16}).save_pretrained(folder / "unet")
    file = folder / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    for part in ("text_encoder", "tokenizer"):
        index[part] = [None, None]
        shutil.rmtree(folder / part)
    file.write_text(json.dumps(index), encoding="utf-8")
    teacher, conditions = read(folder, "StableDiffusionXL")
    pipeline = silent(DiffusionPipeline.from_pretrained(folder))
    expected, _, pooled, _ = pipeline.encode_prompt(conditions.names)
    parts = unpack(conditions.values, teacher.denoiser.terms.layout)
    assert_close(parts["encoder_hidden_states"], expected)
    assert_close(parts["text_embeds"], pooled)
    teacher.save(folder.parent / "out", teacher.student("x0.5"), {})
    assert len(read(folder.parent / "out", "StableDiffusionXL")[1]) == 2


# -- flows of networks without prompts ------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("options", [{}, {"num_class_embeds": 3}])
def test_a_plain_network_may_predict_velocity(shift, options, tmp_path):
    """One step of the pool at every level, whatever the sample's own, is diffusers' Euler step."""
    torch.manual_seed(0)
    unet(**options).save_pretrained(tmp_path / "unet")
    scheduler = FlowMatchEulerDiscreteScheduler(20, shift=shift)
    scheduler.save_pretrained(tmp_path / "scheduler")
    teacher = Pipeline.from_pretrained(tmp_path)
    diffusion, denoiser = teacher.diffusion, teacher.denoiser
    assert (denoiser.prediction, diffusion.T, diffusion.schedule) == ("flow_prediction", 20, "flow")
    levels = flow_levels(scheduler)
    y, t = torch.randn(20, 3, 8, 8), torch.arange(20)
    given = (torch.arange(20) % 3,) if options else ()
    with torch.no_grad():
        time = levels.timesteps.flip(0)
        v = denoiser.network(y, time, *given).sample
        expected = torch.cat(
            [
                levels.step(v[i : i + 1], time[i], y[i : i + 1], return_dict=False)[0]
                for i in range(19, -1, -1)
            ]
        ).flip(0)
        x = y / flow_scale(diffusion, t).float().view(-1, 1, 1, 1)
        moved = diffusion.ddim(x, t, denoiser(x, t, *given)[0], t - 1)
    scale = torch.cat([torch.ones(1), flow_scale(diffusion, t).float()[:-1]]).view(-1, 1, 1, 1)
    assert_close(moved * scale, expected, atol=1e-5, rtol=1e-5)
    student = teacher.student("x0.5")
    assert student.prediction == "flow_prediction"
    teacher.save(tmp_path / "out", student, {})
    again = Denoiser.from_pretrained(tmp_path / "out")
    assert_close(torch.from_numpy(again.diffusion.betas), torch.from_numpy(diffusion.betas))
    student.save_pretrained(tmp_path / "alone", diffusion)
    assert Denoiser.from_pretrained(tmp_path / "alone").prediction == "flow_prediction"


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("options", [{}, {"sigma_schedule": "exponential", "sigma_data": 1.3}])
def test_an_edm_network_is_walked_as_by_its_scheduler(kind, prediction, options, tmp_path):
    """One step of the pool at every level is diffusers' Euler step; the student is as its teacher."""
    torch.manual_seed(0)
    unet().save_pretrained(tmp_path / "unet")
    kind(num_train_timesteps=20, prediction_type=prediction, **options).save_pretrained(
        tmp_path / "scheduler"
    )
    teacher = Pipeline.from_pretrained(tmp_path)
    diffusion, denoiser = teacher.diffusion, teacher.denoiser
    assert (denoiser.prediction, diffusion.T, diffusion.schedule) == ("v_prediction", 20, "edm")
    data = options.get("sigma_data", 0.5)
    scheduler = EDMEulerScheduler.from_config(teacher.scheduler.config)
    scheduler.set_timesteps(20)
    scale = (scheduler.sigmas**2 + data**2).sqrt().flip(0).view(-1, 1, 1, 1)  # the first of them: sigma = 0
    x, t, moved = torch.randn(20, 3, 8, 8), torch.arange(20), []
    with torch.no_grad():
        for level in range(19, -1, -1):
            y, time = x[level : level + 1] * scale[level + 1], scheduler.timesteps[19 - level]
            output = denoiser.network(scheduler.scale_model_input(y, time), time).sample
            moved.append(scheduler.step(output, time, y, return_dict=False)[0])
        found = diffusion.ddim(x, t, denoiser(x, t)[0], t - 1)
    # By the size of a sample: that of the first levels is up to 80.
    assert_close(found, torch.cat(moved[::-1]) / scale[:-1], atol=1e-5, rtol=1e-5)
    assert_close(teacher.decode(found[:1]), moved[-1], atol=1e-5, rtol=1e-5)
    same = denoiser.around(denoiser.network)
    _, history = train(
        same, ShuffledPool(diffusion, denoiser, 2), diffusion, 1, lr=0.0, log_every=1, progress=False
    )
    assert history.simple == [0.0]
    teacher.save(tmp_path / "out", teacher.student("x0.5"), {})
    teacher.student("x0.5").save_pretrained(tmp_path / "alone", diffusion)
    for name in ("out", "alone"):
        again = Pipeline.from_pretrained(tmp_path / name)
        assert type(again.scheduler) is kind
        assert (again.denoiser.terms.negative, again.denoiser.terms.scale) == (prediction == "epsilon", data)


def test_every_network_that_is_read_has_its_place_in_a_table():
    assert set(NETWORK_CLASSES) == {
        "AuraFlowTransformer2DModel", "DiT", "DiTTransformer2DModel", "FluxTransformer2DModel",
        "Lumina2Transformer2DModel", "MLP", "PixArtTransformer2DModel", "SD3Transformer2DModel",
        "SanaTransformer2DModel", "Transformer2DModel", "UNet2DConditionModel", "UNet2DModel",
    }  # fmt: skip


def test_v_prediction_is_an_sds_too(tmp_path):
    stable_diffusion(tmp_path / "teacher")
    file = tmp_path / "teacher" / "scheduler" / "scheduler_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"prediction_type": "v_prediction"}),
        encoding="utf-8",
    )
    teacher = Pipeline.from_pretrained(tmp_path / "teacher")
    assert teacher.denoiser.prediction == "v_prediction" == teacher.student("x0.5").prediction
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "teacher"), StableDiffusionPipeline)
