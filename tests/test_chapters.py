"""The chapters: their form, their executed notebooks, their code against the module's, their numbers."""

import ast
import re
import runpy
import statistics
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
import torch
from pybtex.database import parse_file

from dkdm_lab.beyond.vae import LVAE, SIGMA_X, distillation_loss
from dkdm_lab.data import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import ledger
from dkdm_lab.notebook.book import chapters
from dkdm_lab.notebook.execute import parameter_names
from dkdm_lab.pools import DynamicPool, IterativePool
from dkdm_lab.system.seeds import numbered_noise

SOURCES = chapters()
ROOT = Path(__file__).parents[1]
REFERENCES = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "write_references.py")))
by_chapter = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def code_cells(source: Path) -> list:
    return [cell for cell in jupytext.read(source).cells if cell.cell_type == "code"]


def prose(source: Path) -> str:
    return "\n".join(cell.source for cell in jupytext.read(source).cells if cell.cell_type == "markdown")


def executed(source: Path):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def defined(source: Path, function: str, **names):
    """A function that a chapter's cell defines, in a namespace of ``names``."""
    cell = next(cell for cell in code_cells(source) if f"def {function}(" in cell.source)
    exec(cell.source, names)
    return names[function]


def test_the_chapters_are_numbered_without_a_gap():
    assert [source.stem[:2] for source in SOURCES] == [f"{number:02d}" for number in range(24)]


def is_solution(cell) -> bool:
    return "solution" in cell.metadata.get("tags", [])


@by_chapter
def test_cells_are_few_and_short(source):
    cells = [cell for cell in code_cells(source) if not is_solution(cell)]  # which are folded
    lengths = [len([line for line in cell.source.splitlines() if line]) for cell in cells]
    assert len(lengths) <= 25
    assert statistics.median(lengths) <= 10


# Chapters whose exercises have no solutions yet.
UNSOLVED = {8, 9, 10, 11, 13, 15, 16, 17, 18, 19, 20, 21}


@by_chapter
def test_every_exercise_is_followed_by_its_folded_solution_that_ran(source):
    """On the site by the tag, in JupyterLab by the cell's own metadata; both show its first line or a
    button. That it runs, and that its asserts hold, is in the executed notebook, and in `make test`."""
    if int(source.stem[:2]) in UNSOLVED:
        assert not any(map(is_solution, code_cells(source))), "take it out of UNSOLVED"
        return
    cells = executed(source).cells
    first = next(n for n, cell in enumerate(cells) if "## Exercises" in cell.source)
    last = next(n for n, cell in enumerate(cells) if cell.source.startswith("## Further reading"))
    assert last - first >= 4 and not (last - first) % 2
    for number, n in enumerate(range(first, last, 2), start=1):
        exercise, solution = cells[n : n + 2]
        asked = exercise.source.partition("## Exercises")[2] if n == first else exercise.source
        assert re.findall(r"^(\d+)\. \S", asked, flags=re.MULTILINE) == [str(number)]
        assert solution.cell_type == "code" and solution.source.startswith(f"# Solution {number}. ")
        assert {"solution", "hide-cell"} <= set(solution.metadata["tags"])
        assert solution.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
        assert solution.execution_count and ast.parse(solution.source).body


@by_chapter
def test_a_chapter_says_in_code_what_its_prose_claims(source):
    assert any(
        isinstance(node, ast.Assert)
        for cell in code_cells(source)
        for node in ast.walk(ast.parse(cell.source))
    )


@by_chapter
def test_sections_come_in_the_books_order(source):
    order = [
        "**What you'll do.**",
        "**What you'll learn.**",
        "**What you need.**",
        "## Limits",
        "## Exercises",
        "## Further reading",
    ]
    places = [prose(source).find(part) for part in order]
    assert places == sorted(places) and places[0] > 0


