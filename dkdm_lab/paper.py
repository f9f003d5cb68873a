"""The paper's results as data, and how the ledger answers them: what the chapters' tables and the report
are made from.

A :class:`Number` is a cell of one of the paper's tables. A :class:`Claim` is a sentence of the paper about
its numbers, with the comparison that decides it. Both are looked up in the ledger of any preset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from dkdm_lab import ledger
from dkdm_lab.ledger import Spread, Table, by_seed
from dkdm_lab.presets import PRESETS, Preset
from dkdm_lab.runs import METHODS, Run

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
STORED = ("bfloat16", "float16")  # what a pool may lie in that rounds it


def _m(method: str, **settings) -> dict:
    return {"method": method, **settings}


# -- numbers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """One number of the paper: where it stands, which run made it, and which of our runs corresponds."""

    place: str  # "Table 2"
    row: str  # what the paper's row is called
    metric: str  # "FID"
    value: float
    preset: str  # the paper's setting
    where: Mapping = field(default_factory=dict)  # the run: its method, and what differs from the preset
    small: Mapping | None = None  # the same at a smaller preset, where its networks have other names

    def ours(self, preset: str) -> Spread | None:
        """Our number at a preset, over seeds; None where it was not run."""
        if preset not in PRESETS:
            return None
        where = self.where if preset == self.preset or self.small is None else self.small
        metric = self.metric if PRESETS[preset].features == "inception" else f"digits-{self.metric}"
        return ledger.over_seeds(preset, metric, dict(where))

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
                numbers.append(Number(place, row, metric, value, preset, where))
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
    paper, small = CAST["cifar10"], CAST["digits"]
    numbers = [
        Number("Table 5", f"{kind} teacher", "FID", value, "cifar10",
               _m("teacher", teacher=paper[kind]), _m("teacher", teacher=small[kind]))
        for kind, value in (("CNN", 4.45), ("ViT", 11.30))
    ]  # fmt: skip
    # The paper's CNN student is as large as its CNN teacher here; ours is the preset's own.
    small_student = {"CNN": small["student"], "ViT": small["ViT"]}
    for (teacher, student), values in cells.items():
        for method, value in zip(("data-free", "dynamic"), values, strict=True):
            numbers.append(
                Number("Table 5", f"{student} from {teacher}, {method}", "FID", value, "cifar10",
                       _m(method, teacher=paper[teacher], student=paper[student]),
                       _m(method, teacher=small[teacher], student=small_student[student]))
            )  # fmt: skip
    return numbers


def _table_11() -> list[Number]:
    rows = {
        "teacher": (4.45, 7.09, 2.09, 3.92),
        "data-free": (9.64, 11.64, 4.13, 5.19),
        "dynamic": (6.85, 8.01, 2.60, 4.14),
    }
    numbers = []
    for method, values in rows.items():
        where, small = (
            _m(method) if method == "teacher" else _m(method, student=CAST[preset]["CNN"])
            for preset in ("cifar10", "digits")
        )
        for metric, value in zip(("FID", "sFID", "FID'", "sFID'"), values, strict=True):
            numbers.append(Number("Table 11", method, metric, value, "cifar10", where, small))
    return numbers


def _table_9() -> list[Number]:
    """Seconds for 100 iterations on an A100; ours are ratios, under ``time``, unless a GPU made them."""
    rows = {
        ("cifar10", "data-based"): 18.00,
        ("cifar10", "dynamic"): 19.17,
        ("ffhq256", "data-based"): 68.77,
        ("ffhq256", "dynamic"): 55.52,
    }
    return [
        Number("Table 9", f"{preset}, {method}", "seconds / 100 iterations", value, preset, _m(method))
        for (preset, method), value in rows.items()
    ]


NUMBERS = (*_table_2(), *_table_3(), *_table_5(), *_table_9(), *_table_11())


def beside(place: str, preset: str, metric: str | None = None, small: str = "digits") -> Table:
    """The paper's numbers of a table, as it ran ``preset``, beside ours there and at a smaller preset; of
    one metric or of all."""
    chosen = [
        n for n in NUMBERS if n.place == place and n.preset == preset and n.metric == (metric or n.metric)
    ]
    rows = [[n.row, n.metric, f"{n.value}", n.cell(preset), n.cell(small)] for n in chosen]
    head = (
        f"{place}, {preset}: the paper's numbers beside the ledger's (N = {PRESETS[preset].samples:,} there, "
        f"{PRESETS[small].samples:,} at `{small}`). At `{small}` the metric is that preset's own: its order "
        "can be compared, its values cannot."
    )
    names = ["", "metric", "paper", f"ours, `{preset}`", f"ours, `{small}`"]
    return Table.of(names, rows, "llrrr", before=head)


# -- claims -------------------------------------------------------------------------------------------

# For a preset: by how much, as a ratio, a claim holds (below 1) or fails (above), for each seed that has all
# the results it needs.
Check = Callable[[str], dict[int, float]]


# The presets that a claim of the paper can be looked up at: its own and ours, in pixel or in latent space.
PIXELS = ("digits", "fashion", "cifar10", "celeba64", "imagenet32")
LATENTS = ("digits-latent", "celebahq256", "ffhq256")


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
        of = f"({holds} of {len(ratios)} seeds)"
        if holds == len(ratios):
            return f"reproduced at this scale {of}"
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        return f"{'trend reproduced' if mean < 1 else 'not reproduced'} {of}"


VERDICTS = ("reproduced at this scale", "trend reproduced", "not reproduced", "not run")


def ratios(
    preset: str, better: Mapping, worse: Mapping, primes: tuple[str, str] = ("", "")
) -> dict[int, float]:
    """Score of ``better`` over score of ``worse``, for each seed that has both. primes: ``"'"`` for a score
    that is to be against the teacher's own distribution."""
    metric = PRESETS[preset].metric
    a, b = (
        by_seed(preset, metric + prime, dict(where))
        for where, prime in zip((better, worse), primes, strict=True)
    )
    return {seed: a[seed] / b[seed] for seed in sorted(a.keys() & b.keys())}


