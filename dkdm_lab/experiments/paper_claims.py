"""The claims of the paper about its numbers, each with the comparison of ours that decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.cast import CAST, FRACTIONS, LATENTS, NATURAL, as_teacher, metric_name, run_of
from dkdm_lab.experiments.claims import Check, Claim, all_of
from dkdm_lab.experiments.costs import curve
from dkdm_lab.experiments.ledger import by_seed
from dkdm_lab.experiments.presets import PRESETS

HIGHER_IS_BETTER = ("IS", "precision", "recall")


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
    name = PRESETS[preset].metric if metric is None else metric_name(metric, preset)
    a, b = (
        by_seed(preset, name + prime, dict(where))
        for where, prime in zip((better, worse), primes, strict=True)
    )
    if metric in HIGHER_IS_BETTER:
        a, b = b, a
    return {seed: a[seed] / b[seed] for seed in sorted(a.keys() & b.keys())}


def _beats(
    better: Mapping, *others: Mapping, primes: tuple[str, str] = ("", ""), metric: str | None = None
) -> Check:
    """``better`` has a better score than each of ``others``."""
    return all_of(
        *[lambda preset, other=other: ratios(preset, better, other, primes, metric) for other in others]
    )


def _with_cast(make: Callable[[dict], Check]) -> Check:
    """A check between networks, which have other names at each preset; without a cast nothing is known."""
    return lambda preset: make(CAST[preset])(preset) if preset in CAST else {}


def _limited(cast: dict) -> Check:
    limited = [run_of("data-limited", real_fraction=f) for f in cast.get("fractions", FRACTIONS)]
    return _beats(run_of("dynamic"), *limited)


def _pairs(cast: dict) -> Check:
    pairs = [
        {"teacher": cast[teacher], "student": student}
        for teacher in ("CNN", "ViT")
        for student in (cast["student"], cast["ViT"])
    ]
    return all_of(*[_beats(run_of("dynamic", **pair), run_of("data-free", **pair)) for pair in pairs])


def _cnn_students(cast: dict) -> Check:
    students = [
        [run_of("dynamic", teacher=cast[teacher], student=s) for s in (cast["student"], cast["ViT"])]
        for teacher in ("CNN", "ViT")
    ]
    return all_of(*[_beats(cnn, vit) for cnn, vit in students])


def _sizes(cast: dict) -> Check:
    return all_of(
        *[_beats(run_of("dynamic", student=s), run_of("data-free", student=s)) for s in cast["sizes"]]
    )


def _better_teachers(cast: dict) -> Check:
    runs = [run_of("dynamic", teacher_iterations=n) for n in cast["teachers"]]
    return all_of(*[_beats(longer, shorter) for shorter, longer in pairwise(runs)])


def _no_gain(of: Mapping, over: Mapping) -> Check:
    """``of`` is not better than ``over`` by more than a tenth."""
    return lambda preset: {seed: 0.9 * ratio for seed, ratio in ratios(preset, over, of).items()}


def _cnn_student(cast: dict) -> Check:
    cnn, vit = (run_of("dynamic", teacher=cast["CNN"], student=s) for s in (cast["student"], cast["ViT"]))
    return _beats(cnn, vit)


def _as_teachers(cast: dict) -> Check:
    return _beats(as_teacher(cast, "dynamic"), as_teacher(cast, "data-free"), primes=("'", "'"))


def _own_distribution(cast: dict) -> Check:
    runs = [as_teacher(cast, method) for method in ("teacher", "data-free", "dynamic")]
    return all_of(*[_beats(run, run, primes=("'", "")) for run in runs])


def _ahead(other: str) -> Check:
    """Dynamic distillation is better than another method at every point of the curve, not only at its end."""

    def check(preset: str) -> dict[int, float]:
        curves = {"dynamic": {}, other: {}}
        for method, of_seed in curves.items():
            for result in ledger.results(preset, {"method": method}):
                points = dict(zip(*curve(result, PRESETS[preset].curve_metric), strict=True))
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
          _beats(run_of("dynamic"), run_of("data-free"))),
    Claim("Table 2", "It is better than data-limited training with 5, 10, 15 and 20% of real images.",
          "07_baselines", _with_cast(_limited)),
    Claim("Table 2", "Data-based training is its upper limit.", "07_baselines",
          _beats(run_of("data-based"), run_of("dynamic"))),
    Claim("Table 2", "By sFID, too, dynamic distillation is better than data-free training.", "07_baselines",
          _beats(run_of("dynamic"), run_of("data-free"), metric="sFID"), NATURAL),
    Claim("Table 2", "By IS, too, dynamic distillation is better than data-free training.", "07_baselines",
          _beats(run_of("dynamic"), run_of("data-free"), metric="IS"), NATURAL),
    Claim("Sec. 4.2, ours", "Its samples are more precise than those of data-free training.", "07_baselines",
          _beats(run_of("dynamic"), run_of("data-free"), metric="precision")),
    Claim("Sec. 4.2, ours", "They cover more of the data (recall).", "07_baselines",
          _beats(run_of("dynamic"), run_of("data-free"), metric="recall")),
    Claim("Fig. 4a", "Dynamic ends better than shuffled, shuffled better than iterative.", "08_ablations",
          all_of(_beats(run_of("dynamic"), run_of("shuffled")),
                 _beats(run_of("shuffled"), run_of("iterative")))),
    Claim("Fig. 4a", "Dynamic is ahead of both from the first score to the last.", "08_ablations",
          all_of(_ahead("shuffled"), _ahead("iterative"))),
    Claim("Fig. 4b", "A larger rho helps: 0.4 is better than 0.05.", "08_ablations",
          _beats(run_of("dynamic"), run_of("dynamic", rho=0.05))),
    Claim("Fig. 4b", "Beyond a point it does not: 1.0 gains less than a tenth over 0.4.", "08_ablations",
          _no_gain(run_of("dynamic", rho=1.0), run_of("dynamic"))),
    Claim("Fig. 8", "Random discard helps iterative distillation (p = 0.5).", "09_random_discard",
          _beats(run_of("iterative", discard=0.5), run_of("iterative"))),
    Claim("Fig. 8", "It helps shuffled distillation (p = 0.5).", "09_random_discard",
          _beats(run_of("shuffled", discard=0.5), run_of("shuffled"))),
    Claim("Fig. 8", "It gains dynamic distillation less than a tenth (p = 0.5).", "09_random_discard",
          _no_gain(run_of("dynamic", discard=0.5), run_of("dynamic"))),
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
          "15_latent_space", _beats(run_of("dynamic"), run_of("data-free")), LATENTS),
    Claim("Table 3", "It is better than data-limited training with 5, 10, 15 and 20% of real images there.",
          "15_latent_space",
          _beats(run_of("dynamic"), *[run_of("data-limited", real_fraction=f) for f in FRACTIONS]), LATENTS),
    Claim("Table 3", "On CelebA-HQ it is better even than data-based training.", "15_latent_space",
          _beats(run_of("dynamic"), run_of("data-based")), ("digits-latent", "celebahq256")),
    Claim("Table 11", "Every model is nearer to the teacher's distribution than to the data: FID' < FID.",
          "13_two_distributions", _with_cast(_own_distribution)),
    Claim("Table 11", "Dynamic learns the teacher's distribution better than data-free training: lower FID'.",
          "13_two_distributions", _with_cast(_as_teachers)),
    Claim("Fig. 10", "The better the teacher, the better its student.", "13_two_distributions",
          _with_cast(_better_teachers)),
)  # fmt: skip
