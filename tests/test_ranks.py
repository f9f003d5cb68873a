"""Two processes at one training. This file is also the program they run: see :func:`work`."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.runs import Run
from dkdm_lab.pools import POOLS, DynamicPool
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.budget import OutOfTime
from dkdm_lab.training import train

PROCESS = GaussianDiffusion.cosine(100, clip=False)
RING = GaussianMixture.ring()
BATCH, ITERATIONS = 64, 150


def make_source(name, seed=0):
    batch_size, seed = distributed.local_batch_size(BATCH), distributed.rank_seed(seed)
    if name == "data":
        data = RING.sample(1000)[distributed.rank() :: distributed.world_size()]
        return NoisedImages(PROCESS, data, batch_size, seed=seed)
    options = {"rho": 0.5} if name == "dynamic" else {}
    return POOLS[name](PROCESS, RING.denoiser(PROCESS), batch_size, seed=seed, **options)


def trained(name, iterations=ITERATIONS, seed=0, folder=None, every=0, **callback):
    torch.manual_seed(seed)
    student, source = networks.build("toy-student"), make_source(name, seed)
    options = {"lr": 1e-3, "log_every": 50, "progress": False}
    averaged, history = train(
        student, source, PROCESS, iterations, checkpoint=folder, checkpoint_every=every, **options, **callback
    )
    weights = torch.cat([p.detach().flatten() for net in (student, averaged) for p in net.parameters()])
    return {"weights": weights, "loss": history.loss, "pool": getattr(source, "t", None)}


def work(out):
    """What each of two ranks does; it leaves its findings in a file of its own."""
    torch.set_num_threads(1)
    found = {
        "rank": distributed.rank(),
        "number": distributed.world_size(),
        "everyones": distributed.gather(distributed.rank() + 10),
    }
    found["mains"] = distributed.broadcast(f"said by {distributed.rank()}")
    with distributed.by_itself():
        found["by itself"] = (
            distributed.rank(),
            distributed.world_size(),
            distributed.gather(1),
            distributed.local_batch_size(7),
        )
    try:
        distributed.local_batch_size(7)
    except ValueError as error:
        found["refused"] = str(error)
    pool = make_source("dynamic")
    pool.fill()
    found["pool"] = {"size": pool.size, "t": pool.t, "x": pool.x}
    for name in ("data", "dynamic"):
        found[name] = trained(name)
    for name in ("data", *POOLS):
        folder = out / name
        trained(name, 20, folder=folder, every=10)  # leaves the checkpoint of iteration 10
        found[f"{name}, resumed"] = trained(name, 30, folder=folder)
        found[f"{name}, unbroken"] = trained(name, 30)
    found["one rank's, resumed"] = trained("dynamic", 30, folder=out / "by-one")
    found["out of time"] = out_of_time(out)
    torch.save(found, out / f"{distributed.rank()}.pt")


def out_of_time(out):
    """What a rank says when the clock of the other one, and of the main one in a score, has run down."""
    seconds, said = [0.0], []
    budget.now = lambda: seconds[0]

    def score(*_):
        seconds[0] = 60.0
        budget.check()

    for callback in ({}, {"callback": score, "callback_at": (20,)}):
        with budget.budget(1):
            seconds[0] = 60.0 if distributed.rank() == 1 and not callback else 0.0
            try:
                trained("dynamic", 30, folder=out / f"late-{len(callback)}", **callback)
            except OutOfTime as error:
                said.append(str(error))
    budget.now = time.monotonic
    return said


def launched(*program):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    # Nobody else's port, and the CPU also where there are GPUs.
    launcher += ["--main_process_port", "0", "--mixed_precision", "no", "--num_machines", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*launcher, *program], cwd=root, env=environment, capture_output=True, encoding="utf-8", timeout=600
    )
    return done


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the two ranks found, in their order, and the folder."""
    out = tmp_path_factory.mktemp("ranks")
    trained("dynamic", 20, folder=out / "by-one", every=10)
    done = launched(__file__, str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)], out


def test_each_knows_which_it_is(found):
    for rank, one in enumerate(found[0]):
        assert (one["rank"], one["number"]) == (rank, 2)
        assert one["everyones"] == [10, 11]
        assert one["mains"] == "said by 0"
        assert one["by itself"] == (0, 1, [1], 7)


def test_all_leave_when_the_time_of_one_is_over(found):
    """After the first step, for the clock of one rank; in the score of the main one."""
    ranks_found, out = found
    for one in ranks_found:
        step, score = one["out of time"]
        assert step.startswith("the budget of 1 minute is used up: stopped at iteration 1 of 30; saved in")
        assert score.startswith("the budget of 1 minute is used up; what was saved before stays")
    assert [place.name for place in (out / "late-2").glob("[0-9]*")] == ["000000020"]


def test_a_batch_that_cannot_be_shared_is_refused(found):
    assert {one["refused"] for one in found[0]} == {
        "batch_size: found 7, expected a multiple of the 2 processes"
    }


