"""The page in Chromium: opens from disk without errors or requests, sorts, fits, can be read, and shows ugly text safely."""

import shutil
from pathlib import Path

import pytest

from report.evidence import collect
from report.page import write
from report.sections import make
from tests.once import once
from tests.report.synthetic import make_probes, make_run, make_study
from tests.report.test_numbers import UGLY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_intervals"),
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser: install Debian's chromium and chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, quick_intervals: None) -> Path:
    def make_page(folder: Path) -> None:
        root, beside = folder / "results", folder / "beside"
        for seed in range(3):
            make_run(root, "opd_analytic", seed, 0.8, prompt=UGLY, pictures=True)
            make_run(root, "sft", seed, 0.4, prompt=UGLY, pictures=True)
            make_run(root, "multi_reward", seed, 0.6, settings={"engine": UGLY[:60]}, teachers=False)
        make_run(root, "cascade", 0, 0.5, state="failed", prompt=UGLY)
        write(make(collect([root, *make_probes(beside, UGLY[:40]), make_study(beside)])), folder / "report")

    return once(tmp_path_factory, "browser", make_page) / "report" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "hide-scrollbars", f"user-data-dir={tmp_path_factory.mktemp('user')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    # On a busy machine the accessibility checker needs more than the default of 30 s.
    driver.set_script_timeout(180)
    yield driver
    driver.quit()


OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"


def press(browser, text: str) -> None:
    """Press all buttons with this text."""
    browser.execute_script(
        "Array.from(document.querySelectorAll('.browse button')).filter(b => b.textContent === arguments[0])"
        ".forEach(b => b.click())",
        text,
    )


def waited(browser, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(script))


