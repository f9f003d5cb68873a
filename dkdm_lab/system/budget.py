"""Work that ends before it is done, saved, and goes on in the next call: when a budget of minutes is used up,
or when somebody asks it to stop.

    with budget(minutes=10) as spent:
        ...  # a training leaves after the step under way, once it is saved
    spent.kept  # whether something was saved in it that the next call need not make again

What runs long asks :func:`over` or :func:`check` wherever it can leave. Without a budget, and unless a signal
came that :class:`Requests` listens to, both say no.
"""

from __future__ import annotations

# No torch here: a command sets its deadline before the seconds that torch takes to load.
import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

Item = TypeVar("Item")
# The exit code of a command whose budget ended before its work: the system's EX_TEMPFAIL, "call again".
CALL_AGAIN = 75


class Stopped(KeyboardInterrupt):
    """Work that was asked to stop, by Ctrl-C, a notebook's stop button or a scheduler."""


class OutOfTime(Stopped):
    """Work that its budget of minutes ended; what was saved stays, and the same call goes on from there."""


@dataclass
class Budget:
    """One that runs: its minutes, when it ends on the clock, and whether something was saved in it."""

    minutes: float
    deadline: float
    kept: bool = False

    def __str__(self) -> str:
        return f"the budget of {self.minutes:g} minute{'s' * (self.minutes != 1)} is used up"


_running: list[Budget] = []
now = time.monotonic


def minutes_of(value) -> float:
    """A budget's minutes, from a number or a text; ValueError for what is not a finite number above 0."""
    try:
        minutes = float(value)
    except (TypeError, ValueError):
        minutes = math.nan
    if not (math.isfinite(minutes) and minutes > 0):
        raise ValueError(f"minutes: found {value!r}, expected a finite number above 0")
    return minutes


@contextlib.contextmanager
def budget(minutes: float | None) -> Iterator[Budget]:
    """A budget for what happens inside, in minutes from here; None for none. Yields it.

    Errors: ValueError for minutes that are no finite number above 0. Inside: :class:`OutOfTime`.
    """
    minutes = math.inf if minutes is None else minutes_of(minutes)
    _running.append(Budget(minutes, now() + 60 * minutes))
    try:
        yield _running[-1]
    finally:
        _running.pop()


def left() -> float:
    """The seconds that are left, 0 at the least; infinite without a budget."""
    return max(0.0, min((b.deadline for b in _running), default=math.inf) - now())


def over() -> bool:
    """Whether the time is used up."""
    return left() == 0


def used_up() -> str:
    """A sentence about the budget that ends first."""
    return str(min(_running, key=lambda b: b.deadline))


def kept() -> None:
    """Note that something was saved which the next call need not make again."""
    for each in _running:
        each.kept = True


def check(seconds: float = 0.0) -> None:
    """Leave here, by :class:`OutOfTime`, if fewer than so many seconds are left, or none; or by
    :class:`Stopped`, where a training was asked to stop before its first step, as in a long warm-up.

    Where several ranks work together nobody leaves alone for the time's sake: they agree between two steps of
    the training. Who is asked to stop does: a launcher asks them all, and ends those that it could not ask.
    """
    if any(requests.came and not requests.hurried for requests in _listening):
        raise Stopped("stopped before the first step; what was saved before stays")
    if left() > seconds:
        return
    from dkdm_lab.system import distributed  # which loads torch

    if distributed.world_size() == 1:
        raise OutOfTime(f"{used_up()}; what was saved before stays, the same command goes on from there")


def between_steps(level: int, _x) -> None:
    """A sampler's callback that leaves where time is over; not after the last step, for then all is there."""
    if level >= 0:
        check()


def each(items: Iterable[Item]) -> Iterator[Item]:
    """The items, as long as there is time for one more that takes as long as the last one did."""
    took = 0.0
    for item in items:
        check(took)
        started = now()
        yield item
        took = now() - started


# -- asked to stop --------------------------------------------------------------------------------------

# Ctrl-C; a scheduler; a terminal that is closed, which Windows does not tell.
_HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, _HANGUP) if number is not None]


class Requests:
    """Listens, in its block, to the signals that ask a training to stop. The first is noted in ``came`` and
    answered after the step, or by :func:`check`; a second one, and one that comes within :meth:`at_once`,
    interrupts. A SIGHUP that is ignored, as under nohup, stays so."""

    def __init__(self) -> None:
        self.came, self.hurried = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Requests:
        self._before = _heard_by(self._hear)
        _listening.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _heard_again(self._before)
        _listening.remove(self)

    def _hear(self, number: int, frame: object) -> None:
        if self.came or self.hurried:
            _interrupt(number, frame)
        self.came = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For what can be made again: a signal ends it without delay."""
        self.hurried = True
        try:
            yield
        finally:
            self.hurried = False


_listening: list[Requests] = []


@contextlib.contextmanager
def interruptible(once: bool = False) -> Iterator[None]:
    """In the block every request to stop interrupts as Ctrl-C does, by :class:`Stopped`, but where a training
    hears it. once: the first alone, so that what the interruption sets off is not interrupted itself: who
    closes a terminal, or presses Ctrl-C, asks a whole group of processes, whose parent may ask once more."""

    def first(number: int, frame) -> None:
        _heard_by(signal.SIG_IGN)
        _interrupt(number, frame)

    before = _heard_by(first if once else _interrupt)
    try:
        yield
    finally:
        _heard_again(before)


def _interrupt(number: int, _frame) -> NoReturn:
    raise Stopped(f"stopped by {signal.Signals(number).name}; what was saved before stays")


def _heard_by(handler) -> dict:
    """Let a function hear every request to stop; returns what heard each before."""
    if threading.current_thread() is not threading.main_thread():  # Python hears signals nowhere else
        return {}
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    # Under nohup a closed terminal is to be no request; and None is what is not written in Python.
    found = {n: h for n, h in found.items() if h is not None and (n, h) != (_HANGUP, signal.SIG_IGN)}
    return {number: signal.signal(number, handler) for number in found}


def _heard_again(before: dict) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
