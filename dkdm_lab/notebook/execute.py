"""One chapter, from its .py source to an executed notebook. Imports nothing of what the chapter does: its
kernel is a process of its own."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from dkdm_lab.system.budget import interruptible
from dkdm_lab.system.files import scratch, whole


def parameter_names(source: Path) -> set[str]:
    """The names in a chapter's cell tagged ``parameters``, as papermill reads them."""
    return set(papermill.inspect_notebook(_as_notebook(source)))


def _as_notebook(source: Path) -> nbformat.NotebookNode:
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"  # the same ids every time, so that a diff shows only changes
    return notebook


def execute(source: Path, target: Path, failures: Path, parameters: dict) -> str | None:
    """Run one chapter into ``target``; or else keep in the folder ``failures`` what ran, and return a
    sentence on what failed. Others may run it at the same time: each writes beside, the last one's stays."""
    with scratch(target.parent) as folder:
        written = folder / target.name
        problem = _run(source, written, parameters)
        if problem is None:
            notebook = nbformat.read(written, as_version=4)
            _clean(notebook)
            with whole(target) as new:
                nbformat.write(notebook, new)
        elif written.exists():
            with whole(failures / target.name) as kept:  # perhaps on another disk
                shutil.copyfile(written, kept)
            problem += f"\nas far as it ran: {failures / target.name}"
    return problem


def _run(source: Path, target: Path, parameters: dict) -> str | None:
    """Run one chapter into ``target``, which grows as it runs; returns what went wrong, if anything."""
    # Bars are for people: papermill's own, already imported, goes to the terminal; the chapter's stay out
    # of its outputs.
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["DKDM_LIVE"] = "0"  # explorations show their static twins: nobody sits before this kernel
    try:
        # Over TCP the kernel warns of eavesdroppers. Sockets of its own: chapters run side by side.
        with tempfile.TemporaryDirectory(prefix="dkdm-") as sockets:
            # Asked to stop, it interrupts the kernel, whose training saves itself: that may take its time.
            kernel = {"transport": "ipc", "ip": f"{sockets}/kernel", "shutdown_wait_time": 600.0}
            papermill.execute_notebook(
                _as_notebook(source),
                target,
                parameters,
                cwd=source.parent,
                kernel_name="python3",
                log_output=False,
                progress_bar=sys.stderr.isatty(),
                coalesce_streams=True,  # what a cell prints is one output, however it came
                config=Config(KernelManager=kernel),
                # Every kernel is interrupted before it is shut down, and an idle one logs that as an error.
                extra_arguments=["--log-level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        where = f"cell {error.cell_index} (In [{error.exec_count}])"
        return f"{source.stem} failed in {where}: {error.ename}: {error.evalue}"
    except KeyboardInterrupt:  # papermill has interrupted the kernel by now and waited for its end
        return f"{source.stem} was stopped; what it trained is saved, the same command goes on from there"
    except Exception as error:  # a kernel that died, a full disk: named too, with the same care
        return f"{source.stem} failed: {type(error).__name__}: {error}"
    return None


def _clean(notebook: nbformat.NotebookNode) -> None:
    """Remove what papermill notes about this machine and this minute."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)


if __name__ == "__main__":
    with interruptible(once=True):  # by a scheduler's request too, and by a terminal that is closed
        failure = execute(*map(Path, sys.argv[1:4]), ast.literal_eval(sys.argv[4]))
    if failure:
        sys.exit(failure)
