"""How noise comes in (Eq. 4), and how much of the image a teacher still sees in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dkdm_lab.data.images import to_uint8
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.notebook.explore.look import Control, Exploration, captioned, panels

SCHEDULES = ("cosine", "linear")


class ForwardProcess(Exploration):
    """Images at a level t of a schedule, their signal-to-noise ratio, and the teacher's one-step x_0.

    x0: images ``[n, C, H, W]`` in [-1, 1]; the first six are shown. teacher: a denoiser that answers for
    ``diffusion``, the process that it was trained with. What x_t looks like depends on alpha_bar alone, so
    with the other schedule the teacher is asked at its own level whose alpha_bar is nearest. seed: of the
    noise, which is the same at every level.
    """

    title = "Forward process: the level and the schedule"

    def __init__(
        self,
        x0: Tensor,
        teacher: nn.Module,
        diffusion: GaussianDiffusion,
        t: int | None = None,
        seed: int = 0,
    ):
        T = diffusion.T
        self.x0, self.teacher, self.diffusion = x0[:6], teacher.eval(), diffusion
        self.noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(seed))
        self.schedules = {name: getattr(GaussianDiffusion, name)(T) for name in SCHEDULES}
        shown = sorted({round(k * (T - 1) / 10) for k in range(11)})
        start = shown[len(shown) // 2] if t is None else t
        super().__init__(
            {
                "schedule": Control("schedule", SCHEDULES, SCHEDULES[0]),
                "t": Control("t", range(T), start, sorted({*shown, start})),
            }
        )

    @property
    def numbers(self) -> dict[str, float]:
        """What the view says: alpha_bar, SNR, the teacher's level, the mean squared error of its x_0."""
        t = self.state["t"]
        alpha_bar = float(self.schedules[self.state["schedule"]].alpha_bar[t])
        level = int(abs(self.diffusion.alpha_bar - alpha_bar).argmin())
        _, guess = self._images(t, level)
        return {
            "alpha_bar": alpha_bar,
            "snr": alpha_bar / (1 - alpha_bar),
            "level": level,
            "error": float((guess - self.x0).square().mean()),
        }

    @torch.no_grad()
    def _images(self, t: int, level: int) -> tuple[Tensor, Tensor]:
        """x_t, and the teacher's x_0 from it."""
        n = len(self.x0)
        x_t = self.schedules[self.state["schedule"]].q_sample(self.x0, torch.full((n,), t), self.noise)
        at = torch.full((n,), level)
        eps, _ = self.teacher(x_t, at)
        return x_t, self.diffusion.predict_x0(x_t, at, eps, clip=True)

    def view(self) -> str:
        t, schedule, found = self.state["t"], self.state["schedule"], self.numbers
        figure, (sheet, curve) = panels((4.6, 3.4))
        x_t, guess = self._images(t, found["level"])
        _rows(sheet, {"$x_0$": self.x0, "$x_t$": x_t, r"$\hat x_0$": guess})
        for name, process in self.schedules.items():
            chosen = name == schedule
            snr = 10 * (torch.tensor(process.alpha_bar / (1 - process.alpha_bar))).log10()
            curve.plot(snr, color="#0072B2" if chosen else "#bbbbbb", label=name)
        decibels = 10 * math.log10(found["snr"])
        curve.plot(t, decibels, "o", color="#D55E00", markersize=8)
        curve.axhline(0, color="black", linewidth=0.8, linestyle=":")
        curve.set(xlabel="t", ylabel="signal to noise, dB", ylim=(-45, 45))
        curve.legend(frameon=False)
        return captioned(
            figure,
            f"{schedule}, t = {t} of {self.diffusion.T}: alpha_bar = {found['alpha_bar']:.3f}, "
            f"SNR = {found['snr']:.3g} ({decibels:.1f} dB). The teacher, asked at its level "
            f"{found['level']}, finds x_0 with a mean squared error of {found['error']:.3f}.",
        )


def _rows(axis, rows: dict[str, Tensor]) -> None:
    """A labelled row of images each, in one picture."""
    height = next(iter(rows.values())).shape[-2]
    strips = [
        torch.cat([nn.functional.pad(image, (0, 1, 0, 1), value=255) for image in to_uint8(images)], dim=2)
        for images in rows.values()
    ]
    sheet = torch.cat(strips, dim=1).permute(1, 2, 0).squeeze(-1)
    axis.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_yticks([(height + 1) * k + height / 2 for k in range(len(rows))], list(rows))
    axis.set_xticks([])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
