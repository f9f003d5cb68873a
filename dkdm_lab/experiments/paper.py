"""The paper's results as data, and how the ledger answers them: what the chapters' tables and the report
are made from.

A :class:`Number` is a cell of one of the paper's tables. A :class:`Claim` is a sentence of the paper about
its numbers, with the comparison that decides it. Both are looked up in the ledger of any preset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.ledger import Spread, Table, by_seed
from dkdm_lab.experiments.presets import PRESETS, Preset
from dkdm_lab.experiments.runs import METHODS, Run
from dkdm_lab.system import figures

# -- who plays which part -----------------------------------------------------------------------------

_TABLE_8 = {
    "CNN": "cnn-57m",
    "ViT": "vit-19m",
    "student": "cnn-14m",
    "sizes": ("cnn-57m", "cnn-44m", "cnn-32m", "cnn-24m", "cnn-14m"),
}
# Networks that play the paper's parts, and the iterations of three teachers for Fig. 10; only CIFAR-10's
# sizes and architectures are the paper's own. The digits' five sizes follow Table 8's: width, depth, both.
CAST = {
    "cifar10": {**_TABLE_8, "teachers": (50_000, 200_000, 450_000)},
    "imagenet32": {**_TABLE_8, "teachers": (125_000, 500_000, 1_000_000)},
    "celeba64": {
        "CNN": "celeba-295m",
        "ViT": "celeba-vit",
        "student": "celeba-57m",
        "sizes": ("celeba-295m", "celeba-57m"),
        "teachers": (50_000, 200_000, 450_000),
    },
    "fashion": {
        "CNN": "fashion-teacher",
        "ViT": "fashion-vit",
        "student": "fashion-student",
        "sizes": ("fashion-teacher", "fashion-6m", "fashion-2m", "fashion-student"),
        "teachers": (100, 400, 1000),
    },
    # For cifar16 no sizes and no worse teachers were planned; in Table 11 its students are the preset's own.
    "cifar16": {
        "CNN": "cifar16-teacher",
        "ViT": "cifar16-vit",
        "student": "cifar16-student",
        "as teacher": "cifar16-student",
        "sizes": (),
        "teachers": (),
        "fractions": (0.05, 0.20),
    },
    "cifar10-short": {
        "CNN": "cifar10-6m",
        "ViT": "vit-19m",
        "student": "cifar10-2m",
        "as teacher": "cifar10-2m",
        "sizes": (),
        "teachers": (),
        "fractions": (),
    },
    "digits": {
        "CNN": "digits-teacher",
        "ViT": "digits-vit",
        "student": "digits-student",
        "sizes": ("digits-teacher", "digits-466k", "digits-290k", "digits-student", "digits-53k"),
        "teachers": (250, 1000, 2000),
    },
}
FRACTIONS = (0.05, 0.10, 0.15, 0.20)  # Table 2
RHOS = (0.05, 0.4, 1.0)  # around Fig. 4b's; 0.4 is the preset's own
DISCARDS = (0.0, 0.25, 0.5)  # Sec. 11 names no values
# Beyond the paper, at `digits-pools`: strides, and the pool's size as rho: 2, 4 and 40 batches. The paper's
# own are 1 and 0.4.
STRIDES = (1, 2, 5, 10, 20)
SIZES = (0.02, 0.04, 0.4)
STRIDED = {"rho": 0.04, "stride": 100}  # the pool that `dkdm distill` takes, at T = 1000
NATURAL_SMALL = ("cifar16", "cifar10-short")  # presets of natural images for small machines
STORED = ("bfloat16", "float16")  # what a pool may lie in that rounds it


def _m(method: str, **settings) -> dict:
    return {"method": method, **settings}


def _named(metric: str, preset: str) -> str:
    """What a metric of the paper is called in a preset's results, after the features it is measured in."""
    return metric if PRESETS[preset].features == "inception" else f"digits-{metric}"


