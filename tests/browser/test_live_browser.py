"""The live report in a real browser: it follows runs, keeps what a reader has done, and says when it has ended."""

from __future__ import annotations

import pytest
from benchmarks.live_runs import begin, end, learn, served

pytestmark = pytest.mark.slow
SETTLED = "document.getElementById('live')?.textContent === 'Live'"
LINES = """[...document.querySelectorAll('[data-measure=objective]')]
    .flatMap(chart => (chart.data ?? []).filter(trace => trace.name).map(trace => trace.x.length)).join()"""
TRACES = (
    "document.querySelector('[data-measure=objective]').data.filter(trace => trace.name).map(trace => trace.text[0])"
)


@pytest.fixture
def run(tmp_path):
    learned = begin(tmp_path / "run")
    learn(learned, 0, 0.0, "nothing yet")
    return learned


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_the_page_draws_a_run_that_goes_on(visit, run, width, dark, picture):
    with served(run.path) as server:
        opened = visit(f"http://127.0.0.1:{server.server_port}/", width, dark)
        page = opened.page
        page.locator("#curves").scroll_into_view_if_needed()
        page.locator("[data-measure=objective]").scroll_into_view_if_needed()
        opened.wait(f"{LINES} === '1'")
        learn(run, 1, 0.2, "better")
        learn(run, 2, 0.3, "much better")
        opened.wait(f"{LINES} === '3'")
        assert page.locator("#progress td", has_text="200 of 400").count() == 1
        assert page.locator("#sample-list .completion").all_text_contents() == ["nothing yet", "much better"]
        assert page.locator("#sample-list h4").all_text_contents() == ["Before", "Now"]
        assert page.locator(".chart").count() == 6  # optimality, J, reward, KL, entropy, length
        assert opened.sideways() == 0
        picture(page, f"live-{width}-{'dark' if dark else 'light'}.png")
        end(run, 0.5)
        opened.wait("document.querySelector('#leaderboard') !== null")
        assert page.locator("#sample-list h4").all_text_contents() == ["Before", "After"]
        opened.check()


@pytest.mark.long
def test_what_a_reader_has_done_stays(visit, run, tmp_path):
    other = begin(tmp_path / "other", agent="rloo")
    learn(other, 0, 0.0)
    with served(run.path, other.path) as server:
        opened = visit(f"http://127.0.0.1:{server.server_port}/")
        page = opened.page
        opened.wait(SETTLED)
        page.locator(".chip", has_text="rloo").click()
        page.select_option("#curve-unit", "tokens")
        page.select_option("#sample-agent", label="rloo")
        page.select_option("#cell-agent", "rloo")
        page.locator("#cells th", has_text="Seed").locator("button").click()
        page.locator("[data-measure=objective]").scroll_into_view_if_needed()
        page.locator("figure:has([data-measure=objective]) summary").click()
        place = page.evaluate("scrollY")
        for step in (1, 2):
            learn(run, step, 0.1 * step)
            opened.wait(f"{LINES} === '{step + 1}'")
        assert page.locator(".chip[aria-pressed=false]").all_text_contents() == [" rloo"]
        values = "[...document.querySelectorAll('#curve-unit, #sample-agent, #cell-agent')].map(each => each.value)"
        assert page.evaluate(values) == ["tokens", "1", "rloo"]
        assert page.locator("table.cells tbody tr:visible").count() == 1
        assert page.locator("#cells th[aria-sort=ascending]").text_content().strip() == "Seed"
        assert page.locator("details.numbers[open]").count() == 1
        assert page.evaluate("scrollY") == place
        assert "tokens" in page.evaluate(TRACES)[0]
        opened.check()


@pytest.mark.long
def test_the_page_waits_for_a_run_and_outlives_it(visit, tmp_path):
    with served(tmp_path / "run") as server:
        opened = visit(f"http://127.0.0.1:{server.server_port}/")
        opened.wait(SETTLED)
        assert opened.page.locator("h1").text_content() == "Waiting for a run"
        learn(begin(tmp_path / "run"), 0, 0.0)
        opened.page.locator("h1:text-is('run')").wait_for()
        opened.wait(SETTLED)
        opened.check()
    opened.wait("document.getElementById('live').textContent === 'Ended: this is the last state'")
    assert opened.page.locator("#progress td", has_text="0 of 400").count() == 1
