"""Exercises in the page: they say what the notebooks say, keep answers, and give them away."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from exercises import stub
from playwright.sync_api import expect
from test_exercises import CODE, EXERCISES, IN_PAGE, ON_TORCH, WRONG_ANSWERS, run, source_of
from test_pages import WCAG, WIDE, photograph, violations

expect.set_options(timeout=30_000)  # Python may start while other tests run
CHAPTER, LABEL = "ch03_uniform_affine", "ex-ch03-2"
LISTS = re.compile(r'<script[^>]*id="exercises"[^>]*>(.*?)</script>', re.S)
# Python that is not there: what the check says is up to the test.
SAYS = """([status, text]) => { minqLive.run = async () => (
    { status, text, stdout: text, traceback: 'File "<your answer>", line 7', line: null }) }"""

# A browser that keeps nothing of ours. (Without any storage the theme's own script fails.)
NO_STORAGE = """for (const name of ['getItem', 'setItem']) {
    const plain = Storage.prototype[name];
    Storage.prototype[name] = function (key, ...rest) {
        if (key.startsWith('minq')) throw new Error('no storage');
        return plain.call(this, key, ...rest);
    };
}"""


@pytest.fixture(scope="module")
def lists(book):
    """label -> what the page's script knows of it."""
    texts = (path.read_text("utf-8") for path in book.html.glob("*.html"))
    found = {
        e["label"]: e for text in texts for part in LISTS.findall(text) for e in json.loads(part)
    }
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the book was built without Python")
    return found


@pytest.fixture
def chapter(open_page, lists):
    """chapter(**options): the page of chapter 3, and the group of its first exercise in code."""

    def open_chapter(**options):
        page = open_page(CHAPTER, **options).page
        return page, page.get_by_role("group", name="Your answer to Exercise 3.2")

    return open_chapter


def answered(page, label=LABEL):
    return page.evaluate("label => minqProgress.get(label)", label)


def put(group, answer):
    """An answer in the editor, as if it were typed."""
    if (write := group.get_by_role("button", name="Write an answer")).is_visible():
        write.click()
    expect(group.get_by_role("textbox")).to_be_focused()
    group.page.evaluate("([l, text]) => minqExercises.all[l].editor.set(text)", [LABEL, answer])


def verdict(group):
    return group.locator("[data-verdict]").get_attribute("data-verdict", timeout=90_000)


# --- The same words as in a notebook --------------------------------------------------------------


