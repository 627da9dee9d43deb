"""The page in a real browser, at the width of a phone and of a desk, in light and dark."""

from pathlib import Path

import pytest

from configs.schema.config import Config
from pipeline.chain import CHAIN
from pipeline.stage import run_stage
from tests.support.browser import render
from tests.support.facts import require_facts_of_artefacts
from tests.support.sample_run import write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = write_run(tmp_path_factory.mktemp("page"))
    run_stage(CHAIN["report"], config)
    return config


@pytest.mark.parametrize("width", [390, 1280])
def test_no_console_messages_no_sideways_scroll_and_all_pictures(run: Config, tmp_path: Path, width: int) -> None:
    seen = render(run.folder("report") / "index.html", width, tmp_path)
    assert seen.console == []
    assert seen.width == width and seen.content <= width
    assert seen.images and all(seen.images)
    assert 0 < seen.tallest < 170  # a head that wraps letter by letter makes its row far taller
    assert len(seen.charts) >= 5 and all(100 < chart <= width for chart in seen.charts)


def test_the_browser_would_see_a_sideways_scroll_and_a_console_error(tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    page.write_text('<div style="width:2000px">x</div><script>console.error("no")</script>', encoding="utf-8")
    seen = render(page, 390, tmp_path)
    assert seen.content > 2000 and len(seen.console) == 1


def test_facts_on_the_page_are_the_artefacts_facts(run: Config, tmp_path: Path) -> None:
    text = render(run.folder("report") / "index.html", 1280, tmp_path).text
    require_facts_of_artefacts(text, run.folder("report").parent)


def test_the_page_follows_the_dark_scheme(run: Config, tmp_path: Path) -> None:
    page = run.folder("report") / "index.html"
    light, dark = (
        render(page, 390, tmp_path, *flags).colour for flags in ([], ["--blink-settings=preferredColorScheme=0"])
    )
    assert light == "rgb(252, 251, 248)" and dark == "rgb(21, 24, 27)"
