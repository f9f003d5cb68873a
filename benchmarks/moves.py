"""What a pool's samples keep of their energy, by how they move, with an exact teacher.

    python benchmarks/moves.py                                  the table behind chapter 22, in seconds
    python benchmarks/moves.py --schedule linear --T 1000 --strides 20,100 --s2 0.02,2
    python benchmarks/moves.py --directions 0.05 --out moves.json

The data are N(0, s^2 I), so that E|x_t|^2 is known: a cell holds the pool's over that, for the lowest 2% of
the levels, to 10%, from 10 to 30%, and above. The pool is filled and then turned until every sample has come
down twice from the top. --directions: so large a share of the dimensions has the variance 1 instead.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Annotated

import torch

from dkdm_lab.data import LowRankGaussian
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments.ledger import Table
from dkdm_lab.moves import OF_THE_TEACHER, VARIANCES
from dkdm_lab.pools import ShuffledPool
from dkdm_lab.system.files import write_json
from dkdm_lab.system.options import Command, file, listed, option
from dkdm_lab.system.settings import Count, Levels, Range, Seed, Share

BANDS = (0.0, 0.02, 0.1, 0.3, 1.0)


def energies(
    diffusion: GaussianDiffusion,
    data: LowRankGaussian,
    stride: int,
    variance: str | None = None,
    learned: bool = False,
    warmup: str = "harvest",
    samples: int = 1000,
    rounds: int = 2,
    seed: int = 0,
) -> dict[str, list[float]]:
    """E|x_t|^2 of a pool over its truth in each of the bands, as it was "filled" and after it was "turned".

    The latter is a mean over one way from the top to x_0, after ``rounds`` of them.
    """
    teacher = data.denoiser(diffusion, learned)
    pool = ShuffledPool(
        diffusion, teacher, samples, stride=stride, variance=variance, warmup=warmup, seed=seed
    )
    truth = data.energy(torch.as_tensor(diffusion.alpha_bar))

    def ratios(turns: int) -> list[float]:
        sums, counts = torch.zeros(diffusion.T).double(), torch.zeros(diffusion.T).double()
        for batch in itertools.chain([None], itertools.islice(pool, turns)):
            x, t = (pool.x, pool.t) if batch is None else (batch.x_t, batch.t)
            sums.index_add_(0, t, x.double().square().flatten(1).mean(1) / truth[t])
            counts += t.bincount(minlength=diffusion.T)
        edges = [round(share * diffusion.T) for share in BANDS]
        spans = [slice(0, max(1, edges[1])), *(slice(a, b) for a, b in itertools.pairwise(edges[1:]))]
        return [float(sums[span].sum() / counts[span].sum()) for span in spans]

    way = -(-diffusion.T // stride)
    pool.fill()
    filled = ratios(0)
    for _ in itertools.islice(pool, rounds * way):
        pass
    return {"filled": filled, "turned": ratios(way)}


def main(arguments: list[str] | None = None) -> None:
    parser = Command(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    variances = listed(Annotated[float, Range(0, 1e6, above=True)])
    parser.add_argument("--schedule", choices=("cosine", "linear", "scaled_linear"), default="cosine")
    parser.add("--T", Levels, default=100)
    parser.add_argument("--s2", type=variances, default=[0.05, 0.25, 1.0], help="variances of the data")
    parser.add_argument("--strides", type=listed(Count), help="of the turns (default: T / 10)")
    parser.add("--directions", Share, default=0.0)
    parser.add("--dimensions", Count, default=256)
    parser.add("--samples", Count, default=1000)
    parser.add("--seed", Seed, default=0)
    parser.add_argument("--out", type=option(file), help="a JSON file for all numbers")
    options = parser.parse_args(arguments)
    T, D = options.T, options.dimensions
    diffusion = getattr(GaussianDiffusion, options.schedule)(T, clip=False)
    strides = options.strides or [max(1, T // 10)]
    if max(strides) > T:
        parser.error(f"--strides: found {max(strides)}, expected at most T = {T}")
    ways = [("full", 1, "small", False)]
    ways += [
        ("harvest", stride, v, False) for stride in strides for v in VARIANCES if v not in OF_THE_TEACHER
    ]
    ways += [("harvest", stride, v, True) for stride in strides for v in OF_THE_TEACHER]
    results = []
    for s2, (warmup, stride, variance, learned) in itertools.product(options.s2, ways):
        rank = round(options.directions * D)
        directions = (1 - s2) ** 0.5 * torch.eye(D)[:rank] if rank else None
        data = LowRankGaussian(torch.zeros(D), s2**0.5, directions)
        found = energies(
            diffusion, data, stride, variance, learned, warmup, options.samples, seed=options.seed
        )
        results.append({"s2": s2, "warmup": warmup, "stride": stride, "variance": variance, **found})
    cells = {(r["warmup"], r["stride"], r["variance"], r["s2"], w): r[w] for r in results for w in _WHEN}
    rows = [
        [warmup, str(stride), variance, when]
        + [" ".join(f"{x:.2f}" for x in cells[warmup, stride, variance, s2, when]) for s2 in options.s2]
        for warmup, stride, variance, _ in ways
        for when in _WHEN
    ]
    names = ["warm-up", "stride", "variance", "", *(f"s^2 = {s2:g}" for s2 in options.s2)]
    head = f"{options.schedule}, T = {T}: E|x_t|^2 over its truth; levels below 2%, 10%, 30%, and above"
    print(Table.of(names, rows, "lrll" + "r" * len(options.s2), before=head))
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write_json(options.out, {"settings": settings, "bands": BANDS, "results": results})


_WHEN = ("filled", "turned")

if __name__ == "__main__":
    sys.exit(main())
