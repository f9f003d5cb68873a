"""The numbers of the paper's tables, each with the run of ours that corresponds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.cast import CAST, as_teacher, metric_name, run_of
from dkdm_lab.experiments.ledger import Spread
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.experiments.verdict import Verdict


@dataclass(frozen=True)
class Number:
    """One number of the paper: where it stands, which run made it, and which of our runs corresponds."""

    place: str  # "Table 2"
    row: str  # what the paper's row is called
    metric: str  # "FID"
    value: float
    preset: str  # the paper's setting
    # The run: its method and what differs from the preset, which may be networks of the preset's cast.
    where: Callable[[dict], Mapping]

    @property
    def timed(self) -> bool:
        """Whether it is a time, which has no samples and is another one on every machine."""
        return self.metric.startswith("seconds")

    def ours(self, preset: str) -> Spread | None:
        """Our number at a preset, over seeds; None where it was not run."""
        if preset not in PRESETS:
            return None
        return ledger.over_seeds(preset, metric_name(self.metric, preset), dict(self.run(preset)))

    def run(self, preset: str) -> Mapping:
        """The run of a preset that corresponds, as :func:`ledger.results` takes it."""
        return self.where(CAST.get(preset, {}))

    def cell(self, preset: str) -> str:
        """Our number at a preset as it stands in a table."""
        return str(self.ours(preset) or Verdict.NOT_RUN)

    @property
    def verdict(self) -> Verdict:
        """Reproduced if ours, at the paper's preset, is within a tenth of it or two deviations over seeds."""
        found = self.ours(self.preset)
        if found is None:
            return Verdict.NOT_RUN
        room = max(0.1 * self.value, 0.0 if math.isnan(found.std) else 2 * found.std)
        near = abs(found.mean - self.value) <= room
        return Verdict.REPRODUCED if near else Verdict.NOT_REPRODUCED


def _by_method(
    place: str, presets: tuple[str, ...], metrics: tuple[str, ...], rows: dict[str, tuple[float, ...]]
) -> list[Number]:
    """A table with one row per method; in each row the metrics at the first preset, then at the next."""
    numbers = []
    for column, preset in enumerate(presets):
        for row, values in rows.items():
            method, _, percent = row.partition(" ")
            where = {"method": method}
            if percent:
                where["real_fraction"] = float(percent.rstrip("%")) / 100
            for offset, metric in enumerate(metrics):
                value = values[len(metrics) * column + offset]
                numbers.append(Number(place, row, metric, value, preset, lambda cast, where=where: where))
    return numbers


def _table_2() -> list[Number]:
    rows = {  # on CIFAR-10, CelebA, ImageNet 32x32
        "teacher": (9.52, 4.45, 7.09, 3.08, 4.43, 6.10, 13.63, 4.67, 4.03),
        "data-based": (8.73, 7.84, 7.38, 3.04, 5.39, 7.23, 9.99, 10.56, 5.24),
        "data-limited 20%": (8.49, 9.76, 11.30, 2.86, 9.52, 11.55, 10.48, 12.62, 9.70),
        "data-limited 15%": (8.44, 11.07, 12.47, 2.84, 9.60, 11.48, 10.43, 13.50, 10.76),
        "data-limited 10%": (8.40, 11.06, 11.98, 3.04, 8.20, 10.65, 10.39, 14.23, 12.63),
        "data-limited 5%": (8.39, 10.91, 11.99, 2.86, 9.64, 11.27, 10.48, 13.63, 10.62),
        "data-free": (8.28, 12.06, 13.23, 2.87, 10.66, 12.71, 10.47, 13.20, 9.56),
        "dynamic": (8.60, 9.56, 11.77, 2.91, 7.07, 8.78, 10.50, 11.33, 4.80),
    }
    return _by_method("Table 2", ("cifar10", "celeba64", "imagenet32"), ("IS", "FID", "sFID"), rows)


def _table_3() -> list[Number]:
    rows = {  # on CelebA-HQ, FFHQ
        "teacher": (5.69, 10.02, 5.93, 7.52),
        "data-based": (9.09, 12.10, 8.91, 8.75),
        "data-limited 20%": (14.49, 17.08, 15.43, 12.25),
        "data-limited 15%": (14.89, 16.98, 16.02, 12.48),
        "data-limited 10%": (15.23, 17.53, 16.00, 12.47),
        "data-limited 5%": (15.07, 17.64, 15.86, 12.56),
        "data-free": (15.36, 17.56, 16.32, 12.75),
        "dynamic": (8.69, 12.50, 11.53, 10.29),
    }
    return _by_method("Table 3", ("celebahq256", "ffhq256"), ("FID", "sFID"), rows)


def _table_5() -> list[Number]:
    cells = {  # FID of students, by teacher, student and method
        ("CNN", "CNN"): (9.64, 6.85),
        ("CNN", "ViT"): (17.11, 17.11),
        ("ViT", "CNN"): (44.62, 13.17),
        ("ViT", "ViT"): (63.15, 17.86),
    }
    numbers = [
        Number("Table 5", f"{kind} teacher", "FID", value, "cifar10",
               lambda cast, kind=kind: run_of("teacher", teacher=cast[kind]))
        for kind, value in (("CNN", 4.45), ("ViT", 11.30))
    ]  # fmt: skip

    def pair(cast: dict, method: str, teacher: str, student: str) -> dict:
        # The paper's CNN student is as large as its CNN teacher here; ours is the preset's own.
        cnn = cast["CNN"] if cast is CAST["cifar10"] else cast["student"]
        return run_of(method, teacher=cast[teacher], student=cnn if student == "CNN" else cast["ViT"])

    for kinds, values in cells.items():
        for method, value in zip(("data-free", "dynamic"), values, strict=True):
            teacher, student = kinds
            row = f"{student} from {teacher}, {method}"
            which = partial(pair, method=method, teacher=teacher, student=student)
            numbers.append(Number("Table 5", row, "FID", value, "cifar10", which))
    return numbers


def _table_11() -> list[Number]:
    rows = {
        "teacher": (4.45, 7.09, 2.09, 3.92),
        "data-free": (9.64, 11.64, 4.13, 5.19),
        "dynamic": (6.85, 8.01, 2.60, 4.14),
    }
    metrics = ("FID", "sFID", "FID'", "sFID'")
    return [
        Number("Table 11", method, metric, value, "cifar10", partial(as_teacher, method=method))
        for method, values in rows.items()
        for metric, value in zip(metrics, values, strict=True)
    ]


def _table_9() -> list[Number]:
    """Seconds for 100 iterations on an A100; ours are ratios, under ``time``, unless a GPU made them."""
    rows = {
        ("cifar10", "data-based"): 18.00,
        ("cifar10", "dynamic"): 19.17,
        ("ffhq256", "data-based"): 68.77,
        ("ffhq256", "dynamic"): 55.52,
    }
    return [
        Number("Table 9", f"{preset}, {method}", "seconds / 100 iterations", value, preset,
               lambda cast, method=method: run_of(method))
        for (preset, method), value in rows.items()
    ]  # fmt: skip


NUMBERS = (*_table_2(), *_table_3(), *_table_5(), *_table_9(), *_table_11())