# -- numbers ------------------------------------------------------------------------------------------


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

    def ours(self, preset: str) -> Spread | None:
        """Our number at a preset, over seeds; None where it was not run."""
        if preset not in PRESETS:
            return None
        return ledger.over_seeds(preset, _named(self.metric, preset), dict(self.run(preset)))

    def run(self, preset: str) -> Mapping:
        """The run of a preset that corresponds, as :func:`ledger.results` takes it."""
        return self.where(CAST.get(preset, {}))

    def cell(self, preset: str) -> str:
        """Our number at a preset as it stands in a table."""
        return str(self.ours(preset) or "not run")

    @property
    def verdict(self) -> str:
        """Reproduced if ours, at the paper's preset, is within a tenth of it or two deviations over seeds."""
        found = self.ours(self.preset)
        if found is None:
            return "not run"
        room = max(0.1 * self.value, 0.0 if math.isnan(found.std) else 2 * found.std)
        return VERDICTS[0] if abs(found.mean - self.value) <= room else VERDICTS[2]


def _by_method(
    place: str, presets: tuple[str, ...], metrics: tuple[str, ...], rows: dict[str, tuple[float, ...]]
) -> list[Number]:
    """A table with a row a method; in each row the metrics at the first preset, then at the next."""
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
               lambda cast, kind=kind: _m("teacher", teacher=cast[kind]))
        for kind, value in (("CNN", 4.45), ("ViT", 11.30))
    ]  # fmt: skip

    def pair(cast: dict, method: str, teacher: str, student: str) -> dict:
        # The paper's CNN student is as large as its CNN teacher here; ours is the preset's own.
        cnn = cast["CNN"] if cast is CAST["cifar10"] else cast["student"]
        return _m(method, teacher=cast[teacher], student=cnn if student == "CNN" else cast["ViT"])

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
        Number("Table 11", method, metric, value, "cifar10", partial(_as_teacher, method=method))
        for method, values in rows.items()
        for metric, value in zip(metrics, values, strict=True)
    ]


def _as_teacher(cast: dict, method: str) -> dict:
    """A run of Table 11, whose students have the architecture of their teacher."""
    return _m(method) if method == "teacher" else _m(method, student=cast.get("as teacher", cast["CNN"]))


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
               lambda cast, method=method: _m(method))
        for (preset, method), value in rows.items()
    ]  # fmt: skip


NUMBERS = (*_table_2(), *_table_3(), *_table_5(), *_table_9(), *_table_11())


def beside(
    place: str,
    preset: str,
    metric: str | None = None,
    small: Iterable[str] = ("cifar16", "digits"),
) -> Table:
    """The paper's numbers of a table, as it ran ``preset``, beside ours there and at smaller presets; of one
    metric or of all that some preset has."""
    chosen = [
        n for n in NUMBERS if n.place == place and n.preset == preset and n.metric == (metric or n.metric)
    ]
    columns = (preset, *small)
    rows = [[n.row, n.metric, f"{n.value}", *map(n.cell, columns)] for n in chosen]
    kept = [row for row in rows if metric or set(row[3:]) != {"not run"}]
    sizes = ", ".join(f"{PRESETS[name].samples:,} at `{name}`" for name in columns)
    head = (
        f"{place}, {preset}: the paper's numbers beside the ledger's (N = {sizes}). At the smaller presets "
        "images, networks and metric are their own: the order can be compared, the values cannot."
    )
    names = ["", "metric", "paper", *[f"ours, `{name}`" for name in columns]]
    return Table.of(names, kept, "ll" + "r" * (len(names) - 2), before=head, after=_folded(rows, kept))


# -- claims -------------------------------------------------------------------------------------------

# For a preset: by how much, as a ratio, a claim holds (below 1) or fails (above), for each seed that has all
# the results it needs.
Check = Callable[[str], dict[int, float]]


