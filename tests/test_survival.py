"""Trainings that are killed, stopped, or out of disk: what is left, and that they go on to the last bit."""

import dataclasses
import fcntl
import functools
import itertools
import json
import math
import multiprocessing
import os
import pty
import random
import resource
import signal
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from dkdm_lab import networks
from dkdm_lab.cli import main
from dkdm_lab.data import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.pools import POOLS
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system import checkpoint
from dkdm_lab.system.checkpoint import FORMAT, Checkpoints
from dkdm_lab.training import History, Stopped, train

SOURCES = ("data", *POOLS)
ITERATIONS, EVERY = 120, 4
PROCESS = GaussianDiffusion.cosine(100, clip=False)


def make_source(name, seed=0):
    ring = GaussianMixture.ring()
    if name == "data":
        return NoisedImages(PROCESS, ring.sample(500), 16, seed=seed)
    options = {"rho": 0.1} if name == "dynamic" else {}
    return POOLS[name](PROCESS, ring.denoiser(PROCESS), 16, seed=seed, **options)


def trained(name, folder=None, **options):
    """A short training of a source, or of one by its name, from seed 0."""
    torch.manual_seed(0)
    student = networks.build("toy-student")
    options = {"lr": 1e-3, "progress": False, "checkpoint": folder, "checkpoint_every": EVERY, **options}
    source = make_source(name) if isinstance(name, str) else name
    averaged, history = train(student, source, PROCESS, ITERATIONS, **options)
    weights = torch.cat([p.detach().flatten() for net in (student, averaged) for p in net.parameters()])
    return weights, history


@functools.cache
def unbroken(name):
    return trained(name)


def same(one, other):
    return torch.equal(one[0], other[0]) and one[1] == other[1]


def iterations_in(folder):
    return [int(place.name) for place in sorted(folder.glob("[0-9]*"))]


# -- children, which can be killed ----------------------------------------------------------------------

# Forked from a process that has imported torch already, so a child starts in a moment.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["dkdm_lab.training", "dkdm_lab.pools"])


def child(before, name, folder):
    torch.set_num_threads(1)
    before()
    weights, history = trained(name, folder)
    torch.save((weights, vars(history)), folder.parent / "new.pt")
    os.replace(folder.parent / "new.pt", folder.parent / "done.pt")


def start(name, folder, before=int):
    """A child that trains and leaves what came out beside its checkpoints; ``before``: what it does first."""
    process = CHILDREN.Process(target=child, args=(before, name, folder))
    process.start()
    return process


def finished(folder):
    weights, history = torch.load(folder.parent / "done.pt", weights_only=True)
    return weights, History(**history)


@pytest.mark.parametrize("name", SOURCES)
def test_killed_at_random_moments_it_ends_as_if_it_never_was(name, tmp_path, record_property):
    """Six kills for each of the four sources."""
    folder, moments = tmp_path / "checkpoints", random.Random(0)
    started = time.monotonic()
    trained(name, tmp_path / "undisturbed")
    length = time.monotonic() - started
    kills, in_writing = 0, 0
    while not (tmp_path / "done.pt").exists():
        before = iterations_in(folder)
        process = start(name, folder)
        while kills < 6 and process.is_alive() and iterations_in(folder) == before:
            process.join(0.001)  # until it has gone on a little, or else it never would
        if kills < 6:
            process.join(moments.uniform(0, length / 6))
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            in_writing += any(folder.glob(".new-*"))
    record_property("kills", kills)
    record_property("in the middle of a checkpoint", in_writing)
    print(f"{name}: {kills} kills, {in_writing} of them in the middle of a checkpoint")
    assert kills >= 5  # the last may come too late
    assert same(finished(folder), unbroken(name))


def die(function, call):
    """Be killed at a call of one of the functions that write a checkpoint."""
    real, count = getattr(checkpoint, function), itertools.count(1)

    def counting(*arguments):
        if next(count) == call:
            if function == "_save":
                arguments[0].write_bytes(bytes(1000))  # as much as there was time for
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(checkpoint, function, counting)


@pytest.mark.parametrize(
    "function, call, left",
    [
        ("_save", 5, [4, 8]),  # a checkpoint has two files
        ("_write", 3, [4, 8]),
        ("sync", 5, [4, 8]),  # before it is renamed
        ("sync", 6, [4, 8, 12]),  # after that, before the oldest is removed
    ],
)
def test_killed_within_the_third_checkpoint(function, call, left, tmp_path):
    folder = tmp_path / "checkpoints"
    killed = start("dynamic", folder, functools.partial(die, function, call))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert iterations_in(folder) == left
    assert same(trained("dynamic", folder), unbroken("dynamic"))
    assert [place.name for place in sorted(folder.iterdir())] == ["000000112", "000000116"]


