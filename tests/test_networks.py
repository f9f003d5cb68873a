"""The paper's networks to the last parameter, and the folders and checkpoints they are read from."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddpm
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dkdm_lab import networks
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks import MLP, Denoiser, DiT, adm_unet
from dkdm_lab.system.seeds import numbered_noise

# -- the paper's networks -----------------------------------------------------------------------------

PARAMETERS = {  # counted in the authors' own networks
    "cnn-57m": 57_094_662,
    "cnn-44m": 44_177_286,
    "cnn-32m": 32_136_582,
    "cnn-24m": 24_866_214,
    "cnn-14m": 14_301_446,
    "celeba-295m": 295_136_454,
    "celeba-57m": 57_213_606,
    "vit-19m": 19_274_520,
}


def build_without_memory(name):
    with torch.device("meta"):
        return networks.build(name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_authors_to_the_last(name):
    assert build_without_memory(name).parameter_count == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_papers_networks_take_colour_images_and_learn_the_variance(name):
    network = build_without_memory(name)
    assert network.shape == ((3, 64, 64) if name.startswith("celeba") else (3, 32, 32))
    assert network.learns_variance


def test_the_latent_teacher_is_table_7s():
    """And its student is not: by the configuration given there it has 89.5M parameters, not 86M. Counted with
    CompVis' own module."""
    assert build_without_memory("ldm-274m").parameter_count == 274_056_163
    assert build_without_memory("ldm-86m").parameter_count == 89_535_619


def test_the_books_own_networks_take_the_books_own_data():
    shapes = {name: build_without_memory(name).shape for name in networks.NETWORKS.keys() - PARAMETERS.keys()}
    expected = {
        "digits": (1, 8, 8),
        "fashion": (1, 32, 32),
        "cifar16": (3, 16, 16),
        "cifar10": (3, 32, 32),
        "celeba": (3, 64, 64),
        "toy": (2,),
        "latent": (3, 4, 4),
        "ldm": (3, 64, 64),
    }
    assert shapes == {name: expected[name.split("-")[0]] for name in shapes}


@pytest.mark.parametrize("name", ["digits-466k", "digits-290k", "digits-53k"])
def test_a_size_in_a_name_is_the_networks(name):
    assert f"{round(networks.build(name).parameter_count / 1000)}k" == name.split("-")[1]


def test_flops_are_those_of_the_products_and_convolutions():
    """The toy's MLP has only matrix products: two operations for each weight, one sample."""
    weights = sum(p.numel() for p in networks.build("toy-student").parameters() if p.ndim == 2)
    assert networks.flops("toy-student") == 2 * weights
    assert networks.flops("cnn-57m") > 3 * networks.flops("cnn-14m")


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network: found 'cnn-15m', expected one of cnn-57m"):
        networks.build("cnn-15m")


# -- the DiT ------------------------------------------------------------------------------------------


def small_dit():
    return DiT(sample_size=8, hidden_size=32, depth=2, num_heads=2)


def test_only_the_positions_of_the_dit_are_fixed():
    network = build_without_memory("vit-19m").network
    fixed = {name: p.numel() for name, p in network.named_parameters() if not p.requires_grad}
    assert fixed == {"position": 98_304}


def test_the_dit_starts_at_zero_and_keeps_the_shape():
    eps, v = Denoiser(small_dit())(torch.randn(2, 3, 8, 8), torch.tensor([0, 999]))
    assert torch.equal(eps, torch.zeros(2, 3, 8, 8))
    assert torch.equal(v, torch.zeros(2, 3, 8, 8))


def test_a_copy_from_the_configuration_is_the_same_network():
    """diffusers forgets arguments given by position, so there are none."""
    network = small_dit()
    assert DiT.from_config(network.config).position.shape == network.position.shape
    with pytest.raises(TypeError):
        DiT(8)


def test_every_patch_of_the_dit_comes_back_to_its_place():
    """With the blocks at their start a patch's output depends on nothing but that patch."""
    network = small_dit()
    torch.nn.init.normal_(network.final.weight)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    moved = (network(changed, t).sample != network(x, t).sample).any(dim=1)[0]
    assert bool(moved[2:4, 6:8].all())
    assert int(moved.sum()) == 4


# -- a denoiser ---------------------------------------------------------------------------------------


def tiny_unet(**options):
    return adm_unet(16, (1, 2), 1, (4,), 8, head_channels=8, groups=8, **{"in_channels": 1, **options})


