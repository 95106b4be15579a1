"""Headless Chromium, for tests of pages."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
SCHEMES = ("light", "dark")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A driver of Chromium that logs what pages say and ask for; skips the test where there is none."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("no Selenium here: pip install -e '.[browser]'")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: Any, page: Path | str, width: int = 1000, scheme: str = "light") -> None:
    """Opens a page at a width and in a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page if isinstance(page, str) else page.resolve().as_uri())


def requests_of(driver: Any) -> list[str]:
    """Addresses that pages asked for since the last call."""
    rows = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [row["params"]["request"]["url"] for row in rows if row["method"] == "Network.requestWillBeSent"]
    return [address for address in asked if not address.startswith("data:")]


def complaints(driver: Any) -> list[str]:
    """What pages wrote to the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def violations(driver: Any) -> list[str]:
    """What axe-core finds wrong with the accessibility of a page."""
    found = importlib.util.find_spec("axe_playwright_python")  # of which only the script is used
    if found is None or found.origin is None:
        pytest.skip("no axe-core here: pip install -e '.[browser]'")
    driver.execute_script(Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    driver.set_script_timeout(240)
    report = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then((found) => done(found.violations), "
        "(error) => done(String(error)))"
    )
    assert isinstance(report, list), report
    return [f"{row['id']}: {node['html'][:200]} {node['failureSummary']}" for row in report for node in row["nodes"]]


def until(what: Any, seconds: float = 30.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