def test_a_second_process_is_refused_and_a_dead_ones_hold_is_gone(tmp_path):
    folder = tmp_path / "checkpoints"
    first = start("dynamic", folder, functools.partial(die, "_save", 20))
    while not iterations_in(folder):
        first.join(0.01)
    with pytest.raises(RuntimeError, match=f"{folder}: another process is at work here; wait for it, or"):
        trained("dynamic", folder)
    first.kill()
    first.join()
    assert same(trained("dynamic", folder), unbroken("dynamic"))


# -- asked to stop --------------------------------------------------------------------------------------


class Asks(POOLS["dynamic"]):
    """A pool in which signals arrive, at a turn."""

    def __init__(self, turn, *signals):
        super().__init__(PROCESS, GaussianMixture.ring().denoiser(PROCESS), 16, rho=0.1, seed=0)
        self.turns, self.turn, self.signals = itertools.count(1), turn, signals

    def __next__(self):
        batch = super().__next__()
        if next(self.turns) == self.turn:
            for number in self.signals:
                signal.raise_signal(number)
        return batch


Asks.__name__ = POOLS["dynamic"].__name__  # the same source to a checkpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_saves_and_says_how_to_go_on(number, tmp_path):
    folder, handler = tmp_path / "checkpoints", signal.getsignal(number)
    message = f"stopped at iteration 31 of 120; saved in {folder}, the same call goes on from there"
    with pytest.raises(Stopped, match=message):
        trained(Asks(31, number), folder)
    assert iterations_in(folder)[-1] == 31
    assert signal.getsignal(number) == handler
    assert same(trained("dynamic", folder), unbroken("dynamic"))


@pytest.mark.parametrize("warmup", ["full", "respaced", "harvest"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_within_a_warm_up_is_answered_in_it(number, warmup, tmp_path, monkeypatch):
    """After the part of it under way, not after all of it."""
    pool = POOLS["dynamic"](
        PROCESS, GaussianMixture.ring().denoiser(PROCESS), 16, rho=0.1, warmup=warmup, seed=0
    )
    asked, move = [], type(pool.mover).move

    def moving(*arguments, **options):
        asked.append(signal.raise_signal(number) if not asked else None)
        return move(*arguments, **options)

    monkeypatch.setattr(type(pool.mover), "move", moving)
    with pytest.raises(Stopped, match="stopped before the first step; what was saved before stays"):
        trained(pool, tmp_path)
    assert len(asked) == 1 and iterations_in(tmp_path) == []


def test_a_second_request_within_a_warm_up_stops_at_once(tmp_path, monkeypatch):
    pool = Asks(1)
    monkeypatch.setattr(
        pool.mover, "move", lambda *_: [signal.raise_signal(signal.SIGTERM) for _ in range(2)]
    )
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        trained(pool, tmp_path)


def test_under_nohup_a_closed_terminal_is_no_request(tmp_path):
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert same(trained(Asks(31, signal.SIGHUP, signal.SIGHUP), tmp_path), unbroken("dynamic"))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, usual)


def on_a_terminal(folder, name):
    """Train with a bar on a terminal of its own, which goes away: the shell says so, and nothing can be
    written to it any more."""
    os.setsid()
    master, terminal = pty.openpty()
    os.dup2(terminal, 2)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)

    class Closed(Asks):
        def __next__(self):
            if self.turns.__reduce__()[1][0] == 31:
                os.close(master)
            return super().__next__()

    Closed.__name__ = Asks.__name__
    try:
        trained(Closed(31, signal.SIGHUP), folder, progress=True)
    except Stopped as stopped:
        (folder.parent / name).write_text(str(stopped), encoding="utf-8")


def test_a_training_whose_terminal_is_closed_saves_itself(tmp_path):
    folder = tmp_path / "checkpoints"
    process = CHILDREN.Process(target=on_a_terminal, args=(folder, "said"))
    process.start()
    process.join()
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.startswith("stopped at iteration 31 of 120; saved in ")
    assert same(trained("dynamic", folder), unbroken("dynamic"))


def command_on_a_terminal(folder):
    """`dkdm train` as the shell's child on a terminal, which goes away as the teacher draws a synthetic set:
    the kernel says so, and every line that is printed from then on is an error."""
    os.setsid()
    os.environ["DKDM_DATA_CACHE"] = str(folder)
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    os.dup2(terminal, 1), os.dup2(terminal, 2)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    step, steps = GaussianDiffusion.step, itertools.count(1)

    def closing(*arguments):
        if next(steps) == 8:
            os.close(master)
        return step(*arguments)

    GaussianDiffusion.step = closing
    settings = ("synthetic_images=600", "synthetic_steps=5", "iterations=4", "batch_size=16")
    words = [f"--set={setting}" for setting in settings]
    os._exit(main(["train", "--preset", "toy", "--method", "synthetic", *words]))