def in_a_notebook(label, answer):
    """What answer and check come to, in this Python."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run(answer, CODE[label].check.source)
    except AssertionError as error:
        return "wrong", str(error)
    return "right", printed.getvalue()


def test_every_exercise_in_code_is_listed(lists):
    assert lists.keys() == CODE.keys()
    for label, listed in lists.items():
        exercise = CODE[label]
        assert ("check" in listed) == (label in IN_PAGE)
        if label in IN_PAGE:
            assert listed["stub"] == stub(exercise.answer.source)
            assert listed["check"] == exercise.check.source


def test_stubs_fail_and_solutions_pass_with_the_same_words(chapter, lists, measure):
    page, _ = chapter()
    judge = "async ([l, answer, check]) => minqExercises.judge(l, answer, check)"
    seconds, problems = [], []
    for label, exercise in IN_PAGE.items():
        wrong = WRONG_ANSWERS[label][0]
        told = {
            exercise.answer.source: in_a_notebook(label, exercise.answer.source),
            lists[label]["stub"]: ("wrong", "this exercise has no answer yet"),
            source_of(label, wrong): in_a_notebook(label, source_of(label, wrong)),
        }
        for answer, expected in told.items():
            began = time.perf_counter()
            found = page.evaluate(judge, [label, answer, lists[label]["check"]])
            seconds.append(time.perf_counter() - began)
            if (found["verdict"], found["words"]) != expected:
                problems.append(f"{label}: {found}, expected {expected}")
    assert not problems, "\n".join(problems)
    measure("exercises_in_page", checked=len(IN_PAGE), slowest_s=max(seconds[1:]))


# --- One exercise ---------------------------------------------------------------------------------


def test_answer_by_keyboard_is_judged_and_kept(chapter):
    page, group = chapter(over="file")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    solution = page.locator(f"#{LABEL} ~ .tag_solution").first
    expect(solution).to_be_hidden()
    group.get_by_role("button", name="Write an answer").focus()
    page.keyboard.press("Enter")
    editor = group.get_by_role("textbox")
    expect(editor).to_be_focused()
    assert "no answer yet" in editor.inner_text()
    assert not [url for url in asked if re.search(r"live/(python|numpy|book)", url)]
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("def my_scale_zero_point(low, high, bits):\n    return lo, 0")
    page.keyboard.press("Control+Enter")
    assert verdict(group) == "error"
    assert "NameError: name 'lo' is not defined (line 2 of your answer)" in group.inner_text()
    expect(solution).to_be_visible()
    put(group, CODE[LABEL].answer.source)
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(group.get_by_role("button", name="Check")).to_be_focused()
    page.keyboard.press("Enter")
    expect(group.locator("[data-verdict=right]")).to_contain_text("Exercise 3.2: all five ranges")
    expect(group).to_contain_text("passed on")
    expect(group.get_by_role("button", name="Check")).to_be_focused()
    page.reload()
    expect(group).to_contain_text("### BEGIN SOLUTION")
    expect(group).to_contain_text("passed on")
    expect(solution).to_be_visible()
    group.get_by_role("button", name="Reset").click()
    expect(group).to_contain_text("no answer yet")
    assert answered(page)["answer"] is None and answered(page)["passed"]


def test_endless_loop_can_be_stopped(chapter):
    page, group = chapter()
    put(group, "while True:\n    pass\n")
    group.get_by_role("button", name="Check").click()
    group.get_by_role("button", name="Stop").click()
    expect(group.locator("[data-verdict=none]")).to_contain_text("Stopped")
    expect(group.get_by_role("button", name="Check")).to_be_focused()
    expect(group.get_by_role("button", name="Stop")).to_be_hidden()
    assert answered(page)["tries"] == 0


def test_without_python_the_page_is_as_it_was(browser, book, lists):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/live.js*", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.goto(f"{book.http}{CHAPTER}.html")
    page.evaluate("minqSettled")
    assert not page.locator(".mq-exercise").count()
    expect(page.locator(f"#{LABEL} ~ .tag_solution").first).to_be_visible()
    context.close()


def test_exercise_on_networks_leads_elsewhere(open_page, lists):
    for label in ON_TORCH:
        (name,) = (chapter for chapter, found in EXERCISES.items() if CODE[label] in found)
        page = open_page(name).page
        note = page.locator(f"#{label} + .mq-ex-note")
        for place, host in (("Colab", "colab.research.google.com"), ("Binder", "mybinder.org")):
            assert host in note.get_by_role("link", name=place).get_attribute("href")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_can_be_used_by_all_on_a_phone(chapter, dark):
    page, group = chapter(dark=dark, width=375, touch=True)
    put(group, "x = 1")
    for status, text in (
        ("error", "AssertionError: no"),
        ("error", "ValueError: no"),
        ("ok", "yes"),
    ):
        page.evaluate(SAYS, [status, text])
        group.get_by_role("button", name="Check").click()
        expect(group.locator("[data-verdict]")).to_contain_text(text.rpartition(" ")[2])
        found = Axe().run(page, context=".mq-exercise", options=WCAG)
        assert not found.response["violations"], found.generate_report()
    assert page.evaluate(WIDE) == []
    group.scroll_into_view_if_needed()
    photograph(page, f"exercise-{'dark' if dark else 'light'}")


# --- The progress page ----------------------------------------------------------------------------


@pytest.fixture
def progress(open_page):
    def open_progress(entries=(), **options):
        page = open_page("progress", **options).page
        page.evaluate("entries => minqProgress.merge(entries)", dict(entries))
        page.reload()
        return page

    return open_progress


def state(page, label):
    return page.locator(f"[data-label={label}] .mq-progress-state")


ENTRIES = {
    LABEL: {"answer": "def f(): pass", "tries": 2, "passed": "2026-11-30"},
    "ex-ch04-5": {"answer": "f = 1", "tries": 3, "passed": None},
}


def test_progress_has_every_exercise(progress):
    page = progress(ENTRIES)
    links = page.locator("[data-label] a").evaluate_all(
        "all => all.map(a => a.getAttribute('href'))"
    )
    assert [link.partition("#")[2] for link in links] == list(CODE)
    expect(state(page, LABEL)).to_have_text("✓ 30 November 2026")
    expect(state(page, "ex-ch04-5")).to_have_text("3 tries")
    expect(state(page, "ex-ch20-5")).to_have_text("–")
    expect(state(page, "ex-ch05-6")).to_have_text("with PyTorch")
    expect(page.get_by_text(f"You have passed 1 of the {len(IN_PAGE)} checks")).to_be_visible()
    bar = page.get_by_role("progressbar", name="Exercises passed")
    expect(bar).to_be_visible()
    assert bar.evaluate("bar => [bar.value, bar.max]") == [1, len(IN_PAGE)]


def test_progress_goes_to_a_file_and_comes_back(progress, tmp_path):
    page = progress(ENTRIES)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert json.loads(path.read_text("utf-8"))["exercises"] == ENTRIES
    page.get_by_role("button", name="Forget all").click()
    page.get_by_role("button", name="Keep them").click()
    expect(state(page, LABEL)).to_contain_text("✓")
    page.get_by_role("button", name="Forget all").click()
    page.get_by_role("button", name="Forget them").click()
    expect(state(page, LABEL)).to_have_text("–")
    take(page, path)
    expect(page.get_by_text("Took over 2 exercises from")).to_be_visible()
    expect(state(page, LABEL)).to_contain_text("✓")
    assert answered(page, "ex-ch04-5") == ENTRIES["ex-ch04-5"]


def take(page, path):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import").click()
    chooser.value.set_files(path)


def file_of(exercises, **other):
    return json.dumps({"format": "minq exercises", "version": 1, "exercises": exercises} | other)


BAD = {
    "nothing": ("", "it cannot be read"),
    "half": (file_of(ENTRIES)[:-20], "it cannot be read"),
    "bytes": (b"\x89PNG\r\n\xff\x00".decode("latin-1"), "it cannot be read"),
    "list": ("[1, 2]", "does not come from the progress page"),
    "notebook": ('{"cells": [], "nbformat": 4}', "does not come from the progress page"),
    "newer": (file_of({}, version=2), "another edition"),
    "answer": (file_of({LABEL: {"answer": 5}}), "ex-ch03-2 is broken: the answer is no text"),
    "long": (file_of({LABEL: {"answer": "x" * 20_001}}), "more than 20,000 characters"),
    "tries": (file_of({LABEL: {"tries": -1}}), "the number of tries is no number"),
    "day": (file_of({LABEL: {"passed": "2026-13-77"}}), "is no date"),
    "entry": (file_of({LABEL: None}), "it is no entry"),
    "huge": (file_of({LABEL: {"answer": "x" * 1_100_000}}), "1.1 MB"),
}


def test_bad_files_are_told_and_change_nothing(progress, tmp_path):
    page = progress(ENTRIES)
    before = page.evaluate("minqProgress.write()")
    for name, (text, words) in BAD.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text, "utf-8")
        take(page, path)
        told = page.get_by_text(f"{name}.json was not taken over, and nothing has changed.")
        expect(told).to_contain_text(words)
        assert page.evaluate("minqProgress.write()") == before
    path.write_text(
        file_of({LABEL: {"answer": "later"}, "__proto__": {}, "ex-ch99-1": {}}), "utf-8"
    )
    take(page, path)
    expect(page.get_by_text("1 passed here and not there: left as they are.")).to_be_visible()
    assert answered(page) == ENTRIES[LABEL]


def test_spoilt_or_missing_storage_does_no_harm(progress):
    page = progress(ENTRIES)
    key = page.evaluate("Object.keys(localStorage).find(k => k.startsWith('minq-exercises'))")
    for spoilt in ("{", "null", "7", '{"ex-ch03-2": 5}', '{"ex-ch03-2": {"tries": "x"}}'):
        page.evaluate("([key, value]) => localStorage.setItem(key, value)", [key, spoilt])
        page.reload()
        expect(state(page, LABEL)).to_have_text("–")
    page.add_init_script(NO_STORAGE)
    page.reload()
    expect(page.get_by_text("This browser keeps nothing")).to_be_visible()
    page.evaluate("entries => minqProgress.merge(entries)", ENTRIES)
    assert answered(page) == ENTRIES[LABEL]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_progress_can_be_read_by_all_and_printed(progress, dark):
    page = progress(ENTRIES, dark=dark, width=375, touch=True)
    page.get_by_role("button", name="Forget all").click()
    assert page.evaluate(WIDE) == []
    assert not violations(page)
    photograph(page, f"exercises-{'dark' if dark else 'light'}")
    page.emulate_media(media="print")
    expect(state(page, LABEL)).to_be_visible()
    expect(page.get_by_role("button", name="Export")).to_be_hidden()
    expect(page.get_by_text("You have passed 1 of")).to_be_visible()
