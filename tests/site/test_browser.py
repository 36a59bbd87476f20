"""The site in a real browser: complete, quiet, within its width, without a network; and equations light their code."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from _hooks.equations import line_numbers, page_numbers
from site_pages import DOCS, exhibit_of, page_paths

pytestmark = pytest.mark.browser

WIDTHS = (1440, 1024, 390)
PAGES = page_paths()
BESIDE = [page for page in PAGES if exhibit_of(page) and page_numbers((DOCS / page).read_text(encoding="utf-8"))]
FORMS = [page for page in BESIDE if any(line_numbers(form.file.read_text(encoding="utf-8")) for form in exhibit_of(page).forms[:1])][:1]
MODEL = Path("norms/rms_norm.md")  # the page that shows how the others are to look

STATE = """
const katexErrors = [...document.querySelectorAll(".katex-error")].map((element) => element.textContent);
return { formulas: document.querySelectorAll(".arithmatex").length,
         set: document.querySelectorAll(".arithmatex .katex").length, katexErrors };
"""
# What leaves its column: nothing may, except what scrolls inside its own box.
WIDE = """
const wide = [];
if (document.documentElement.scrollWidth > innerWidth) wide.push(`the page is ${document.documentElement.scrollWidth} wide`);
for (const column of document.querySelectorAll(".beside__text, .md-content__inner:not(:has(.beside))")) {
  const limit = column.getBoundingClientRect().right + 12;
  const scrolls = (element) => element !== column && (getComputedStyle(element).overflowX !== "visible" || scrolls(element.parentElement));
  for (const element of column.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > limit && !element.closest("svg, .katex-mathml") && !scrolls(element.parentElement))
      wide.push(`${element.tagName} ${element.className}: ${element.textContent.slice(0, 60)}`);
  }
}
return wide;
"""
LIT = """
const of = (selector) => [...document.querySelectorAll(selector + ".lit")].flatMap((element) => element.dataset.eq.split(" "));
return { equations: of(".equation"), lines: of(".panel .row") };
"""

# At a phone's width: the number of every equation stands whole within the window and beside its formula, however long that is.
NUMBERS = """
return [...document.querySelectorAll(".equation")].filter((equation) => {
  const number = equation.querySelector(".equation__no").getBoundingClientRect(), formula = equation.firstElementChild.getBoundingClientRect();
  return !(number.width > 0 && number.right <= document.documentElement.clientWidth && number.left >= formula.right);
}).map((equation) => equation.id);
"""
# The panel as it opens: how far the page and the first numbered line are from where they should be, and which folds are open.
OPENING = """
const body = document.querySelector(".panel__body"), view = body.getBoundingClientRect();
const first = document.getElementById(body.dataset.first).getBoundingClientRect();
const open = [...document.querySelectorAll(".fold[open]")].length;
return { page: scrollY, inView: first.top >= view.top - 1 && first.bottom <= Math.min(view.bottom, innerHeight) + 1, open };
"""
# Focus every equation and every line in turn: both must be lit with all that the equation names, and the lines be in view.
FOCUS_ALL = """
const numbers = [...document.querySelectorAll(".equation[id]")].map((element) => element.dataset.eq), failures = [];
const lit = (selector, number) => document.querySelector(`${selector}[data-eq~="${number}"].lit`);
for (const number of numbers) {
  document.getElementById(`eq-${number}`).focus();
  const row = lit(".panel .row", number)?.getBoundingClientRect();
  const view = document.querySelector(".panel__body").getBoundingClientRect();
  if (!lit(".equation", number) || !row) failures.push(`focus on equation (${number}) lights nothing`);
  const lines = document.querySelectorAll(`.panel .row[data-eq~="${number}"]`), alight = document.querySelectorAll(".panel .row.lit");
  if (lines.length !== alight.length) failures.push(`equation (${number}) has ${lines.length} lines and lights ${alight.length}`);
  if (row && (row.bottom <= Math.max(view.top, 48) || row.top >= Math.min(view.bottom, innerHeight))) failures.push(`the line of (${number}) is out of view`);
  for (const link of document.querySelectorAll(`.panel .row a[href="#eq-${number}"]`)) {
    link.focus({ preventScroll: true });
    if (!lit(".equation", number) || !link.closest(".row.lit")) failures.push(`focus on a line of (${number}) lights nothing`);
  }
}
document.activeElement.blur();
return [numbers, failures];
"""


def resize(browser, width: int, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def scheme(browser, name: str) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})


def url(address: str, page: Path) -> str:
    return f"{address}/{page.with_suffix('.html').as_posix()}"


def open_page(browser, address: str, page: Path, width: int = 1440) -> None:
    resize(browser, width)
    browser.get(url(address, page))


def wait_for(browser, script: str, seconds: float = 8.0):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda driver: driver.execute_script(script))


PLACE = """
const [selector, done] = arguments, element = document.querySelector(selector);
element.scrollIntoView({ block: "center", behavior: "instant" });
requestAnimationFrame(() => requestAnimationFrame(() => {  // the mouse meets what is painted
  const box = element.getBoundingClientRect();
  done([box.left + box.width / 2, box.top + box.height / 2]);
}));
"""


def point_at(browser, selector: str) -> None:
    """Move the mouse to the middle of an element that is brought into view."""

    def move(x: float, y: float) -> None:
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})

    move(1, 1)  # so that nothing lights up under it while the page scrolls
    move(*browser.execute_async_script(PLACE, selector))


def lights(browser, kind: str, number: str) -> bool:
    return wait_for(browser, f"return document.querySelector('{kind}[data-eq~=\"{number}\"].lit') !== null")


def hosts_asked(browser) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {urlsplit(asked).hostname or "" for asked in urls if urlsplit(asked).scheme in ("http", "https", "ws", "wss")}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page(page, browser, address):
    """All that is looked at on every page, in one visit: a page takes seconds to open and a moment to read."""
    browser.get_log("browser"), browser.get_log("performance")  # what earlier pages left
    open_page(browser, address, page)
    state = browser.execute_script(STATE)
    assert state["katexErrors"] == [] and state["set"] == state["formulas"]
    if page in BESIDE:
        assert browser.execute_script(OPENING) == {"page": 0, "inView": True, "open": 0}, "the panel opens at the first numbered line"
        assert_equations_and_code_light_each_other(browser)
    for width in WIDTHS:
        resize(browser, width)
        assert browser.execute_script(WIDE) == [], f"at {width} pixels"
    assert browser.execute_script(NUMBERS) == [], "equations whose number is out of sight on a phone"
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert hosts_asked(browser) == {"127.0.0.1"}


def assert_equations_and_code_light_each_other(browser):
    numbers, failures = browser.execute_script(FOCUS_ALL)
    assert numbers and not failures
    assert browser.execute_script(LIT) == {"equations": [], "lines": []}, "nothing has the focus"
    first, last = numbers[0], numbers[-1]
    point_at(browser, f"#eq-{first}")
    assert lights(browser, ".panel .row", first)
    point_at(browser, f'.panel .row[data-eq~="{last}"]')
    assert lights(browser, ".equation", last)


@pytest.mark.parametrize("page", BESIDE[:1], ids=str)
class TestOneConceptPage:
    def test_pointing_never_scrolls_the_page(self, page, browser, address):
        open_page(browser, address, page)
        resize(browser, 1440, 420)  # the panel is shorter than its code
        where = "document.querySelector('.equation').scrollIntoView({ block: 'center', behavior: 'instant' }); return scrollY"
        before = browser.execute_script(where)
        browser.execute_script("[...document.querySelectorAll('.equation')].at(-1).focus({ preventScroll: true })")
        wait_for(browser, "return document.querySelector('.panel__body').scrollTop > 0")
        assert browser.execute_script("return scrollY") == before

    def test_the_code_stands_beside_or_below(self, page, browser, address):
        open_page(browser, address, page)
        places = "const t = document.querySelector('.beside__text').getBoundingClientRect(),"
        places += "p = document.querySelector('.panel').getBoundingClientRect(); return [p.left >= t.right, p.top >= t.bottom]"
        assert browser.execute_script(places) == [True, False]
        resize(browser, 390)
        assert browser.execute_script(places) == [False, True]

    def test_a_docstring_unfolds_by_keyboard(self, page, browser, address):
        open_page(browser, address, page)
        from selenium.webdriver.common.keys import Keys

        summary = browser.find_element("css selector", ".panel .fold > summary")
        summary.send_keys(Keys.ENTER)
        assert browser.execute_script("return document.querySelector('.panel .fold').open")

    def test_on_a_phone_a_touched_equation_brings_its_lines(self, page, browser, address):
        open_page(browser, address, page, width=390)
        shown = "const e = document.querySelector('.equation'); {} return e.querySelector('.excerpt').offsetHeight > 0"
        assert not browser.execute_script(shown.format(""))
        assert browser.execute_script(shown.format("e.focus();"))
        rows = "return [...document.querySelectorAll({!r})].map((row) => row.querySelector('.row__no').dataset.no)"
        excerpt = browser.execute_script(rows.format("#eq-1 .excerpt .row"))
        assert excerpt == browser.execute_script(rows.format('.panel__form:first-of-type .row[data-eq~="1"]')), "all of its lines"

    def test_on_a_phone_one_button_leads_to_the_code_and_back(self, page, browser, address):
        open_page(browser, address, page)
        button = browser.find_element("css selector", ".jump")
        assert not button.is_displayed(), "beside the text nobody needs it"
        open_page(browser, address, page, width=390)
        button = browser.find_element("css selector", ".jump")
        browser.execute_script("document.querySelector('#eq-1').scrollIntoView({ block: 'center', behavior: 'instant' })")
        before = browser.execute_script("return scrollY")
        button.click()
        wait_for(browser, "return document.querySelector('.jump').textContent === 'Text'")
        row = "const box = document.getElementById(document.querySelector('.panel__body').dataset.first).getBoundingClientRect();"
        assert browser.execute_script(row + "return box.top > 0 && box.bottom < innerHeight")
        button.click()
        wait_for(browser, "return document.querySelector('.jump').textContent === 'Code'")
        assert browser.execute_script("return scrollY") == before

    def test_the_lines_of_a_formula_lead_to_them_and_the_page_stays(self, page, browser, address):
        open_page(browser, address, page)
        resize(browser, 1440, 420)  # the panel is shorter than its code
        browser.execute_script("document.querySelector('#eq-1').scrollIntoView({ block: 'center', behavior: 'instant' })")
        before = browser.execute_script("document.querySelector('.panel__body').scrollTop = 1e6; return scrollY")
        link = browser.find_element("css selector", "#eq-1 .equation__lines")
        assert link.text.startswith("line")
        link.click()
        wait_for(browser, "return document.querySelector('.panel .row[data-eq~=\"1\"]').getBoundingClientRect().top > 48")
        assert browser.execute_script("return scrollY") == before

    def test_a_link_to_an_equation_lights_it(self, page, browser, address):
        resize(browser, 1440)
        browser.get("about:blank")
        browser.get(url(address, page) + "#eq-1")
        assert browser.execute_script(LIT)["equations"] == ["1"]

    def test_a_link_to_a_line_in_a_fold_opens_it(self, page, browser, address):
        resize(browser, 1440)
        browser.get("about:blank")
        browser.get(url(address, page))
        line = browser.execute_script("return document.querySelector('.panel .fold:not([open]) > .row').id")
        seen = f"return document.getElementById('{line}').checkVisibility()"
        assert not browser.execute_script(seen)
        browser.get(url(address, page) + f"#{line}")
        assert browser.execute_script(seen)

    def test_complete_without_scripts(self, page, browser, address):
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            open_page(browser, address, page)
            assert browser.find_element("css selector", ".panel .row[data-eq]").is_displayed()
            assert "\\tag{1}" in browser.find_element("css selector", "#eq-1").text
            assert browser.find_element("css selector", "#eq-1 > .equation__lines").is_displayed()
            fold = browser.find_element("css selector", ".panel .fold")
            assert not fold.find_element("css selector", ".fold > .row").is_displayed()
            fold.find_element("css selector", "summary").click()
            assert fold.find_element("css selector", ".fold > .row").is_displayed()
        finally:
            browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    def test_colours_follow_the_system_and_the_switch(self, page, browser, address):
        try:
            scheme(browser, "dark")
            open_page(browser, address, page)
            name = "return document.body.getAttribute('data-md-color-scheme')"
            paper = "return getComputedStyle(document.body).backgroundColor"
            assert browser.execute_script(name) == "slate" and browser.execute_script(paper) == "rgb(21, 23, 28)"
            switch = "document.querySelector('.md-header__option label:not([hidden])').click();"
            browser.execute_script(switch)  # from the system's colours to light ones
            wait_for(browser, name + " === 'default'")
            assert browser.execute_script(paper) == "rgb(253, 252, 250)"
            browser.execute_script(switch)
            wait_for(browser, name + " === 'slate'")
        finally:
            browser.execute_script("localStorage.clear()")
            scheme(browser, "light")


@pytest.mark.parametrize("page", FORMS, ids=str)
class TestOtherFormsOfOneIdea:
    def test_a_tab_shows_the_other_source_with_and_without_scripts(self, page, browser, address):
        for off in (False, True):
            browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": off})
            try:
                open_page(browser, address, page)
                plain, other, *_ = browser.find_elements("css selector", ".panel__form")
                assert plain.is_displayed() and not other.is_displayed()
                browser.find_elements("css selector", ".panel__tab")[1].click()
                assert other.is_displayed() and not plain.is_displayed()
                assert exhibit_of(page).forms[0].file.name in other.text
            finally:
                browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    def test_the_same_equations_light_its_lines(self, page, browser, address):
        open_page(browser, address, page)
        browser.find_elements("css selector", ".panel__tab")[1].click()
        number = browser.execute_script("return document.querySelectorAll('.panel__form')[1].querySelector('[data-eq]').dataset.eq.split(' ')[0]")
        browser.execute_script(f"document.getElementById('eq-{number}').focus()")
        rows = browser.find_elements("css selector", ".panel__form:nth-of-type(2) .row.lit")
        assert rows and all(row.is_displayed() for row in rows)

    def test_a_link_to_a_line_of_it_opens_its_tab(self, page, browser, address):
        open_page(browser, address, page)
        line = browser.execute_script("return document.querySelectorAll('.panel__form')[1].querySelector('.row[data-eq]').id")
        browser.get("about:blank")
        browser.get(url(address, page) + f"#{line}")
        assert browser.find_element("id", line).is_displayed()


class TestThePageThatOthersFollow:
    def test_the_table_of_symbols_fits_a_phone(self, browser, address):
        open_page(browser, address, MODEL, width=390)
        table = "const table = document.querySelector('table.symbols').getBoundingClientRect(); return [table.left, table.right]"
        left, right = browser.execute_script(table)
        assert left >= 0 and right <= browser.execute_script("return document.documentElement.clientWidth")

    def test_figures_stand_side_by_side_and_on_a_phone_below_each_other(self, browser, address):
        tops = "return [...document.querySelectorAll('.plates svg')].map((svg) => svg.getBoundingClientRect().top)"
        open_page(browser, address, MODEL)
        first, second = browser.execute_script(tops)
        assert first == second
        resize(browser, 390)
        first, second = browser.execute_script(tops)
        assert second > first

    def test_questions_are_open_and_answers_behind_a_click(self, browser, address):
        open_page(browser, address, MODEL)
        questions = browser.find_elements("css selector", ".exercise")
        answers = browser.find_elements("css selector", "details.success")
        assert len(questions) == len(answers) >= 3 and all(question.is_displayed() for question in questions)
        assert not any(answer.get_attribute("open") for answer in answers)

    def test_a_print_keeps_answers_closed_and_shows_the_code(self, browser, address):
        open_page(browser, address, MODEL)
        browser.execute_script("document.querySelectorAll('details.success').forEach((answer) => { answer.open = true })")
        try:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
            seen = "return [...document.querySelectorAll({!r})].some((element) => element.getClientRects().length > 0)"
            assert not browser.execute_script(seen.format("details.success > :not(summary)"))
            assert not browser.execute_script(seen.format(".jump"))
            assert browser.execute_script(seen.format("details.success > summary")) and browser.execute_script(seen.format(".panel .row[data-eq]"))
        finally:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


FIRST_HIT = "return [...document.querySelectorAll('.md-search-result__item a')].map((a) => a.textContent.toLowerCase()).join(' ')"


def search_for(browser, words: str) -> str:
    box = browser.find_element("css selector", ".md-search__input")
    browser.execute_script("arguments[0].focus()", box)
    box.send_keys(words)
    return wait_for(browser, FIRST_HIT)


def test_search_answers_from_the_site_itself(browser, searchable_address):
    open_page(browser, searchable_address, Path("index.md"))
    browser.get_log("performance")
    assert "rms" in search_for(browser, "rms")
    assert hosts_asked(browser) <= {"127.0.0.1"}


def test_search_and_formulas_work_from_a_folder(browser, site):
    resize(browser, 1440)
    browser.get((site / "index.html").as_uri())
    assert "rms" in search_for(browser, "rms")
    assert browser.execute_script(STATE)["set"] > 0
