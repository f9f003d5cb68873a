"""The paper's numbers and claims: complete, and judged by their own rule."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dkdm_lab.experiments import paper
from dkdm_lab.experiments.claims import Claim, Verdict
from dkdm_lab.experiments.paper import CLAIMS, NUMBERS
from dkdm_lab.experiments.presets import PRESETS
from dkdm_lab.networks import NETWORKS

CHAPTERS = {file.stem for file in (Path(__file__).parents[1] / "book").glob("[0-9][0-9]_*.py")}


def find(place, row, metric, preset="cifar10"):
    (number,) = [n for n in NUMBERS if (n.place, n.row, n.metric, n.preset) == (place, row, metric, preset)]
    return number.value


def test_every_number_of_the_tables_is_there():
    counts = Counter(n.place for n in NUMBERS)
    expected = {"Table 2": 8 * 9, "Table 3": 8 * 4, "Table 5": 8 + 2, "Table 9": 4, "Table 11": 3 * 4}
    assert counts == expected
    assert len({(n.place, n.preset, n.row, n.metric) for n in NUMBERS}) == len(NUMBERS)


@pytest.mark.parametrize(
    "place, row, metric, preset, value",
    [
        ("Table 2", "dynamic", "FID", "cifar10", 9.56),
        ("Table 2", "data-limited 10%", "FID", "celeba64", 8.20),
        ("Table 2", "data-limited 5%", "sFID", "imagenet32", 10.62),
        ("Table 2", "data-based", "IS", "cifar10", 8.73),
        ("Table 2", "data-free", "sFID", "celeba64", 12.71),
        ("Table 3", "teacher", "sFID", "celebahq256", 10.02),
        ("Table 3", "data-based", "FID", "celebahq256", 9.09),
        ("Table 3", "data-limited 15%", "sFID", "celebahq256", 16.98),
        ("Table 3", "data-limited 10%", "FID", "ffhq256", 16.00),
        ("Table 3", "data-free", "sFID", "ffhq256", 12.75),
        ("Table 3", "dynamic", "FID", "celebahq256", 8.69),
        ("Table 3", "dynamic", "sFID", "ffhq256", 10.29),
        ("Table 5", "CNN from ViT, dynamic", "FID", "cifar10", 13.17),
        ("Table 5", "ViT from CNN, data-free", "FID", "cifar10", 17.11),
        ("Table 5", "ViT teacher", "FID", "cifar10", 11.30),
        ("Table 9", "ffhq256, dynamic", "seconds / 100 iterations", "ffhq256", 55.52),
        ("Table 11", "dynamic", "FID'", "cifar10", 2.60),
        ("Table 11", "data-free", "sFID'", "cifar10", 5.19),
    ],
)
def test_numbers_are_the_papers(place, row, metric, preset, value):
    assert find(place, row, metric, preset) == value


def test_what_a_number_looks_up_exists():
    """A misspelt setting or network would say "not run" for ever."""
    settings = {f.name for f in dataclasses.fields(PRESETS["digits"])} | {"method"}
    for number in NUMBERS:
        for where in map(number.run, paper.CAST):
            assert where.keys() <= settings
            for key in ("teacher", "student"):
                assert where.get(key, "cnn-57m") in NETWORKS
    for cast in paper.CAST.values():
        assert {cast["CNN"], cast["ViT"], cast["student"], *cast["sizes"]} <= NETWORKS.keys()


def test_every_claim_names_its_chapter():
    assert {claim.chapter for claim in CLAIMS} <= CHAPTERS
    assert {"07", "08", "09", "10", "11", "12", "13", "15"} == {claim.chapter[:2] for claim in CLAIMS}


def test_a_claim_is_about_pixels_or_about_latents():
    for preset in PRESETS.values():
        latent = bool(preset.autoencoder) or preset.name in ("celebahq256", "ffhq256")
        about = [claim for claim in CLAIMS if preset.name in claim.about]
        assert all((claim.chapter == "15_latent_space") == latent for claim in about)


@pytest.mark.parametrize(
    "ratios, verdict",
    [
        ([0.5, 0.9, 0.99], "reproduced at this scale (3 of 3 seeds)"),
        ([0.1, 0.1, 1.1], "undecided (2 of 3 seeds)"),
        ([0.9, 1.2, 1.1], "undecided (1 of 3 seeds)"),
        ([1.3, 1.2, 1.1], "not reproduced (0 of 3 seeds)"),
        ([1.2], "not reproduced (0 of 1 seeds)"),
        ([], "not run"),
    ],
)
def test_a_verdict_counts_seeds(ratios, verdict):
    found = Claim("Fig. 0", "", "", lambda preset: dict(enumerate(ratios))).verdict("digits")
    assert found == verdict
    assert found.split(" (")[0] in list(Verdict)


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty ledger, and a function that enters a score of preset digits, or of another."""
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path))

    def put(method, seed, fid, prime=None, curve=(), preset="digits", **others):
        own = dataclasses.asdict(PRESETS[preset])
        prefix = "digits-" if PRESETS[preset].features == "digits" else ""
        more = {prefix + name: others.pop(name) for name in ("precision", "recall", "sFID") if name in others}
        names = ("teacher", "student", "teacher_iterations", "rho", "discard", "real_fraction")
        settings = {"preset": preset, "method": method, "seed": seed}
        settings |= {name: own[name] for name in names} | others
        result = {"settings": settings, "metrics": {f"{prefix}FID": fid, **more}}
        result["curve"] = [{"iteration": k, "digits-FID": value} for k, value in enumerate(curve)]
        if prime is not None:
            result["against_teacher"] = {"digits-FID": prime}
        (tmp_path / preset).mkdir(exist_ok=True)
        number = len(list((tmp_path / preset).iterdir()))
        (tmp_path / preset / f"{number}.json").write_text(json.dumps(result), encoding="utf-8")

    return put


