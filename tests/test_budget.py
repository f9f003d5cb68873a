"""A budget of minutes: what is under way leaves by itself and goes on to the last bit; the ledger's order.

The clock is a false one: it ticks once a turn of a source, a step of a sampler and a step of a warm-up, so
that nothing here depends on how fast the machine is.
"""

import contextlib
import itertools
import json
import math
import shutil
import signal

import pytest
import torch

from dkdm_lab import networks, pools
from dkdm_lab.beyond.autoencoder import AUTOENCODERS
from dkdm_lab.beyond.classifier import Classifier, accuracy
from dkdm_lab.beyond.loss_guided_synthesis import synthesise
from dkdm_lab.beyond.vae import LVAE, sample_vae
from dkdm_lab.cli import main
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import costs, ledger, paper, presets, runs, sweep
from dkdm_lab.experiments.runs import METHODS, Run
from dkdm_lab.system import budget
from dkdm_lab.system.budget import CALL_AGAIN, OutOfTime
from dkdm_lab.teachers.distill import Distillation, distill
from dkdm_lab.teachers.pipelines import Pipeline, decode, encode

TINY = {
    **{"batch_size": 16, "iterations": 20, "curve": 4, "checkpoint_every": 10, "steps": 5, "samples": 50},
    **{"synthetic_images": 40, "synthetic_steps": 5, "warmup": "respaced"},
}
SETTINGS = [text for name, value in TINY.items() for text in ("--set", f"{name}={value}")]
TICK = 1 / 60  # of a minute


@pytest.fixture(autouse=True)
def ticks(monkeypatch, yardstick):
    """The false clock; returns a list whose one number is its seconds."""
    seconds = [0.0]
    monkeypatch.setattr(budget, "now", lambda: seconds[0])
    for name in ("step", "q_posterior"):  # of the pools and samplers, of Algorithm 2
        original = getattr(GaussianDiffusion, name)

        def ticking(*arguments, original=original):
            seconds[0] += 1
            return original(*arguments)

        monkeypatch.setattr(GaussianDiffusion, name, ticking)
    return seconds


def toy(method="dynamic", seed=0, **changes):
    """A run of the toy preset that takes a moment."""
    return Run(presets.get("toy", **{**TINY, **changes}), method, seed)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model(progress=False).parameters()])


def outcome(result):
    return {key: result[key] for key in ("metrics", "curve", "loss", "teacher_evaluations", "settings")}


# -- what a budget is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [0, -1, math.nan, math.inf, "two", None, ""])
def test_minutes_that_are_none_are_refused(found):
    with pytest.raises(ValueError, match=r"minutes: found .*, expected a finite number above 0"):
        budget.minutes_of(found)


@pytest.mark.parametrize("found", ["0", "-1", "nan", "inf", "two", ""])
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--ledger"],
        ["train", "--method", "dynamic"],
        ["distill", "somewhere", "--student", "x0.5", "--out", "out"],
    ],
)
def test_the_commands_refuse_them_too(command, found, capsys):
    with pytest.raises(SystemExit) as refused:
        main([*command, f"--minutes={found}"])
    assert refused.value.code == 2
    assert f"--minutes: found {found!r}, expected a finite number above 0" in capsys.readouterr().err


def test_minutes_are_the_ledgers(capsys):
    assert main(["run", "--minutes", "2"]) == 1
    assert "--minutes: found 2 without --ledger, expected both or neither" in capsys.readouterr().err


def test_without_a_budget_nothing_is_over(ticks):
    ticks[0] = 1e12
    assert budget.left() == math.inf
    assert not budget.over()
    budget.check(1e9)
    with budget.budget(None):
        budget.check(1e9)


def test_the_budget_that_ends_first_decides(ticks):
    with budget.budget(1), budget.budget(2):
        ticks[0] = 59
        budget.check()
        assert budget.left() == 1
        ticks[0] = 60
        with pytest.raises(OutOfTime, match="the budget of 1 minute is used up"):
            budget.check()
    assert not budget.over()


def test_a_piece_is_not_begun_that_would_not_fit(ticks):
    """As the last one took 4 seconds, 10 seconds have place for two, not for a third."""
    done = []
    with budget.budget(10 * TICK), pytest.raises(OutOfTime):
        for item in budget.each(range(5)):
            ticks[0] += 4
            done.append(item)
    assert done == [0, 1]