# The presets that a claim of the paper can be looked up at: its own and ours, in pixel or in latent space.
PIXELS = ("digits", "cifar16", "fashion", "cifar10-short", "cifar10", "celeba64", "imagenet32")
LATENTS = ("digits-latent", "celebahq256", "ffhq256")
NATURAL = PIXELS[1:]  # judged by Inception, which alone has sFID
HIGHER_IS_BETTER = ("IS", "precision", "recall")


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the chapter that treats it, the comparison that decides it, and the presets
    that it is about."""

    place: str
    text: str
    chapter: str
    check: Check
    presets: tuple[str, ...] = PIXELS

    def verdict(self, preset: str) -> str:
        """One of :data:`VERDICTS`, and for how many seeds; nothing at a preset that it is not about."""
        if preset not in self.presets:
            return ""
        ratios = list(self.check(preset).values())
        if not ratios:
            return "not run"
        holds = sum(ratio < 1 for ratio in ratios)
        decided = {len(ratios): VERDICTS[0], 0: VERDICTS[2]}  # where the seeds disagree, nothing is
        return f"{decided.get(holds, VERDICTS[1])} ({holds} of {len(ratios)} seeds)"


VERDICTS = ("reproduced at this scale", "undecided", "not reproduced", "not run")


def ratios(
    preset: str,
    better: Mapping,
    worse: Mapping,
    primes: tuple[str, str] = ("", ""),
    metric: str | None = None,
) -> dict[int, float]:
    """Score of ``better`` over score of ``worse``, for each seed that has both; the inverse where a higher
    score is the better one. metric: the preset's own unless given, as Table 2 calls it. primes: ``"'"`` for a
    score that is to be against the teacher's own distribution."""
    name = PRESETS[preset].metric if metric is None else _named(metric, preset)
    a, b = (
        by_seed(preset, name + prime, dict(where))
        for where, prime in zip((better, worse), primes, strict=True)
    )
    if metric in HIGHER_IS_BETTER:
        a, b = b, a
    return {seed: a[seed] / b[seed] for seed in sorted(a.keys() & b.keys())}


def _all(*checks: Check) -> Check:
    """Every one of ``checks``; for each seed that all have, the one that holds least counts."""

    def check(preset: str) -> dict[int, float]:
        each = [one(preset) for one in checks]
        if not each:
            return {}
        seeds = sorted(set.intersection(*map(set, each)))
        return {seed: max(found[seed] for found in each) for seed in seeds}

    return check


def _beats(
    better: Mapping, *others: Mapping, primes: tuple[str, str] = ("", ""), metric: str | None = None
) -> Check:
    """``better`` has a better score than each of ``others``."""
    return _all(
        *[lambda preset, other=other: ratios(preset, better, other, primes, metric) for other in others]
    )


def _with_cast(make: Callable[[dict], Check]) -> Check:
    """A check between networks, which have other names at each preset; without a cast nothing is known."""
    return lambda preset: make(CAST[preset])(preset) if preset in CAST else {}


def _limited(cast: dict) -> Check:
    limited = [_m("data-limited", real_fraction=f) for f in cast.get("fractions", FRACTIONS)]
    return _beats(_m("dynamic"), *limited)


def _pairs(cast: dict) -> Check:
    pairs = [
        {"teacher": cast[teacher], "student": student}
        for teacher in ("CNN", "ViT")
        for student in (cast["student"], cast["ViT"])
    ]
    return _all(*[_beats(_m("dynamic", **pair), _m("data-free", **pair)) for pair in pairs])


def _cnn_students(cast: dict) -> Check:
    students = [
        [_m("dynamic", teacher=cast[teacher], student=s) for s in (cast["student"], cast["ViT"])]
        for teacher in ("CNN", "ViT")
    ]
    return _all(*[_beats(cnn, vit) for cnn, vit in students])


def _sizes(cast: dict) -> Check:
    return _all(*[_beats(_m("dynamic", student=s), _m("data-free", student=s)) for s in cast["sizes"]])


def _better_teachers(cast: dict) -> Check:
    runs = [_m("dynamic", teacher_iterations=n) for n in cast["teachers"]]
    return _all(*[_beats(longer, shorter) for shorter, longer in pairwise(runs)])


def _no_gain(of: Mapping, over: Mapping) -> Check:
    """``of`` is not better than ``over`` by more than a tenth."""
    return lambda preset: {seed: 0.9 * ratio for seed, ratio in ratios(preset, over, of).items()}


def _cnn_student(cast: dict) -> Check:
    cnn, vit = (_m("dynamic", teacher=cast["CNN"], student=s) for s in (cast["student"], cast["ViT"]))
    return _beats(cnn, vit)


def _as_teachers(cast: dict) -> Check:
    return _beats(_as_teacher(cast, "dynamic"), _as_teacher(cast, "data-free"), primes=("'", "'"))


