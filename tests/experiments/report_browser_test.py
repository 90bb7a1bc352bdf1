"""The page in a real browser: it draws, the console stays empty, and hover, click and keys work."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from experiments.report import alignment_page, html
from tests.experiments import made_up_run

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
SITE_MAP, TOKEN_MAP = "#plot-layer_by_site_p4_sys", "#plot-layer_by_token_p4_sys"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return alignment_page.page(made_up_run.write(folder, ("p4_sys",), layers=6, tokens=24))


@pytest.fixture(scope="module")
def path(page, tmp_path_factory):
    return html.write(tmp_path_factory.mktemp("page") / "b3_20.html", page)


@pytest.fixture(scope="module")
def browser():
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    executable = next(filter(None, found), None)
    assert executable, "no chromium: run `make test`, or apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()


class Opened:
    """A page, whatever it wrote to the console, and every request it made."""

    def __init__(self, browser, path, viewport, scheme):
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.said, self.requests = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.drawn")

    def cells(self, plot):
        return self.page.locator(f"{plot} .mark-rect path")


@pytest.fixture
def opened(browser, path):
    found = Opened(browser, path, WIDE, "light")
    yield found
    found.context.close()
    assert found.said == []


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def luminance(css: str) -> float:
    """Of `rgb(r, g, b)`, from 0 to 1."""
    red, green, blue = (int(part) for part in css.strip("rgb()").split(","))
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def test_it_draws_every_plot_without_a_word_on_the_console_or_a_request(opened, page, path):
    plots = opened.page.locator(".plot[data-figure]")
    assert plots.count() == sum(section.figure is not None for section in page.sections) > 5
    for n in range(plots.count()):
        assert plots.nth(n).locator("svg path").count() > 5
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]


def test_the_screenshot_is_not_empty(opened):
    drawn = pixels(opened.page.locator(SITE_MAP).screenshot())
    colours, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 50
    assert counts.max() < drawn.shape[0] * drawn.shape[1] * 0.9
    whole = pixels(opened.page.screenshot(full_page=True))
    assert whole.shape[0] > 3000


def test_hover_shows_the_value(opened):
    wrong = opened.page.locator(f"{SITE_MAP} .mark-rect path[fill='var(--band-6)']").last
    wrong.hover()
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    shown = tooltip.inner_text()
    for text in ("attn.out", "1.23e+3", "structural"):
        assert text in shown


def test_a_click_opens_the_heads_and_positions_of_that_layer_and_site(opened):
    opened.page.locator(f"{SITE_MAP} .mark-rect path[fill='var(--band-6)']").first.click()
    detail = opened.page.locator("figure:has(" + SITE_MAP + ") .detail")
    detail.locator(".mark-rect path").first.wait_for()
    assert detail.locator("h3").inner_text().startswith("attn.out of layer 1: local error")
    assert detail.locator(".mark-rect path").count() == made_up_run.HEADS * 24
    bad = detail.locator(".mark-rect path[fill='var(--band-6)']")
    assert bad.count() == 24
    rows = detail.locator("tbody tr, table tr").all_inner_texts()
    assert len(rows) == 1 + made_up_run.HEADS
    detail.locator(".close").click()
    assert detail.is_hidden()


def test_a_click_on_a_token_opens_its_sites(opened):
    opened.page.locator(f"{TOKEN_MAP} .mark-rect path[fill='var(--band-6)']").nth(5).click()
    detail = opened.page.locator("figure:has(" + TOKEN_MAP + ") .detail")
    detail.locator(".mark-rect path").first.wait_for()
    title = detail.locator("h3").inner_text()
    assert title.startswith("layer 1, position 5: local error over floor by site")
    labels = detail.locator(".role-axis-label text").all_text_contents()
    assert {"attn.out", "ffn.down", "0", "15"} <= set(labels)


def test_the_keyboard_reaches_every_cell_and_its_detail(opened):
    plot = opened.page.locator(SITE_MAP)
    plot.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown"):
        opened.page.keyboard.press(key)
    figure = opened.page.locator("figure:has(" + SITE_MAP + ")")
    says = figure.locator(".cursor").inner_text()
    assert says.startswith("layer 1, site attn.norm: local 0.") and says.endswith("within_floor")
    assert plot.locator("path[stroke='var(--focus)']").count() == 1
    opened.page.keyboard.press("Enter")
    figure.locator(".detail .mark-rect path").first.wait_for()
    assert figure.locator(".detail h3").inner_text().startswith("attn.norm of layer 1")


def test_local_or_propagated_is_the_readers_choice(opened):
    before = opened.cells(SITE_MAP).evaluate_all("all => all.map(e => e.getAttribute('fill'))")
    opened.page.locator(f"{SITE_MAP} input[value=propagated]").check()
    opened.page.wait_for_function(
        f"!document.querySelector(\"{SITE_MAP} .mark-rect path[fill='var(--band-6)']\")"
    )
    after = opened.cells(SITE_MAP).evaluate_all("all => all.map(e => e.getAttribute('fill'))")
    assert len(after) == len(before) and after != before


def test_tables_open_and_hold_what_the_plot_shows(opened):
    section = opened.page.locator("#errors-by-layer-and-site")
    section.locator("summary").click()
    row = section.locator("tbody tr").nth(2).locator("td").all_inner_texts()
    names = section.locator("thead th").all_inner_texts()
    assert row[0] == "1" and row[names.index("attn.out")] == "1.23e+03"


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_both_widths_and_in_both_schemes(browser, path, viewport, scheme):
    found = Opened(browser, path, viewport, scheme)
    width = found.page.evaluate("document.documentElement.scrollWidth")
    styles = "getComputedStyle(document.documentElement)"
    paper, ink = (found.page.evaluate(f"{styles}.{n}") for n in ("backgroundColor", "color"))
    label = found.page.evaluate(
        "getComputedStyle(document.querySelector('.role-axis-label text')).fill"
    )
    found.context.close()
    assert width <= viewport["width"]
    assert abs(luminance(paper) - luminance(ink)) > 0.7
    assert (luminance(paper) < 0.5) == (scheme == "dark")
    assert abs(luminance(paper) - luminance(label)) > 0.7
    assert found.said == []


def test_it_prints_with_its_tables_open_on_light_paper(browser, path):
    found = Opened(browser, path, WIDE, "dark")
    found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    closed = found.page.locator("details:not([open])").count()
    found.page.emulate_media(media="print", color_scheme="dark")
    paper = found.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    found.page.evaluate("dispatchEvent(new Event('afterprint'))")
    printed = found.page.pdf()
    found.context.close()
    assert closed == 0 and luminance(paper) > 0.99
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") > 3
