"""The ledger: what counts as a result of a preset, its spread, and README's table."""

import dataclasses
import json
import math

import pytest

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.presets import PRESETS


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty ledger, and a function that puts a result of preset digits into it."""
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path))
    (tmp_path / "digits").mkdir()

    def put(method, seed, fid, **others):
        own = dataclasses.asdict(PRESETS["digits"])
        names = ["T", "iterations", "rho", "warmup"] if method == "dynamic" else ["T", "iterations"]
        settings = {
            "preset": "digits",
            "method": method,
            "seed": seed,
            **{n: own[n] for n in names},
            **others,
        }
        result = {"settings": settings, "metrics": {"digits-FID": fid, "N": 2000}, "teacher_evaluations": 7}
        (tmp_path / "digits" / f"{method}-{seed}-{len(others)}.json").write_text(
            json.dumps(result), encoding="utf-8"
        )

    return put


def test_mean_and_sample_deviation_over_seeds(book):
    for seed, fid in enumerate((8.0, 10.0, 12.0)):
        book("dynamic", seed, fid)
    found = ledger.summary("digits", "digits-FID")["dynamic"]
    assert (found.mean, found.std, found.n) == (10.0, 2.0, 3)
    assert str(found) == "10.0 ± 2.0"


def test_one_seed_has_no_deviation(book):
    book("dynamic", 0, 8.25)
    found = ledger.summary("digits", "digits-FID")["dynamic"]
    assert math.isnan(found.std) and str(found) == "8.25"


def test_other_settings_count_only_where_asked_for(book):
    book("dynamic", 0, 8.0)
    book("dynamic", 1, 99.0, warmup="full")
    assert ledger.summary("digits", "digits-FID")["dynamic"].mean == 8.0
    assert ledger.summary("digits", "digits-FID", {"warmup": "full"})["dynamic"].mean == 99.0


def test_how_often_a_result_was_scored_makes_no_difference(book):
    book("dynamic", 0, 8.0, curve=1)
    assert ledger.by_seed("digits", "digits-FID", {"method": "dynamic"}) == {0: 8.0}


def test_a_metric_with_a_prime_is_the_one_against_the_teacher(book, tmp_path):
    book("dynamic", 0, 8.0)
    file = next((tmp_path / "digits").glob("*.json"))
    result = json.loads(file.read_text(encoding="utf-8")) | {"against_teacher": {"digits-FID": 3.0}}
    file.write_text(json.dumps(result), encoding="utf-8")
    assert ledger.by_seed("digits", "digits-FID'", {"method": "dynamic"}) == {0: 3.0}
    assert ledger.by_seed("digits", "digits-FID", {"method": "dynamic"}) == {0: 8.0}


def test_the_error_against_the_teacher_is_a_score(book, tmp_path):
    book("dynamic", 0, 8.0)
    book("dynamic", 1, 9.0)  # of before it was measured
    (file,) = (tmp_path / "digits").glob("dynamic-0-*.json")
    result = json.loads(file.read_text("utf-8")) | {"teacher_error": [0.4, 0.3, 0.2, 0.1]}
    file.write_text(json.dumps(result), encoding="utf-8")
    for name, value in zip(ledger.EPS_ERRORS, (0.4, 0.3, 0.2, 0.1), strict=True):
        assert ledger.by_seed("digits", name, {"method": "dynamic"}) == {0: value}
    assert ledger.over_seeds("digits", "eps-error-1", {"method": "dynamic"}).n == 1


def test_where_asks_only_methods_that_have_the_setting(book):
    book("data-based", 0, 5.0)
    assert ledger.summary("digits", "digits-FID", {"warmup": "full"}) == {}


def test_table_is_sorted_best_first(book):
    book("dynamic", 0, 8.0)
    book("data-based", 0, 5.0)
    lines = ledger.table("digits").splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["data-based", "dynamic"]


def test_table_of_nothing_says_not_run(book):
    assert ledger.table("digits").endswith("not run.")


def test_readme_without_marks_is_left_alone(book, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="found no place for the table"):
        ledger.write_readme(readme)
    assert readme.read_text(encoding="utf-8") == "no marks"
