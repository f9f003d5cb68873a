"""Networks: the denoiser around each, those of the paper, and how they are read and named."""

from dkdm_lab.networks.classifier_free_guidance import Guided, guide
from dkdm_lab.networks.denoiser import Answer, Denoiser, as_saved, at_least_float32
from dkdm_lab.networks.dit import DiT, DiTBlock, sincos_positions, timestep_embedding
from dkdm_lab.networks.families import NETWORK_CLASSES, Family, Terms
from dkdm_lab.networks.folders import MANIFEST, check, find_folder, read_model
from dkdm_lab.networks.mlp import MLP
from dkdm_lab.networks.registry import NETWORKS, build, flops
from dkdm_lab.networks.schedulers import PREDICTIONS, ddpm_scheduler, diffusion_of, read_scheduler
from dkdm_lab.networks.unet import adm_unet

__all__ = [
    "MANIFEST",
    "MLP",
    "NETWORKS",
    "NETWORK_CLASSES",
    "PREDICTIONS",
    "Answer",
    "Denoiser",
    "DiT",
    "DiTBlock",
    "Family",
    "Guided",
    "Terms",
    "adm_unet",
    "as_saved",
    "at_least_float32",
    "build",
    "check",
    "ddpm_scheduler",
    "diffusion_of",
    "find_folder",
    "flops",
    "guide",
    "read_model",
    "read_scheduler",
    "sincos_positions",
    "timestep_embedding",
]