def opened(browser, page: Path, width: int = 1280, scheme: str = "light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def test_it_opens_from_disk_without_errors_or_requests(browser, page: Path) -> None:
    import json

    opened(browser, page)
    browser.execute_script(OPEN_ALL)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    shown = browser.execute_script(
        "return Array.from(document.querySelectorAll('figure svg')).map(s => s.getBoundingClientRect().height)"
        ".filter(h => h > 0)"  # the others are those for narrow windows
    )
    assert len(shown) >= 4
    assert min(shown) > 50
    pictures = browser.execute_script(
        "return Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.alt.length > 0])"
    )
    assert {(complete, width) for complete, width, _ in pictures} == {(True, 8), (True, 192)}  # large ones made smaller
    assert all(alt for *_, alt in pictures)
    rows = browser.execute_script("return Array.from(document.querySelectorAll('.grid tbody tr')).length")
    assert len(pictures) == 4 * rows  # base, teacher and two lines


def test_tables_sort(browser, page: Path) -> None:
    opened(browser, page)
    read = (
        "return Array.from(document.querySelectorAll('table[data-table=scores] tbody tr'))"
        ".map(r => r.cells[%d].dataset.sort)"
    )
    button = "document.querySelectorAll('table[data-table=scores] thead button')[%d].click()"
    browser.execute_script(button % 2)
    up = [float(value) for value in browser.execute_script(read % 2) if value]
    assert up == sorted(up)
    browser.execute_script(button % 2)
    down = [float(value) for value in browser.execute_script(read % 2) if value]
    assert down == sorted(up, reverse=True)
    browser.execute_script(button % 0)
    names = browser.execute_script(read % 0)
    assert names == sorted(names, key=str.lower)
    heads = browser.execute_script("return document.querySelectorAll('th[aria-sort]').length")
    assert heads == 1


@pytest.mark.parametrize("width", [380, 1280])
def test_nothing_is_wider_than_the_window(browser, page: Path, width: int) -> None:
    opened(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.innerWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(browser, page: Path, scheme: str) -> None:
    """axe-core finds nothing: what depends on colours in both schemes, and in one of them all else that it checks."""
    from axe_core_python.selenium import Axe

    opened(browser, page, scheme=scheme)
    browser.execute_script(OPEN_ALL)
    options = {"resultTypes": ["violations"]} | ({"runOnly": ["cat.color"]} if scheme == "dark" else {})
    for button in (None, "Interactive", "All prompts"):
        if button:
            press(browser, button)
        run = Axe().run(browser, options=options)
        assert run["passes"]
        found = run["violations"]
        assert [(v["id"], [node["target"] for node in v["nodes"]][:3]) for v in found] == [], button


@pytest.mark.parametrize("width", [380, 1280])
def test_the_first_screen_is_open_and_the_rest_is_folded(browser, page: Path, width: int) -> None:
    opened(browser, page, width)
    seen = "return Array.from(document.querySelectorAll('%s')).filter(e => e.checkVisibility()).length"
    assert browser.execute_script(seen % "#figure-differences svg, #figure-cost-front svg") == 2  # at one width each
    wide = browser.execute_script(seen % ".at-page svg")
    assert wide == (0 if width == 380 else 2)
    assert browser.execute_script(seen % "table") == 0
    # A link opens the section that it leads to, and the parts around it.
    browser.execute_script("document.querySelector('nav a[href=\"#scores-and-cost\"]').click()")
    waited(browser, "return document.querySelector('table[data-table=scores]').checkVisibility()")


def test_charts_are_drawn_when_they_are_asked_for(browser, page: Path) -> None:
    """By Vega in the page, under its content security policy, in place of the figure; a second press brings it back."""
    opened(browser, page)
    browser.execute_script(OPEN_ALL)
    assert browser.execute_script("return document.querySelectorAll('.chart').length") == 0
    press(browser, "Interactive")
    waited(browser, "return document.querySelectorAll('.chart svg').length >= 3")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    marks = browser.execute_script(
        "return Array.from(document.querySelectorAll('#figure-differences .chart [aria-roledescription=point]'))"
        ".map(e => e.getAttribute('aria-label'))"
    )
    assert len(marks) == 2 and any("SFT on teachers' samples" in mark for mark in marks)
    hidden = "return document.querySelector('#figure-differences > .scroll').hidden"
    assert browser.execute_script(hidden)
    press(browser, "Interactive")
    assert not browser.execute_script(hidden)


def test_pictures_are_shown_prompt_by_prompt(browser, page: Path) -> None:
    opened(browser, page)
    browser.execute_script(OPEN_ALL)
    shown = (
        "return Array.from(document.querySelectorAll('#figure-pictures-ocr tbody tr'))"
        ".map((row, k) => row.checkVisibility() ? k : -1).filter(k => k >= 0)"
    )
    count = browser.execute_script("return document.querySelectorAll('#figure-pictures-ocr tbody tr').length")
    assert browser.execute_script(shown) == [0]
    press(browser, "Next ›")
    assert browser.execute_script(shown) == [1]
    press(browser, "‹ Previous")
    press(browser, "‹ Previous")
    assert browser.execute_script(shown) == [count - 1]  # around
    rules = browser.execute_script(
        "return Array.from(document.querySelectorAll('#figure-pictures-ocr option')).map(o => o.textContent)"
    )
    assert any("worst of" in rule for rule in rules) and any("best of" in rule for rule in rules)
    press(browser, "All prompts")
    assert browser.execute_script(shown) == list(range(count))


def test_ugly_text_is_text(browser, page: Path) -> None:
    opened(browser, page)
    assert browser.execute_script("return document.querySelectorAll('script:not([type])').length") == 1
    browser.execute_script(OPEN_ALL)
    press(browser, "All prompts")
    text = browser.execute_script("return document.body.innerText")
    assert "<script>alert('x')</script>" in text
    assert "🦊 עברית" in text
    captions = browser.execute_script(
        "return Array.from(document.querySelectorAll('.grid tbody th span')).map(s => [s.textContent, s.title])"
    )
    assert all(shown.endswith("…") and len(shown) == 200 for shown, _ in captions)
    assert all(whole.endswith(UGLY) for _, whole in captions)
    assert browser.execute_script("return document.querySelectorAll('main script').length") == 0


def test_hovering_tells_exact_values(browser, page: Path) -> None:
    opened(browser, page)
    said = browser.execute_script(
        "return Array.from(document.querySelectorAll('#figure-scores svg title')).map(t => t.textContent)"
    )
    assert len(said) >= 9
    assert any(text.startswith("Analytic OPD, geneval: 0.") for text in said)
