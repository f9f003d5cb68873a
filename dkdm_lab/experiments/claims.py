"""Claims and verdicts: a sentence of a source, the comparison that decides it, and how it came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dkdm_lab.experiments.cast import PIXELS
from dkdm_lab.experiments.ledger import Table
from dkdm_lab.experiments.verdict import Verdict

# For a preset or a study: by how much, as a ratio, a claim holds (below 1) or fails (above), for each seed
# that has all the results it needs.
Check = Callable[[str], dict[int, float]]


@dataclass(frozen=True)
class Claim:
    """A sentence of a source, the chapter that treats it, the comparison that decides it, and the presets
    or studies that it is about."""

    place: str
    text: str
    chapter: str
    check: Check
    about: tuple[str, ...] = PIXELS

    def verdict(self, name: str) -> str:
        """A :class:`Verdict` at a preset or a study, and for how many seeds; nothing at one that it is not
        about."""
        if name not in self.about:
            return ""
        ratios = list(self.check(name).values())
        if not ratios:
            return str(Verdict.NOT_RUN)
        holds = sum(ratio < 1 for ratio in ratios)
        decided = {len(ratios): Verdict.REPRODUCED, 0: Verdict.NOT_REPRODUCED}
        return f"{decided.get(holds, Verdict.UNDECIDED)} ({holds} of {len(ratios)} seeds)"


def all_of(*checks: Check) -> Check:
    """Every one of ``checks``; for each seed that all have, the one that holds least counts."""

    def check(preset: str) -> dict[int, float]:
        each = [one(preset) for one in checks]
        if not each:
            return {}
        seeds = sorted(set.intersection(*map(set, each)))
        return {seed: max(found[seed] for found in each) for seed in seeds}

    return check


def has_results(claims: Iterable[Claim], name: str) -> bool:
    """Whether any of the claims can be decided at a preset or a study."""
    return not {claim.verdict(name) for claim in claims} <= {"", Verdict.NOT_RUN}


def verdict_table(
    claims: Iterable[Claim], names: Iterable[str], link: bool = False, after: str = ""
) -> Table:
    """Claims, each with its verdict at every preset or study of ``names``. link: each place is a link to the
    chapter. after: a paragraph below."""
    names = list(names)
    rows = []
    for claim in claims:
        place = f"[{claim.place}]({claim.chapter}.ipynb)" if link else claim.place
        rows.append([place, claim.text, *map(claim.verdict, names)])
    heads = ["", "claim", *(f"`{name}`" for name in names)]
    return Table.of(heads, rows, "l" * len(heads), after=after)
