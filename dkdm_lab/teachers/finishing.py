"""What belongs to a distilled student beside its weights: the other parts of its pipeline, a picture of its
losses, a sheet of its samples, its scores, its card, and its copy on the Hub."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget, figures
from dkdm_lab.system.files import added, alone, whole, write_json
from dkdm_lab.system.provenance import device
from dkdm_lab.teachers import hub
from dkdm_lab.teachers.cards import card
from dkdm_lab.teachers.distillation import Distillation
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.teachers.samples import compare, samples_of, sheet_size

RECORD = "distillation.json"
# In the order in which they are made; the card shows the others.
PARTS = ("the teacher's other parts", "loss.png", "samples.png", "README.md")
_DPI = 110  # of the pictures


@dataclass
class Finishing:
    """A student that is saved in ``out``, and what is still to be made of it there.

    evaluate: how many images its scores are of; 0 for none. samples: how many columns the sheet has at most;
    0 for no sheet. push_to_hub: a repository's name there, or None. found: what :data:`RECORD` holds.
    """

    teacher: Pipeline
    student: Denoiser
    settings: Distillation
    out: Path
    conditions: Conditions | None
    evaluate: int
    samples: int
    push_to_hub: str | None
    found: dict

    def make(self) -> None:
        """Make what is missing, each part by itself, for one may fail. The Hub gets the whole, or nothing.

        Errors: ValueError where nothing is missing; RuntimeError for parts that could not be made; Stopped or
        OutOfTime as :func:`~dkdm_lab.training.train` raises them.
        """
        missing, pushing = self._missing()
        if not missing and not pushing:
            raise ValueError(f"{self.out}: this distillation is finished; move the folder away to begin anew")
        missing.add("README.md")
        self.teacher.to(device())
        try:
            with alone(self.out / "checkpoints", wait=False):
                # The weights themselves are there.
                shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
                failed = self._make_all(missing, pushing)
            (self.out / ".checkpoints.lock").unlink(missing_ok=True)
        except KeyboardInterrupt as stopped:
            out_of_time = isinstance(stopped, budget.OutOfTime)
            why, kind = (budget.used_up(), budget.OutOfTime) if out_of_time else ("stopped", budget.Stopped)
            raise kind(
                f"{why}; the student is saved in {self.out}, and the same call makes what else belongs to it"
            ) from None
        if failed:
            problems = "; ".join(f"{part}: {type(error).__name__}: {error}" for part, error in failed.items())
            raise RuntimeError(
                f"{self.out}: the student is saved there, but not everything that belongs to it could be "
                f"made ({problems}); the same call tries that again"
            ) from next(iter(failed.values()))

    def _missing(self) -> tuple[set[str], bool]:
        """Which parts are not there, and whether the Hub has no copy that was asked for."""
        result = self.found["result"]
        missing = set(self.found.get("missing", ()))
        if self.evaluate and result.get("metrics", {}).get("N") != self.evaluate:
            missing.add("metrics")
        if not self.samples:
            missing.discard("samples.png")
        return missing, self.push_to_hub is not None and result.get("pushed") != self.push_to_hub

    def _make_all(self, missing: set[str], pushing: bool) -> dict[str, Exception]:
        """Make the missing parts, write down what is there, and push that; returns what failed."""
        made_by = dict(zip(PARTS, (self._other_parts, self._loss, self._sheet, self._card), strict=True))
        made_by["metrics"] = self._metrics
        failed: dict[str, Exception] = {}
        for part in (*PARTS[:-1], "metrics", PARTS[-1]):
            if part in missing:
                try:
                    made_by[part]()
                except Exception as error:  # whatever it is, the next part may be made
                    failed[part] = error
        self.found["missing"] = [part for part in PARTS if part in failed]
        try:
            write_json(self.out / RECORD, self.found)
        except OSError as error:  # what is there says that all of it is missing: it is made once more
            failed[RECORD] = error
        if pushing and not failed:
            try:
                hub.push(self.out, self.push_to_hub)
                self.found["result"]["pushed"] = self.push_to_hub
                write_json(self.out / RECORD, self.found)
            except Exception as error:  # of a library that raises many kinds
                failed[f"its copy at {self.push_to_hub} on the Hub"] = error
        return failed

    # -- the parts ------------------------------------------------------------------------------------

    def _other_parts(self) -> None:
        with added(self.out, last="model_index.json") as new:
            self.teacher.write_other_parts(new, self.student)

    def _loss(self) -> None:
        history = json.loads((self.out / "history.json").read_text(encoding="utf-8"))
        values = {"L'simple": history["simple"]}
        if self.student.learns_variance:
            values["L'vlb, bits per dimension"] = history["vlb"]
        with figures.style(), whole(self.out / "loss.png") as scratch:
            figures.losses(history["iteration"], values).savefig(scratch, dpi=_DPI)

    def _sheet(self) -> None:
        settings, conditions, result = self.settings, self.conditions, self.found["result"]
        columns, steps = sheet_size(
            self.teacher, result["teacher_evaluations"], settings.guidance, self.samples
        )
        chosen = None
        if conditions is not None:
            chosen = torch.linspace(0, len(conditions) - 1, columns).round().long()
        rows = samples_of(
            {"teacher": self.teacher.denoiser, "student": self.student},
            self.teacher,
            columns,
            steps,
            None if chosen is None else (conditions, chosen),
            settings.guidance,
            settings.seed,
            min(columns, settings.batch_size),
        )
        labels = None
        if chosen is not None:  # labels are short enough to stand over their columns; prompts are not
            classes = conditions.values.ndim == 1
            labels = conditions.values[chosen].tolist() if classes else range(1, columns + 1)
            labels = [str(label) for label in labels]
        with figures.style(), whole(self.out / "samples.png") as scratch:
            figures.sample_sheet(rows, labels).savefig(scratch, dpi=_DPI)
        result["samples"] = {"columns": columns, "steps": steps}
        if chosen is not None and conditions.names is not None:
            result["samples"]["prompts"] = [conditions.names[index] for index in chosen.tolist()]

    def _metrics(self) -> None:
        at_once = max(8, 2 * self.settings.batch_size)
        self.found["result"]["metrics"] = compare(
            self.teacher, self.student, self.evaluate, self.conditions, self.settings.seed, at_once
        )

    def _card(self) -> None:
        text = card(self.settings, self.found["result"], self.conditions, self.teacher, self.out)
        with whole(self.out / "README.md") as scratch:
            scratch.write_text(text, encoding="utf-8")