def test_the_shards_together_are_the_one_pool(found):
    """As large; every level as often as uniform chance has it; and no sample twice."""
    whole = DynamicPool(PROCESS, RING.denoiser(PROCESS), BATCH, rho=0.5)
    shards = [one["pool"] for one in found[0]]
    assert sum(shard["size"] for shard in shards) == whole.size == 3200
    t, x = (torch.cat([shard[name] for shard in shards]) for name in ("t", "x"))
    assert len(x.unique(dim=0)) == whole.size
    # The harvest draws each shard's levels from even strata: 16 in each, give or take one at either end.
    for shard in shards:
        counts = torch.bincount(shard["t"], minlength=100)
        assert int(counts.min()) >= 14
        assert int(counts.max()) <= 18
    assert torch.bincount(t, minlength=100).sum() == 3200


def test_all_ranks_return_the_same_student(found):
    for name in ("data", "dynamic"):
        one, other = (rank[name]["weights"] for rank in found[0])
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["data", "dynamic"])
def test_two_ranks_have_the_loss_curve_of_one(name, found):
    """At the same global batch, within the spread of one rank's seeds."""
    curves = torch.tensor([trained(name, seed=seed)["loss"] for seed in range(1, 7)]).log()
    mean, spread = curves.mean(0), curves.std(0)
    two = torch.tensor(found[0][0][name]["loss"]).log()
    assert ((two - mean).abs() / spread).max() < 4
    assert found[0][0][name]["loss"] == found[0][1][name]["loss"]  # of all ranks, on each


@pytest.mark.parametrize("name", ["data", *POOLS])
def test_two_ranks_resume_to_the_last_bit(name, found):
    for one in found[0]:
        resumed, unbroken = one[f"{name}, resumed"], one[f"{name}, unbroken"]
        assert torch.equal(resumed["weights"], unbroken["weights"])
        assert resumed["loss"] == unbroken["loss"]
        if name != "data":
            assert torch.equal(resumed["pool"], unbroken["pool"])


def test_one_ranks_pool_is_dealt_out_to_two(found):
    shards = [one["one rank's, resumed"] for one in found[0]]
    assert [len(shard["pool"]) for shard in shards] == [1600, 1600]
    assert not torch.equal(shards[0]["pool"], shards[1]["pool"])


@pytest.mark.parametrize("name", ["data", "dynamic"])
def test_two_ranks_pool_is_taken_over_by_one(name, found):
    resumed = trained(name, 40, folder=found[1] / name)
    if name == "dynamic":
        assert len(resumed["pool"]) == 3200
    assert len(resumed["loss"]) == 1


def test_the_command_trains_on_two_processes(tmp_path, yardstick, cache):
    settings = {"batch_size": 16, "iterations": 20, "curve": 2, "steps": 5, "samples": 50}
    changes = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    command = ["-m", "dkdm_lab", "train", "--preset", "toy", "--method", "dynamic", *changes]
    done = launched(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run(presets.get("toy", **settings), "dynamic")
    assert run.status == "finished"
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    # A harvest is one evaluation a sample; each rank rounds up its own.
    assert result["teacher_evaluations"] == pytest.approx(20 * 16 + 40 * 16, abs=40)
    assert done.stdout.count("{'energy-distance'") == 1


# -- a rank that is gone ----------------------------------------------------------------------------------

WORDS = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection reset by peer",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv",
    "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5",
    "Broken pipe",
]


@pytest.mark.parametrize("words", WORDS)
def test_what_carries_the_messages_is_put_plainly(words, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    message = "rank 0 of 2: another process of this training is gone: .*; what was saved before stays"
    with pytest.raises(RuntimeError, match=message), distributed.together():
        with distributed.together():  # said once
            raise RuntimeError(words)


def test_other_errors_stay_as_they_are(monkeypatch):
    with pytest.raises(RuntimeError, match=r"^Connection reset by peer$"), distributed.together():
        raise RuntimeError("Connection reset by peer")  # of a single process: not of ours
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"^sizes differ$"), distributed.together():
        raise RuntimeError("sizes differ")


class Dies(NoisedImages):
    """A source within which this rank is gone."""

    def __next__(self):
        if distributed.rank() == 1 and self.evaluations == 0:
            os._exit(9)
        return super().__next__()


def test_the_rank_that_is_left_says_that_another_is_gone():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "die"],
            env={
                **os.environ,
                **{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            },
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 9], said
    assert "RuntimeError: rank 0 of 2: another process of this training is gone" in said[0]


def die():
    torch.set_num_threads(1)
    source = Dies(PROCESS, RING.sample(500), 8, seed=0)
    train(networks.build("toy-student"), source, PROCESS, 10, progress=False)


if __name__ == "__main__":
    die() if sys.argv[1] == "die" else work(Path(sys.argv[1]))
