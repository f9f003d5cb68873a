"""Chapters run headless: parameters, failures that name chapter and cell, nothing half-written."""

import contextlib
import json
import os
import subprocess
import sys

import nbformat
import pytest

from dkdm_lab.cli import main
from dkdm_lab.experiments import ledger, presets
from dkdm_lab.experiments.runs import Run
from dkdm_lab.notebook.book import chapters, run_chapters
from dkdm_lab.system.paths import cache_dir

HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
number = 2

"""
GOOD = HEADER + "# %%\nprint(number * 3)\n"
BAD = HEADER + "# %% [markdown]\n# prose\n\n# %%\nraise ValueError('no such digit')\n"


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "00_good.py").write_text(GOOD, encoding="utf-8")
    return folder


def printed(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(o.text for cell in cells if cell.cell_type == "code" for o in cell.outputs)


def test_a_chapter_is_executed_beside_its_source_and_clean(book):
    (written,) = run_chapters(book=book)
    assert written == book / "00_good.ipynb" and printed(written) == "6\n"
    notebook = nbformat.read(written, as_version=4)
    assert "papermill" not in notebook.metadata
    assert all(not {"papermill", "execution"} & cell.metadata.keys() for cell in notebook.cells)


def test_settings_go_into_a_copy_and_leave_the_book_alone(book):
    (written,) = run_chapters(settings={"number": 5}, book=book)
    assert cache_dir() in written.parents and printed(written) == "15\n"
    assert not (book / "00_good.ipynb").exists()


def test_a_setting_of_the_preset_reaches_the_chapters_as_a_change(book):
    (book / "00_good.py").write_text(
        GOOD.replace("number = 2", "number = 2\nchanges = {}") + "print(changes)\n", encoding="utf-8"
    )
    (written,) = run_chapters(settings={"number": 5, "rho": 0.1}, book=book)
    assert printed(written) == "15\n{'rho': 0.1}\n"


def test_another_presets_finished_runs_are_entered_into_the_ledger(book, tmp_path, monkeypatch, yardstick):
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path / "results"))
    changes = {"iterations": 2, "batch_size": 16, "curve": 1, "steps": 2, "samples": 20, "rho": 0.05}
    run = Run(presets.get("toy", **changes), "dynamic")
    run.result(progress=False)
    assert [file.name for file in ledger.enter_finished("toy")] == [f"{run.name}.json"]
    entered = json.loads((tmp_path / "results" / "toy" / f"{run.name}.json").read_text(encoding="utf-8"))
    assert entered == run.result()
    asked = []
    monkeypatch.setattr(ledger, "enter_finished", lambda preset: asked.append(preset) or [])
    run_chapters("fashion", book=book)
    assert asked == ["fashion"]
    run_chapters(book=book)
    assert asked == ["fashion"]  # the book's own live runs are not the ledger's


def test_a_failure_names_chapter_and_cell_and_keeps_the_old_notebook(book, capfd):
    (book / "01_bad.py").write_text(BAD, encoding="utf-8")
    (book / "01_bad.ipynb").write_text("the old one", encoding="utf-8")
    with pytest.raises(RuntimeError, match="01_bad failed"):
        run_chapters(book=book)
    said = capfd.readouterr().err
    assert "01_bad failed in cell 2 (In [2]): ValueError: no such digit" in said
    assert (book / "01_bad.ipynb").read_text(encoding="utf-8") == "the old one"
    assert (cache_dir() / "failed" / "01_bad.ipynb").is_file()
    assert sorted(file.name for file in book.iterdir()) == [
        "00_good.ipynb",
        "00_good.py",
        "01_bad.ipynb",
        "01_bad.py",
    ]


def test_chapters_run_side_by_side(book):
    """Each waits for the other's file: one after the other neither would end."""
    meet = HEADER + (
        "# %%\nimport os, time\nfrom pathlib import Path\nPath('{mine}').touch()\n"
        "while not Path('{other}').exists():\n    time.sleep(0.05)\n"
        "print(os.environ['OMP_NUM_THREADS'])\n"
    )
    (book / "00_good.py").write_text(meet.format(mine="a", other="b"), encoding="utf-8")
    (book / "01_good.py").write_text(meet.format(mine="b", other="a"), encoding="utf-8")
    written = run_chapters(book=book, jobs=2)
    assert [file.name for file in written] == ["00_good.ipynb", "01_good.ipynb"]
    assert printed(written[0]) == f"{max(1, os.cpu_count() // 2)}\n"


