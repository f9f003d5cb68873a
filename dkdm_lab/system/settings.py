"""Settings that say what they may be: type, range and meaning stand once, beside each field of a dataclass.

    @dataclass(frozen=True)
    class Training:
        iterations: Annotated[int, Range(1, MOST), "of the student"]
        warmup: Annotated[Literal["full", "harvest"], "how the pool is filled"] = "harvest"

        def __post_init__(self):
            check(self)

:func:`check` refuses what a field may not be; commands read their options by the same annotations, see
:mod:`dkdm_lab.system.options`.
"""

# pydantic would read the same annotations. It is not used: importing it takes longer than all of
# `dkdm --help`, and what remains of this file would have to turn its messages into one sentence.
from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

MOST = 10**9  # of anything that is counted
WHOLE = "a whole number"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; without the ends themselves where ``above`` or ``below`` is set."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (
            (self.above and value == self.low) or (self.below and value == self.high)
        )

    def __str__(self) -> str:
        low = f"above {self.low:,} and" if self.above else f"from {self.low:,} to"
        high = "below " if self.below else "at most " if self.above else ""
        return f"{low} {high}{self.high:,}"


@dataclass(frozen=True)
class Named:
    """Words out of a registry whose import takes seconds; :func:`look_up` compares with it."""

    what: str  # as "a network's name"
    known: Callable[[], Iterable[str]]


Count = Annotated[int, Range(1, MOST)]
CountOrNone = Annotated[int, Range(0, MOST)]  # 0 stands for none
Levels = Annotated[int, Range(2, 100_000)]  # T, the diffusion steps
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what torch and numpy both take
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, above=True)]  # of learning
Average = Annotated[float, Range(0, 1, below=True)]  # rate of averaged weights
Weight = Annotated[float, Range(0, 1e6)]  # of a loss, or the size of a step
Guidance = Annotated[float, Range(0, 1000)]
Scored = Annotated[int, Range(5, MOST)]  # images; fewer have no precision: `metrics.scores.FEWEST`
# Words that several dataclasses take. Tests compare them with what pools, moves and torch know.
Storage = Literal["float32", "bfloat16", "float16", "host"]
Variance = Literal["learned", "stretched", "small", "large", "analytic", "ddim"]
MixedPrecision = Literal["no", "bf16", "fp16"]
Compile = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

Tracker = Literal[
    "tensorboard", "wandb", "trackio", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab"
]


@dataclass(frozen=True)
class Kind:
    """What one setting may be."""

    type: Any  # bool, int, float, str, dict, or tuple for several of `each`
    optional: bool = False
    range: Range | None = None
    words: tuple[str, ...] | None = None
    named: Named | None = None
    each: Kind | None = None
    meaning: str = ""

    def __str__(self) -> str:
        if self.words:
            text = "one of " + ", ".join(self.words)
        elif self.type is tuple:
            text = f"a tuple, each of it {self.each}"
        else:
            plain = {bool: "True or False", int: WHOLE, float: "a number", str: "a name", dict: "a dict"}
            text = self.named.what if self.named else plain[self.type]
            text += f" {self.range}" if self.range else ""
        return f"None or {text}" if self.optional else text

    def accept(self, value: Any) -> Any:
        """``value`` as the setting keeps it: a whole number as a float where a number is asked for, a list as
        a tuple. ValueError, which says what is expected, for what it may not be."""
        if value is None and self.optional:
            return None
        if self.type is tuple and type(value) in (tuple, list):
            return tuple(map(self.each.accept, value))
        if self.type is float and type(value) is int and value in self.range:
            return float(value)
        right = type(value) is self.type  # a bool is an int to isinstance
        if right and self.type is float:
            right = math.isfinite(value)
        if right and self.type is str:
            right = bool(value.strip()) and value.isprintable()
        if not right or (self.range and value not in self.range) or (self.words and value not in self.words):
            raise ValueError(f"expected {self}")
        return value


def kind(hint: Any) -> Kind:
    """What a type hint says: a plain type, `Literal`, `tuple[X, ...]`, `X | None`, `Annotated` by
    :class:`Range`, :class:`Named` and a text that says what it means."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = kind(arguments[0])
        for note in arguments[1:]:
            name = {Range: "range", Named: "named", str: "meaning"}[type(note)]
            found = dataclasses.replace(found, **{name: note})
        return found
    if origin in (typing.Union, types.UnionType):
        (one,) = [argument for argument in arguments if argument is not types.NoneType]
        return dataclasses.replace(kind(one), optional=True)
    if origin is Literal:
        return Kind(str, words=arguments)
    if origin is tuple:
        return Kind(tuple, each=kind(arguments[0]))
    return Kind(hint)


@functools.cache
def kinds(settings: type) -> dict[str, Kind]:
    """What each field of a dataclass may be, by its name."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {field.name: kind(hints[field.name]) for field in dataclasses.fields(settings)}


def shown(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:77]}..."


def accept(name: str, expected: Kind, value: Any) -> Any:
    """``value`` as the setting ``name`` keeps it; ValueError in one sentence for what it may not be."""
    try:
        return expected.accept(value)
    except ValueError:
        raise ValueError(f"{name}: found {shown(value)}, expected {expected}") from None


def check(settings: Any) -> None:
    """Each field of a dataclass instance against its type and range; ValueError, in one sentence, for the
    first that is not what it may be. Whole numbers become floats, and lists tuples, where those belong."""
    for name, expected in kinds(type(settings)).items():
        value = getattr(settings, name)
        kept = accept(name, expected, value)
        if kept is not value:
            object.__setattr__(settings, name, kept)  # frozen, but still being made


def together(settings: Any, rules: Iterable[tuple[str, bool, str]]) -> None:
    """What settings ask of each other. rules: a setting's name, whether it is wrong, what is expected of it;
    ValueError for the first that is wrong."""
    for name, wrong, expected in rules:
        if wrong:
            raise ValueError(f"{name}: found {shown(getattr(settings, name))}, expected {expected}")


def look_up(settings: Any, names: Iterable[str]) -> None:
    """These settings' words against the registries that know them; ValueError for one that is not there."""
    for name in names:
        named, value = kinds(type(settings))[name].named, getattr(settings, name)
        if named and value is not None and value not in (known := list(named.known())):
            raise ValueError(f"{name}: found {shown(value)}, expected one of {', '.join(known)}")


def changed(settings: Any, changes: dict, what: str, fixed: Iterable[str] = ("name",)) -> Any:
    """Settings with other values, checked. what: whose they are, for a name that is not known or fixed."""
    if unknown := [name for name in changes if name not in kinds(type(settings)) or name in fixed]:
        known = ", ".join(sorted(kinds(type(settings)).keys() - set(fixed)))
        raise ValueError(f"{what}: found no setting {shown(unknown[0])}, expected one of {known}")
    found = dataclasses.replace(settings, **changes)
    look_up(found, changes)
    return found
