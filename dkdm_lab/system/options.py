"""Options of commands, read by the annotated types of :mod:`dkdm_lab.system.settings`, with argparse.

tyro and typer make a command line out of types as well. They are not used: the settings that --set
takes, whose names depend on another option, and the one sentence of a refusal would be ours all the same.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from dkdm_lab.system.settings import kind, kinds, shown


def literal(text: str) -> Any:
    """A Python literal, or else the text itself, a plain word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def setting(text: str) -> tuple[str, Any]:
    """One setting from NAME=VALUE; ValueError for a text without either."""
    name, separator, value = text.partition("=")
    if not (separator and name.strip()):
        raise ValueError(f"found {shown(text)}, expected NAME=VALUE")
    return name.strip(), literal(value)


def settings_of(text: str) -> dict:
    """Settings from one text, as "iterations=1000,lr=0.001"."""
    return dict(map(setting, filter(None, text.split(","))))


def parsed(hint: Any) -> Callable[[str], Any]:
    """A function that reads an option of this type for argparse, which prints what it finds wrong."""
    expected = kind(hint)

    def read(text: str) -> Any:
        try:
            return expected.accept(text if expected.type is str and text != "None" else literal(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"found {shown(text)}, {error}") from None

    return read


def listed(hint: Any) -> Callable[[str], list]:
    """A function that reads a comma-separated list, none of it empty, for argparse."""
    read = parsed(hint)
    return lambda text: [read(word.strip()) for word in text.split(",")]


def option(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader whose ValueError argparse prints as it is."""

    def reading(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reading


def folder(text: str) -> Path:
    """A folder to write to, of an option, for :func:`option`."""
    if not text.strip():
        raise ValueError(f"found {shown(text)}, expected the name of a folder")
    return writable(Path(text))


def file(text: str) -> Path:
    """A file to write, of an option, for :func:`option`."""
    if not text.strip() or Path(text).is_dir():
        raise ValueError(f"found {shown(text)}, expected the name of a file")
    writable(Path(text).parent)
    return Path(text)


def table(settings: type, values: Any = None, fixed: Iterable[str] = ("name",)) -> str:
    """Every setting in two lines, for a command's help: its name, its default, and what it may be; what it
    means. values: an instance whose values stand as defaults, where the class has none."""
    lines = []
    for field in dataclasses.fields(settings):
        if field.name in fixed:
            continue
        found, default = kinds(settings)[field.name], getattr(values, field.name, field.default)
        default = "" if default is MISSING else f" (default: {default!r})"
        lines += [f"  {field.name}: {found}{default}", f"      {found.meaning}" if found.meaning else ""]
    return "\n".join(filter(None, lines))


def writable(folder: Path, name: str = "") -> Path:
    """A folder that something will be written to; ValueError where neither it nor the nearest one above it
    takes files. Leaves nothing there. name: what it is, for the message."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return folder
    except OSError as error:
        why = error.strerror
        found = f"found {shown(str(folder))}, expected a place for files ({why})"
        raise ValueError(f"{name}: {found}" if name else found) from None


class Command(argparse.ArgumentParser):
    """A parser that reads options of annotated types, and whose help ends with the settings of --set."""

    more: Callable[[], str] | None = None

    def add(self, flag: str, hint: Any, **options) -> None:
        """An option of the type, in the range and with the meaning that an annotated hint names."""
        found, default = kind(hint), options.get("default")
        text = found.meaning if found.words else f"{found.meaning}; {found}".removeprefix("; ")
        text += "" if default is None else f" (default: {default})"
        words = {"metavar": "{" + ",".join(found.words) + "}"} if found.words else {}
        self.add_argument(flag, help=text, type=parsed(hint), **words, **options)

    def format_help(self) -> str:
        more = f"\n{self.more()}\n" if self.more else ""
        return super().format_help() + more
