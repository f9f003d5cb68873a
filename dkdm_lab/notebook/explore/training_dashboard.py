"""Two students trained side by side before one's eyes; or, where nobody looks, as the ledger has them."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import ipywidgets
import torch
from IPython.display import HTML
from torch import Tensor

from dkdm_lab import networks
from dkdm_lab.data.images import load_images, to_uint8
from dkdm_lab.data.toy import GaussianMixture
from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.presets import Preset
from dkdm_lab.experiments.runs import METHODS, Run
from dkdm_lab.metrics.scores import score
from dkdm_lab.metrics.two_samples import energy_distance
from dkdm_lab.notebook.explore.look import (
    Control,
    Exploration,
    button,
    captioned,
    fragments_html,
    panels,
)
from dkdm_lab.system.figures import COLOURS, smoothed
from dkdm_lab.system.provenance import device
from dkdm_lab.training import train

STUDENTS = tuple(method for method in METHODS if method not in ("teacher", "synthetic"))


@dataclass
class Progress:
    """What is known of one training: means of L_simple, scores, and its last samples (uint8, or points)."""

    iteration: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    scored_at: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    samples: Tensor | None = None

    def until(self, iteration: int) -> Progress:
        """What was known at an iteration."""
        n = sum(i <= iteration for i in self.iteration)
        k = sum(i <= iteration for i in self.scored_at)
        last = not self.scored_at or iteration >= self.scored_at[-1]
        scores = self.scored_at[:k], self.score[:k]
        return Progress(self.iteration[:n], self.loss[:n], *scores, self.samples if last else None)


class TrainingDashboard(Exploration):
    """Start, stop, go on: a method's student beside a second one's, with losses, samples and scores.

    preset: what both train with; its teacher should be one that is there already, as those of the ``live``
    presets are, or it is trained first. legs: in how many pieces each training goes; after a piece the
    student is scored with ``samples`` samples, and the other student has its turn. A piece is one call of
    :func:`~dkdm_lab.training.train`, which goes on from the checkpoint of the last one: so a stop comes
    between two pieces, nothing is left running, and nothing is lost. Checkpoints lie in a temporary folder
    that goes with the dashboard. Only one dashboard trains at a time: the next one stops it.
    """

    title = "Training dashboard: two ways to train the same student"
    _at_work: ClassVar[TrainingDashboard | None] = None

    def __init__(
        self,
        preset: Preset,
        method: str = "dynamic",
        beside: str = "iterative",
        *,
        seed: int = 0,
        legs: int = 10,
        samples: int = 200,
    ):
        if not 1 <= legs <= preset.iterations:
            raise ValueError(f"legs: found {legs}, expected 1 to {preset.iterations}, the iterations")
        super().__init__(
            {
                "method": Control("method", STUDENTS, method),
                "beside": Control("beside", STUDENTS, beside),
            }
        )
        self.preset, self.seed, self.samples = preset, seed, samples
        self.ends = [round(preset.iterations * (k + 1) / legs) for k in range(legs)]
        self.status = "not begun"
        self._stop, self._thread = threading.Event(), None
        self._begin()

    @property
    def both(self) -> list[str]:
        return list(dict.fromkeys([self.state["method"], self.state["beside"]]))

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin, or go on; nothing where it runs already or is finished."""
        if self.running:
            return
        if (other := TrainingDashboard._at_work) is not None and other is not self:
            other.stop()
        TrainingDashboard._at_work = self
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, name="dkdm-dashboard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to stop, and return once nothing runs; what was trained stays, to go on from."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if TrainingDashboard._at_work is self:
            TrainingDashboard._at_work = None

    def again(self) -> None:
        """Stop and forget what was trained."""
        self.stop()
        self._begin()
        self.refresh()

    def changed(self, names: set[str]) -> None:
        self.stop()
        self._begin()

    def _begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dkdm-dashboard-")  # goes with the last reference
        self.progress = {method: Progress() for method in self.both}
        self.status = "not begun"

    def _work(self) -> None:
        try:
            for end in self.ends:
                for method in self.both:
                    if self.progress[method].scored_at[-1:] >= [end]:
                        continue
                    if self._stop.is_set():
                        self.status = "stopped"
                        return
                    self.status = f"training {method} to iteration {end:,}"
                    self.refresh()
                    self._leg(method, end)
            self.status = "finished"
        except Exception as error:  # a thread's error would be seen by nobody
            self.status = f"failed: {type(error).__name__}: {error}"
        finally:
            self.refresh()

    def _leg(self, method: str, end: int) -> None:
        p, run = self.preset, Run(self.preset, method, self.seed)
        source = run.source(progress=False)
        torch.manual_seed(self.seed)
        student = networks.build(p.student).to(device())
        averaged, history = train(
            student,
            source,
            run.diffusion,
            end,
            lr=p.lr,
            ema=p.ema,
            checkpoint=Path(self._folder.name) / method,
            callback=lambda *_: None,  # before which all is saved
            callback_at=(end,),
            progress=False,
        )
        x = run.diffusion.sample(
            averaged, self.samples, min(p.steps, 25), seed=self.seed + 3, device=device()
        )
        if p.data == "toy":
            found = energy_distance(x, GaussianMixture.ring().sample(self.samples, seed=4))
        else:
            x = to_uint8(x)
            found = score(x, load_images(p.data, n=p.reference_images), p.features, ("FID",))[p.metric]
        known = self.progress[method]
        known.iteration, known.loss = list(history.iteration), list(history.simple)
        known.scored_at.append(end)
        known.score.append(found)
        known.samples = x

    # -- what is seen ---------------------------------------------------------------------------------

    def row(self) -> list[ipywidgets.Widget]:
        buttons = [button("start", self.start), button("stop", self._ask), button("again", self.again)]
        return [*super().row(), *buttons]

    def _ask(self) -> None:
        """The stop of the button, which does not wait: the kernel may have other cells to run."""
        self._stop.set()
        if self.running:
            self.status = "stopping after this piece"
            self.refresh()

    def view(self) -> str:
        return _draw(self.progress, self.preset, f"{self.status}; {self.samples} samples to a score")

    def twin(self) -> HTML:
        """The same picture from the ledger's runs of the preset's own size, as far as each had come."""
        name = self.preset.name
        found = {m: _of_ledger(name, m, self.seed) for m in self.both}
        known = {m: progress for m, progress in found.items() if progress is not None}
        missing = [m for m, progress in found.items() if progress is None]
        note = f"from the ledger, preset {name}, seed {self.seed}"
        if missing:
            note += f"; not run: {', '.join(missing)}"
        ends = sorted({at for progress in known.values() for at in progress.scored_at})
        if not ends:
            return HTML(f"<p>{self.title}: {note}.</p>")
        views = [_draw({m: p.until(end) for m, p in known.items()}, self.preset, note) for end in ends]
        return fragments_html(views, {"iteration": [f"{end:,}" for end in ends]}, [len(ends) - 1])


