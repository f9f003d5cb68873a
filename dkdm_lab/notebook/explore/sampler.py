"""What the number of steps and the sampler make of the same noise (Algorithm 3, DDIM)."""

from __future__ import annotations

from torch import nn

from dkdm_lab.data.images import to_uint8
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.notebook.explore.look import Control, Exploration, captioned
from dkdm_lab.system.figures import image_grid

METHODS = ("ddpm", "ddim")


class Sampler(Exploration):
    """Samples of one model: how many steps, DDPM or DDIM, and from which noise.

    model: a denoiser of images that takes no condition. n: samples in two rows. The same seed is the same
    noise whatever the steps and the method, so a difference is theirs alone. Offered are those numbers of
    steps that both methods know.
    """

    title = "Sampler: steps and method, from the same noise"

    def __init__(self, model: nn.Module, diffusion: GaussianDiffusion, n: int = 16, seed: int = 0):
        self.model, self.diffusion, self.n = model.eval(), diffusion, n
        steps = [k for k in (2, 5, 10, 20, 50, 100, 250) if k <= diffusion.T and diffusion.T % k == 0]
        super().__init__(
            {
                "method": Control("sampler", METHODS, "ddpm"),
                "steps": Control("steps", steps, steps[len(steps) // 2], [k for k in steps if k <= 100]),
                "seed": Control("noise", range(seed, seed + 10), seed, [seed]),
            }
        )

    def view(self) -> str:
        steps, method, seed = (self.state[name] for name in ("steps", "method", "seed"))
        x = self.diffusion.sample(self.model, self.n, steps, method=method, seed=seed)
        return captioned(
            image_grid(to_uint8(x), columns=max(1, self.n // 2)),
            f"{self.n} samples by {method.upper()} in {steps} of {self.diffusion.T} steps, noise {seed}",
        )
