"""Explorations: a choice changes what is seen, without a front end; their twins hold every frame; and a real
JupyterLab moves them."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from dkdm_lab.data import images
from dkdm_lab.data.toy import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import ledger, presets, runs
from dkdm_lab.networks import Denoiser
from dkdm_lab.notebook import explore
from dkdm_lab.notebook.explore import cost, look, pool_player
from dkdm_lab.pools import DynamicPool, IterativePool
from dkdm_lab.system.paths import models_dir

BOOK = Path(__file__).parents[1] / "book"


def figures(n):
    return [plt.figure(figsize=(1, 1)) for _ in range(n)]


def hidden(html):
    """Of each frame, whether it is hidden."""
    return [style.endswith("none") for style in re.findall(r'class="dkdm-frame" style="([^"]*)"', html)]


@pytest.fixture(scope="module")
def digits():
    teacher = Denoiser.from_pretrained(models_dir() / "digits-teacher")
    return images.to_model(images.load_images("digits", n=6)), teacher, teacher.diffusion


@pytest.fixture
def ring():
    diffusion = GaussianDiffusion.cosine(20, clip=False)
    return diffusion, GaussianMixture.ring().denoiser(diffusion)


# -- the look -----------------------------------------------------------------------------------------


def test_every_frame_is_inside_and_one_is_shown():
    html = explore.frames(figures(3), ["a", "b", "c"], "step", start=1).data
    assert html.count("data:image/png;base64,") == 3
    assert hidden(html) == [True, False, True]
    assert "http" not in html


def test_figures_are_closed():
    before = len(plt.get_fignums())
    explore.frames(figures(2), ["a", "b"], "step")
    assert len(plt.get_fignums()) == before


def test_labels_must_match():
    with pytest.raises(ValueError, match="found 2 figures and 1 labels"):
        explore.frames(figures(2), ["a"], "step")


def test_two_choices_have_a_frame_for_each_pair_and_labels_are_text():
    html = look.fragments_html(list("abcdef"), {"first": ["<p>", "q"], "second": "xyz"}, [1, 2]).data
    assert hidden(html) == [True] * 5 + [False]
    assert html.count("<select") == 2 and "<p>" not in html


@pytest.mark.parametrize(
    ("variables", "kernel", "expected"),
    [
        ({}, False, False),  # plain Python
        ({"JPY_SESSION_NAME": "/a.ipynb"}, False, False),  # a command that a notebook's kernel started
        ({}, True, False),  # papermill, nbclient, nbval
        ({"JPY_SESSION_NAME": "/a.ipynb"}, True, True),  # JupyterLab
        ({"COLAB_RELEASE_TAG": "release"}, True, True),
        ({"JPY_SESSION_NAME": "/a.ipynb", "DKDM_LIVE": "0"}, True, False),  # dkdm run
        ({"DKDM_LIVE": "1"}, False, True),
    ],
)
def test_live_where_a_front_end_has_started_the_kernel(monkeypatch, variables, kernel, expected):
    for name in ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG", "DKDM_LIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shell = types.SimpleNamespace(kernel=object() if kernel else None, user_ns={})
    monkeypatch.setattr(look, "get_ipython", lambda: shell)
    assert explore.live() is expected


def test_live_refuses_what_it_does_not_know(monkeypatch):
    monkeypatch.setenv("DKDM_LIVE", "yes")
    with pytest.raises(ValueError, match="DKDM_LIVE: found 'yes', expected 0 or 1"):
        explore.live()


def test_a_choice_that_is_no_option_is_refused(digits):
    explored = explore.ForwardProcess(*digits)
    with pytest.raises(ValueError, match="schedule: found 'sqrt', expected one of"):
        explored.set(schedule="sqrt")
    with pytest.raises(ValueError, match="choice: found 'colour', expected one of schedule, t"):
        explored.set(colour="red")


class Doubled(explore.Exploration):
    """The smallest one."""

    title = "Twice a number"

    def __init__(self):
        super().__init__({"number": look.Control("number", range(4), 1, [0, 1, 3])})

    def view(self):
        return f"<p>{2 * self.state['number']}</p>"


def test_headless_shows_the_twin_and_makes_no_widget(monkeypatch):
    monkeypatch.setenv("DKDM_LIVE", "0")
    explored = Doubled()
    shown = explored._repr_mimebundle_()
    assert hidden(shown["text/html"]) == [True, False, True] and explored.widgets == {}
    assert re.findall("<p>([0-9]+)</p>", shown["text/html"]) == ["0", "2", "6"]
    monkeypatch.setenv("DKDM_LIVE", "1")
    assert "application/vnd.jupyter.widget-view+json" in explored._repr_mimebundle_()


# -- each exploration ---------------------------------------------------------------------------------


def test_forward_process_follows_its_sliders_and_says_the_truth(digits):
    explored = explore.ForwardProcess(*digits, t=50)
    view, _ = explored.widget, explored.numbers
    before = explored._view.value
    explored.widgets["t"].value = 80
    late = explored.numbers
    assert explored.state["t"] == 80 and explored._view.value != before
    assert late["alpha_bar"] == pytest.approx(GaussianDiffusion.cosine(100).alpha_bar[80])
    assert late["level"] == 80 and view is explored.widget
    explored.widgets["t"].value = 5
    # From little noise a trained teacher finds the image again, from much it does not.
    assert explored.numbers["error"] < 0.05 < late["error"]
    explored.widgets["schedule"].value = "linear"
    linear = GaussianDiffusion.linear(100).alpha_bar[5]
    assert explored.numbers["alpha_bar"] == pytest.approx(linear)
    assert explored.numbers["level"] == abs(digits[2].alpha_bar - linear).argmin()


def fewer(explored, name, shown):
    """An exploration whose twin shows only these of a control, to draw fewer frames."""
    explored.controls[name] = dataclasses.replace(explored.controls[name], shown=shown)
    return explored


def test_forward_process_twin_has_a_frame_for_each_pair(digits):
    explored = explore.ForwardProcess(*digits)
    assert len(explored.controls["t"].frames) == 11
    fewer(explored, "t", [0, 50, 99])
    state = dict(explored.state)
    html = explored.twin().data
    assert len(hidden(html)) == 2 * 3 and hidden(html).count(False) == 1
    assert len(set(re.findall(r'src="([^"]*)"', html))) == 6  # no two are the same picture
    assert explored.state == state


def test_pool_player_marks_the_batch_and_counts_overlaps(ring):
    player = explore.PoolPlayer(*ring, 8, method="shuffled")
    assert player.widget is not None
    player._play.value = 3
    turns = player.turns
    assert turns.turn == 3 and turns.overlaps == [1.0, 1.0] and sorted(turns.batch.tolist()) == list(range(8))
    player._play.value = 0  # what its stop button does
    assert player.turns.turn == 0 and player.turns is not turns


def test_pool_player_shows_the_pool_that_training_has(ring):
    player = explore.PoolPlayer(*ring, 8, rho=0.25, seed=3)
    player.go_to(5)
    pool = DynamicPool(*ring, 8, rho=0.25, seed=3)
    for _ in range(5):
        batch = next(pool)
    assert torch.equal(player.turns.pool.x, pool.x)
    # The batch's samples were at the levels that the student was shown.
    t = player.turns.pool.t[player.turns.batch]
    assert sorted(torch.where(t == 19, -1, t).tolist()) == sorted((batch.t - 1).tolist())


def test_pool_player_begins_anew_with_another_pool(ring):
    player = explore.PoolPlayer(*ring, 8)
    assert player.widget is not None
    player._play.value = 2
    player.widgets["rho"].value = 1.0
    assert player._play.value == 0 and player.turns.pool.size == 20 * 8
    player.widgets["method"].value = "iterative"
    player.widgets["stride"].value = 2
    assert isinstance(player.turns.pool, IterativePool) and player.turns.pool.stride == 2
    step = next(w for w in player.widget.children[1].children if getattr(w, "description", "") == "step")
    step.click()
    assert player.turns.turn == 1 and "Turn 1:" in player._view.value


def test_pool_player_twin_has_each_method_and_turn(ring, monkeypatch):
    monkeypatch.setattr(pool_player, "TURNS", (0, 1, 2, 100))  # what T does not reach is left out
    html = explore.PoolPlayer(*ring, 8).twin().data
    turns = [0, 1, 2]
    captions = re.findall(r"<p [^>]*>(Turn (\d+): ([\d,]+) samples)", html)
    assert [int(turn) for _, turn, _ in captions] == turns * 3
    assert [size for _, _, size in captions] == ["8"] * 6 + ["40"] * 3


@pytest.mark.parametrize("kind", ["points", "images"])
def test_watch_shows_points_and_images(kind, ring, digits):
    if kind == "points":
        pool = DynamicPool(*ring, 8, rho=0.25)
    else:
        pool = IterativePool(digits[2], digits[1], 8)
    html = explore.watch(pool, iterations=4, every=2).data
    assert len(hidden(html)) == len(set(re.findall(r'src="([^"]*)"', html))) == 3
    assert pool.evaluations >= 4 * 8


def test_sampler_keeps_the_noise(digits):
    explored = explore.Sampler(*digits[1:], n=4)
    assert explored.widget is not None
    before = explored._view.value
    explored.widgets["steps"].value = 5
    after = explored._view.value
    assert after != before and "DDPM in 5 of 100" in after
    explored.widgets["steps"].value = explored.controls["steps"].value
    assert explored._view.value == before  # the same noise, the same samples


def test_sampler_twin_has_every_frame(digits):
    html = fewer(explore.Sampler(*digits[1:], n=4), "steps", [2, 5, 20]).twin().data
    assert len(hidden(html)) == 2 * 3 and "DDIM in 20 of 100 steps" in html


def test_ledger_explorer_shows_the_ledgers_numbers_and_how_they_were_made():
    explored = explore.LedgerExplorer("digits")
    assert explored.widget is not None
    own = ledger.by_seed("digits", "digits-FID", {"method": "dynamic"})
    shown = {r["settings"]["seed"]: value for value, r in explored.rows["dynamic"]}
    assert shown == own and f"seed 0: {own[0]:.4g}" in explored._view.value
    commit = explored.rows["dynamic"][0][1]["made_with"]["commit"]
    assert f"commit {commit}" in explored._view.value
    explored.widgets["methods"].value = ("dynamic",)
    explored.widgets["seeds"].value = (1,)
    assert {n: [v for v, _ in found] for n, found in explored.rows.items()} == {"dynamic": [own[1]]}
    explored.widgets["seeds"].value = ()
    assert "no such run" in explored._view.value


def test_ledger_explorer_changes_its_metrics_with_the_preset():
    explored = explore.LedgerExplorer("digits")
    assert explored.widget is not None
    explored.widgets["metric"].value = "digits-precision"
    explored.widgets["preset"].value = "fashion"
    assert explored.state["metric"] == explored.widgets["metric"].value == "FID"
    explored.widgets["settings"].value = "all"
    assert len(explored.rows) >= 1


def test_ledger_explorer_twin_has_every_preset():
    explored = explore.LedgerExplorer()
    html = explored.twin().data
    assert len(hidden(html)) == len(explored.controls["preset"].options) and "<details>" in html


def test_ledger_explorer_names_a_preset_without_results():
    with pytest.raises(ValueError, match="preset: found 'ffhq256', expected one of"):
        explore.LedgerExplorer("ffhq256")


# -- the dashboard ------------------------------------------------------------------------------------


@pytest.fixture
def dashboard():
    preset = presets.get("toy", iterations=6, batch_size=16, steps=5)
    board = explore.TrainingDashboard(preset, "dynamic", "iterative", legs=3, samples=20)
    yield board
    board.stop()


def test_dashboard_trains_both_and_ends(dashboard):
    assert 'alt="not begun' in dashboard.view()
    dashboard.start()
    dashboard._thread.join(60)
    assert dashboard.status == "finished" and not dashboard.running
    for method in ("dynamic", "iterative"):
        progress = dashboard.progress[method]
        assert progress.scored_at == [2, 4, 6] and progress.samples.shape == (20, 2)
    assert "dynamic" in dashboard.view() and 'alt="finished' in dashboard.view()


def test_dashboard_stops_between_pieces_and_goes_on_to_the_same_end(dashboard, monkeypatch):
    leg, whole = dashboard._leg, explore.TrainingDashboard(dashboard.preset, legs=3, samples=20)

    def then_stop(method, end):
        leg(method, end)
        dashboard._ask()

    monkeypatch.setattr(dashboard, "_leg", then_stop)
    buttons = {w.description: w for w in dashboard.row() if hasattr(w, "click")}
    buttons["start"].click()
    dashboard._thread.join(60)
    assert dashboard.status == "stopped" and not dashboard.running
    assert [p.scored_at for p in dashboard.progress.values()] == [[2], []]
    monkeypatch.setattr(dashboard, "_leg", leg)
    for board in (dashboard, whole):
        board.start()
        board._thread.join(60)
    # What was stopped and what was not are the same training.
    for method in whole.both:
        assert dashboard.progress[method].score == whole.progress[method].score
        assert dashboard.progress[method].scored_at == [2, 4, 6]
    buttons["again"].click()
    assert dashboard.status == "not begun" and not dashboard.progress["dynamic"].score


def test_another_choice_stops_and_one_dashboard_trains_at_a_time(dashboard):
    dashboard.start()
    other = explore.TrainingDashboard(dashboard.preset, legs=3, samples=20)
    other.start()
    assert not dashboard.running
    other.set(beside="shuffled")
    assert not other.running and list(other.progress) == ["dynamic", "shuffled"]


def test_dashboard_says_what_failed(dashboard, monkeypatch):
    monkeypatch.setattr(dashboard, "_leg", lambda *_: 1 / 0)
    dashboard.start()
    dashboard._thread.join(60)
    assert dashboard.status == "failed: ZeroDivisionError: division by zero"


def test_dashboard_twin_is_the_ledgers_and_starts_nothing():
    board = explore.TrainingDashboard(presets.get("digits", live=True), "dynamic", "data-free")
    html = board.twin().data
    curve = ledger.results("digits", {"method": "dynamic", "seed": 0})[0]["curve"]
    assert len(hidden(html)) == len(curve) and hidden(html)[-1] is False
    assert f"dynamic {curve[-1]['digits-FID']:.3g} at 1,500" in html
    assert not board.running and board.status == "not begun"


# -- the calculator -----------------------------------------------------------------------------------

GIVEN = {
    "the digits": {},
    "a half rho * T": {"rho": 0.025, "T": 100},
    "a free teacher": {"teacher": 0.0},
    "a dear warm-up": {"warmup": 5000.0},
}


@pytest.mark.parametrize("name", GIVEN)
def test_calculator_agrees_with_the_costs_of_runs(name):
    preset = presets.get("digits")
    given = cost.inputs(preset) | GIVEN[name]
    for method, (before, step) in cost.costs(given).items():
        settings = {
            "method": method,
            "batch_size": preset.batch_size,
            "student": preset.student,
            "teacher": "exact" if "teacher" in GIVEN[name] else preset.teacher,
            "discard": 0.0,
            "iterations": 70,
        }
        turns = preset.batch_size * 70 if method in ("iterative", "shuffled", "dynamic") else 0
        samples = {
            "shuffled": preset.batch_size,
            "dynamic": round(given["rho"] * given["T"]) * preset.batch_size,
        }
        first = samples.get(method, 0) * given["warmup"]
        if method == "data-free":
            first = given["images"] * given["steps"]
        result = {"settings": settings, "teacher_evaluations": first + turns}
        assert before + 70 * step == pytest.approx(runs.cost(result), rel=1e-9), method


def test_calculators_javascript_agrees_with_python():
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    all_given = [cost.inputs(presets.get("digits")) | changes for changes in GIVEN.values()]
    script = f"{cost.FORMULAS}\nconst all={json.dumps(all_given)};"
    script += "console.log(JSON.stringify(all.map(g=>[costs(g),breakEven(g)])))"
    ran = subprocess.run([node, "-e", script], capture_output=True, encoding="utf-8", check=True)
    for given, (costs, at) in zip(all_given, json.loads(ran.stdout), strict=True):
        expected = cost.costs(given)
        assert costs.keys() == expected.keys()
        for method, pair in costs.items():
            assert pair == pytest.approx(list(expected[method]), rel=1e-12)
        assert at == (None if (here := cost.break_even(given)) is None else pytest.approx(here))


def test_calculator_breaks_even_where_both_have_cost_the_same():
    given = cost.inputs(presets.get("digits"))
    at, of = cost.break_even(given), cost.costs(given)
    then = {method: before + at * step for method, (before, step) in of.items()}
    assert at > 0 and then["dynamic"] == pytest.approx(then["data-free"])
    html = explore.cost_calculator(presets.get("digits")).data
    assert html.count("<tr data-method") == 5 and f"iteration {round(at)} " in html


# -- a browser without a kernel ------------------------------------------------------------------------


def test_a_twin_moves_without_a_kernel(browser):
    page = browser.new_page()
    names = [str(k) for k in range(6)]
    fragments = [f"<p>{method} {k}</p>" for method in "ab" for k in names]
    page.set_content(look.fragments_html(fragments, {"method": "ab", "turn": names}, [0, 2]).data)
    assert page.locator("p:visible").all_inner_texts() == ["a 2"]
    page.get_by_label("turn").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("p:visible").all_inner_texts() == ["a 3"]
    assert page.locator("output").inner_text() == "3"
    page.get_by_label("method").select_option("b")
    assert page.locator("p:visible").all_inner_texts() == ["b 3"]
    page.close()


def test_the_calculator_counts_without_a_kernel(browser):
    page = browser.new_page()
    page.set_content(explore.cost_calculator(presets.get("digits")).data)
    before = page.locator("tr[data-method]").all_inner_texts()
    page.get_by_label("iterations").fill("1500")  # the same as before: JavaScript writes what Python wrote
    assert page.locator("tr[data-method]").all_inner_texts() == before
    page.get_by_label("teacher, MFLOPs per evaluation").fill("0")
    assert page.locator("output").inner_text() == cost.NEVER
    assert page.locator("tr[data-method=dynamic] td").nth(1).inner_text() == "0"
    page.close()


# -- a real JupyterLab --------------------------------------------------------------------------------


def cells_of(chapter, exploration):
    """Of a real chapter its parameters, its imports, and the cell that calls an exploration: all that this
    cell needs, without the minutes of training before it."""
    cells = jupytext.read(next(BOOK.glob(f"{chapter}_*.py"))).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    (call,) = [cell for cell in code[2:] if f"{exploration}(" in cell.source.splitlines()[-1]]
    return [nbformat.v4.new_code_cell(cell.source) for cell in (*code[:2], call)]


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a folder of its own; ends with the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("DKDM_LIVE", "JPY_SESSION_NAME")}
    environment |= {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    environment["PYTHONPATH"] = str(Path(look.__file__).parents[3])
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
    ]
    options += [f"--ServerApp.root_dir={tmp_path}", "--LabApp.collaborative=False"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/api", timeout=5).close()
                    break
                assert server.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                time.sleep(0.2)  # a server that starts can only be asked
            yield tmp_path, url
        finally:
            server.terminate()  # its kernels end with it
            server.wait(60)


@pytest.mark.slow
def test_a_real_jupyterlab_plays_with_the_chapters_explorations(lab, browser, yardstick):
    folder, url = lab
    calls = {"01": "ForwardProcess", "06": "PoolPlayer", "07": "TrainingDashboard", "14": "LedgerExplorer"}
    made = nbformat.v4.new_notebook(cells=[cell for call in calls.items() for cell in cells_of(*call)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, folder / "try.ipynb")
    page = browser.new_page(
        viewport={"width": 1280, "height": 5000}
    )  # tall: JupyterLab draws what is in sight
    page.set_default_timeout(300_000)  # a busy machine takes minutes to import torch
    page.goto(f"{url}/lab/tree/try.ipynb")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before it has a kernel, a run would be lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    forward, pool, board, explorer = (cells.nth(3 * number + 2) for number in range(len(calls)))

    forward.locator('.widget-html img[alt^="cosine, t = 30 of 100"]').wait_for()
    handle = forward.locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    forward.locator('.widget-html img[alt*="t = 31 of 100"]').wait_for()

    pool.locator('.widget-html img[alt^="Turn 0:"]').wait_for()
    play, stop, _repeat = pool.locator("button.jupyter-button:not(.widget-button)").all()
    play.click()
    pool.locator('.widget-html img[alt*="were in the one before"]').wait_for()
    play.click()  # now it is pause
    shown = pool.locator(".widget-html img").get_attribute("alt")
    assert int(re.match(r"Turn (\d+):", shown).group(1)) >= 2
    stop.click()
    pool.locator('.widget-html img[alt^="Turn 0:"]').wait_for()

    board.locator('.widget-html img[alt^="not begun"]').wait_for()
    board.get_by_role("button", name="start", exact=True).click()
    board.locator('.widget-html img[alt^="training dynamic"]').wait_for()
    board.get_by_role("button", name="stop", exact=True).click()
    board.locator('.widget-html img[alt^="stopped"][alt*="digits-FID: dynamic"]').wait_for()  # a first score

    explorer.locator('.widget-html img[alt^="Preset digits: digits-FID"]').wait_for()
    explorer.locator(".widget-dropdown select").first.select_option("fashion")
    explorer.locator('.widget-html img[alt^="Preset fashion: FID"]').wait_for()
    page.close()