def _own_distribution(cast: dict) -> Check:
    runs = [_as_teacher(cast, method) for method in ("teacher", "data-free", "dynamic")]
    return _all(*[_beats(run, run, primes=("'", "")) for run in runs])


def _ahead(other: str) -> Check:
    """Dynamic distillation is better than another method at every point of the curve, not only at its end."""

    def check(preset: str) -> dict[int, float]:
        curves = {"dynamic": {}, other: {}}
        for method, of_seed in curves.items():
            for result in ledger.results(preset, {"method": method}):
                points = {p["iteration"]: p[PRESETS[preset].curve_metric] for p in result["curve"]}
                of_seed[result["settings"]["seed"]] = points
        a, b = curves.values()
        return {s: max(a[s][i] / b[s][i] for i in a[s].keys() & b[s].keys()) for s in a.keys() & b.keys()}

    return check


def _costs_little(preset: str) -> dict[int, float]:
    """A dynamic step takes at most a tenth longer than a data-based one; the paper's takes 6.5%."""
    return {m["seed"]: m["training"]["dynamic"]["time"] / 1.1 for m in ledger.measured(preset)}


def _smaller_is_faster(cast: dict) -> Check:
    largest, *_, smallest = cast["sizes"] or (None, None)
    return lambda preset: {
        m["seed"]: m["sampling"][smallest]["time"] / m["sampling"][largest]["time"]
        for m in ledger.measured(preset)
    }


CLAIMS = (
    Claim("Table 2", "Dynamic distillation is better than data-free training.", "07_baselines",
          _beats(_m("dynamic"), _m("data-free"))),
    Claim("Table 2", "It is better than data-limited training with 5, 10, 15 and 20% of real images.",
          "07_baselines", _with_cast(_limited)),
    Claim("Table 2", "Data-based training is its upper limit.", "07_baselines",
          _beats(_m("data-based"), _m("dynamic"))),
    Claim("Table 2", "By sFID, too, dynamic distillation is better than data-free training.", "07_baselines",
          _beats(_m("dynamic"), _m("data-free"), metric="sFID"), NATURAL),
    Claim("Table 2", "By IS, too, dynamic distillation is better than data-free training.", "07_baselines",
          _beats(_m("dynamic"), _m("data-free"), metric="IS"), NATURAL),
    Claim("Sec. 4.2, ours", "Its samples are more precise than those of data-free training.", "07_baselines",
          _beats(_m("dynamic"), _m("data-free"), metric="precision")),
    Claim("Sec. 4.2, ours", "They cover more of the data (recall).", "07_baselines",
          _beats(_m("dynamic"), _m("data-free"), metric="recall")),
    Claim("Fig. 4a", "Dynamic ends better than shuffled, shuffled better than iterative.", "08_ablations",
          _all(_beats(_m("dynamic"), _m("shuffled")), _beats(_m("shuffled"), _m("iterative")))),
    Claim("Fig. 4a", "Dynamic is ahead of both from the first score to the last.", "08_ablations",
          _all(_ahead("shuffled"), _ahead("iterative"))),
    Claim("Fig. 4b", "A larger rho helps: 0.4 is better than 0.05.", "08_ablations",
          _beats(_m("dynamic"), _m("dynamic", rho=0.05))),
    Claim("Fig. 4b", "Beyond a point it does not: 1.0 gains less than a tenth over 0.4.", "08_ablations",
          _no_gain(_m("dynamic", rho=1.0), _m("dynamic"))),
    Claim("Fig. 8", "Random discard helps iterative distillation (p = 0.5).", "09_random_discard",
          _beats(_m("iterative", discard=0.5), _m("iterative"))),
    Claim("Fig. 8", "It helps shuffled distillation (p = 0.5).", "09_random_discard",
          _beats(_m("shuffled", discard=0.5), _m("shuffled"))),
    Claim("Fig. 8", "It gains dynamic distillation less than a tenth (p = 0.5).", "09_random_discard",
          _no_gain(_m("dynamic", discard=0.5), _m("dynamic"))),
    Claim("Table 5", "Dynamic is better than data-free for each pair of CNN and ViT.",
          "10_cross_architecture", _with_cast(_pairs)),
    Claim("Table 5", "CNNs make the better students, whatever the teacher.", "10_cross_architecture",
          _with_cast(_cnn_students)),
    Claim("Table 5", "Of the CNN teacher, a CNN makes the better student than a ViT.",
          "10_cross_architecture", _with_cast(_cnn_student)),
    Claim("Fig. 6", "Dynamic is better than data-free at each of five sizes.", "11_student_sizes",
          _with_cast(_sizes)),
    Claim("Fig. 6", "The smallest student samples faster than the largest.", "11_student_sizes",
          _with_cast(_smaller_is_faster)),
    Claim("Table 9", "A dynamic step takes at most a tenth longer than a data-based one.", "12_cost",
          _costs_little),
    Claim("Table 3", "In latent space, too, dynamic distillation is better than data-free training.",
          "15_latent_space", _beats(_m("dynamic"), _m("data-free")), LATENTS),
    Claim("Table 3", "It is better than data-limited training with 5, 10, 15 and 20% of real images there.",
          "15_latent_space",
          _beats(_m("dynamic"), *[_m("data-limited", real_fraction=f) for f in FRACTIONS]), LATENTS),
    Claim("Table 3", "On CelebA-HQ it is better even than data-based training.", "15_latent_space",
          _beats(_m("dynamic"), _m("data-based")), ("digits-latent", "celebahq256")),
    Claim("Table 11", "Every model is nearer to the teacher's distribution than to the data: FID' < FID.",
          "13_two_distributions", _with_cast(_own_distribution)),
    Claim("Table 11", "Dynamic learns the teacher's distribution better than data-free training: lower FID'.",
          "13_two_distributions", _with_cast(_as_teachers)),
    Claim("Fig. 10", "The better the teacher, the better its student.", "13_two_distributions",
          _with_cast(_better_teachers)),
)  # fmt: skip


