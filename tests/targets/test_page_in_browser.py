"""The pages in headless Chromium: nothing asked for, nothing wrong, figures there, all readable, on a phone too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from codemill.targets import BenchmarkResult, render
from codemill.targets.browser import BROWSERS
from codemill.targets.completion_page import render_completion

from . import reports
from .devtools import Page, chromium
from .test_label_report import qualities, report_of

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)), reason="needs chromium to look at pages in"
)

KINDS = ("retrieval", "classifier", "completion", "two", "two that complete")
MOST_BYTES = 1_000_000
ENGINES = (
    *("Quality against size", "Quality against latency", "Latency by length, batch 1"),
    *("Latency by length, batch 2", "Where parameters and operations are", "Time by operator"),
)
WRITES = ("Loss against speed", "Layers a token takes", "Training", "Where the time went")
SEARCHED = ("Quality against size (dashed: the front", "Quality against latency (dashed: the front")
TITLES = {
    "retrieval": (*ENGINES, *SEARCHED, "Quality", "Training", "Where the time went"),
    "classifier": (*ENGINES, *SEARCHED, "Calibration", "Layers used"),
    "completion": (*WRITES, "Where parameters and operations are"),
    "two": (*ENGINES, *SEARCHED),
    "two that complete": WRITES,
}

# of each text that is seen: the contrast of its colour with what is behind it, as WCAG 2 defines it
FAINT = """(() => {
  const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, under) => {
    const alpha = top[3] === undefined ? 1 : top[3];
    return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * under[i]);
  };
  const behind = element => {
    if (!element) return [255, 255, 255];
    const own = channels(getComputedStyle(element).backgroundColor);
    return own[3] === 0 ? behind(element.parentElement) : over(own, behind(element.parentElement));
  };
  const light = colour => {
    const [r, g, b] = colour.map(x => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!text || !element.getClientRects().length || element.closest("style, i")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const ink = over(channels(element.closest("svg") ? style.fill : style.color), back);
    const [one, other] = [light(ink), light(back)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05), large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) found.push([text.slice(0, 40), element.className, ratio.toFixed(2)]);
  }
  return found;
})()"""

# of the figures: how many have no drawing, no mark in it, or no size
EMPTY = """[...document.querySelectorAll("figure")].filter(figure => {
  const svg = figure.querySelector("svg"), box = svg && svg.getBoundingClientRect();
  return !svg || !svg.querySelector("path, use") || box.width < 200 || box.height < 80;
}).length"""

# texts of drawings that are smaller than one can read, in CSS pixels as shown
SMALL = """[...document.querySelectorAll("svg text")].filter(text => {
  const scale = text.ownerSVGElement.getScreenCTM().a;
  return parseFloat(getComputedStyle(text).fontSize) * scale < 8;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def files(
    result: tuple[BenchmarkResult, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    search = reports.retrieval(result[0])
    environment = replace(search.benchmark.environment, machine_id="0" * 12)
    there = replace(search, benchmark=replace(search.benchmark, environment=environment))
    labels = reports.full(report_of(result, *qualities()))
    one = reports.completion()
    return {
        "retrieval": render([search], folder / "retrieval.html"),
        "classifier": render([labels], folder / "classifier.html"),
        "completion": render_completion([one], folder / "completion.html"),
        "two": render([search, there], folder / "two.html"),
        "two that complete": render_completion([one, one], folder / "completions.html"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_it_asks_for_nothing_logs_nothing_and_every_figure_is_there(
    page: Page, files: dict[str, Path], kind: str
) -> None:
    page.open(files[kind])
    assert page.logged == []
    assert page.requests == [files[kind].as_uri()]
    assert page.value("document.scripts.length") == 0
    captions = page.value("[...document.querySelectorAll('figcaption')].map(x => x.innerText)")
    for title in TITLES[kind]:
        assert any(caption.startswith(title) for caption in captions), title
    assert page.value(EMPTY) == 0
    assert files[kind].stat().st_size < MOST_BYTES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_it_is_as_wide_as_the_screen_and_its_drawings_can_be_read(
    page: Page, files: dict[str, Path], kind: str, width: int
) -> None:
    page.open(files[kind], width)
    opened = "document.querySelectorAll('details').forEach(part => part.open = true)"
    page.value(opened)
    assert page.value("document.documentElement.scrollWidth") == width
    assert page.value(SMALL) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(
    page: Page, files: dict[str, Path], kind: str, scheme: Literal["light", "dark"]
) -> None:
    page.open(files[kind], scheme=scheme)
    dark: Any = page.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark is (scheme == "dark")
    assert page.value(FAINT) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_a_point_of_the_front_says_its_architecture_within_the_page(
    page: Page, files: dict[str, Path], width: int
) -> None:
    page.open(files["retrieval"], width)
    spots = "[...document.querySelectorAll('.spot')]"
    for number in (0, 30, 60):
        place = page.value(
            f"""(() => {{
              const spot = {spots}.filter(x => x.textContent.includes('inner'))[{number}];
              spot.scrollIntoView({{block: 'center'}});
              const box = spot.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        page.hover(*place)
        said = page.value(
            """[...document.querySelectorAll('.tip')].filter(x => x.getClientRects().length).map(x => {
              const box = x.getBoundingClientRect();
              return [x.innerText, box.left, box.right];
            })"""
        )
        assert len(said) == 1
        text, left, right = said[0]
        assert "layers (0, 5) x 384" in text
        assert "ms" in text
        assert left >= 0
        assert right <= width
        assert page.value("document.documentElement.scrollWidth") == width


def test_it_prints_in_dark_ink_whatever_the_screen_is(
    page: Page, files: dict[str, Path], tmp_path: Path
) -> None:
    page.open(files["retrieval"], scheme="dark")
    page.media("print")
    assert page.value("getComputedStyle(document.body).color") == "rgb(28, 33, 38)"
    assert page.value(FAINT) == []
    page.media("")
    page.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