@pytest.mark.parametrize("learned", [True, False])
def test_v_comes_only_where_the_variance_is_learned(learned):
    eps, v = Denoiser(tiny_unet(learned_variance=learned))(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]))
    assert eps.shape == (2, 1, 8, 8)
    assert v.shape == (2, 1, 8, 8) if learned else v is None


def test_a_network_with_other_outputs_is_refused():
    with pytest.raises(ValueError, match=r"found 5 output channels, expected 2 \(eps\) or 4"):
        Denoiser(MLP(in_channels=2, out_channels=5))


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4,)])
def test_samples_with_other_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"x_t: found shape .*expected \[B, 1, ...\]"):
        Denoiser(tiny_unet())(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))


# -- diffusers' folders -------------------------------------------------------------------------------


@pytest.fixture
def process():
    return GaussianDiffusion.cosine(100)


@pytest.fixture
def unet_folder(tmp_path, process):
    """A saved U-Net of random weights."""
    Denoiser(tiny_unet()).save_pretrained(tmp_path / "model", process)
    return tmp_path / "model"


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("learned", [True, False])
def test_plain_diffusers_draws_the_same_samples(tmp_path, schedule, learned, monkeypatch):
    """Given the same noise, that of x_T and then of each step."""
    process = getattr(GaussianDiffusion, schedule)(100)
    denoiser = Denoiser(tiny_unet(learned_variance=learned)).eval()
    denoiser.save_pretrained(tmp_path / "model", process)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    levels = iter([100, *process.timesteps(20)[::-1]])
    draw = lambda shape, **_: numbered_noise(3, next(levels), range(shape[0]), shape[1:])  # noqa: E731
    for module in (pipeline_ddpm, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", draw)
    images = pipeline(batch_size=2, num_inference_steps=20, output_type="np").images
    ours = (process.sample(denoiser, 2, 20, seed=3) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float(((ours > 0) & (ours < 1)).float().mean()) > 0.5  # most are not clamped
    assert_close(torch.from_numpy(images), ours, atol=1e-5, rtol=0)  # measured: 1e-6


@pytest.mark.parametrize("clip", [True, False])
def test_the_saved_scheduler_clips_as_the_process_does(tmp_path, clip):
    Denoiser(tiny_unet()).save_pretrained(tmp_path / "model", GaussianDiffusion.linear(100, clip=clip))
    assert DDPMPipeline.from_pretrained(tmp_path / "model").scheduler.config.clip_sample == clip


@pytest.mark.parametrize("network", [tiny_unet, small_dit, MLP], ids=["UNet2DModel", "DiT", "MLP"])
def test_a_saved_network_comes_back_exactly(network, tmp_path, process):
    saved = Denoiser(network()).eval()
    torch.nn.init.normal_(next(saved.parameters()))
    saved.save_pretrained(tmp_path / "model", process)
    read = Denoiser.from_pretrained(tmp_path / "model")
    assert not read.training
    expected = saved.state_dict()
    assert read.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in read.state_dict().items())
    x, t = torch.randn(2, *saved.shape), torch.tensor([3, 70])
    assert all(map(torch.equal, read(x, t), saved(x, t)))


def test_saving_replaces_the_whole_folder(unet_folder, process):
    (unet_folder / "left-over").write_text("", encoding="utf-8")
    Denoiser(MLP()).save_pretrained(unet_folder, process)
    assert sorted(p.name for p in unet_folder.iterdir()) == ["scheduler", "unet"]
    assert [p.name for p in unet_folder.parent.iterdir() if p.name.startswith(".")] == []
    assert Denoiser.from_pretrained(unet_folder).shape == (2,)


def test_the_unet_folder_alone_can_be_read(unet_folder):
    assert Denoiser.from_pretrained(unet_folder / "unet").shape == (1, 8, 8)


def test_a_process_of_ones_own_is_saved_with_its_betas(tmp_path):
    Denoiser(MLP()).save_pretrained(tmp_path / "model", GaussianDiffusion([0.1, 0.2]))
    assert_close(Denoiser.from_pretrained(tmp_path / "model").diffusion.betas.tolist(), [0.1, 0.2])


def truncate(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return r"model.unet: the checkpoint cannot be read"


def foreign_class(folder):
    edit_json(folder / "unet" / "config.json", _class_name="AutoencoderKL")
    return r"config.json: found network class 'AutoencoderKL', expected one of \['AuraFlow"


def no_config(folder):
    (folder / "unet" / "config.json").unlink()
    return r"model.unet: found no config.json, expected a diffusers model or pipeline folder"


def prediction_of_a_flow(folder):
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction")
    return r"scheduler_config.json: found prediction_type 'flow_prediction' without the sigmas of a flow"


def dynamic_thresholding(folder):
    edit_json(folder / "scheduler" / "scheduler_config.json", thresholding=True)
    return r"scheduler_config.json: found thresholding, expected clip_sample or none"


def no_scheduler_config(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    return r"scheduler_config.json: found nothing there"


def other_channels(folder):
    edit_json(folder / "unet" / "config.json", block_out_channels=[16, 64])
    return r"model.unet: "


def other_outputs(folder):
    UNet2DModel.from_config(tiny_unet().config, out_channels=3).save_pretrained(folder / "unet")
    return r"found 3 output channels, expected 1 \(eps\) or 2"


def a_weight_missing(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "conv_in.bias"}, file)
    return r"weights and config.json do not agree.*conv_in.bias"


def a_weight_too_many(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"label_emb.weight": torch.zeros(2)}, file)
    return r"weights and config.json do not agree.*label_emb.weight"


class Code:
    """What a pickle would run when it is read."""

    def __reduce__(self):
        return print, ("this ran",)


def a_pickle_with_code(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file) | {"code": Code()}, file.with_suffix(".bin"))
    file.unlink()
    return r"model.unet: the checkpoint cannot be read"


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        foreign_class,
        no_config,
        prediction_of_a_flow,
        dynamic_thresholding,
        no_scheduler_config,
        other_channels,
        other_outputs,
        a_weight_missing,
        a_weight_too_many,
        a_pickle_with_code,
    ],
)
def test_a_folder_that_is_not_whole_is_refused(unet_folder, damage, capfd):
    message = damage(unet_folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Denoiser.from_pretrained(unet_folder)
    assert "this ran" not in capfd.readouterr().out


def test_weights_in_a_pickle_are_read(unet_folder):
    """Older pipelines on the Hub have no others."""
    expected = Denoiser.from_pretrained(unet_folder).state_dict()
    file = unet_folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    read = Denoiser.from_pretrained(unet_folder).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in read.items())