def verdicts(chapter: str) -> Table:
    """The claims of a chapter, each with its verdict at every preset that has results."""
    return _claims([claim for claim in CLAIMS if claim.chapter == chapter], link=False)


def claims() -> Table:
    """All claims, each with the chapter that treats it."""
    return _claims(list(CLAIMS), link=True)


def _claims(chosen: list[Claim], link: bool) -> Table:
    about = [p for p in (*PIXELS, *LATENTS) if any(p in claim.presets for claim in chosen)]
    found = {p: [claim.verdict(p) for claim in chosen] for p in about}
    run = [p for p in about if not set(found[p]) <= {"", VERDICTS[-1]}]
    rows = []
    for number, claim in enumerate(chosen):
        place = f"[{claim.place}]({claim.chapter}.ipynb)" if link else claim.place
        rows.append([place, claim.text, *[found[p][number] for p in run]])
    missing = [f"`{p}`" for p in about if p not in run]
    notes = [f"Not run: {', '.join(missing)}."] if missing else []
    for p in run:
        fractions = _fractions(p)
        if fractions != FRACTIONS and any("data-limited" in claim.text for claim in chosen):
            notes.append(f"At `{p}` data-limited training was run at {_percent(fractions)} alone.")
    note = " ".join(notes)
    names = ["", "claim", *[f"`{p}`" for p in run]]
    return Table.of(names, rows, "l" * len(names), after=note)


def _fractions(preset: str) -> tuple[float, ...]:
    return CAST.get(preset, {}).get("fractions", FRACTIONS)


def _percent(fractions: Iterable[float]) -> str:
    return " and ".join(f"{fraction:.0%}" for fraction in fractions)


def numbers(place: str, small: Iterable[str] = ("cifar16", "digits")) -> Table:
    """The numbers of one of the paper's tables that somebody has run here, with ours at its own preset, and
    at smaller ones beside those of the table's first; one line stands for all that nobody has run."""
    chosen = [n for n in NUMBERS if n.place == place]
    rows = []
    for n in chosen:
        others = [n.cell(preset) if n.preset == chosen[0].preset else "" for preset in small]
        if n.ours(n.preset) or set(others) - {"", "not run"}:
            rows.append([n.preset, n.row, n.metric, f"{n.value:g}", n.cell(n.preset), n.verdict, *others])
    names = ["preset", "", "metric", "paper", "ours", "verdict", *[f"`{preset}`" for preset in small]]
    return Table.of(names, rows, "lllrrl" + "r" * (len(names) - 6), after=_folded(chosen, rows))