# -- trainings, warm-ups, scores --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["data-based", "iterative", "shuffled", "dynamic"])
def test_a_training_leaves_after_the_step_in_which_its_budget_ends(method, ticks):
    run = toy(method, curve=1)
    source = run.source(progress=False)
    warmup = 0
    if method in ("shuffled", "dynamic"):
        source.fill()
        warmup, ticks[0] = ticks[0], 0
    message = (
        r"the budget of .* minutes is used up: stopped at iteration 7 of 20; saved in .*checkpoints, the"
    )
    with budget.budget((warmup + 7) * TICK) as spent, pytest.raises(OutOfTime, match=message):
        run.result(progress=False)
    assert spent.kept
    assert run.iteration == 7
    assert ticks[0] == warmup + 7


def test_a_warm_up_that_does_not_fit_is_left_and_nothing_is_kept(ticks):
    with budget.budget(5 * TICK) as spent, pytest.raises(OutOfTime):
        toy().result(progress=False)
    assert ticks[0] == 5
    assert not spent.kept
    assert toy().status == "not begun"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("teacher", "synthetic")])
def test_calls_with_a_budget_end_as_one_without(method, cache):
    """Each of 13 seconds; a warm-up takes 9, a score 5, a step 1: they end in all of these."""
    unbroken = outcome(toy(method).result(progress=False)), weights(toy(method))
    shutil.rmtree(cache / "runs")
    calls = 0
    while toy(method).status != "finished":
        calls += 1
        assert calls < 10
        with budget.budget(13 * TICK) as spent:
            try:
                toy(method).result(progress=False)
            except OutOfTime:
                assert spent.kept
    assert calls >= 3
    assert outcome(toy(method).result()) == unbroken[0]
    assert torch.equal(weights(toy(method)), unbroken[1])


def test_a_score_that_is_cut_off_is_made_again(ticks):
    """The first one begins at 5 of 20 iterations and takes 5 seconds."""
    run = toy("data-based")
    with budget.budget(8 * TICK), pytest.raises(OutOfTime):
        run.result(progress=False)
    assert (run.iteration, ticks[0]) == (5, 8)
    assert not (run.folder / "curve.json").exists()
    with budget.budget(4 * TICK) as spent, pytest.raises(OutOfTime):
        run.result(progress=False)
    assert not spent.kept  # and so never would it be finished
    with budget.budget(5 * TICK) as spent, pytest.raises(OutOfTime):
        run.result(progress=False)
    assert spent.kept
    assert [
        point["iteration"] for point in json.loads((run.folder / "curve.json").read_text(encoding="utf-8"))
    ] == [5]


def test_a_synthetic_set_is_kept_in_parts_and_the_same(ticks):
    """Of 600 images, 256 in 5 steps each time."""
    run = toy("synthetic", synthetic_images=600)
    with budget.budget(12 * TICK) as spent, pytest.raises(OutOfTime):
        run.result(progress=False)
    assert spent.kept
    assert (run.status, run.iteration, run.iterations) == ("resumable", 512, 600)
    found, before = run.images(progress=False), ticks[0]
    assert before == 12 + 5
    teacher = run.teacher_run().model()
    assert torch.equal(found, run.diffusion.sample(teacher, 600, 5, seed=2))
    assert not (run.folder / "checkpoints").exists()


def test_who_waits_for_another_process_does_so_within_the_budget(tmp_path):
    from dkdm_lab.system.files import alone

    with alone(tmp_path / "run"), budget.budget(1e-9), pytest.raises(OutOfTime):
        with alone(tmp_path / "run"):
            pass


# -- commands -------------------------------------------------------------------------------------------


def train_for(minutes):
    return main(["train", "--preset", "toy", "--method", "data-based", *SETTINGS, f"--minutes={minutes}"])


def test_train_says_by_its_exit_code_whether_to_call_again(capsys):
    assert train_for(8 * TICK) == CALL_AGAIN == 75
    said = capsys.readouterr().err
    assert "dkdm: the budget of 0.133333 minutes is used up; what was saved before stays, the same" in said
    assert train_for(4 * TICK) == 1
    assert "this time nothing was saved: give it more minutes" in capsys.readouterr().err
    assert train_for(1) == 0
    assert toy("data-based").status == "finished"


