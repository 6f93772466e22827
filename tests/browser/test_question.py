"""A question before a picture: shut until answered or skipped, told against the truth, kept."""

from contextlib import ExitStack

import pytest
from axe_playwright_python.sync_playwright import Axe
from stage import stage
from test_pages import WCAG, WIDE

pytest.importorskip("anywidget")
from minqbook.widgets import AffinePlayground, Question

WORDS = Question(
    "What happens to s²?", ["half", "a quarter"], answer=1, because="It goes with the square."
)
NUMBER = Question("How much?", low=0, high=12, unit="dB", answer=6.02, because="Twice as fine.")


@pytest.fixture
def asked(browser, tmp_path):
    """asked(question, **options): its widget on a page, not yet answered."""
    with ExitStack() as stack:

        def asked(question, **options):
            widget = AffinePlayground(bits=3, question=question)
            return stack.enter_context(stage(browser, tmp_path, widget, skip=False, **options))

        yield asked


def figure(widget):
    return widget.root.locator("figure")


def is_shut(widget):
    hidden = is_hidden(figure(widget).locator(".mq-readouts"))
    assert hidden == figure(widget).evaluate("f => f.inert")
    assert not is_hidden(figure(widget).locator("svg").first)
    return hidden


def said(widget):
    return widget.text(".mq-tell")


def reload(widget):
    widget.root.page.reload()
    widget.root.locator("figure").wait_for(state="attached")


def focus(widget):
    return widget.root.page.evaluate(
        "(document.activeElement.labels?.[0] ?? document.activeElement).innerText"
    )


def test_figure_is_shut_until_an_answer_and_nothing_moves(asked):
    widget = asked(WORDS)
    assert is_shut(widget) and not widget.sliders()
    box = figure(widget).bounding_box()
    widget.click("Commit")  # without a choice: the browser says that one is needed
    assert is_shut(widget)
    widget.click("half")
    widget.click("Commit")
    assert not is_shut(widget) and len(widget.sliders()) == 3
    assert figure(widget).bounding_box() == box
    assert "Not so. You said “half”." in said(widget)
    assert "It is “a quarter”. It goes with the square." in said(widget)
    assert focus(widget) == "Ask me again"
    assert "You said “half”. It is “a quarter”." in widget.text("[role=status]")


def test_right_answer_is_told_so_and_kept_until_asked_again(asked):
    widget = asked(WORDS)
    widget.click("a quarter")
    widget.click("Commit")
    assert said(widget).startswith("Right. You said “a quarter”.")
    reload(widget)
    assert not is_shut(widget) and said(widget).startswith("Right.")
    widget.click("Ask me again")
    assert is_shut(widget) and focus(widget) == "a quarter"
    reload(widget)
    assert is_shut(widget)


@pytest.mark.parametrize(
    ("guess", "words"),
    [
        ("3.1", "Too low by 2.92 dB. You said 3.1 dB."),
        ("12", "Too high by 5.98 dB. You said 12 dB."),
        ("6", "Right, as near as the slider can say. You said 6 dB."),
    ],
)
def test_number_is_told_how_far_off_it_is(asked, guess, words):
    widget = asked(NUMBER)
    slider = widget.slider("Your guess")
    assert slider.value == 0 and slider.spoken == "0 dB"
    slider.set(guess)
    assert slider.spoken == f"{guess} dB"
    widget.click("Commit")
    assert words in said(widget) and "It is 6.02 dB. Twice as fine." in said(widget)
    line = widget.root.locator(".mq-numbers")
    assert line.get_attribute("aria-label") == (
        f"A line from 0 dB to 12 dB: your guess {guess} dB, truth 6.02 dB."
    )
    left, width = (line.bounding_box()[k] for k in ("x", "width"))
    ticks = [t.bounding_box() for t in line.locator(".mq-mark i").all()]
    for tick, value in zip(ticks, (float(guess), 6.02), strict=True):
        assert tick["x"] - left == pytest.approx(value / 12 * width, abs=2.5)
    reload(widget)
    assert words in said(widget)


def test_skip_opens_and_is_kept(asked):
    widget = asked(NUMBER)
    widget.click("Skip")
    assert not is_shut(widget) and "Skipped." in said(widget) and "6.02" in said(widget)
    assert not widget.root.locator(".mq-mark").first.is_visible()
    reload(widget)
    assert not is_shut(widget) and "Skipped." in said(widget)


@pytest.mark.parametrize("question", [WORDS, NUMBER], ids=["words", "number"])
def test_by_keyboard_alone(asked, question):
    widget = asked(question)
    keys = widget.root.page.keyboard
    keys.press("Tab")
    for key in ("Space", "ArrowDown") if question is WORDS else ("End", "ArrowLeft"):
        keys.press(key)
    keys.press("Tab")
    assert focus(widget) == "Commit"
    keys.press("Enter")
    assert ("“a quarter”" if question is WORDS else "Too high by 5.88 dB") in said(widget)
    keys.press("Tab")
    assert figure(widget).evaluate("f => f.contains(document.activeElement)")
    keys.press("Shift+Tab")
    keys.press("Enter")
    assert is_shut(widget)
    keys.press("Tab")
    keys.press("Tab")
    assert focus(widget) == "Skip"
    keys.press("Tab")
    assert not figure(widget).evaluate("f => f.contains(document.activeElement)")


def test_spoilt_or_missing_storage_does_no_harm(asked):
    widget = asked(NUMBER)
    for spoilt in ("{", "null", "7", '{"guess": "x"}', '{"guess": 99}', '{"guess": null}'):
        widget.evaluate(
            "(_, v) => localStorage.setItem(`minq-question ${location.pathname} How much?`, v)",
            spoilt,
        )
        reload(widget)
        assert is_shut(widget), spoilt
    widget.root.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    )
    reload(widget)
    widget.slider("Your guess").set(12)
    widget.click("Commit")
    assert not is_shut(widget)
    widget.click("Ask me again")
    assert is_shut(widget)


@pytest.mark.parametrize("question", [WORDS, NUMBER], ids=["words", "number"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_can_be_read_by_all_on_a_phone(asked, question, dark):
    widget = asked(question, dark=dark, width=375, touch=True)
    page = widget.root.page
    for answer in ("", "Skip"):
        if answer:
            widget.click(answer)
        assert page.evaluate(WIDE) == []
        found = Axe().run(page, options=WCAG)
        assert not found.response["violations"], found.generate_report()


def test_paper_has_question_answer_and_figure(asked):
    widget = asked(NUMBER)
    widget.root.page.emulate_media(media="print")
    assert not is_hidden(figure(widget).locator("svg").first)
    assert not is_hidden(widget.root.get_by_text("It is 6.02 dB."))
    for unsaid in (".mq-guess", ".mq-mark", ".mq-buttons"):
        assert not widget.root.locator(unsaid).first.is_visible(), unsaid


def is_hidden(locator):
    return locator.evaluate("e => getComputedStyle(e).visibility") == "hidden"


def test_page_of_the_book_asks(open_page):
    page = open_page("how_to_use")
    widget = page.widgets(skip=False)[0]
    assert is_shut(widget)
    widget.slider("Your guess").set(4)
    widget.click("Commit")
    assert not is_shut(widget) and "You said 4." in said(widget)
    assert page.page.evaluate("Object.keys(localStorage).some(k => k.includes('how_to_use'))")