def test_after_a_failure_no_chapter_is_begun(book):
    (book / "01_bad.py").write_text(BAD, encoding="utf-8")
    (book / "02_good.py").write_text(GOOD, encoding="utf-8")
    with pytest.raises(RuntimeError, match="01_bad failed; the chapters not yet begun were not run"):
        run_chapters(book=book)
    assert sorted(file.name for file in book.glob("*.ipynb")) == ["00_good.ipynb"]


def test_two_books_at_once_do_not_meet(book):
    """Each chapter of one waits until the other has begun the same one."""
    meet = HEADER + (
        "# %%\nimport time\nfrom pathlib import Path\nfrom uuid import uuid4\n"
        "Path(f'begun-{{uuid4()}}').touch()\nwhile len(list(Path().glob('begun-*'))) < 2:\n"
        "    time.sleep(0.05)\nprint('both')\n"
    )
    (book / "00_good.py").write_text(meet.replace("{{", "{").replace("}}", "}"), encoding="utf-8")
    command = [sys.executable, "-c", f"{RUNS}\nrun(book=Path(sys.argv[1]))", str(book)]
    books = [subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
    said = [process.communicate()[1] for process in books]
    assert [process.returncode for process in books] == [0, 0], said
    assert printed(book / "00_good.ipynb") == "both\n"
    assert not list(book.glob(".new-*"))
    assert "KeyboardInterrupt" not in "".join(said)  # of an idle kernel that is shut down


def test_no_jobs_are_refused(book):
    with pytest.raises(ValueError, match="jobs: found 0, expected at least 1"):
        run_chapters(book=book, jobs=0)


def test_an_unknown_parameter_is_refused_before_anything_runs(book):
    message = r"no chapter has such a parameter \(number\) and preset digits: found no setting 'nubmer'"
    with pytest.raises(ValueError, match=message):
        run_chapters(settings={"nubmer": 5}, book=book)
    assert not list(book.glob("*.ipynb"))


def test_an_unknown_chapter_is_refused():
    with pytest.raises(ValueError, match="chapter: found '99', expected one of 00_intro, 01_diffusion"):
        chapters(["99"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "mnist"], "preset: found 'mnist', expected one of toy, digits, "),
        (
            ["--ledger", "--methods", "magic"],
            "method: found 'magic', expected one of teacher, synthetic, data-based",
        ),
        (["--ledger", "--set", "rhoo=1"], "preset digits: found no setting 'rhoo', expected one of"),
        (["--chapters", "07x"], "chapter: found '07x'"),
        (["--set", "iterationz=3"], "preset digits: found no setting 'iterationz', expected one of"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, capsys):
    assert main(["run", *arguments]) == 1
    assert message in capsys.readouterr().err


LONG = """# %%
from dkdm_lab.experiments import presets, runs
long = presets.get("toy", iterations=10**6, checkpoint_every=1000, curve=1)
runs.Run(long, "dynamic").result(progress=False)
"""
RUNS = "import sys; from pathlib import Path; from dkdm_lab.notebook.book import run_chapters as run"


def test_a_request_to_stop_reaches_the_training_in_a_chapter(book, cache):
    (book / "00_good.py").write_text(HEADER + LONG, encoding="utf-8")
    code = f"{RUNS}\nimport signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    command = [sys.executable, "-c", code + "run(book=Path(sys.argv[1]))", str(book)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
    folder = cache / "runs" / "toy" / "dynamic-seed0-iterations=1000000"
    while not any((folder / "checkpoints").glob("[0-9]*")):  # it trains
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate()
    assert "00_good was stopped; what it trained is saved, the same command goes on from there" in said
    saved = max(int(snapshot.name) for snapshot in (folder / "checkpoints").glob("[0-9]*"))
    assert saved % 1000, "a checkpoint that was due, and none for the request"
    assert not (book / "00_good.ipynb").exists()
