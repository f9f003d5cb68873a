"""The pages that follow from the code are current, and what a publisher needs agrees with the project."""

import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from dkdm_lab.experiments.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = runpy.run_path(str(ROOT / "book" / "write_pages.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("name", PAGES["PAGES"])
def test_a_written_page_is_current(name):
    expected = PAGES["PAGES"][name]()
    found = (ROOT / "book" / name).read_text(encoding="utf-8")
    assert found == expected, f"{name}: renew it by `.venv/bin/python book/write_pages.py`"


def test_every_command_and_option_is_listed_and_no_bracket_is_html():
    page = PAGES["commands"]()
    for words in ("## dkdm distill", "`--student STUDENT`", "| `teacher` |", "(default: 0)", "--minutes M"):
        assert words in page
    prose = re.sub("`[^`]*`", "", page)
    assert "<" not in prose


def test_a_preset_that_differs_from_the_paper_says_so(monkeypatch):
    assert "ours" not in PAGES["hyperparameters"]().split("## Table 8")[0].split("it says *ours*")[1]
    monkeypatch.setitem(PRESETS, "cifar10", PRESETS["cifar10"].replace(rho=0.5))
    assert "ours 0.5, paper 0.4" in PAGES["hyperparameters"]()


def test_every_page_of_the_book_is_in_its_contents():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]} | {toc["root"]}
    there = {page.stem for page in (ROOT / "book").glob("*.md")}
    there |= {source.stem for source in (ROOT / "book").glob("[0-9]*.py")}
    assert listed == there


def test_the_lock_fits_the_project_and_names_no_place():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
        locked[re.sub(r"[-_.]+", "-", name).lower()] = version
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert wanted.specifier.contains(locked[name], prereleases=True), f"{text}: locked {locked[name]}"


def test_locked_installs_the_lock():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(if $(LOCKED),--constraint requirements.lock)" in recipe
    binder = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8")
    assert (
        "requirements.lock" in binder
        and (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8") == "python-3.11\n"
    )


@pytest.mark.parametrize("name", ["test", "pages"])
def test_workflows_run_the_commands_of_the_project(name):
    workflow = yaml.safe_load((ROOT / ".github/workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == {"test": ["bash .ci/run"], "pages": ["make site LOCKED=1"]}[name]


@pytest.mark.parametrize("url", ["", "https://github.com/someone/dkdm-lab"])
def test_buttons_come_with_the_address_alone(url):
    buttons = runpy.run_path(str(ROOT / "book" / "buttons.py"))
    config = SimpleNamespace(html_theme_options={"repository_url": url, "path_to_docs": "book"})
    buttons["add_buttons"](None, config)
    with_buttons = set(config.html_theme_options) - {"repository_url", "path_to_docs"}
    expected = {"use_repository_button", "use_edit_page_button", "launch_buttons"} if url else set()
    assert with_buttons == expected