def ways(preset: str) -> dict[str, dict]:
    """The ways to train a student that Table 2 and Fig. 4a compare at a preset, and its teacher, by the names
    of their rows."""
    limited = {f"data-limited {f:.0%}": _m("data-limited", real_fraction=f) for f in _fractions(preset)}
    rows = {"teacher": _m("teacher"), "data-based": _m("data-based"), **limited}
    rows |= {name: _m(name) for name in ("data-free", "iterative", "shuffled", "dynamic")}
    return rows | ({"dynamic (strides)": _m("dynamic", **STRIDED)} if preset in NATURAL_SMALL else {})


def scores(preset: str, metric: str) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds of a metric, as Table 2 calls it, for each of :func:`ways` that
    was run; the deviation of one seed is 0."""
    found = {
        name: ledger.over_seeds(preset, _named(metric, preset), where) for name, where in ways(preset).items()
    }
    return {name: (s.mean, 0.0 if math.isnan(s.std) else s.std) for name, s in found.items() if s is not None}


def sheet(preset: str, rows: Mapping[str, Mapping] | None = None, seed: int = 0, n: int = 12):
    """Samples of the ledger's runs of a seed, one row per run (default: :func:`ways`), column by column from
    the same noise; or a line that says that none was run."""
    rows = ways(preset) if rows is None else rows
    found = {name: ledger.samples(preset, dict(where)).get(seed) for name, where in rows.items()}
    shown = {name: images[:n] for name, images in found.items() if images is not None}
    return figures.sample_sheet(shown) if shown else Table(f"Samples at `{preset}`, seed {seed}: not run.")


def _folded(chosen: list, found: list) -> str:
    """The one line that stands for rows without any result."""
    missing = len(chosen) - len(found)
    return f"Not run at any of these presets: {missing} of {len(chosen)} rows." if missing else ""


def figure_curves(preset: str) -> list[tuple[str, str, Mapping | None]]:
    """Figure, curve and run of every curve of the paper's figures, as a preset's networks play them; no run
    where a chapter measures it."""
    cast = CAST[preset]
    return [
        ("Fig. 4a", "baseline (data-free)", _m("data-free")),
        ("Fig. 4a", "iterative", _m("iterative")),
        ("Fig. 4a", "shuffled", _m("shuffled")),
        ("Fig. 4a", "dynamic, rho = 0.4", _m("dynamic")),
        *[("Fig. 4b", f"dynamic, rho = {rho}", _m("dynamic", rho=rho)) for rho in RHOS],
        *[
            ("Fig. 6", f"{method}, size {size} of {len(cast['sizes'])}", _m(method, student=name))
            for method in ("data-free", "dynamic")
            for size, name in enumerate(cast["sizes"], 1)
        ],
        ("Fig. 7", "memory against rho: see the chapter on cost", None),
        *[
            ("Fig. 8", f"{method}, p = {p}", _m(method, discard=p))
            for method in ("iterative", "shuffled", "dynamic")
            for p in DISCARDS
        ],
        ("Fig. 9", "FID against FID', teacher", _m("teacher")),
        ("Fig. 9", "FID against FID', student", _as_teacher(cast, "dynamic")),
        *[
            ("Fig. 10", f"student of teacher {number} of 3", _m("dynamic", teacher_iterations=n))
            for number, n in enumerate(cast["teachers"], 1)
        ],
    ]


def curves(presets: Iterable[str] = ("digits", "cifar16", "cifar10")) -> Table:
    """The curves of the paper's figures that somebody has run here, with our last score at each preset, and
    FID' for Fig. 9; one line stands for all that nobody has run."""
    runs = {preset: {(place, what): run for place, what, run in figure_curves(preset)} for preset in presets}
    chosen = list(dict.fromkeys(curve for of_preset in runs.values() for curve in of_preset))
    rows = []
    for place, what in chosen:
        primes = ("", "'") if place == "Fig. 9" else ("",)
        cells = []
        for preset, of_preset in runs.items():
            run = of_preset.get((place, what), {"method": "none"})
            if run is None:
                cells.append("in its chapter")
                continue
            scores = [ledger.cell(preset, PRESETS[preset].metric + prime, run) for prime in primes]
            cells.append(" and ".join(scores) if set(scores) != {"not run"} else "not run")
        if set(cells) != {"not run"}:
            rows.append([place, what, *cells])
    names = ["figure", "curve", *[f"{PRESETS[p].metric} at its end, `{p}`" for p in presets]]
    return Table.of(names, rows, "ll" + "r" * (len(names) - 2), after=_folded(chosen, rows))


