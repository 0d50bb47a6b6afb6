"""The microscope's page in a real browser: clicks, keys, links, hostile texts, and how it fits."""

from __future__ import annotations

import json

import pytest
from benchmarks.microscope_tools import HOSTILE, hostile_trace, traced
from solver_tools import Table, bigram, small_task
from textgym_benchmarks.microscope.page import write_page
from textgym_benchmarks.microscope.trace import trace_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traces():
    task, reference = small_task(), bigram()
    agent = Table(1)
    agent.critic, agent.values = True, lambda observation: [0.25]
    return [
        traced(a, task, reference, prompt_index=0, completion=text) for a, text in ((agent, "a b c"), (Table(2), "a c"))
    ]


@pytest.fixture(scope="module")
def page(traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "two.html"
    write_page(traces, path)
    return path


@pytest.fixture(scope="module")
def single(traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "one.html"
    write_page(traces[:1], path)
    return path


def shown(value: float) -> str:
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else ("\u2212" if value < 0 else "") + text


def numbers(page, panel):
    """Name -> text of every number in a panel."""
    return page.eval_on_selector_all(
        f".panel.p{panel} dd[data-name]",
        "all => Object.fromEntries(all.map(e => [e.dataset.name, e.textContent]))",
    )


def selected(page):
    return page.eval_on_selector_all(
        "[role=option]", "all => all.filter(e => e.ariaSelected === 'true').map(e => e.ariaLabel)"
    )


@pytest.mark.long
def test_a_click_shows_the_numbers_of_the_json(visit, page, traces):
    visited = visit(page)
    data = trace_json(traces)["traces"]
    strips = visited.page.query_selector_all("[role=listbox]")
    strips[0].query_selector_all("[role=option]")[1].click()
    for panel, trace in enumerate(data, 1):
        found = numbers(visited.page, panel)
        step = trace["steps"][1]
        assert {"kl", "log_ratio", "regret", "optimal_value", "policy_value", "log_prob"} <= set(found)
        for name, text in found.items():
            assert text.replace("+", "") == (str(step[name]) if name == "rank" else shown(step[name])), name
        rows = visited.page.query_selector_all(f".panel.p{panel} .candidates tbody tr:not(.others)")
        cells = [[cell.text_content() for cell in row.query_selector_all("td.n")] for row in rows]
        for cell, candidate in zip(cells, step["candidates"], strict=True):
            assert cell[:2] == [f"{candidate['probability']:.3f}", f"{candidate['reference']:.3f}"]
    assert visited.page.url.endswith("#t=1")
    visited.check()


def test_keys_step_through_the_tokens(visit, single, traces):
    visited = visit(single)
    page, steps = visited.page, len(traces[0].steps)
    assert selected(page)[0].startswith("Token 0: a")
    page.keyboard.press("ArrowRight")
    assert selected(page)[0].startswith("Token 1")
    page.keyboard.press("Tab")
    page.focus("[role=option][tabindex='0']")
    page.keyboard.press("End")
    assert selected(page)[0].startswith(f"Token {steps - 1}")
    page.keyboard.press("ArrowRight")
    assert selected(page)[0].startswith(f"Token {steps - 1}")
    page.keyboard.press("Home")
    assert selected(page)[0].startswith("Token 0")
    assert page.evaluate("document.activeElement.ariaSelected") == "true"
    assert page.eval_on_selector_all("[role=option]", "all => all.filter(e => e.tabIndex === 0).length") == 1
    visited.check()


def test_colours_follow_the_menu(visit, single, traces):
    visited = visit(single)
    page = visited.page
    page.select_option("#by", "regret")
    figures = page.eval_on_selector_all(".token .figure", "all => all.map(e => e.textContent)")
    assert [text.replace("+", "") for text in figures] == [shown(step.regret) for step in traces[0].steps]
    hues = page.eval_on_selector_all(".token", "all => all.map(e => e.dataset.hue)")
    assert hues == ["warm" if step.regret > 0 else "cool" for step in traces[0].steps]
    tints = page.eval_on_selector_all(".token", "all => all.map(e => Number(e.style.getPropertyValue('--tint')))")
    most = max(abs(step.regret) for step in traces[0].steps)
    assert tints == pytest.approx([abs(step.regret) / most for step in traces[0].steps], abs=1e-3)
    assert page.url.endswith("#t=0&by=regret")
    visited.check()


def test_a_link_leads_to_a_state(visit, single, browser):
    visited = visit(single)
    visited.page.goto(f"{single.resolve().as_uri()}#t=2&by=value")
    visited.page.reload()
    assert selected(visited.page)[0].startswith("Token 2")
    assert visited.page.input_value("#by") == "value"
    visited.page.goto(f"{single.resolve().as_uri()}#t=99&by=nothing")
    visited.page.reload()
    assert selected(visited.page)[0].startswith("Token 2")  # the last one
    visited.check()


def test_two_episodes_and_where_they_part(visit, page):
    visited = visit(page)
    assert visited.page.text_content(".parting") == "The two episodes part at token 1."
    assert len(visited.page.query_selector_all(".token.parts")) == 2
    visited.page.keyboard.press("ArrowRight")
    assert len(selected(visited.page)) == 2
    visited.page.query_selector_all("[role=option]")[0].focus()
    visited.page.keyboard.press("ArrowDown")
    assert "Table" not in visited.page.text_content("h1")
    visited.check()


def test_the_state_can_be_copied(visit, single, traces):
    visited = visit(single, permissions=["clipboard-read", "clipboard-write"])
    visited.page.click("#copy-state")
    visited.wait("document.getElementById('said').textContent !== ''")
    copied = json.loads(visited.page.evaluate("navigator.clipboard.readText()"))
    assert copied == [trace_json(traces[:1])["traces"][0]["steps"][0]]
    visited.check()


def test_hostile_texts_stay_text(visit, tmp_path):
    path = tmp_path / "hostile.html"
    write_page([hostile_trace(), hostile_trace()], path)
    visited = visit(path)
    for _ in HOSTILE:
        visited.page.keyboard.press("ArrowRight")
    texts = visited.page.eval_on_selector_all(".strip .token-text", "all => all.map(e => e.textContent)")
    assert texts[0] == HOSTILE[0]
    assert visited.page.query_selector_all("img") == []
    assert visited.page.evaluate("document.scripts.length") == 5  # four of its own and the data
    visited.check()


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_is_pictured(visit, page, screenshots, width, dark):
    visited = visit(page, width=width, dark=dark)
    visited.page.click("details.numbers summary")
    assert visited.sideways() == 0
    name = f"microscope-{width}-{'dark' if dark else 'light'}.png"
    visited.page.screenshot(path=screenshots / name, full_page=True)
    assert (screenshots / name).stat().st_size > 10_000
    visited.check()


def test_without_scripts_the_numbers_are_in_the_table(visit, single, traces):
    visited = visit(single, java_script_enabled=False)
    assert "needs JavaScript" in visited.page.text_content("noscript")
    visited.page.click("details.numbers summary")
    rows = visited.page.query_selector_all("details.numbers tbody tr")
    assert len(rows) == len(traces[0].steps)
    assert shown(traces[0].steps[0].kl) in rows[0].text_content()
