"""The dashboard in a real browser: a slider moved with the keyboard, a quantization chosen, the new total read.

With UPDATE_SCREENSHOTS set it also writes docs/images/dashboard.png and docs/images/context-chart.png.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calculator.estimate import estimate
from calculator.ledger import COMPONENTS
from calculator.units import gib

playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytest.importorskip("streamlit", reason="streamlit isn't installed")
pytest.importorskip("plotly", reason="plotly isn't installed")

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
TOTAL = "[data-testid=stMetricValue]"
SLOW = 30_000  # milliseconds: a busy machine draws the charts long after the total

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server that lives as long as the module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port),
               "--server.address", "127.0.0.1", "--server.fileWatcherType", "none"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_up(server, f"http://127.0.0.1:{port}/_stcore/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium."""
    playwright.expect.set_options(timeout=SLOW)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page whose script has run to its end; it asks nobody but its own server."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    _expect_total(page, estimate("llama-3.2-1b").total_bytes)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=SLOW)
    yield page
    page.close()
    elsewhere = {url for url in asked if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))}
    assert not elsewhere


def test_the_slider_and_the_quantization_change_the_total(page: Any) -> None:
    slider = page.locator(".st-key-context").get_by_role("slider")
    slider.focus()
    for _ in range(3):  # 8k, 12k, 16k, 24k
        page.keyboard.press("ArrowRight")
    _expect_total(page, estimate("llama-3.2-1b", context="24k").total_bytes)
    page.keyboard.press("ArrowLeft")
    _expect_total(page, estimate("llama-3.2-1b", context="16k").total_bytes)

    choose(page, "quant", "Q4_K_M")
    wanted = estimate("llama-3.2-1b", quant="Q4_K_M", context="16k").total_bytes
    _expect_total(page, wanted)
    playwright.expect(page.get_by_text(f"{wanted:,} bytes").first).to_be_visible()
    page.wait_for_url("**/?quant=Q4_K_M&context=16k")

    page.go_back()
    _expect_total(page, estimate("llama-3.2-1b", context="16k").total_bytes)


def test_the_charts_are_drawn(page: Any) -> None:
    lines = [n for n in estimate("llama-3.2-1b").ledger.on_devices if n.nbytes]
    playwright.expect(page.locator(".st-key-bar .barlayer .point")).to_have_count(len(lines))
    playwright.expect(page.locator(".st-key-bar .legendtext")).to_have_count(len(COMPONENTS) + 1)  # and the band
    playwright.expect(page.locator(".st-key-curve .scatterlayer .js-line").nth(40)).to_be_attached()


@pytest.mark.skipif("UPDATE_SCREENSHOTS" not in os.environ, reason="UPDATE_SCREENSHOTS is not set")
def test_screenshots(browser: Any, address: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1180})
    page.goto(f"{address}/?gpu=RTX+4060&quant=Q4_K_M&context=32k")
    total = estimate("llama-3.2-1b", quant="Q4_K_M", context="32k", gpu="RTX 4060").total_bytes
    _expect_total(page, total)
    page.locator(".st-key-curve .scatterlayer .js-line").first.wait_for(state="attached")
    page.wait_for_timeout(1500)  # the tables are canvases: nothing to wait for
    page.screenshot(path=IMAGES / "dashboard.png")
    page.locator(".st-key-curve").screenshot(path=IMAGES / "context-chart.png")
    page.close()


def choose(page: Any, key: str, text: str) -> None:
    """Pick the first option of a selector that starts like this."""
    page.locator(f".st-key-{key} input").click()
    page.keyboard.type(text)
    page.locator("[role=option]").filter(has_text=text).first.click()


def _expect_total(page: Any, nbytes: int) -> None:
    playwright.expect(page.locator(TOTAL)).to_have_text(gib(nbytes), timeout=SLOW)


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(150):
        assert server.poll() is None, "streamlit stopped at once"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("streamlit didn't start within 30 seconds")
