"""A page as headless Chromium sees it at a given width."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
    *("--enable-logging=stderr", "--v=0", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom"),
]
FRAME = """<!doctype html><meta charset="utf-8"><body>
<iframe id="page" style="width:{width}px;height:800px;border:0"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const charts = [...page.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect().width);
  const images = [...page.querySelectorAll("img")].map(image => image.naturalWidth);
  const colour = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  const heads = [...page.querySelectorAll("tbody th")].map(head => head.getBoundingClientRect().height);
  const tallest = Math.max(0, ...heads.filter(height => height));
  const text = page.body.innerText;
  const boxes = [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth + 1);
  const cut = boxes.map(box => box.getAttribute("aria-label") + ": " + box.scrollWidth + " of " + box.clientWidth);
  const measured = {{width: root.clientWidth, content: root.scrollWidth, charts, images, tallest, cut, colour, text}};
  document.title = "measured";
  document.body.textContent = JSON.stringify(measured);
}};
frame.src = "{page}";
</script></body>"""


@dataclass(frozen=True)
class Rendered:
    """How the browser rendered a page, with all its details opened."""

    width: int  # of the window, CSS pixels
    content: int  # of the page; more than `width` scrolls sideways
    charts: list[float]  # widths of the inline SVG charts
    images: list[int]  # natural widths of the pictures; 0 where one can't be decoded
    tallest: float  # height of a table row's first cell
    cut: list[str]  # tables and texts that must be scrolled sideways, with what they need and have, CSS pixels
    colour: str  # of the background
    text: str
    console: list[str]  # messages


def render(page: Path, width: int, scratch: Path, *flags: str) -> Rendered:
    """Open `page` in Chromium; skips the test where there is none."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    frame = scratch / f"frame-{width}.html"
    frame.write_text(FRAME.format(width=width, page=page.resolve().as_uri()), encoding="utf-8")
    profile = scratch / f"profile-{width}"
    command = [browser, *FLAGS, *flags, f"--user-data-dir={profile}", frame.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert found and "<title>measured</title>" in done.stdout, done.stdout[:2000] + done.stderr[-2000:]
    measured = json.loads(html.unescape(found.group(1)))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Rendered(**measured, console=console)