# -- the sweep ----------------------------------------------------------------------------------------


def _natural(name: str) -> list[tuple[dict, bool]]:
    """The rows of the small presets of natural images, in the order in which they are to be made."""
    rows = [(_m("teacher"), True), (_m("dynamic"), True), (_m("dynamic", **STRIDED), False)]
    rows += [(_m("data-free"), True), (_m("data-based"), False)]
    if name == "cifar16":
        rows += [(_m("shuffled"), False), (_m("iterative"), False)]
        rows += [(_m("data-limited", real_fraction=f), False) for f in CAST[name]["fractions"]]
    return rows


def _natural_once(name: str) -> list[tuple[dict, bool]]:
    """What is made for the first seed only, to begin with."""
    if name != "cifar16":
        return []
    rows = [(_m("dynamic", rho=rho), False) for rho in RHOS if rho != PRESETS[name].rho]
    rows += [(_m(method, discard=0.5), False) for method in ("iterative", "shuffled", "dynamic")]
    return [*rows, (_m("dynamic", student=CAST[name]["ViT"]), False)]


def sweep(preset: Preset, seeds: Iterable[int]) -> dict[str, tuple[Run, bool]]:
    """Every run that the numbers, claims and curves above look up at a preset, with those that they stand on:
    what is to be made to fill all cells of the book. By name; with each, whether its FID' is looked up too.
    A preset without a part in the paper has one run of each method, a class-conditional one a teacher and its
    student."""
    wheres = [(_m(method), False) for method in METHODS]
    if preset.classes:
        wheres = [(_m("teacher"), False), (_m("dynamic"), False)]
    elif preset.name in LATENTS:
        wheres = [(n.run(preset.name), False) for n in _table_3() if n.preset == "celebahq256"]
    elif preset.name == "digits-pools":
        wheres = [(_m("dynamic", rho=SIZES[1], stride=k), False) for k in STRIDES]
        wheres += [(_m("dynamic", rho=rho, stride=k), False) for rho in SIZES for k in (1, 10)]
        wheres += [(_m("dynamic", storage=storage), False) for storage in STORED]
    elif preset.name in NATURAL_SMALL:
        wheres = _natural(preset.name)
    elif preset.name in CAST:
        cast = CAST[preset.name]
        wheres = [(_m("data-based"), False)]
        wheres += [(_m("data-limited", real_fraction=f), False) for f in FRACTIONS]
        wheres += [(where, place == "Fig. 9") for place, _, where in figure_curves(preset.name) if where]
        wheres += [(_m("data-free", student=cast["CNN"]), True)]
        for teacher in ("CNN", "ViT"):
            pairs = [{"teacher": cast[teacher], "student": s} for s in (cast["student"], cast["ViT"])]
            wheres += [(_m("teacher", teacher=cast[teacher]), False)]
            wheres += [(_m(method, **pair), False) for method in ("data-free", "dynamic") for pair in pairs]
        wheres += [
            (number.run(preset.name), number.metric.endswith("'"))
            for number in NUMBERS
            if number.preset == preset.name and number.place != "Table 9"  # which is measured
        ]
    found: dict[str, tuple[Run, bool]] = {}
    once = _natural_once(preset.name)
    for number, seed in enumerate(seeds):
        for where, primed in [*wheres, *(once if number == 0 else [])]:
            changes = {name: value for name, value in where.items() if name != "method"}
            run = Run(preset.replace(**changes), where["method"], seed).shared()
            for each in run.needs():
                found.setdefault(each.name, (each, False))
            _, before = found.get(run.name, (run, False))
            found[run.name] = run, primed or before
    return found