def test_a_folder_that_is_not_there_is_named(unet_folder):
    shutil.rmtree(unet_folder)
    with pytest.raises(OSError, match=str(unet_folder)):
        Denoiser.from_pretrained(unet_folder)


def test_an_adm_file_is_sent_to_the_right_door(tmp_path):
    with pytest.raises(ValueError, match=r"teacher.pt: .*load_adm"):
        Denoiser.from_pretrained(tmp_path / "teacher.pt")


# -- memory format ------------------------------------------------------------------------------------


def lies(network):
    """In which orders the weights of a network's convolutions lie."""
    kernels = [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1], p.shape[-1]) > 1]
    assert kernels
    return {p.is_contiguous(memory_format=torch.channels_last) for p in kernels}


@pytest.mark.parametrize(
    "processor, gpu, asked, last",
    [
        ("AVX512", False, None, True),
        ("AVX512_VNNI", False, None, True),
        ("AVX2", False, None, False),
        ("DEFAULT", False, None, False),
        ("AVX2", True, None, True),
        ("AVX2", False, "channels_last", True),
        ("AVX512", True, "contiguous", False),
    ],
)
def test_weights_lie_as_the_processor_likes_them(processor, gpu, asked, last, tmp_path, process, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if asked is None:
        monkeypatch.delenv("DKDM_MEMORY_FORMAT", raising=False)
    else:
        monkeypatch.setenv("DKDM_MEMORY_FORMAT", asked)
    network = networks.build("digits-student")
    assert lies(network) == {last}
    network.save_pretrained(tmp_path / "model", process)
    assert lies(network) == {last}
    assert lies(networks.Denoiser.from_pretrained(tmp_path / "model")) == {last}


def test_memory_formats_differ_by_rounding(monkeypatch):
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 50, 99])
    answers = []
    for asked in ("channels_last", "contiguous"):
        monkeypatch.setenv("DKDM_MEMORY_FORMAT", asked)
        torch.manual_seed(0)
        with torch.no_grad():
            answers.append(networks.build("digits-student").eval()(x, t)[0])
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)


def test_an_unknown_memory_format_is_refused(monkeypatch):
    monkeypatch.setenv("DKDM_MEMORY_FORMAT", "nhwc")
    with pytest.raises(ValueError, match="DKDM_MEMORY_FORMAT: found 'nhwc', expected channels_last or cont"):
        networks.build("digits-student")