@pytest.fixture
def pipeline(tmp_path):
    networks.build("digits-student").save_pretrained(tmp_path / "teacher", GaussianDiffusion.cosine(20))
    return Pipeline.from_pretrained(tmp_path / "teacher")


def test_a_distillation_and_its_comparison_go_on_as_if_unbroken(
    pipeline, tmp_path, monkeypatch, ticks, inception
):
    def compare(*_):
        for _step in budget.each(range(5)):
            ticks[0] += 1
        return {"FID'": 1.0, "N": 5, "steps": 5}

    monkeypatch.setattr("dkdm_lab.teachers.finishing.compare", compare)
    asked = Distillation("teacher", "digits-53k", iterations=6, batch_size=4, rho=0.1)

    def work(name):
        return distill(pipeline, asked, tmp_path / name, evaluate=5, progress=False)

    whole = work("whole")
    out = tmp_path / "parts"
    with budget.budget(14 * TICK) as spent, pytest.raises(OutOfTime, match="saved in"):
        work("parts")  # the warm-up takes 10 ticks
    assert spent.kept and sorted((out / "checkpoints").iterdir())[-1].name == f"{4:09d}"
    with budget.budget(5 * TICK) as spent, pytest.raises(OutOfTime, match="the student is saved in"):
        work("parts")  # 2 ticks to the end of the training, 3 of the 5 that the comparison takes
    assert spent.kept and (out / "unet").is_dir() and not (out / "README.md").exists()
    parts = work("parts")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    results = [
        json.loads((tmp_path / n / "distillation.json").read_text(encoding="utf-8"))
        for n in ("whole", "parts")
    ]
    assert results[0]["result"] == results[1]["result"]


# -- the ledger -------------------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


def wanted(methods, seeds=(0,), **changes):
    return [(toy(method, seed, **changes), False) for seed in seeds for method in methods]


def test_what_lies_in_the_ledger_is_not_missing(book):
    run = toy("data-based")
    assert sweep.missing([(run, True)]) == [sweep.Task(run), sweep.Task(run, primed=True)]
    ledger.enter(run)
    assert sweep.missing([(run, False)]) == []
    assert sweep.missing([(run, True)]) == [sweep.Task(run, primed=True)]
    ledger.enter(run, against_teacher=True)
    assert sweep.missing([(run, True)]) == []


def test_the_order_is_the_cheapest_first_after_what_it_stands_on():
    preset = presets.get("digits")
    long = Run(preset.replace(iterations=30_000), "data-based")
    free, teacher, based = (Run(preset, method) for method in ("data-free", "teacher", "data-based"))
    order = sweep.in_order(map(sweep.Task, (long, free, teacher, based)))
    assert [task.artifact.name for task in order] == [
        "data-based-seed0",
        "teacher-seed0",
        "synthetic-seed0",
        "data-free-seed0",
        "data-based-seed0-iterations=30000",
    ]


def test_of_a_run_under_way_the_rest_counts():
    """By hand: three evaluations of the student a sample and step, and what is drawn for the scores left."""
    run, student = toy("data-based"), networks.flops("toy-student")
    score = 5 * 50 * student
    assert costs.remaining(run) == 20 * 16 * 3 * student + 4 * score
    with budget.budget((5 + 5 + 2) * TICK), pytest.raises(OutOfTime):  # iterations, a score, iterations
        run.result(progress=False)
    assert run.iteration == 7
    assert costs.remaining(run) == 13 * 16 * 3 * student + 3 * score
    run.result(progress=False)
    assert costs.remaining(run) == 0


@pytest.mark.parametrize("preset", ["toy", "digits", "digits-latent", "digits-classes", "cifar16"])
def test_every_run_of_every_sweep_has_a_cost(preset):
    for run, _ in paper.sweep(presets.get(preset), (0,)).values():
        assert costs.remaining(run) > 0 or preset == "toy"


def test_a_warm_up_is_estimated_as_it_is():
    """Within a tenth, for the draw of the levels."""
    for changes in ({"warmup": "harvest"}, {"warmup": "respaced"}, {"warmup": "full"}):
        pool = toy(**changes).source(progress=False)
        assert isinstance(pool, pools.DynamicPool)
        pool.fill()
        assert costs._warmup(toy(**changes)) == pytest.approx(pool.evaluations, rel=0.1)


def fill_for(minutes, methods="data-based,dynamic,data-free"):
    command = ["run", "--ledger", "--preset", "toy", "--methods", methods, "--seeds", "0", *SETTINGS]
    return main([*command, *([f"--minutes={minutes}"] if minutes else [])])