@by_chapter
def test_the_notebook_is_its_source(source):
    """Cell by cell, and to the letter when written back; `dkdm run --chapters` makes it so."""
    written, run = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    cells = [[(c.cell_type, c.source, c.metadata.get("tags")) for c in nb.cells] for nb in (written, run)]
    assert cells[0] == cells[1]
    run.metadata.setdefault("jupytext", {})["notebook_metadata_filter"] = "kernelspec,-all"
    assert jupytext.writes(run, "py:percent") == source.read_text(encoding="utf-8")


@by_chapter
def test_parameters_are_literals(source):
    tagged = [cell for cell in code_cells(source) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        ast.literal_eval(statement.value)  # raises for anything computed
    assert parameter_names(source)


@by_chapter
def test_notebook_is_executed_to_its_end_and_clean(source):
    notebook = executed(source)
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert "Warning" not in text and "papermill" not in notebook.metadata
    assert not re.search(r'["\s](/home|/root|/tmp|/work|/Users)/', text)
    assert len(text) < 3_000_000


LINK = re.compile(r"\[((?:\\.|[^\]\\])*)\]\(([^)\s]+)\)")
by_page = pytest.mark.parametrize("page", [*SOURCES, ROOT / "book" / "intro.md"], ids=lambda page: page.stem)


def links(page: Path) -> list[tuple[str, str]]:
    """Text and target of every Markdown link in a page's prose, outside equations and code."""
    text = prose(page) if page.suffix == ".py" else page.read_text(encoding="utf-8")
    return LINK.findall(re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", text, flags=re.DOTALL))


@by_page
def test_prose_is_plain_markdown_for_the_lab_shows_no_roles_and_no_directives(page):
    text = prose(page) if page.suffix == ".py" else page.read_text(encoding="utf-8")
    assert not re.search(r"\{[a-z:]+\}`|^(```|:::)\{|^\([\w-]+\)=$", text, flags=re.MULTILINE)


@by_page
def test_links_have_a_text_and_lead_to_files(page):
    """To a notebook by its file's name: without ".ipynb" the site would find it and JupyterLab would not."""
    for text, target in links(page):
        assert text.strip(), f"a link to {target} without a text is invisible in JupyterLab"
        if not target.startswith("https://"):
            file = ROOT / "book" / target.split("#")[0]
            assert file.suffix and file.is_file(), f"[{text}]({target}) leads nowhere"
        if numbered := re.match(r"[Cc]hapter (\d+)$|(\d+)\. ", text):
            number = int(numbered[1] or numbered[2])
            assert target.startswith(f"{number:02d}_"), f"[{text}] leads to {target}"


@by_page
def test_cited_works_are_listed_and_linked(page):
    works = parse_file(ROOT / "book" / "references.bib").entries.values()
    names = [REFERENCES.label(work) for work in works]
    assert len(set(names)) == len(names), "two works are cited alike"
    names = {*names, *(name.replace(" (", ", ").rstrip(")") for name in names)}
    cited = {text for text, target in links(page) if target == "references.md"}
    assert cited <= names and cited


def test_every_listed_work_is_cited():
    cited = {text for page in SOURCES for text, target in links(page) if target == "references.md"}
    for work in parse_file(ROOT / "book" / "references.bib").entries.values():
        name = REFERENCES.label(work)
        assert {name, name.replace(" (", ", ").rstrip(")")} & cited, f"no chapter cites {name}"


def test_the_page_of_references_is_made_from_the_bibliography():
    assert (ROOT / "book" / "references.md").read_text(encoding="utf-8") == REFERENCES.page()


def test_the_book_is_under_20_mb():
    assert sum(file.stat().st_size for file in (ROOT / "book").rglob("*") if file.is_file()) < 20e6


def test_algorithm_3_of_the_chapter_is_diffusion_sample():
    diffusion = GaussianDiffusion.cosine(20, clip=False)
    teacher = GaussianMixture.ring().denoiser(diffusion)
    levels = iter(range(20, -1, -1))  # x_T's noise first, then each step's

    def randn(n, width):
        return numbered_noise(5, next(levels), range(n), (width,))

    algorithm_3 = defined(SOURCES[1], "algorithm_3", torch=torch, diffusion=diffusion, T=20, randn=randn)
    path = algorithm_3(teacher, randn(64, 2))
    assert torch.equal(path[-1], diffusion.sample(teacher, 64, seed=5))


def test_algorithm_1_of_the_chapter_is_the_dynamic_pool():
    diffusion = GaussianDiffusion.cosine(20, clip=False)
    teacher = GaussianMixture.ring().denoiser(diffusion)
    pool = DynamicPool(diffusion, teacher, 16, rho=0.2, seed=5)
    pool.fill()
    generator = torch.Generator()
    generator.set_state(pool.state_dict()["generator"])
    algorithm_1 = defined(SOURCES[6], "algorithm_1", torch=torch, diffusion=diffusion, teacher=teacher)
    for x_t, t, eps, p in algorithm_1(pool.x.clone(), pool.t.clone(), generator, iterations=60, b=16):
        batch = next(pool)
        for ours, chapters_own in (
            (batch.x_t, x_t),
            (batch.t, t),
            (batch.eps, eps),
            (batch.target.mean, p.mean),
        ):
            assert torch.equal(ours, chapters_own)


def test_the_turn_of_chapter_4_is_the_pools():
    diffusion = GaussianDiffusion.cosine(20, clip=False)
    teacher = GaussianMixture.ring().denoiser(diffusion)
    turn = defined(SOURCES[4], "turn", torch=torch, diffusion=diffusion, teacher=teacher)
    pool = IterativePool(diffusion, teacher, 16)
    for _ in range(5):
        batch = next(pool)
        (_, _, eps, p), x_next = turn(batch.x_t, batch.t)
        assert torch.equal(batch.eps, eps) and torch.equal(batch.target.mean, p.mean)
        noise = (x_next - p.mean) / torch.exp(0.5 * p.log_variance)
        assert x_next.shape == pool.x.shape and 0.5 < noise.std() < 1.5


def test_the_loss_of_chapter_19_is_the_modules():
    unified = defined(SOURCES[19], "unified", torch=torch, SIGMA_X=SIGMA_X)
    sizes = {"in_channels": 1, "sample_size": 8, "levels": 3, "latent_channels": 2}
    teacher, student = (LVAE(width=width, **sizes).eval() for width in (4, 3))
    noise = teacher.noise(5)
    with torch.no_grad():
        found, expected = (loss(teacher, student, noise) for loss in (unified, distillation_loss))
    torch.testing.assert_close(found, expected)


QUOTE = re.compile(
    r"(-?[\d.,]+)\s*(?:±\s*([\d.]+)\s*)?<!--\s*ledger:\s*(\S+) (\S+) (\S+?)((?: \S+=\S+)*)\s*-->"
)


def quotes(text: str):
    """Numbers marked as from the ledger: ``8.4 ± 0.7<!-- ledger: digits dynamic digits-FID -->``."""
    for mean, std, preset, method, metric, settings in QUOTE.findall(text):
        yield mean, std, preset, method, metric, dict(pair.split("=") for pair in settings.split())


@pytest.mark.parametrize(
    "file", [ROOT / "README.md", ROOT / "book" / "intro.md", *SOURCES], ids=lambda f: f.name
)
def test_quoted_numbers_are_the_ledgers(file):
    text = re.sub(r"\n# ", "\n", file.read_text(encoding="utf-8"))
    marked = list(quotes(text))
    assert len(marked) == text.count("<!-- ledger:"), "a mark that could not be read"
    for mean, std, preset, method, metric, where in marked:
        found = ledger.summary(preset, metric, where)[method]
        printed = f"{mean} ± {std}" if std else mean
        assert str(found) == printed or str(found).split(" ± ")[0] == printed


def test_readme_table_is_made_from_the_ledger(tmp_path):
    renewed = tmp_path / "README.md"
    renewed.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    ledger.write_readme(renewed)
    assert renewed.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")