def _all(*checks: Check) -> Check:
    """Every one of ``checks``; for each seed that all have, the one that holds least counts."""

    def check(preset: str) -> dict[int, float]:
        each = [one(preset) for one in checks]
        seeds = sorted(set.intersection(*map(set, each)))
        return {seed: max(found[seed] for found in each) for seed in seeds}

    return check


def _beats(better: Mapping, *others: Mapping, primes: tuple[str, str] = ("", "")) -> Check:
    """``better`` has a lower score than each of ``others``."""
    return _all(*[lambda preset, other=other: ratios(preset, better, other, primes) for other in others])


def _with_cast(make: Callable[[dict], Check]) -> Check:
    """A check between networks, which have other names at each preset."""
    return lambda preset: make(CAST[preset])(preset)


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


def _as_teachers(cast: dict) -> Check:
    own = {"student": cast["CNN"]}
    return _beats(_m("dynamic", **own), _m("data-free", **own), primes=("'", "'"))


def _own_distribution(cast: dict) -> Check:
    own = {"student": cast["CNN"]}
    runs = (_m("teacher"), _m("data-free", **own), _m("dynamic", **own))
    return _all(*[_beats(run, run, primes=("'", "")) for run in runs])


def _ahead(other: str) -> Check:
    """Dynamic distillation is better than another method at every point of the curve, not only at its end."""

    def check(preset: str) -> dict[int, float]:
        curves = {"dynamic": {}, other: {}}
        for method, of_seed in curves.items():
            for result in ledger.results(preset, {"method": method}):
                points = {p["iteration"]: p[PRESETS[preset].metric] for p in result["curve"]}
                of_seed[result["settings"]["seed"]] = points
        a, b = curves.values()
        return {s: max(a[s][i] / b[s][i] for i in a[s].keys() & b[s].keys()) for s in a.keys() & b.keys()}

    return check


def _costs_little(preset: str) -> dict[int, float]:
    """A dynamic step takes at most a tenth longer than a data-based one; the paper's takes 6.5%."""
    return {m["seed"]: m["training"]["dynamic"]["time"] / 1.1 for m in ledger.measured(preset)}


def _smaller_is_faster(cast: dict) -> Check:
    largest, smallest = cast["sizes"][0], cast["sizes"][-1]
    return lambda preset: {
        m["seed"]: m["sampling"][smallest]["time"] / m["sampling"][largest]["time"]
        for m in ledger.measured(preset)
    }


