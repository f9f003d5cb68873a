"""Progress: a bar in a terminal or a notebook, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time

from tqdm import std
from tqdm.auto import tqdm

LOG_EVERY = 30.0  # seconds between two lines of progress in a log


class _Lines(std.tqdm):
    """Progress where no terminal is, as in a log: a line now and then, not one for each renewal of a bar, and
    a last one. What is done before the first is due leaves none."""

    def __init__(self, *arguments, **options):
        self._begun = self._printed = time.monotonic()
        super().__init__(*arguments, **options)

    def display(self, msg=None, pos=None) -> None:
        if msg is None and time.monotonic() - self._printed >= LOG_EVERY:
            self._print()

    def close(self) -> None:
        if not self.disable and time.monotonic() - self._begun >= LOG_EVERY:
            self._print()
        super().close()

    def _print(self) -> None:
        self._printed = time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def progress_bar(*arguments, show: bool, **options) -> std.tqdm:
    """A tqdm bar that disappears when it is done. Where the output is not a terminal but a log, it is a line
    now and then. The variable TQDM_DISABLE hides both, in notebooks too, where tqdm itself does not look: so
    chapters run headless without bars in their outputs."""
    hidden = not show or bool(os.environ.get("TQDM_DISABLE"))
    in_notebook = tqdm.__init__.__module__ == "tqdm.notebook"
    kind = tqdm if in_notebook or sys.stderr.isatty() else _Lines
    return kind(*arguments, leave=False, disable=hidden, **options)


def say(line: str) -> None:
    """Print a line at once, above whatever bar there is."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)