def test_the_ledger_filled_call_by_call_is_the_one_filled_at_once(book, cache, capsys):
    assert fill_for(None) == 0
    capsys.readouterr()
    at_once = {
        file.name: outcome(json.loads(file.read_text(encoding="utf-8"))) for file in book.glob("toy/*.json")
    }
    assert len(at_once) == 3
    for folder in (book, cache / "runs"):
        shutil.rmtree(folder)
    said, codes = [], []
    while not codes or codes[-1] == CALL_AGAIN:
        codes.append(fill_for(25 * TICK))
        said.append(capsys.readouterr().out)
        assert len(codes) < 10
    assert codes[-1] == 0
    assert len(codes) > 3
    assert {
        file.name: outcome(json.loads(file.read_text(encoding="utf-8"))) for file in book.glob("toy/*.json")
    } == at_once
    assert "Finished: 0 of 3 runs are in the ledger, 0 of them from this call." in said[0]
    # 5 iterations and a score of 5 seconds, twice, and 5 iterations more, of 20.
    assert f"Under way: toy/{toy('data-based').name}, iteration 15 of 20." in said[0]
    assert "minutes at this call's speed." in said[0]
    assert said[-1].splitlines()[-1].startswith("Finished: 3 of 3 runs are in the ledger")


def test_the_time_left_is_measured_in_this_call(book, capsys):
    """Operations that are left, at the operations a second of what was done."""
    assert fill_for(12 * TICK, "data-based") == CALL_AGAIN
    student = networks.flops("toy-student")
    whole, rest = (n * 16 * 3 * student + k * 5 * 50 * student for n, k in ((20, 4), (13, 3)))
    minutes = rest / (whole - rest) * 12 / 60
    assert f"Left: 1 of 1 tasks, about {minutes:.1f} minutes at this call's speed." in capsys.readouterr().out


def test_a_call_too_short_for_an_estimate_says_so(book, capsys):
    assert fill_for(5 * TICK, "dynamic") == 1  # within the warm-up
    printed = capsys.readouterr()
    assert "Left: 1 of 1 tasks, for a time that this call was too short to estimate." in printed.out
    assert "nothing was saved" in printed.err


def test_without_methods_the_ledger_is_filled_with_the_sweep(book, monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "fill", lambda runs: asked.extend(runs) or [])
    assert main(["run", "--ledger", "--preset", "digits"]) == 0
    assert asked == list(paper.sweep(presets.get("digits"), (0, 1, 2)).values())


def test_a_teacher_in_the_ledger_is_made_for_its_student_but_not_entered_again(book, monkeypatch):
    ledger.enter(toy("synthetic"))
    before = {file: file.read_text(encoding="utf-8") for file in book.glob("toy/*.json")}
    shutil.rmtree(toy("synthetic").folder)
    list(sweep.fill(wanted(["data-free"]), progress=False))
    assert toy("synthetic").status == "finished"
    assert {file: file.read_text(encoding="utf-8") for file in before} == before
    assert (book / "toy" / f"{toy('data-free').name}.json").is_file()


def test_where_all_seeds_share_a_teacher_no_second_one_is_made(book):
    runs_of_all = paper.sweep(presets.get("cifar16"), (0, 1, 2))
    shared = [name for name, (run, _) in runs_of_all.items() if run.method in ("teacher", "synthetic")]
    assert sorted(shared) == ["synthetic-seed0", "teacher-seed0"]
    assert {run.seed for run, _ in runs_of_all.values()} == {0, 1, 2}
    one = toy("synthetic", 2, teacher_seed=1)
    assert one.shared() == toy("synthetic", 1, teacher_seed=1)
    assert toy("dynamic", 2, teacher_seed=1).shared() == toy("dynamic", 2, teacher_seed=1)
    assert toy("synthetic", 2).shared() == toy("synthetic", 2)


def test_the_measure_of_a_step_is_the_ledgers_own():
    """What is left of a training that has not begun is what :func:`runs.cost` counts at its end."""
    run = toy("shuffled", warmup="harvest")
    result = run.result(progress=False)
    scores = 4 * 5 * 50 * networks.flops("toy-student")
    shutil.rmtree(run.folder)
    assert costs.remaining(run) - scores == pytest.approx(runs.cost(result))