CLAIMS = (
    Claim("Table 2", "Dynamic distillation is better than data-free training.", "07_baselines",
          _beats(_m("dynamic"), _m("data-free"))),
    Claim("Table 2", "It is better than data-limited training with 5, 10, 15 and 20% of real images.",
          "07_baselines",
          _beats(_m("dynamic"), *[_m("data-limited", real_fraction=f) for f in FRACTIONS])),
    Claim("Table 2", "Data-based training is its upper limit.", "07_baselines",
          _beats(_m("data-based"), _m("dynamic"))),
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
        place = f"[{claim.place}]({claim.chapter})" if link else claim.place
        rows.append([place, claim.text, *[found[p][number] for p in run]])
    missing = [f"`{p}`" for p in about if p not in run]
    note = f"Not run: {', '.join(missing)}." if missing else ""
    names = ["", "claim", *[f"`{p}`" for p in run]]
    return Table.of(names, rows, "l" * len(names), after=note)


def numbers(place: str, small: str = "digits") -> Table:
    """Every number of one of the paper's tables, with ours at its own preset and at a smaller one."""
    rows = [
        [n.preset, n.row, n.metric, f"{n.value:g}", n.cell(n.preset), n.verdict, n.cell(small)]
        for n in NUMBERS
        if n.place == place
    ]
    return Table.of(["preset", "", "metric", "paper", "ours", "verdict", f"`{small}`"], rows, "lllrrlr")


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
            ("Fig. 6", f"{method}, size {size} of 5", _m(method, student=name))
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
        ("Fig. 9", "FID against FID', student", _m("dynamic", student=cast["CNN"])),
        *[
            ("Fig. 10", f"student of teacher {number} of 3", _m("dynamic", teacher_iterations=n))
            for number, n in enumerate(cast["teachers"], 1)
        ],
    ]


def curves() -> Table:
    """Every curve of the paper's figures, with the last score of ours at `digits` and at the paper's own
    preset, and FID' for Fig. 9."""
    presets = ("digits", "cifar10")
    rows = []
    for of_presets in zip(*map(figure_curves, presets), strict=True):
        place, what, run = of_presets[0]
        primes = ("", "'") if place == "Fig. 9" else ("",)
        cells = [
            " and ".join(ledger.cell(preset, PRESETS[preset].metric + prime, where) for prime in primes)
            for preset, (_, _, where) in zip(presets, of_presets, strict=True)
            if run is not None
        ]
        rows.append([place, what, *(cells or ["in its chapter"] * 2)])
    names = ["figure", "curve", *[f"{PRESETS[p].metric} at its end, `{p}`" for p in presets]]
    return Table.of(names, rows, "llrr")


# -- the sweep ----------------------------------------------------------------------------------------


def sweep(preset: Preset, seeds: Iterable[int]) -> dict[str, tuple[Run, bool]]:
    """Every run that the numbers, claims and curves above look up at a preset, with those that they stand on:
    what is to be made to fill all cells of the book. By name; with each, whether its FID' is looked up too.
    A preset without a part in the paper has one run of each method, a class-conditional one a teacher and its
    student."""
    wheres = [(_m(method), False) for method in METHODS]
    if preset.classes:
        wheres = [(_m("teacher"), False), (_m("dynamic"), False)]
    elif preset.name in LATENTS:
        wheres = [(n.where, False) for n in _table_3() if n.preset == "celebahq256"]
    elif preset.name == "digits-pools":
        wheres = [(_m("dynamic", rho=SIZES[1], stride=k), False) for k in STRIDES]
        wheres += [(_m("dynamic", rho=rho, stride=k), False) for rho in SIZES for k in (1, 10)]
        wheres += [(_m("dynamic", storage=storage), False) for storage in STORED]
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
            (number.where, number.metric.endswith("'"))
            for number in NUMBERS
            if number.preset == preset.name and number.place != "Table 9"  # which is measured
        ]
    found: dict[str, tuple[Run, bool]] = {}
    for seed in seeds:
        for where, primed in wheres:
            changes = {name: value for name, value in where.items() if name != "method"}
            run = Run(preset.replace(**changes), where["method"], seed).shared()
            for each in run.needs():
                found.setdefault(each.name, (each, False))
            _, before = found.get(run.name, (run, False))
            found[run.name] = run, primed or before
    return found
