"""Schedulers: which of diffusers' are read, and the process that each stands for.

A flow model is the same process in other coordinates. It sees ``y = (1 - sigma) x_0 + sigma eps``, and ``y``
divided by ``sqrt((1 - sigma)^2 + sigma^2)`` is the ``x_t`` of Eq. 4 with
``alpha_bar = (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)``. So the levels of a pool are the scheduler's own
sigmas, shift and resolution included, and the pool, the loss and the sampler stay as they are.

So is an EDM model (Karras et al., 2022). It sees ``y = x_0 + sigma eps`` multiplied with
``1 / sqrt(sigma^2 + sigma_data^2)``, and that is the ``x_t`` of Eq. 4 for ``x_0 / sigma_data`` with
``alpha_bar = sigma_data^2 / (sigma^2 + sigma_data^2)``. What its network answers is then the v of
v-prediction itself, or its negative; it is told ``log(sigma) / 4``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dkdm_lab.diffusion import GaussianDiffusion

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")

# Nothing else is ever made from what a file names. All walk from T discrete levels with betas.
_WITH_BETAS = """
DDIMScheduler DDIMParallelScheduler DDPMScheduler DDPMParallelScheduler DEISMultistepScheduler
DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler EulerAncestralDiscreteScheduler
EulerDiscreteScheduler HeunDiscreteScheduler KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler
LMSDiscreteScheduler PNDMScheduler SASolverScheduler UniPCMultistepScheduler
""".split()
_FLOW = "FlowMatchEulerDiscreteScheduler"
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FEW_STEPS = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "FlowMatchLCMScheduler")
_MOST_LEVELS = 100_000
_CLEAN = 1e-6  # what stands for 1 - sigma where it is 0, so that x_0 can still be solved for


def read_json(file: Path) -> dict:
    """A JSON file of somebody else's, as a dictionary; ValueError for anything else, also for one of more
    than a megabyte. FileNotFoundError where there is none."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: found nothing there, expected a JSON file")
    if file.stat().st_size > 2**20:
        raise ValueError(
            f"{file}: found {file.stat().st_size:,} bytes, expected a configuration of 1 MB at most"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: found no JSON that can be read ({error}), expected a configuration"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: found a {type(found).__name__}, expected a JSON object")
    return found


def read_scheduler(folder: Path) -> diffusers.SchedulerMixin:
    """The scheduler of a pipeline, by its own class; one that solves a flow by other steps as the Euler
    scheduler of the same flow.

    ValueError, which names the file, for a class that is not on the list, for a teacher of few steps, and
    for what makes no sense together or has no terms here."""
    file = folder / "scheduler_config.json"
    config = read_json(file)
    name = config.get("_class_name")
    if name in _FEW_STEPS:
        raise ValueError(
            f"{file}: found {name}, a teacher of few steps, which knows no step from one level to the next; "
            "expected the model that it was made from"
        )
    if name not in (*_WITH_BETAS, _FLOW, *_EDM):
        raise ValueError(
            f"{file}: found {name!r}, expected {_FLOW}, {_EDM[0]} or a scheduler with betas ({_some()})"
        )
    levels = config.get("num_train_timesteps", 1000)
    if type(levels) is not int or not 1 <= levels <= _MOST_LEVELS:
        raise ValueError(f"{file}: found num_train_timesteps {levels!r}, expected 1 to {_MOST_LEVELS:,}")
    _refuse_contradictions(file, config)
    flow = config.get("prediction_type") == "flow_prediction"
    if flow and name != _FLOW:
        shift = config.get("flow_shift") or 1.0
        name, config = _FLOW, {"num_train_timesteps": levels, "shift": shift}
    try:
        scheduler = getattr(diffusers, name).from_config(config)
    except Exception as error:  # diffusers raises many kinds here; one clear kind leaves
        raise ValueError(f"{file}: the scheduler cannot be made ({_first_line(error)})") from error
    if name in _WITH_BETAS:
        if not bool(torch.isfinite(scheduler.betas).all()):
            raise ValueError(f"{file}: found betas that are not finite, expected numbers in (0, 1)")
        nothing_left = float(scheduler.betas[-1]) > 1 - 1e-7
        if nothing_left and config.get("prediction_type", "epsilon") == "epsilon":
            raise ValueError(
                f"{file}: found a last level without any signal and prediction_type 'epsilon', which says "
                "nothing of x_0 there; expected 'v_prediction' or 'sample'"
            )
    return scheduler