def verdict(text, preset="digits"):
    (claim,) = [claim for claim in CLAIMS if re.search(text, claim.text) and preset in claim.about]
    return claim.verdict(preset)


def test_only_runs_of_the_same_seed_are_compared(book):
    for seed, (dynamic, data_free) in enumerate([(5, 6), (9, 8), (4, 7)]):
        book("dynamic", seed, dynamic)
        book("data-free", seed, data_free)
    book("dynamic", 3, 1000)  # without a partner
    assert verdict("is better than data-free training.$") == "undecided (2 of 3 seeds)"


def test_a_claim_of_several_parts_takes_each_seed_by_itself(book):
    """Not the first of one with the first of another."""
    for seed, fid in ((0, 5), (1, 50)):
        book("dynamic", seed, fid)
    for fraction in paper.FRACTIONS:
        book("data-limited", 1, 60, real_fraction=fraction)
        if fraction != 0.05:
            book("data-limited", 0, 6, real_fraction=fraction)
    assert verdict("data-limited") == "reproduced at this scale (1 of 1 seeds)"


def test_every_share_of_real_images_must_be_beaten(book):
    book("dynamic", 0, 5)
    for fraction, fid in zip(paper.FRACTIONS, (6, 7, 8, 4), strict=True):
        assert verdict("data-limited") == "not run"
        book("data-limited", 0, fid, real_fraction=fraction)
    assert verdict("data-limited") == "not reproduced (0 of 1 seeds)"


def test_saturation_allows_a_tenth(book):
    book("dynamic", 0, 10.0)
    book("dynamic", 0, 9.1, rho=1.0)
    assert verdict("Beyond a point").startswith("reproduced")
    book("dynamic", 1, 10.0)
    book("dynamic", 1, 8.9, rho=1.0)
    assert verdict("Beyond a point").endswith("(1 of 2 seeds)")


