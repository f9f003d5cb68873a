"""pip users and conda users get the same environment: pyproject.toml and environment.yml agree."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))


def ranges(requirements: list[str]) -> dict[str, set[str]]:
    """`["numpy>=1.26,<3"]` -> `{"numpy": {">=1.26", "<3"}}`; a name listed twice is an error."""
    pairs = [re.fullmatch(r"([\w.-]+)(.*)", line.replace(" ", "")).groups() for line in requirements]
    names = [re.sub(r"[-_.]+", "-", name).lower() for name, _ in pairs]
    assert len(set(names)) == len(names), f"listed twice: {sorted({n for n in names if names.count(n) > 1})}"
    return {name: set(versions.split(",")) for name, (_, versions) in zip(names, pairs, strict=True)}


def test_conda_lists_the_same_requirements():
    required = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert ranges([line for line in PIP if line != "-e ."]) == ranges(required)


def test_conda_installs_the_module_itself():
    assert PIP[-1] == "-e ."


def test_conda_asks_for_the_same_python():
    assert f"python{PROJECT['requires-python']}" in CONDA


def test_every_requirement_has_both_bounds():
    for name, versions in ranges(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]).items():
        assert sorted(v.rstrip("0123456789.") for v in versions) == ["<", ">="], f"{name}: {versions}"
