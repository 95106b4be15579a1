"""The pages of sweeps, comparisons and runs beside each other in a browser."""

import pytest
from browser import SCHEMES, chromium, complaints, look, requests_of, violations
from table_pages import PAGES

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_fault(name, tmp_path):
    page = PAGES[name](tmp_path)
    with chromium() as driver:
        look(driver, page)
        assert requests_of(driver) == [page.as_uri()] and complaints(driver) == []
        landmarks = "return ['main', 'nav', 'footer', 'h1'].map((name) => document.querySelectorAll(name).length)"
        assert driver.execute_script(landmarks) == [1, 1, 1, 1]
        for width in (320, 800, 1600):
            for scheme in SCHEMES:
                look(driver, page, width, scheme)
                driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
                wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert driver.execute_script(wide) <= 0, (width, scheme)
                assert violations(driver) == []
        links = "return [...document.querySelectorAll('main a[href]')].map((one) => one.href)"
        for address in driver.execute_script(links):
            driver.get(address)
            assert driver.title == "a run"