def _of_ledger(preset: str, method: str, seed: int) -> Progress | None:
    where = {"method": method, "seed": seed}
    results = ledger.results(preset, where)
    if not results:
        return None
    result = results[0]
    metric = next(name for name in result["metrics"] if not name.startswith("N"))
    scored = [(point["iteration"], point[metric]) for point in result["curve"] if metric in point]
    at, values = zip(*scored, strict=True) if scored else ((), ())
    loss = result["loss"]
    shown = ledger.samples(preset, where).get(seed)
    return Progress(loss["iteration"], loss["simple"], list(at), list(values), shown)


def _draw(progress: dict[str, Progress], preset: Preset, note: str) -> str:
    figure, (losses, scores, sheet) = panels((2.9, 2.9, 3.2), 2.9)
    for method, known in progress.items():
        if known.iteration:
            losses.plot(known.iteration, known.loss, color=COLOURS[method], alpha=0.3, linewidth=1)
            mean = smoothed(known.loss, max(1, min(9, len(known.loss) // 10)))
            losses.plot(known.iteration, mean, color=COLOURS[method], label=method)
        scores.plot(known.scored_at, known.score, color=COLOURS[method], marker="o", markersize=4)
    losses.set(xlabel="iteration", ylabel="$L_{simple}$", xlim=(0, None))
    scores.set(xlabel="iteration", ylabel=preset.metric, xlim=(0, None))
    if any(known.iteration for known in progress.values()):
        losses.legend(frameon=False, fontsize=9)
    scored = [value for known in progress.values() for value in known.score]
    if scored and min(scored) > 0:  # an axis without a value refuses a logarithm
        scores.set_yscale("log")
    with_samples = {m: known.samples for m, known in progress.items() if known.samples is not None}
    (_points if preset.data == "toy" else _images)(sheet, with_samples)
    latest = ", ".join(
        f"{method} {known.score[-1]:.3g} at {known.scored_at[-1]:,}"
        for method, known in progress.items()
        if known.score
    )
    return captioned(figure, f"{note}. {preset.metric}: {latest}." if latest else f"{note}.")


def _points(axis, samples: dict[str, Tensor]) -> None:
    for method, x in samples.items():
        axis.scatter(*x.T, s=4, color=COLOURS[method], linewidths=0)
    axis.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), aspect="equal")


def _images(axis, samples: dict[str, Tensor], columns: int = 6, rows: int = 3) -> None:
    """A few images a method, one block under the other."""
    axis.axis("off")
    if not samples:
        return
    blocks = []
    for x in samples.values():
        padded = torch.nn.functional.pad(x[: columns * rows], (0, 1, 0, 1), value=255)
        lines = [torch.cat([*line], dim=2) for line in padded.split(columns) if len(line) == columns]
        blocks.append(torch.nn.functional.pad(torch.cat(lines, dim=1), (0, 0, 0, 3), value=255))
    sheet = torch.cat(blocks, dim=1).permute(1, 2, 0).squeeze(-1)
    axis.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(" above ".join(samples), fontsize=9)
