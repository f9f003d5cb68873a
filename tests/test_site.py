"""The site builds without a warning, and its sliders move in a browser."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, by the command of the Makefile."""
    recipe = next(
        line
        for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
        if "jupyter-book build" in line
    )
    options = recipe.split("jupyter-book ")[1].replace("--path-output .", "").split()
    out = tmp_path_factory.mktemp("site")
    book = Path(sys.executable).with_name("jupyter-book")
    done = subprocess.run(
        [book, *options, "--path-output", out], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "_build" / "html"


def test_every_chapter_is_a_page(site):
    pages = {page.stem for page in site.glob("*.html")}
    assert {source.stem for source in (ROOT / "book").glob("[0-9]*.py")} <= pages


@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "narrow"])
def test_a_slider_changes_the_picture_and_its_caption(site, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.route("http*://**", lambda route: route.abort())  # the page must work from its own folder
    page.goto((site / "04_iterative.html").as_uri())
    box = page.locator(".dkdm-frames").first
    slider, caption = box.locator("input[type=range]"), box.locator("output")
    before, said = box.locator("img:visible").get_attribute("alt"), caption.inner_text()
    slider.focus()
    slider.press("ArrowRight")
    after = box.locator("img:visible").get_attribute("alt")
    assert box.locator("img:visible").count() == 1
    assert after and after != before and caption.inner_text() not in ("", said)
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth + 1")  # nothing sticks out
    page.close()


# The text of an exploration's twin, by the page that has it.
TWINS = {
    "01_diffusion": "cosine, t = ",
    "02_teacher": "16 samples by DDPM",
    "06_dynamic": "Turn 0: 1,600 samples",
    "07_baselines": "from the ledger, preset digits",
    "14_report": "Preset digits: digits-FID",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "narrow"])
def test_every_twin_is_there_moves_and_can_be_read(site, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.route("http*://**", lambda route: route.abort())
    for name, words in TWINS.items():
        page.goto((site / f"{name}.html").as_uri())
        assert page.locator("html").get_attribute("data-theme") == scheme
        box = page.locator(f'.dkdm-frames:has(img[alt*="{words}"])')
        assert box.count() == 1, name
        before = box.locator("img:visible").get_attribute("alt")
        control = box.locator(".dkdm-control").last
        if control.evaluate("control => control.tagName") == "SELECT":
            control.select_option(index=1)
        else:
            control.focus()
            control.press("ArrowLeft" if control.evaluate("c => c.value === c.max") else "ArrowRight")
        picture = box.locator("img:visible")
        assert picture.count() == 1 and picture.get_attribute("alt") != before, name
        assert picture.evaluate("img => img.naturalWidth > 100 && img.clientWidth > 100"), name
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth + 1"), f"{name}: sticks out"
        assert box.evaluate(CONTRAST) >= 4.5, f"{name}: its words can hardly be read"
    page.goto((site / "12_cost.html").as_uri())
    costs = page.locator(".dkdm-costs")
    before = costs.locator("output").inner_text()
    costs.get_by_label("warm-up, teacher evaluations per sample").fill("500")
    assert costs.locator("output").inner_text() != before
    assert costs.evaluate("box => box.scrollWidth <= box.clientWidth + 1"), "12_cost: sticks out"
    assert costs.evaluate(CONTRAST) >= 4.5
    page.close()


# The contrast of a box's words with what lies behind it, as WCAG counts it.
CONTRAST = """box => {
  const rgb = colour => colour.match(/[0-9.]+/g).map(Number);
  let behind = box;
  while (behind.parentElement && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
    behind = behind.parentElement;
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const two = [getComputedStyle(box).color, getComputedStyle(behind).backgroundColor].map(c => light(rgb(c)));
  return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
}"""


def test_tables_that_cells_return_are_tables_and_their_links_lead_to_pages(site):
    assert (site / "06_dynamic.html").read_text(encoding="utf-8").count("<table") >= 1
    report = (site / "14_report.html").read_text(encoding="utf-8")
    explored = report.count('class="dkdm-frame"')  # each with a table of its own
    assert report.count("<table") == 7 + explored and explored > 1
    assert 'href="07_baselines.html"' in report.split("<main")[-1] and 'href="07_baselines"' not in report


def test_the_api_page_has_every_public_name_of_the_method(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    for room in ("diffusion", "losses", "sources", "pools", "training"):
        module = importlib.import_module(f"dkdm_lab.{room}")
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_"):
                assert f'id="dkdm_lab.{room}.{name}"' in page, f"{room}.{name} has no docstring"


def test_no_page_of_reference_shows_its_source(site):
    """Raw dollar signs, directives, or cross-references that Sphinx did not resolve."""
    for name in (
        "notation",
        "glossary",
        "commands",
        "hyperparameters",
        "api",
        "refused",
        "related",
        "changelog",
    ):
        main = (site / f"{name}.html").read_text(encoding="utf-8").split("<main")[-1].split("</main")[0]
        text = re.sub("<[^>]*>", "", re.sub(r"<(script|code|pre)\b.*?</\1>", "", main, flags=re.DOTALL))
        assert not re.search(r"\$|\{eval-rst|:::|:(class|func|data|meth):|system-message", text), name