def test_discarding_helps_where_the_score_falls(book):
    book("iterative", 0, 100)
    book("iterative", 0, 50, discard=0.5)
    book("shuffled", 0, 10)
    book("shuffled", 0, 12, discard=0.5)
    assert verdict("helps iterative").startswith("reproduced")
    assert verdict("helps shuffled").startswith("not reproduced")


def test_ahead_means_at_every_point(book):
    book("dynamic", 0, 5, curve=(9, 6, 5))
    book("shuffled", 0, 7, curve=(10, 8, 7))
    book("iterative", 0, 9, curve=(11, 5.9, 9))
    assert verdict("ahead of both") == "not reproduced (0 of 1 seeds)"


def test_primes_compare_distances_to_the_teacher(book):
    book("teacher", 0, 5, prime=2)
    book("data-free", 0, 9, prime=6, student="digits-teacher")
    book("dynamic", 0, 8, prime=3, student="digits-teacher")
    assert verdict("nearer to the teacher").startswith("reproduced")
    assert verdict("lower FID'").startswith("reproduced")
    book("dynamic", 1, 8, prime=7, student="digits-teacher")
    book("data-free", 1, 9, prime=6, student="digits-teacher")
    assert verdict("lower FID'").startswith("undecided")


def test_better_teachers_means_at_each_step(book):
    for iterations, fid in zip(paper.CAST["digits"]["teachers"], (40, 20, 21), strict=True):
        book("dynamic", 0, fid, teacher_iterations=iterations)
    assert verdict("The better the teacher") == "not reproduced (0 of 1 seeds)"


def test_tables_say_not_run_where_nothing_was_run(book):
    assert "Not run at any of these presets: 72 of 72 rows." in paper.numbers("Table 2")
    assert "Not run: `digits`" in paper.claims()
    book("dynamic", 0, 8.0)
    assert "| cifar10 | dynamic | FID | 9.56 | not run | not run | not run | 8.00 |" in paper.numbers(
        "Table 2"
    )
    assert "| Fig. 4a | dynamic, rho = 0.4 | 8.00 | not run | not run |" in paper.curves()


def test_latents_are_judged_by_latents(book):
    """What was found in pixels says nothing of them, and the other way round."""
    book("dynamic", 0, 5)
    book("data-free", 0, 6)
    assert verdict("is better than data-free training.$", "digits-latent") == "not run"
    assert verdict("is better than data-free training.$").startswith("reproduced")
    book("dynamic", 0, 9, preset="digits-latent")
    book("data-free", 0, 8, preset="digits-latent")
    assert verdict("is better than data-free training.$", "digits-latent").startswith("not reproduced")
    for fraction, fid in zip(paper.FRACTIONS, (10, 11, 12, 13), strict=True):
        assert verdict("data-limited", "digits-latent") == "not run"
        book("data-limited", 0, fid, preset="digits-latent", real_fraction=fraction)
    assert verdict("data-limited", "digits-latent").startswith("reproduced")
    book("data-based", 0, 10, preset="digits-latent")
    assert verdict("even than data-based", "digits-latent").startswith("reproduced")
    (row,) = [line for line in paper.claims().splitlines() if "Data-based training is its upper" in line]
    assert row.endswith("| not run |  |")  # a column for pixels, and an empty one for latents


def test_table_3_stands_beside_the_latents_of_digits(book):
    assert "Not run at any of these presets: 32 of 32 rows." in paper.numbers("Table 3", ["digits-latent"])
    book("dynamic", 0, 8.0, preset="digits-latent")
    table = paper.numbers("Table 3", ["digits-latent"])
    assert "| celebahq256 | dynamic | FID | 8.69 | not run | not run | 8.00 |" in table
    assert "ffhq256" not in table and "Not run at any of these presets: 31 of 32 rows." in table
    beside = paper.beside("Table 3", "ffhq256", "FID", small=["digits-latent"])
    assert "| dynamic | FID | 11.53 | not run | 8.00 |" in beside


