"""The report of a real run of two phases, in a browser."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from jina_jax.cli.main import main
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.metrics.writer import read_metrics

WIDE, NARROW = {"width": 1400, "height": 1000}, {"width": 380, "height": 800}
SECTIONS = ("data", "training", "evaluation")


@pytest.fixture(scope="module")
def page_path(two_phases):
    assert main(["report", str(two_phases)]) == 0
    return two_phases / "report" / "index.html"


@pytest.fixture
def opened(browser, page_path):
    """Opens the page; what goes wrong in it fails the test."""
    contexts, wrong, requests = [], [], []

    def open_page(viewport=WIDE, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
    assert set(requests) == {page_path.as_uri()}


def test_every_section_of_both_phases_is_there(opened):
    page = opened()
    keys = [f"{name}-{number}" for number in (1, 2) for name in SECTIONS] + ["setup"]
    assert [s.get_attribute("id") for s in page.query_selector_all("main > section[id]")] == keys
    headings = page.locator("h3").all_inner_texts()
    wanted = ("Where the records went", "Scores of the filters", "Lengths", "Learning", "Sources",
              "Examples of what was dropped", "Speed and memory", "Retrieval of held-out pairs",
              "Negation", "pairs", "triplets")  # fmt: skip
    assert set(wanted) <= set(headings)
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_the_numbers_are_those_of_the_run(opened, two_phases):
    page = opened()
    manifest = load_manifest(two_phases.parent / "data")
    read = sum(s.read for s in manifest.sources)
    glance = page.locator(".tiles").first.inner_text()
    assert f"{manifest.train_records:,}" in glance and f"of {read:,} read" in glance
    funnel = page.locator("#data-1 table", has_text="Each stage, in order").first
    left = [row.split("\t")[-1] for row in funnel.locator("tr").all_inner_texts()]
    numbers = manifest.sources[1]
    assert left[1] == f"{manifest.sources[0].read:,}" and left[-1] == f"{numbers.train:,}"
    last = read_metrics(two_phases / "metrics.jsonl")[-1]
    loss = page.locator("#training-2 figure", has_text="Loss").first.locator("tbody tr")
    cells = loss.nth(11).locator("th, td").all_text_contents()
    assert cells == ["total", "12", f"{last['loss']:.4g}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_no_serious_violation(opened, viewport, scheme):
    page = opened(viewport, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = Axe().run(page).response
    assert len(found["passes"]) > 20
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], v["nodes"][0]["html"]) for v in serious]


def test_a_phone_shows_all_without_sideways_scrolling(opened):
    page = opened(NARROW)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]


def test_it_works_with_the_keyboard(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    summary = page.locator("details.samples > summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details.samples[open]").count() == 1


def test_colours_follow_the_choice_and_plots_follow_the_colours(opened):
    page = opened()
    drawn = """figure svg path[style*="stroke: var(--series"]"""
    colour = f"getComputedStyle(document.querySelector('{drawn}')).stroke"
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    line = page.evaluate(colour)
    page.get_by_label("Colours").select_option("dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert page.evaluate(colour) != line


def test_texts_of_records_are_shown_and_not_executed(opened):
    page = opened()
    assert page.title() == "triplets · report"
    shown = page.locator("#data-1 .sample", has_text="document.title")
    assert "<script>document.title = 'executed'</script>" in shown.first.text_content()


def test_every_plot_is_a_png_and_an_svg_too(page_path):
    html = page_path.read_text()
    names = re.findall(r'<figcaption id="([\w-]+)-title">', html)
    plots = page_path.parent / "plots"
    assert len(names) == len(set(names)) > 30
    assert {p.name for p in plots.iterdir()} == {f"{n}.{e}" for n in names for e in ("png", "svg")}
    assert all((plots / f"{n}.png").read_bytes().startswith(b"\x89PNG") for n in names)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(page_path, two_phases, tmp_path):
    assert main(["report", str(two_phases), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "index.html").read_bytes() == page_path.read_bytes()
