"""The report in a headless Chromium at three widths. Skipped without selenium, chromium or chromedriver.

`pytest -m browser` runs these alone, `-m "not browser"` everything else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, REAL, SHOWN, csv_numbers, write_runs

from experiments.pages.page import build
from experiments.pages.render import render
from experiments.pages.runs import choose, group
from experiments.showing.kinds import MOST, look_alike, shrink
from experiments.showing.screenshot import SIZE, take
from experiments.text_tables import HEADLINE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the extra browser)")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
WIDTHS = (360, 800, 1400)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_runs(folder)
    page = build(group(choose([], folder)[0]), [], None)
    (folder / "page.html").write_text(render(page), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    folder = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER, env={**os.environ, "TMPDIR": str(folder)})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def open_page(browser: Any, stored: Path, width: int = 1400, scheme: str = "light", script: bool = True) -> None:
    """The page at a width in CSS pixels and under a preferred color scheme, as if opened for the first time."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get((stored / "page.html").as_uri())
    if script:
        browser.execute_script("try { localStorage.clear() } catch {}")


def all_of(browser: Any, where: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", where)
    return found


def one_of(browser: Any, where: str) -> Any:
    return browser.find_element("css selector", where)


READ_ROWS = """
return [...document.querySelectorAll(arguments[0] + " tbody tr")].filter((row) => row.checkVisibility()).map((row) =>
  [...row.cells].map((cell) => ({ text: cell.innerText.trim(), title: cell.title, value: cell.dataset.value ?? "" })));
"""


def shown_rows(browser: Any, table: str) -> list[list[dict[str, str]]]:
    """The cells of the rows that are seen."""
    rows: list[list[dict[str, str]]] = browser.execute_script(READ_ROWS, table)
    return rows


def first_words(rows: list[list[dict[str, str]]]) -> list[str]:
    """The arms of rows, without what kind they are."""
    return [row[0]["text"].split()[0] for row in rows]


def choose_option(browser: Any, where: str, text: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(one_of(browser, where)).select_by_visible_text(text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_and_says_no_error(browser: Any, stored: Path, width: int, scheme: str) -> None:
    open_page(browser, stored, width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    for details in all_of(browser, "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert "owned" not in browser.title and not all_of(browser, "img")
    assert all(section.is_displayed() for section in all_of(browser, ".browser"))
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_are_the_csv_s_in_every_order(browser: Any, stored: Path, width: int) -> None:
    open_page(browser, stored, width)
    numbers = csv_numbers(stored, REAL, HOSTILE)
    for button in all_of(browser, "#c1 .places button")[::2]:
        button.click()
        place, table = button.text, f"#{button.get_attribute('data-place')} > .scroll table.sortable"
        titles = [cell.text for cell in all_of(browser, f"{table} thead th")][1:]
        for header in (3, 6):
            one_of(browser, f"{table} thead th:nth-child({header}) button").click()
            rows = shown_rows(browser, table)
            assert len(rows) == 10
            for name, (_, *cells) in zip(first_words(rows), rows, strict=True):
                for title, cell in zip(titles, cells, strict=True):
                    digits = [text.strip("[],") for text in cell["title"].split()]
                    assert digits == numbers.get((place, name, HEADLINE[title]), []), (place, name, title)


def test_tables_sort_by_click_and_key(browser: Any, stored: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, stored)
    table = "#c1-0 > .scroll table.sortable"

    def column(place: int) -> list[str]:
        return [row[place]["value"] or row[place]["text"] for row in shown_rows(browser, table)]

    speed = one_of(browser, f"{table} thead th:nth-child(2)")
    speed.find_element("css selector", "button").click()
    assert speed.get_attribute("aria-sort") == "descending"
    values = list(map(float, column(1)))
    assert values == sorted(values, reverse=True) and len(set(values)) > 5
    speed.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert speed.get_attribute("aria-sort") == "ascending"
    assert list(map(float, column(1))) == values[::-1]
    name = one_of(browser, f"{table} thead th:first-child")
    name.find_element("css selector", "button").send_keys(Keys.SPACE)
    assert (name.get_attribute("aria-sort"), speed.get_attribute("aria-sort")) == ("ascending", "none")
    names = [text.split()[0] for text in column(0)]
    assert names == sorted(names) and "Sorted by arm, ascending." in one_of(browser, "#said").get_attribute(
        "textContent"
    )
    rejection = one_of(browser, f"{table} thead th:nth-child(8) button")
    rejection.click()
    assert first_words(shown_rows(browser, table))[-2:] == ["draft_only", "vanilla"]


def test_arms_are_filtered_everywhere(browser: Any, stored: Path) -> None:
    open_page(browser, stored)
    arms = one_of(browser, "#c1 .arms")
    arms.find_element("css selector", "summary").click()
    one_of(browser, "#c1 .arm-text").send_keys("via")
    table = "#c1-0 > .scroll table.sortable"

    def names() -> set[str]:
        return set(first_words(shown_rows(browser, table)))

    assert names() == {"via_sd", "via_sd_paper"}
    spots = {spot.get_attribute("data-arm") for spot in all_of(browser, "#c1-0 .spot") if spot.is_displayed()}
    assert spots == names()
    assert set(first_words(shown_rows(browser, "#c1 .overview"))) == names()
    one_of(browser, "#c1 .arms input[value='via_sd']").click()
    assert names() == {"via_sd_paper"}
    assert arms.find_element("css selector", "output").text == "1 of 10"
    others = shown_rows(browser, "#c2 > .place > .scroll table.sortable")
    assert len(others) == 10, "the other comparison has a filter of its own"


def test_one_task_at_a_time(browser: Any, stored: Path) -> None:
    open_page(browser, stored)
    assert [place.is_displayed() for place in all_of(browser, "#c1 > .place")] == [True, False, False]
    buttons = all_of(browser, "#c1 .places button")
    buttons[2].click()
    assert [place.is_displayed() for place in all_of(browser, "#c1 > .place")] == [False, False, True]
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "false", "true"]
    one_of(browser, "#c1 .intervals").click()
    assert not [one for one in all_of(browser, "#c1-2 .interval") if one.is_displayed()]


def test_a_point_tells_its_numbers(browser: Any, stored: Path) -> None:
    open_page(browser, stored)
    spot = one_of(browser, "#c1-0 .spot[data-arm='via_sd']")
    browser.execute_script("arguments[0].focus()", spot)
    told = one_of(browser, "#c1-0 .readout").text
    assert told.startswith("via_sd (method): fidelity 0.") and "tokens/s" in told and "over coin" in told


def test_examples_are_browsed(browser: Any, stored: Path) -> None:
    open_page(browser, stored)
    here = "#c1 .examples"
    assert "Prompt" in one_of(browser, f"{here} .asked").text
    titles = [title.text for title in all_of(browser, f"{here} .one h3")]
    assert titles == ["via_sd", "sd"]
    assert all_of(browser, f"{here} .answer .from.draft") and all_of(browser, f"{here} .answer .from.target")
    assert len(all_of(browser, f"{here} .answer .parts")) == 2
    rounds = all_of(browser, f"{here} .one:first-child .rounds li")
    assert len(rounds) == 9 and "round 1: 5 drafted, 1 judged, 1 rejected" in rounds[0].get_attribute("title")
    first = one_of(browser, f"{here} .answer").text
    one_of(browser, f"{here} .next").click()
    assert one_of(browser, f"{here} .answer").text != first
    notes = [note.text for note in all_of(browser, f"{here} .one:first-child .note")]
    assert notes[0].endswith("judged, not timed") and "this one was only judged" in notes[1]
    one_of(browser, f"{here} .previous").click()
    assert "tokens/s" in one_of(browser, f"{here} .one .note").text
    assert one_of(browser, f"{here} .answer").text == first
    one_of(browser, f"{here} .bracketed").click()
    assert "[target]" in one_of(browser, f"{here} .answer").text
    one_of(browser, f"{here} .bracketed").click()
    choose_option(browser, f"{here} .second", "vanilla")
    choose_option(browser, f"{here} .first", "vanilla")
    assert not all_of(browser, f"{here} .answer .parts")
    choose_option(browser, f"{here} .which", "texts of the two arms differ")
    assert "No example fits." in one_of(browser, f"{here} .answers").text


def test_hostile_texts_are_shown_as_text(browser: Any, stored: Path) -> None:
    open_page(browser, stored)
    here = "#c1 .examples"
    choose_option(browser, f"{here} .task", "hostile")
    assert one_of(browser, f"{here} .answer").text == f"{SHOWN} via_sd"
    choose_option(browser, f"{here} .which", "failed in some arm")
    assert len(all_of(browser, f"{here} .example option")) == 1
    assert f"failed: ValueError: {SHOWN}" in one_of(browser, f"{here} .overview").text
    choose_option(browser, f"{here} .first", "sd_heuristic")
    assert f"failed: ValueError: {SHOWN}" in one_of(browser, f"{here} .one .error").text
    assert browser.get_log("browser") == [] and "owned" not in browser.title


def test_theme_is_chosen(browser: Any, stored: Path) -> None:
    open_page(browser, stored, scheme="dark")
    button = one_of(browser, "#theme")
    button.click()
    assert button.text == "Theme: light"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    button.click()
    assert button.text == "Theme: dark"
    button.click()
    assert button.text == "Theme: system"


def test_a_picture_of_a_page_is_repeatable_and_small(stored: Path) -> None:
    assert CHROMIUM is not None
    content = (stored / "page.html").read_text(encoding="utf-8")
    pictures = [take(CHROMIUM, content) for _ in range(2)]
    assert {one.size for one in pictures} == {SIZE} and len(pictures[0].getcolors(2**20) or []) > 50
    first, second = map(shrink, pictures)
    assert look_alike(first, second) and max(len(first), len(second)) <= MOST


def test_tables_are_there_without_scripts(browser: Any, stored: Path) -> None:
    open_page(browser, stored, script=False)
    try:
        assert all(place.is_displayed() for place in all_of(browser, ".place"))
        assert not all_of(browser, "th button") and not one_of(browser, ".tools").is_displayed()
        rows = [row.text.split()[0] for row in all_of(browser, "#c1-0 > .scroll table.sortable tbody tr")]
        assert len(rows) == 10 and rows[2] == "via_sd"
        assert one_of(browser, "noscript").text.startswith("The examples are shown by a script")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