def test_a_command_whose_terminal_is_closed_stops_in_order(tmp_path):
    """Outside a training too: it leaves by its own code, and what it had drawn is kept, without litter."""
    process = CHILDREN.Process(target=command_on_a_terminal, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 130
    assert [file.name for file in tmp_path.rglob("*.npz")] == ["000000256.npz"]
    assert not [*tmp_path.rglob(".new-*")]


def test_a_second_request_stops_at_once(tmp_path):
    with pytest.raises(Stopped, match="stopped by SIGINT"):
        trained(Asks(31, signal.SIGINT, signal.SIGINT), tmp_path)
    assert iterations_in(tmp_path)[-1] == 28


def test_without_a_folder_nothing_is_saved():
    with pytest.raises(Stopped, match="stopped at iteration 31 of 120; nothing was saved"):
        trained(Asks(31, signal.SIGINT))


def test_a_score_is_left_at_once_and_made_again(tmp_path):
    calls = []

    def score(iteration, *_):
        calls.append(iteration)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)

    options = {"callback": score, "callback_at": (30, 60, 90)}
    with pytest.raises(Stopped):
        trained("dynamic", tmp_path, **options)
    resumed = trained("dynamic", tmp_path, **options)
    assert calls == [30, 60, 60, 90]
    assert same(resumed, unbroken("dynamic"))


# -- losses that fly off ----------------------------------------------------------------------------------


class Breaks(Asks):
    """A pool whose targets are no numbers, or huge ones, from a turn on."""

    def __init__(self, turn, factor):
        super().__init__(turn)
        self.factor, self.turn = factor, turn

    def __next__(self):
        batch = super().__next__()
        broken = next(self.turns) >= 2 * self.turn - 1
        return dataclasses.replace(batch, eps=batch.eps * self.factor) if broken else batch


Breaks.__name__ = Asks.__name__


@pytest.mark.parametrize(
    "factor, message",
    [
        (math.nan, "loss: found a value that is not finite at iteration 33"),
        (1e6, r"L_simple: found .*e\+\d+, expected less than 1e\+06"),
    ],
)
def test_a_loss_that_flies_off_names_the_last_good_checkpoint(factor, message, tmp_path):
    with pytest.raises(FloatingPointError, match=f"{message}.*the last good checkpoint is .*000000032"):
        trained(Breaks(33, factor), tmp_path)
    assert iterations_in(tmp_path) == [28, 32]
    assert same(trained("dynamic", tmp_path), unbroken("dynamic"))