@pytest.mark.parametrize("place", sorted({number.place for number in NUMBERS}))
def test_a_table_says_how_many_samples_its_scores_are_of_and_a_time_has_none(place):
    preset = next(number.preset for number in NUMBERS if number.place == place)
    head = paper.beside(place, preset, small=["digits"]).split("\n\n")[0]
    assert head.startswith(f"{place}, {preset}: ")
    assert ("N = 50,000 at" in head) == (place != "Table 9")
    assert ("A100" in head) == (place == "Table 9")


def test_a_table_without_rows_speaks_of_no_machine():
    assert "A100" not in paper.beside("Table 2", "ffhq256", "FID", small=["digits"])


@pytest.mark.parametrize("preset", paper.LATENTS)
def test_the_sweep_of_latents_is_table_3(preset):
    runs = [run for run, _ in paper.sweep(PRESETS[preset], (0,)).values()]
    for number in NUMBERS:
        if number.place == "Table 3":
            (run,) = [run for run in runs if number.run(preset).items() <= run.settings.items()]
            assert run.preset.name == preset
    assert len(runs) == 8 + 1  # and the synthetic set


def test_the_sweep_of_labels_is_a_teacher_and_its_student():
    runs = paper.sweep(PRESETS["digits-classes"], (0, 1))
    assert sorted(runs) == ["dynamic-seed0", "dynamic-seed1", "teacher-seed0", "teacher-seed1"]


def test_the_sweep_of_cifar16_has_one_teacher_and_one_synthetic_set(monkeypatch):
    monkeypatch.setattr("dkdm_lab.experiments.shipped_models.fingerprint", lambda name: "0" * 12)
    runs = paper.sweep(PRESETS["cifar16"], (0, 1, 2))
    names = list(runs)
    assert names[0] == "teacher-seed0" and not {"teacher-seed1", "synthetic-seed1"} & set(names)
    assert len(names) == 2 + 3 * 8 + 6  # teacher, synthetic set; eight ways; what is made once
    seeds = [run.seed for run, _ in runs.values()]
    assert seeds == sorted(seeds)  # all of seed 0 first
    assert "dynamic-seed2-rho=0.04-stride=100" in names
    assert {name for name, (_, primed) in runs.items() if primed} == {
        "teacher-seed0", *[f"{m}-seed{s}" for m in ("dynamic", "data-free") for s in range(3)]
    }  # fmt: skip


def test_a_higher_precision_is_the_better_one(book):
    book("dynamic", 0, 5, precision=0.8)
    book("data-free", 0, 6, precision=0.7)
    assert verdict("more precise").startswith("reproduced")
    book("dynamic", 1, 5, precision=0.6)
    book("data-free", 1, 6, precision=0.7)
    assert "(1 of 2 seeds)" in verdict("more precise")


def test_of_natural_images_sfid_decides_a_claim_of_its_own(book):
    book("dynamic", 0, 5, preset="cifar16", sFID=8)
    book("data-free", 0, 6, preset="cifar16", sFID=7)
    assert verdict("By sFID", "cifar16").startswith("not reproduced (0 of 1")
    assert verdict("^Dynamic distillation is better than data-free", "cifar16").startswith("reproduced")
    assert verdict("By IS", "cifar16") == "not run"


def test_at_cifar16_two_shares_of_real_images_decide(book):
    book("dynamic", 0, 5, preset="cifar16")
    for fraction, fid in ((0.05, 6), (0.2, 7)):
        assert verdict("data-limited", "cifar16") == "not run"
        book("data-limited", 0, fid, preset="cifar16", real_fraction=fraction)
    assert verdict("data-limited", "cifar16").startswith("reproduced")
    assert "At `cifar16` data-limited training was run at 5% and 20% alone." in paper.claims()