def _some() -> str:
    return ", ".join(name.removesuffix("Scheduler") for name in ("DDPMScheduler", "DDIMScheduler")) + ", ..."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse_contradictions(file: Path, config: dict) -> None:
    """ValueError for settings that make no sense together, or that no term here stands for."""
    flow = config.get("_class_name") == _FLOW
    found = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    if found not in PREDICTIONS:
        raise ValueError(f"{file}: found prediction_type {found!r}, expected one of {PREDICTIONS}")
    if flow != (found == "flow_prediction") and not config.get("use_flow_sigmas"):
        raise ValueError(
            f"{file}: found prediction_type {found!r} without the sigmas of a flow, expected use_flow_sigmas "
            f"or {_FLOW}" if not flow else f"{file}: found prediction_type {found!r}, expected a flow's"
        )  # fmt: skip
    if config.get("use_flow_sigmas") and found != "flow_prediction":
        raise ValueError(
            f"{file}: found use_flow_sigmas with prediction_type {found!r}, expected 'flow_prediction'"
        )
    if config.get("thresholding"):
        raise ValueError(f"{file}: found thresholding, expected clip_sample or none")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{file}: found timestep_type {config['timestep_type']!r}, expected 'discrete'")
    if config.get("_class_name") in _EDM:
        if found not in ("epsilon", "v_prediction"):
            raise ValueError(f"{file}: found prediction_type {found!r}, expected 'epsilon' or 'v_prediction'")
        low, high, data = (
            config.get(name, default)
            for name, default in (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5))
        )
        numbers = all(type(value) in (int, float) for value in (low, high, data))
        if not (numbers and 1e-6 <= low < high <= 1e6 and 1e-3 <= data <= 1e3):
            raise ValueError(
                f"{file}: found sigmas from {low!r} to {high!r} for data of {data!r}, expected them to rise "
                "from 1e-6 or more to 1e6 or less, and data from 1e-3 to 1e3"
            )
    if config.get("invert_sigmas"):
        raise ValueError(f"{file}: found invert_sigmas, expected sigmas that are 1 at pure noise")


def diffusion_of(scheduler, sequence: int = 256) -> GaussianDiffusion:
    """The process that a diffusers scheduler was configured for: its betas, clipping and fixed variance; or
    its sigmas, of EDM for data that are divided by ``sigma_data``. sequence: the tokens of one sample, by
    which some flows shift their sigmas."""
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        log_alpha_bar = _log_alpha_bar(flow_levels(scheduler, sequence).sigmas[:-1].double().numpy()[::-1])
        return GaussianDiffusion(-np.expm1(np.diff(log_alpha_bar, prepend=0.0)), clip=False, schedule="flow")
    if is_edm(scheduler):
        sigmas = edm_levels(scheduler).sigmas[:-1].double().numpy()[::-1] / config.sigma_data
        log_alpha_bar = -np.log1p(sigmas**2)
        return GaussianDiffusion(-np.expm1(np.diff(log_alpha_bar, prepend=0.0)), clip=False, schedule="edm")
    large = str(config.get("variance_type")).startswith("fixed_large")
    return GaussianDiffusion(
        scheduler.betas.double().numpy(),
        clip=config.get("clip_sample", False) and config.get("clip_sample_range", 1.0),
        schedule=config.get("beta_schedule", "custom") if config.get("trained_betas") is None else "custom",
        variance="large" if large else "small",
    )


def flow_levels(scheduler: FlowMatchEulerDiscreteScheduler, sequence: int = 256):
    """The scheduler, set to all its levels as diffusers' pipelines set it to few: ``sigmas`` falls from 1 and
    has a 0 behind its last; ``timesteps`` is what a network is told."""
    scheduler, config = copy.deepcopy(scheduler), scheduler.config
    options = {}
    if config.use_dynamic_shifting:
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        options["mu"] = config.base_shift + slope * (sequence - config.base_image_seq_len)
    scheduler.set_timesteps(config.num_train_timesteps, **options)
    return scheduler


def is_edm(scheduler) -> bool:
    """Whether it is one of EDM's, whose networks are preconditioned."""
    return type(scheduler).__name__ in _EDM


def edm_levels(scheduler):
    """An EDM scheduler, set to all its levels: ``sigmas``, falling, with its last behind them, and
    ``timesteps``, which a network is told."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler


def _log_alpha_bar(sigmas: np.ndarray) -> np.ndarray:
    clean = np.maximum(1.0 - sigmas, _CLEAN)
    return 2 * np.log(clean) - np.log(clean**2 + sigmas**2)


def flow_scale(diffusion: GaussianDiffusion, t: Tensor) -> Tensor:
    """What a pool's ``x_t`` is to be multiplied with to be a flow's: ``sqrt((1 - sigma)^2 + sigma^2)``,
    which is ``1 / (sqrt(alpha_bar) + sqrt(1 - alpha_bar))``; ``[B]``."""
    at_t = diffusion.log_alpha_bar(t)
    return 1 / (torch.exp(0.5 * at_t) + torch.sqrt(-torch.expm1(at_t)))


def ddpm_scheduler(
    diffusion: GaussianDiffusion, learned_variance: bool, prediction: str = "epsilon"
) -> DDPMScheduler:
    """The diffusers scheduler that agrees with ``diffusion``; its tables are float32. A process that none of
    diffusers' named schedules gives is written as the list of its betas; ValueError for a flow, which has
    none."""
    if diffusion.schedule == "flow":
        raise ValueError(
            "schedule: found a flow, expected a process with betas; a flow has its own scheduler"
        )
    names = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}
    names |= {name: name for name in names.values()}  # diffusers' own, of a process that was read
    options = {
        "num_train_timesteps": diffusion.T,
        "beta_start": float(diffusion.betas[0]),  # the cosine has no use for either
        "beta_end": float(diffusion.betas[-1]),
        "variance_type": "learned_range" if learned_variance else f"fixed_{diffusion.variance}",
        "timestep_spacing": "linspace",
        "clip_sample": bool(diffusion.clip),
        "clip_sample_range": float(diffusion.clip or 1),
        "prediction_type": prediction,
    }
    if diffusion.schedule in names:
        scheduler = DDPMScheduler(beta_schedule=names[diffusion.schedule], **options)
        if np.allclose(scheduler.betas.double().numpy(), diffusion.betas, rtol=1e-4, atol=1e-9):
            return scheduler
    return DDPMScheduler(trained_betas=diffusion.betas.tolist(), **options)
