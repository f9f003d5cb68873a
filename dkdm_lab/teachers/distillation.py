"""What decides a distillation of any teacher. Loads no torch: a command's help reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dkdm_lab.system.settings import (
    Average,
    Count,
    Guidance,
    MixedPrecision,
    Range,
    Rate,
    Seed,
    Storage,
    Variance,
    check,
    together,
)


@dataclass(frozen=True)
class Distillation:
    """What decides a distillation; the defaults are Table 6's, but for the number of iterations and the pool.

    That pool is a tenth of the paper's and moves by strides. In short trainings on digits it does better, on
    natural images of 16 x 16 pixels worse (chapter 22; there with one seed).
    The paper's is ``rho=0.4, stride=1``. At Table 6's learning rate a few hundred iterations teach next to
    nothing. Errors: ValueError for a value that is not of its type or out of its range.
    """

    teacher: Annotated[
        str, "a diffusers pipeline's folder, a Hub id, an ADM file (.pt) or CompVis' LDM (.ckpt)"
    ]
    student: Annotated[
        str, "a network's name, as cnn-14m; x0.5, the teacher's own at half its width; or a config.json"
    ]
    iterations: Annotated[Count, "of the student's training"] = 10_000
    batch_size: Annotated[
        Count | None,
        "samples per iteration, of all processes together; None: 128 for teachers of up to 100M parameters, "
        "half of it for each doubling beyond",
    ] = None
    accumulate: Annotated[
        Count, "parts in which a batch is computed, one after the other, for so much less memory"
    ] = 1
    rho: Annotated[float, Range(0, 1000, above=True), "the pool's size in T batches; the paper's is 0.4"] = (
        0.04
    )
    stride: Annotated[
        Count | None, "steps by which a turn moves the pool's samples; None: T / 10; the paper's is 1"
    ] = None
    variance: Annotated[
        Variance | None,
        "of the pool's moves; None: the teacher's own where it learns one, else analytic in strides",
    ] = None
    storage: Annotated[
        Storage, "how the pool's samples rest: in a precision, or in float32 in the host's memory"
    ] = "float32"
    lr: Annotated[
        Rate | None, "learning rate; None: 1e-4, and up to 1e-3 for fewer than 10,000 iterations"
    ] = None
    ema: Annotated[Average, "rate of the student's averaged weights"] = 0.9999
    mixed_precision: Annotated[MixedPrecision, "of the training"] = "no"
    guidance: Annotated[Guidance, "of the teacher while the pool moves; 1 for none"] = 1.0
    init: Annotated[
        Literal["random", "teacher"],
        "teacher: begin with its weights wherever the student has one of the same name and shape, as fewer "
        "blocks of the same width do (BK-SDM, Kim et al. 2023)",
    ] = "random"
    continued: Annotated[
        str | None, "the folder of a finished student with the same network, which is trained further"
    ] = None
    seed: Annotated[Seed, "of the student's first weights and the pool"] = 0

    def __post_init__(self):
        check(self)
        both = self.continued is not None and self.init != "random"
        divided = self.batch_size is None or self.batch_size % self.accumulate == 0
        together(
            self,
            [
                ("init", both, "'random' where a student is continued, whose weights are there"),
                ("accumulate", not divided, f"a divisor of the batch size, {self.batch_size}"),
            ],
        )