# -- disks -------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_costs_only_what_came_after_the_last_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, usual[1]))

    try:
        with pytest.raises(OSError, match=f"{folder}: the file is larger than allowed here"):
            trained("dynamic", folder, callback=fill, callback_at=(30,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [place.name for place in sorted(folder.iterdir())] == ["000000028", "000000030"]
    assert same(trained("dynamic", folder), unbroken("dynamic"))


@pytest.fixture
def stopped(tmp_path):
    """A folder with the checkpoints of iterations 28 and 31."""
    folder = tmp_path / "checkpoints"
    with pytest.raises(Stopped):
        trained(Asks(31, signal.SIGTERM), folder)
    assert iterations_in(folder) == [28, 31]
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    """One bit, where nothing but the hash tells."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = [
    (cut, "shared.pt", "shared.pt is not what was written"),
    (flip, "rank-0.pt", "rank-0.pt is not what was written"),
    (Path.unlink, "rank-0.pt", "rank-0.pt is missing"),
    (cut, "snapshot.json", "snapshot.json cannot be read"),
    (Path.unlink, "snapshot.json", "snapshot.json cannot be read"),
]


@pytest.mark.parametrize("damage, name, problem", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(damage, name, problem, stopped):
    damage(stopped / "000000031" / name)
    with pytest.warns(
        UserWarning, match=f"000000031: {problem}.*; this checkpoint is damaged and laid aside"
    ):
        resumed = trained("dynamic", stopped)
    assert same(resumed, unbroken("dynamic"))
    assert (stopped / "damaged-000000031").is_dir()


def set_to(**values):
    def change(about):
        about.update(values)

    return change


def without(key):
    return lambda about: about.pop(key)


def of_another_file(about):
    about["sha256"]["rank-1.pt"] = about["sha256"]["rank-0.pt"]


def of_fewer_files(about):
    del about["sha256"]["rank-0.pt"]


def of_another_setting(about):
    about["settings"]["T"] = 99


MANIFESTS = [
    *(set_to(iteration=n) for n in (0, 30, -31, 10**9, "31", 31.0, None, True)),
    *(set_to(format=n) for n in (0, 1.5, "2", None, True, [])),
    *(set_to(ranks=n) for n in (0, 2, -1, "1", None)),
    *(set_to(sha256=value) for value in ({}, [], None, {"shared.pt": 1}, {"../x": "0"})),
    *(set_to(settings=value) for value in ({}, [], None, "x")),
    *(set_to(own_sha256=value) for value in ("", None, 3)),
    *map(without, ("format", "iteration", "ranks", "settings", "sha256", "own_sha256")),
    *(of_another_file, of_fewer_files, of_another_setting),
]


ASKED = {"lr": 0.1, "T": 100, "batch": [1, 2]}


@pytest.fixture
def written(tmp_path):
    """A folder with checkpoints of next to nothing, of iterations 28 and 31."""
    for iteration in (28, 31):
        Checkpoints(tmp_path / "checkpoints", ASKED).write(iteration, {"x": iteration}, {"y": 0})
    return tmp_path / "checkpoints"


def about_of(place):
    return json.loads((place / "snapshot.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_changed_manifest_is_damage_and_the_checkpoint_before_it_used(change, written):
    about = about_of(written / "000000031")
    change(about)
    (written / "000000031" / "snapshot.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"000000031: snapshot.json .*; this checkpoint is damaged and laid"):
        found = Checkpoints(written, ASKED).newest()
    assert (found.iteration, found.shared) == (28, {"x": 28})


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"{", b"\xff\xfe", bytes(50), b"[" * 10**5])
def test_what_is_no_manifest_is_damage(content, written):
    (written / "000000031" / "snapshot.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"snapshot.json cannot be read"):
        assert Checkpoints(written, ASKED).newest().iteration == 28


def test_a_checkpoint_in_a_folder_of_another_name_is_damage(written):
    (written / "000000031").rename(written / "000000040")
    with pytest.warns(UserWarning, match=r"snapshot.json is of iteration 31, not of 40; this checkpoint"):
        assert Checkpoints(written, ASKED).newest().iteration == 28


def test_a_checkpoint_of_the_first_format_is_read(written):
    """It has no hash of its manifest."""
    about = about_of(written / "000000031") | {"format": 1}
    del about["own_sha256"]
    (written / "000000031" / "snapshot.json").write_text(json.dumps(about), encoding="utf-8")
    assert Checkpoints(written, ASKED).newest().iteration == 31


@pytest.mark.parametrize("newer", [{"lr": 0.2}, {"T": 100, "more": 1}])
def test_where_a_newer_checkpoint_is_refused_an_older_one_that_would_do_is_named(newer, written):
    Checkpoints(written, ASKED | newer, keep=3).write(40, {}, {})
    message = "this training was begun with .*, or only 000000040, to go on from 000000031, which is this tr"
    with pytest.raises(ValueError, match=message):
        Checkpoints(written, ASKED).newest()
    assert Checkpoints(written, ASKED | newer).newest().iteration == 40
    with pytest.raises(ValueError, match=r"with lr = .*, expected 7; move the folder away to begin anew$"):
        Checkpoints(written, ASKED | {"lr": 7}).newest()


@pytest.mark.filterwarnings("ignore:.*laid aside")
def test_where_all_are_damaged_nothing_begins_anew_by_itself(stopped):
    for place in stopped.iterdir():
        cut(place / "shared.pt")
    with pytest.raises(ValueError, match=r"found no checkpoint that is whole; delete .* to start again"):
        trained("dynamic", stopped)


def test_a_checkpoint_of_a_newer_version_is_refused(stopped):
    file = stopped / "000000031" / "snapshot.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'),
        encoding="utf-8",
    )
    message = rf"written by a newer version of dkdm_lab \(format {FORMAT + 1}, expected at most {FORMAT}\)"
    with pytest.raises(ValueError, match=message):
        trained("dynamic", stopped)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": 1e-4}, "this training was begun with lr = 0.001, expected 0.0001; move the folder away"),
        ({"ema": 0.9}, "this training was begun with ema = 0.9999, expected 0.9;"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(changes, message, stopped):
    with pytest.raises(ValueError, match=f"{stopped}: {message}"):
        trained("dynamic", stopped, **changes)


def test_a_checkpoint_of_another_source_is_refused(stopped):
    with pytest.raises(ValueError, match="begun with source = 'DynamicPool', expected 'ShuffledPool'"):
        trained("shuffled", stopped)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_few_are_kept(keep, tmp_path):
    trained("dynamic", tmp_path, keep=keep)
    assert iterations_in(tmp_path) == [116 - EVERY * k for k in reversed(range(keep))]


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep: found 0, expected at least 1"):
        Checkpoints(tmp_path, {}, keep=0)
