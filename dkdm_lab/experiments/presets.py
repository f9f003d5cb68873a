"""The hyperparameter tables as data: one preset a data set, every value with the table it comes from.

The paper does not train its pixel-space teachers; it takes those of Ning et al. The values of a
teacher's own training are therefore ours.
"""

from __future__ import annotations

import dataclasses

from dkdm_lab.experiments.preset import Preset

_DIGITS = Preset(
    name="digits",  # scikit-learn's 1,797 real digits, 8x8
    data="digits",
    schedule="cosine",
    T=100,
    clip=True,
    batch_size=128,
    teacher="digits-teacher",
    teacher_iterations=2000,
    teacher_lr=5e-4,
    teacher_ema=0.999,
    student="digits-student",
    iterations=1500,
    lr=1e-3,
    ema=0.999,
    rho=0.4,
    synthetic_images=1797,  # as many as the data set, as in Table 4
    synthetic_steps=100,
    steps=50,
    samples=2000,
    curve=5,
    variance="stretched",  # as the ledger's pools were filled and moved
    live={
        "pipeline": "digits-teacher",
        "teacher_seed": 0,
        "batch_size": 64,
        "teacher_iterations": 450,  # of chapter 2's, which trains one itself
        "iterations": 350,
        "steps": 25,
        "samples": 300,
        "curve": 3,
        "synthetic_images": 600,
    },
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="toy",  # 8 Gaussians on a circle; the teacher is exact
            data="toy",
            schedule="cosine",
            T=100,
            clip=False,  # the plane has no pixel range
            batch_size=256,
            teacher="exact",
            teacher_iterations=0,
            teacher_lr=0.0,
            teacher_ema=0.0,
            student="toy-student",
            iterations=2000,
            lr=3e-3,
            ema=0.99,
            rho=0.4,
            synthetic_images=2000,
            synthetic_steps=100,
            steps=50,
            samples=4000,
            live={"iterations": 600, "samples": 1000, "curve": 3},
        ),
        _DIGITS,
        # For studies of the pool itself, chapters 6 and 12: many small runs, each scored once, whose students
        # have teachers of one making, so that only the pool differs.
        dataclasses.replace(
            _DIGITS,
            name="digits-pools",
            batch_size=64,
            teacher_iterations=1500,
            iterations=1000,
            curve=1,
            live={},
        ),
        # For chapter 22's study of moves, pools and replay: one teacher for all, since teachers differ more
        # than what is measured does, and moves by what pools take by default. Its runs are small: there are
        # 138 of them.
        dataclasses.replace(
            _DIGITS,
            name="digits-moves",
            pipeline="digits-teacher",
            teacher_seed=0,
            variance=None,
            batch_size=32,
            iterations=1000,
            ema=0.998,
            steps=25,
            curve=1,
            live={},
        ),
        Preset(
            name="digits-latent",  # the digits in the 3 x 4 x 4 latents of a small VQ autoencoder
            data="digits",
            schedule="scaled_linear",
            T=100,
            clip=False,  # latents have no range
            batch_size=64,
            teacher="latent-teacher",
            teacher_iterations=2000,
            teacher_lr=1e-3,
            teacher_ema=0.999,
            student="latent-student",
            iterations=1000,
            lr=2e-3,
            ema=0.995,
            rho=0.4,
            synthetic_images=1797,
            synthetic_steps=50,
            steps=50,
            samples=1000,
            curve=1,
            variance="small",  # as the ledger's pools were filled
            sampler="ddim",
            autoencoder="digits-vq",
            live={
                "pipeline": "digits-latent-teacher",
                "teacher_seed": 0,
                "iterations": 300,
                "steps": 25,
                "samples": 300,
                "synthetic_images": 600,
            },
        ),
        Preset(
            name="digits-classes",  # the digits with their labels
            data="digits",
            schedule="cosine",
            T=100,
            clip=True,
            batch_size=64,
            teacher="digits-classes-teacher",
            teacher_iterations=1500,
            teacher_lr=5e-4,
            teacher_ema=0.999,
            student="digits-classes-student",
            iterations=1000,
            lr=1e-3,
            ema=0.999,
            rho=0.4,
            synthetic_images=1797,
            synthetic_steps=100,
            steps=50,
            samples=1000,
            curve=1,
            variance="stretched",  # as the ledger's pools were filled
            classes=10,
            live={
                "pipeline": "digits-classes-teacher",
                "teacher_seed": 0,
                "iterations": 220,
                "steps": 25,
                "samples": 200,
                "synthetic_images": 600,
            },
        ),
        Preset(
            name="fashion",  # Fashion-MNIST, padded to 32x32: meant for Table 2 and Fig. 4 in a GPU's hour
            data="fashion",
            schedule="cosine",
            T=1000,
            clip=True,
            batch_size=128,
            teacher="fashion-teacher",
            teacher_iterations=1000,
            teacher_lr=4e-4,
            teacher_ema=0.999,
            student="fashion-student",
            iterations=600,
            lr=1e-3,
            ema=0.995,
            rho=0.4,
            synthetic_images=10_000,
            synthetic_steps=25,
            steps=50,
            samples=2000,
            curve=3,
            variance="stretched",  # as the ledger's pools were filled
            mixed_precision="bf16",
            reference_images=10_000,
        ),
        Preset(
            # CIFAR-10 at 16x16: natural images, and the paper's process, in hours of two cores. One teacher
            # for all seeds, as in the paper: the one in book/models.
            name="cifar16",
            data="cifar16",
            schedule="cosine",  # Table 6
            T=1000,  # Table 6
            clip=True,
            batch_size=64,
            teacher="cifar16-teacher",
            teacher_iterations=10_000,
            teacher_lr=8e-4,
            teacher_ema=0.9995,
            student="cifar16-student",
            iterations=2000,
            lr=1e-3,
            ema=0.998,
            rho=0.4,  # Table 6
            synthetic_images=10_000,
            synthetic_steps=50,
            steps=50,  # Sec. 4.1
            samples=2500,
            curve=3,
            curve_samples=500,
            flip=True,  # Sec. 8.1: as ADM
            reference_images=10_000,
            pipeline="cifar16-teacher",
            teacher_seed=0,
        ),
        Preset(
            # CIFAR-10 at its own size in two windows of ten minutes of a GPU, the compiling included.
            name="cifar10-short",
            data="cifar10",
            schedule="cosine",  # Table 6
            T=1000,  # Table 6
            clip=True,
            batch_size=128,  # Table 6
            teacher="cifar10-6m",
            teacher_iterations=6000,
            teacher_lr=4e-4,
            teacher_ema=0.999,
            student="cifar10-2m",
            iterations=2000,
            lr=1e-3,
            ema=0.998,
            rho=0.4,  # Table 6
            synthetic_images=10_000,
            synthetic_steps=50,
            steps=50,  # Sec. 4.1
            samples=10_000,
            curve=1,
            mixed_precision="bf16",
            compile="default",
            flip=True,  # Sec. 8.1: as ADM
            reference_images=10_000,
            teacher_seed=0,
            equal_time=True,  # workflow/window.py chooses their iterations
        ),
        Preset(
            name="cifar10",
            data="cifar10",
            schedule="cosine",  # Table 6
            T=1000,  # Table 6
            clip=True,
            batch_size=128,  # Table 6
            teacher="cnn-57m",  # Table 6
            teacher_iterations=450_000,
            teacher_lr=1e-4,
            teacher_ema=0.9999,
            student="cnn-14m",  # Table 6
            iterations=200_000,  # Table 6, with early stopping
            lr=1e-4,  # Table 6
            ema=0.9999,  # the authors' configuration
            rho=0.4,  # Table 6
            synthetic_images=50_000,  # Table 4
            synthetic_steps=1000,  # Table 4: IDDPM-1000
            steps=50,  # Sec. 4.1
            samples=50_000,  # Sec. 4.1
            curve=20,
            mixed_precision="fp16",  # Sec. 8.1
            flip=True,  # Sec. 8.1: as ADM
            early_stop=True,  # Table 6
        ),
        Preset(
            name="celeba64",
            data="celeba64",
            schedule="cosine",  # Table 6
            T=1000,  # Table 6
            clip=True,
            batch_size=256,  # Table 6
            teacher="celeba-295m",  # Table 6
            teacher_iterations=450_000,
            teacher_lr=1e-4,
            teacher_ema=0.9999,
            student="celeba-57m",  # Table 6
            iterations=100_000,  # Table 6, with early stopping
            lr=1e-4,  # Table 6
            ema=0.9999,  # the authors' configuration
            rho=0.4,  # Table 6
            synthetic_images=202_599,  # Table 4
            synthetic_steps=100,  # Table 4: IDDPM-100
            steps=50,  # Sec. 4.1
            samples=50_000,  # Sec. 4.1
            curve=10,
            mixed_precision="fp16",  # Sec. 8.1
            flip=True,  # Sec. 8.1: as ADM
            early_stop=True,  # Table 6
        ),
        Preset(
            name="imagenet32",
            data="imagenet32",
            schedule="cosine",  # Table 6
            T=1000,  # Table 6
            clip=True,
            batch_size=512,  # Table 6
            teacher="cnn-57m",  # Table 6
            teacher_iterations=1_000_000,
            teacher_lr=1e-4,
            teacher_ema=0.9999,
            student="cnn-14m",  # Table 6
            iterations=500_000,  # Table 6, without early stopping
            lr=1e-4,  # Table 6
            ema=0.9999,  # the authors' configuration
            rho=0.4,  # Table 6
            synthetic_images=1_281_167,  # Table 4
            synthetic_steps=100,  # Table 4: IDDPM-100
            steps=50,  # Sec. 4.1
            samples=50_000,  # Sec. 4.1
            curve=20,
            mixed_precision="fp16",  # Sec. 8.1
            flip=True,  # Sec. 8.1: as ADM
        ),
        *(
            Preset(
                name=name,
                data=name,
                schedule="scaled_linear",  # Table 7: linear, as LDM's code calls this one
                T=1000,  # Table 7
                clip=False,  # latents have no range
                batch_size=batch_size,
                teacher="ldm-274m",  # Table 7
                teacher_iterations=0,  # it is read
                teacher_lr=0.0,
                teacher_ema=0.0,
                student="ldm-86m",  # Table 7
                iterations=iterations,
                lr=lr,
                ema=0.9999,  # the authors' configuration
                rho=4.0,  # Table 7
                synthetic_images=images,  # Table 4
                synthetic_steps=100,  # Table 4: DDIM-100
                steps=200,  # Sec. 4.1
                samples=50_000,  # Sec. 4.1
                curve=10,
                sampler="ddim",  # Sec. 4.1
                pipeline=pipeline,
            )
            # batch size, iterations and learning rate of Table 7, images of Table 4
            for name, batch_size, iterations, lr, images, pipeline in (
                ("celebahq256", 48, 410_000, 9.6e-5, 25_000, "CompVis/ldm-celebahq-256"),
                ("ffhq256", 42, 640_000, 8.4e-5, 60_000, "ldm-ffhq256/model.ckpt"),
            )
        ),
    )
}


def get(name: str, /, live: bool = False, **changes) -> Preset:
    """A preset by name; ``live`` applies its cuts for `make book`, ``changes`` come last."""
    if name not in PRESETS:
        raise ValueError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return preset.replace(**{**(preset.live if live else {}), **changes})