# -- what is drawn, decoded and embedded in parts -------------------------------------------------------


def synthesis(pipeline):
    class Losses:
        shape, weights = pipeline.denoiser.shape, {"mean": 1.0}

        def __call__(self, images, labels=None):
            return {"mean": images.flatten(1).mean(1)}

    return lambda: synthesise(pipeline, Losses(), 6, steps=2, batch_size=2)


def of_an_autoencoder(work):
    vae = AUTOENCODERS["digits-vq"]()
    vae.register_to_config(scaling_factor=1.0)
    given = torch.zeros(6, 3, 4, 4) if work is decode else torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    return lambda: work(vae, given, 2)


PARTS = {
    "synthesis": synthesis,
    "decoding": lambda _: of_an_autoencoder(decode),
    "encoding": lambda _: of_an_autoencoder(encode),
    "a VAE's samples": lambda _: (
        lambda: sample_vae(LVAE(in_channels=1, sample_size=8, width=4, levels=2).eval(), 6, batch_size=2)
    ),
    "a classifier's accuracy": lambda _: (
        lambda: accuracy(
            Classifier((1, 8, 8), 2, 4).eval(), torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.zeros(6), 2
        )
    ),
}


@pytest.fixture
def in_parts(pipeline, request, monkeypatch, ticks):
    """Work in three parts, during each of which a listener is called; the listener may be changed."""
    work, heard = PARTS[request.param](pipeline), [lambda: None]
    calls = []

    def hearing(module, *_):
        calls.append(type(module).__name__)
        heard[0]()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: hearing(module) if isinstance(module, torch.nn.Conv2d) else None
    )
    yield work, calls, heard
    handle.remove()


@pytest.mark.parametrize("in_parts", PARTS, indirect=True)
def test_what_is_made_in_parts_leaves_between_two_of_them(in_parts, ticks):
    """For its budget's end as for a request that a training hears."""
    work, calls, heard = in_parts
    work()
    whole, calls[:] = len(calls), []

    def late():
        ticks[0] = 61

    heard[0] = late
    with budget.budget(1), pytest.raises(OutOfTime, match="the budget of 1 minute is used up"):
        work()
    assert 0 < len(calls) <= whole / 2

    calls[:] = []
    with budget.Requests() as requests, pytest.raises(budget.Stopped, match="what was saved before stays"):
        heard[0] = lambda: setattr(requests, "came", True)
        work()
    assert 0 < len(calls) <= whole / 2


# -- a command that is asked to stop --------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("method", ["dynamic", "data-based", "data-free"])
def test_a_command_asked_again_and_again_ends_as_if_it_never_was(number, method, cache, capsys, monkeypatch):
    """At every thirteenth step of a warm-up, a training, a synthetic set, a score: whatever is under way."""
    unbroken = outcome(toy(method).result(progress=False)), weights(toy(method))
    shutil.rmtree(cache / "runs")
    steps, handlers = itertools.count(1), [signal.getsignal(n) for n in budget._SIGNALS]
    for name in ("step", "q_posterior"):
        original = getattr(GaussianDiffusion, name)

        def asking(*arguments, original=original):
            if next(steps) % 13 == 0:
                signal.raise_signal(number)
            return original(*arguments)

        monkeypatch.setattr(GaussianDiffusion, name, asking)
    stops = 0
    while (code := main(["train", "--preset", "toy", "--method", method, *SETTINGS])) == 130:
        stops += 1
        assert stops < 20
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("dkdm: stopped ") and "saved" in said
        assert not [*cache.rglob(".new-*")]
        assert [signal.getsignal(n) for n in budget._SIGNALS] == handlers
    assert (code, stops >= 3) == (0, True)
    assert outcome(toy(method).result()) == unbroken[0]
    assert torch.equal(weights(toy(method)), unbroken[1])


def test_of_a_group_that_is_asked_together_one_that_cleans_up_is_not_interrupted():
    """The terminal asks all, and then the parent asks its child once more."""
    handlers = [signal.getsignal(number) for number in budget._SIGNALS]
    cleaned = []
    with budget.interruptible(once=True), contextlib.suppress(budget.Stopped):
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            for number in budget._SIGNALS:
                signal.raise_signal(number)
            cleaned.append(True)
    assert cleaned == [True]
    assert [signal.getsignal(number) for number in budget._SIGNALS] == handlers
