"""The package as a whole: its names, and that they cost nothing until they are used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dkdm_lab
from dkdm_lab.system.paths import CHECKOUT

HOUSE = CHECKOUT / "dkdm_lab"
FILES = sorted(HOUSE.rglob("*.py"))
METHOD = [HOUSE / f"{name}.py" for name in ("diffusion", "losses", "sources", "pools", "training")]


@pytest.mark.parametrize("name", dkdm_lab.__all__)
def test_every_name_is_the_one_of_its_room(name):
    found = getattr(dkdm_lab, name)
    room = importlib.import_module(f"dkdm_lab.{dkdm_lab._ROOM_OF[name]}")
    assert found is getattr(room, name)
    assert name in dir(dkdm_lab)


def test_a_type_checker_is_told_the_same_names():
    tree = ast.parse(Path(dkdm_lab.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: line.module for line in block.body for alias in line.names}
    assert told == {name: f"dkdm_lab.{room}" for name, room in dkdm_lab._ROOM_OF.items()}
    assert set(dkdm_lab.__all__) == set(told)


def test_an_unknown_name_is_said_to_be_one():
    with pytest.raises(AttributeError, match="module 'dkdm_lab' has no attribute 'DynamicPol'"):
        _ = dkdm_lab.DynamicPol
    with pytest.raises(ImportError, match="cannot import name 'DynamicPol'"):
        from dkdm_lab import DynamicPol  # noqa: F401


@pytest.mark.parametrize(
    "code",
    [
        "import dkdm_lab; dkdm_lab.__all__, dir(dkdm_lab)",
        "import dkdm_lab.cli",
        "import dkdm_lab.system.settings",
    ],
)
def test_nothing_loads_torch_before_it_is_asked_for(code):
    """Torch takes seconds, and a command's help, or a look at the names, needs none of it."""
    heavy = "{'torch', 'diffusers', 'transformers', 'sklearn', 'matplotlib'}"
    code += f"; import sys; loaded = sys.modules.keys() & {heavy}; assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True)


def _lines(node):
    return node.end_lineno - node.lineno + 1


def _body(function):
    """Lines of a function's body, without its docstring."""
    first = function.body[1:2] if ast.get_docstring(function) and function.body[1:] else function.body[:1]
    return function.end_lineno - first[0].lineno + 1


PARSERS = ("parser", "adm_to_unet")  # options one after another, and a file's keys in another's words


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(HOUSE).as_posix())
def test_what_is_to_be_read_stays_small(file):
    """At most 400 lines per file, 200 per class, and 60 in a function's body, but for parsers."""
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert _lines(node) <= 200, node.name
        if isinstance(node, ast.FunctionDef) and node.name not in PARSERS:
            assert _body(node) <= 60, node.name


def test_the_method_is_thin():
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in METHOD) <= 1800
