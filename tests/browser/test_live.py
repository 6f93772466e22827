"""Live cells: Python in the page, what it shows against the notebooks, its walls and its weight."""

import http.server
import json
import os
import threading
import time
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from bookpage import ROOT, toc_pages
from firefox import ADVICE, find_firefox, open_firefox
from test_pages import WCAG, WIDE

CHAPTER = "ch04_symmetric_granularity"  # all of its cells are live
RUN = "([source, options]) => minqLive.run(source, options)"
LIVE = "() => [...document.querySelectorAll('.mq-live')].map(e => +e.id.replace('cell-', ''))"
SECONDS = 240_000  # for a Python to start, on a machine that does much else
READY = "document.documentElement.dataset.live"


@pytest.fixture(scope="module", autouse=True)
def built_with_parts(book):
    """A book without live cells has nothing to test; in CI it must have them."""
    if not list((book.html / "_static" / "live").glob("pyodide.asm.wasm.*.js")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "the book was built without live cells: `python book/_tools/parts.py` says why"
        )


@pytest.fixture
def live_page(open_page):
    """live_page(name, ...): an open page whose buttons are there."""

    def open_live(*arguments, **options):
        page = open_page(*arguments, **options).page
        page.set_default_timeout(SECONDS)
        page.wait_for_function(READY)
        return page

    return open_live


def run(page, source, **options):
    return page.evaluate(RUN, [source, options])


def cell(page, number):
    return page.locator(".mq-live").nth(number - 1)


def press_run(page, number):
    """Press Run and wait until the cell has run."""
    cell(page, number).locator(".mq-live-run").click()
    wait(page, number)


def wait(page, number):
    cell(page, number).locator(".mq-live-run").wait_for(state="visible")


def status(page, number):
    return cell(page, number).locator(".mq-live-status").inner_text()


# --- Every live cell ------------------------------------------------------------------------------


def stored(outputs):
    """What a notebook stores of a cell: printed text, the text of its value, how many figures."""
    printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
    data = [o["data"] for o in outputs if "data" in o]
    texts = ["".join(d["text/plain"]) for d in data]
    figures = [t for t in texts if t.startswith("<Figure size")]
    return printed, [t for t in texts if t not in figures], len(figures)


def shown(result):
    """The same of what ran in the page."""
    printed = "".join(o["text"] for o in result["outputs"] if o["kind"] in ("stdout", "stderr"))
    values = [
        "<IPython.core.display.HTML object>" if o["kind"] == "html" else o["text"]
        for o in result["outputs"]
        if o["kind"] in ("text", "html")
    ]
    return printed, values, len(result["figures"])


# The words of tables, cell by cell, and how many columns each cell spans.
TABLES = """all => all.flatMap(e => [...e.querySelectorAll('table')]).map(t => [
    [...t.rows].map(r => [...r.cells].map(c => c.innerText.trim())),
    [...t.rows].map(r => [...r.cells].map(c => c.colSpan)), t.innerText.trim()])"""
UNFOLD = "document.querySelectorAll('details').forEach(d => { d.open = true; })"


@pytest.mark.parametrize(
    "name, tables", [("ledger", 7), ("ch10_pipeline", 8), ("ch19_on_a_chip", 1)]
)
def test_tables_and_figures_in_the_page_are_the_stored_ones(live_page, name, tables):
    """Run every live cell from the first on: the same words in the same cells, as many figures."""
    page = live_page(name, over="file")
    found = 0
    for number in range(1, page.locator(".mq-live").count() + 1):
        output = cell(page, number).locator(":scope > .cell_output:not(.mq-live-output)")
        page.evaluate(UNFOLD)
        stored, figures = output.evaluate_all(TABLES), output.locator("img").count()
        press_run(page, number)
        page.evaluate(UNFOLD)
        here = cell(page, number).locator(".mq-live-output")
        assert here.evaluate_all(TABLES) == stored, f"{name}, cell {number}"
        if output.locator(".ws-root").count() == 0:
            assert here.locator("img").count() == figures, f"{name}, cell {number}"
        found += len(stored)
    assert found == tables
    assert not page.evaluate(WIDE)


def test_every_live_cell_of_every_page_gives_the_stored_output(live_page, parse, book, measure):
    """In one Python, each page in a space of its own; nbval's rules."""
    page = live_page("ch03_uniform_affine", over="file")
    wrong, count, began = [], 0, time.monotonic()
    for name in toc_pages():
        path = ROOT / "book" / f"{name}.ipynb"
        marked = parse(book.html / f"{name}.html", f"({LIVE})()".replace("document", "page"))
        if not path.exists():
            assert not marked
            continue
        cells = json.loads(path.read_text("utf-8"))["cells"]
        for index in marked:
            source, tags = "".join(cells[index]["source"]), cells[index]["metadata"].get("tags", [])
            result = run(page, source, space=name, name=f"cell {index}")
            count += 1
            if result["status"] != "ok":
                wrong.append(f"{name}, cell {index}: {result['traceback'] or result['text']}")
            elif "nbval-ignore-output" not in tags:
                expected, got = stored(cells[index]["outputs"]), shown(result)
                if expected != got:
                    wrong.append(f"{name}, cell {index}: {got} instead of {expected}")
    measure("live-cells", cells=count, seconds=time.monotonic() - began)
    assert not wrong, "\n\n".join(wrong)
    assert count > 195


def test_chapters_3_and_4_are_live_as_a_whole(live_page):
    for name in ("ch03_uniform_affine", CHAPTER):
        page = live_page(name, over="file")
        assert page.locator(".mq-torch").count() == 0 < page.locator(".mq-live").count()


def test_cells_that_need_torch_say_so_and_lead_elsewhere(live_page):
    page = live_page("ch05_simulation", over="file")
    note = page.locator(".mq-torch .mq-live-note").first
    assert note.inner_text() == "Needs PyTorch; runs in Colab or Binder"
    addresses = note.locator("a").evaluate_all("all => all.map(a => a.href)")
    assert all("ch05_simulation.ipynb" in address for address in addresses)
    assert "Colab or Binder" in run(page, "import torch")["text"]


# --- Weight and time ------------------------------------------------------------------------------


def test_nothing_loads_before_the_first_run_and_little_after(live_page, measure):
    page = live_page(CHAPTER)
    asked = "performance.getEntriesByType('resource').filter(r => r.name.includes('/live/'))"
    weight = f"{asked}.reduce((sum, r) => sum + r.transferSize, 0)"
    assert page.evaluate(f"{asked}.length") == 0
    scripts = page.evaluate(
        "performance.getEntriesByType('resource').filter(r => /live[-\\w]*\\.js/.test(r.name))"
        ".reduce((sum, r) => sum + r.decodedBodySize, 0)"
    )
    assert 0 < scripts < 40_000
    source = "import minq\nminq.quantize(0.3, 0.1, 0, bits=4)"
    clock = f"async s => {{ const t = performance.now(); await ({RUN})([s, {{}}]); "
    clock += "return performance.now() - t; }"
    cold = page.evaluate(clock, source)
    first = page.evaluate(weight)
    warm = sorted(page.evaluate(clock, source) for _ in range(5))[2]
    figure = page.evaluate(clock, "import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()")
    memory = run(page, "1")["memory"]
    page.goto(page.url.replace(CHAPTER, "ch03_uniform_affine"))
    page.wait_for_function(READY)
    again = page.evaluate(clock, source)
    second = page.evaluate(weight)
    measure(
        "live",
        scripts_bytes=scripts,
        cold_ms=cold,
        cold_bytes=first,
        warm_ms=warm,
        figure_ms=figure,
        second_page_ms=again,
        second_page_bytes=second,
        memory_bytes=memory,
    )
    assert first < 24e6, "what the first run loads; a server that compresses sends three quarters"
    assert second < 10_000, "the second page takes all from the browser's cache"
    assert warm < 1000  # 100 ms where nothing else runs; measured above


def test_stop_ends_an_endless_loop(live_page, measure):
    page = live_page(CHAPTER, over="file")
    run(page, "x = 1")
    found = page.evaluate("""async () => {
        const looping = minqLive.run("while True: pass"), waiting = minqLive.run("2");
        await new Promise(done => setTimeout(done, 500));
        const start = performance.now();
        minqLive.stop();
        const [a, b] = await Promise.all([looping, waiting]);
        return [performance.now() - start, a.status, b.status, a.text, minqLive.running];
    }""")
    ms, *statuses, text, running = found
    measure("live-stop", ms=ms)
    assert ms < 300 and statuses == ["stopped", "stopped"] and not running
    assert "names of all cells are gone" in text
    assert page.locator("iframe[title=Python]").count() == 0, "what looped is gone, and not at work"
    after = run(page, "x")
    assert (after["status"], after["line"]) == ("error", 1), "a new Python, without the old names"
    known = "import sys\n[name for name in ('numpy', 'minq.affine') if name in sys.modules]"
    assert run(page, known)["text"] == "['numpy', 'minq.affine']", "they come with its memory"


# --- Walls ----------------------------------------------------------------------------------------

# Ways out that a reader's code could try; each must fail, and ask nothing of any server.
ATTEMPTS = {
    "urllib": "import urllib.request\nurllib.request.urlopen('{address}', timeout=2)",
    "sockets": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).send(b'x')",
    "the js module": "import js\njs.fetch('{address}')",
    "a loader": "from pyodide.code import run_js\nrun_js('fetch(\"{address}\")')",
    "an evaluated function": (
        "import pyodide_js\npyodide_js.constructor.constructor('return fetch(\"{address}\")')()"
    ),
    "pyfetch": (
        "from pyodide.http import pyfetch\n"
        "try:\n    pyfetch('{address}').send(None)\nexcept StopIteration:\n    pass"
    ),
    "open_url": "from pyodide.http import open_url\nopen_url('{address}')",
    "a package": "import micropip",
}


@pytest.fixture
def listener():
    """A server that no browser is kept from; `heard` lists what it was asked for."""
    heard = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, heard
        server.shutdown()


def test_a_cell_reaches_no_network_and_no_page(live_page, listener):
    port, heard = listener
    page = live_page(CHAPTER)
    urllib.request.urlopen(f"http://127.0.0.1:{port}/test").close()  # it does listen
    for way, source in ATTEMPTS.items():
        source = source.format(address=f"http://127.0.0.1:{port}/cell", port=port)
        assert run(page, source)["status"] == "error", way
    assert (
        run(page, "import sys\n[m for m in ('js', 'micropip') if m in sys.modules]")["text"] == "[]"
    )
    assert heard == ["/test"]
    frame = page.locator("iframe[title=Python]")
    assert frame.get_attribute("sandbox") == "allow-scripts"
    assert page.evaluate("document.querySelector('iframe[title=Python]').contentDocument") is None


# What the worker of every Python that starts from now on does before all else.
FIRST_OF_ALL = """script => {
    const { load } = minqParts;
    minqParts.load = async (name, ...rest) => {
        const blob = await load(name, ...rest);
        return name === "pyodide.asm.js" ? new Blob([script, blob]) : blob;
    };
    return () => { minqParts.load = load; };
}"""


def test_the_frame_has_no_network_even_for_scripts(browser, book, listener):
    """Its policy alone, before the worker gives up the functions that would ask for a network."""
    port, heard = listener
    page = browser.new_page()  # one whose console may complain
    page.set_default_timeout(SECONDS)
    page.goto(f"{book.http}{CHAPTER}.html")
    page.wait_for_function(READY)
    address = f"http://127.0.0.1:{port}"
    tries = f"""fetch("{address}/fetch").catch(() => {{}});
        const request = new XMLHttpRequest();
        try {{ request.open("GET", "{address}/request"); request.send(); }} catch {{}}
        try {{ importScripts("{address}/script"); }} catch {{}}"""
    page.evaluate_handle(FIRST_OF_ALL, tries)
    assert run(page, "1 + 1")["text"] == "2"
    urllib.request.urlopen(f"{address}/test").close()
    assert heard == ["/test"]
    page.close()


def test_what_a_cell_says_is_never_html(live_page):
    page = live_page(CHAPTER, over="file")
    cell(page, 5).locator(".mq-live-edit").click()
    page.wait_for_function("document.activeElement.matches('.cm-content')")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("print('<img src=x onerror=document.title=1>')\n'<b>bold</b>'")
    page.keyboard.press("Control+Enter")
    wait(page, 5)
    output = cell(page, 5).locator(".mq-live-output")
    assert output.locator("img, b").count() == 0
    assert "<b>bold</b>" in output.inner_text() and page.title() != "1"


# HTML that would load, run or cover something; ADDRESS hears of it.
TRICKS = """
from IPython.display import HTML
HTML('''<table onclick="document.title = 1" style="position:fixed;margin:-9em;text-align:right;
background:url(ADDRESS/back)"><tr><td colspan="2" id="search">words<img src="ADDRESS/image"
onerror="document.title = 1"><script>document.title = 1</script><style>body { color: red }</style>
<svg onload="document.title = 1"/><iframe srcdoc="x"></iframe>
<a href="javascript:alert()">more</a></td></tr></table>''')"""


def test_of_html_only_words_and_tables_are_shown(live_page, listener):
    port, heard = listener
    page = live_page(CHAPTER)
    rewrite(page, 5, TRICKS.replace("ADDRESS", f"http://127.0.0.1:{port}"))
    shown = cell(page, 5).locator(".mq-live-html")
    assert "words" in shown.inner_text() and "more" in shown.inner_text()
    made = shown.evaluate(
        "e => [...e.querySelectorAll('*')].map(x => [x.localName, x.getAttributeNames()])"
    )
    assert made == [["table", ["style"]], ["tbody", []], ["tr", []], ["td", ["colspan"]]]
    assert shown.locator("table").get_attribute("style") == "text-align: right;"
    assert heard == [] and page.title() != "1"


# --- The cells' own controls ----------------------------------------------------------------------


def test_a_cell_by_keyboard_alone(live_page):
    """Tab to Edit, change the code with a slash in it, run, see the line of an error, reset."""
    page = live_page(CHAPTER, over="file")
    target = cell(page, 6)
    before = target.locator(".cell_output").last.inner_text()
    target.locator(".mq-live-run").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.matches('.cm-content')")
    page.keyboard.press("Control+Home")
    page.keyboard.type("a = 6\nprint(a / 2)\na / 0\n")
    page.keyboard.press("Control+Enter")
    wait(page, 6)
    assert target.locator(".mq-live-stdout").inner_text().strip() == "3.0"
    assert target.locator(".mq-live-error").inner_text().startswith("Line 3: ZeroDivisionError")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "mq-live-run"
    target.locator(".mq-live-reset").press("Enter")
    assert target.locator(".cell_output").last.inner_text() == before
    assert target.locator(".cm-content").count() == 0
    assert page.evaluate("document.activeElement.className") == "mq-live-run"
    press_run(page, 6)
    assert "ZeroDivisionError" not in target.locator(".mq-live-output").inner_text()


def test_cells_know_what_is_stale_and_what_has_not_run(live_page):
    page = live_page(CHAPTER, over="file")
    press_run(page, 6)  # needs the imports of cell 1
    error = cell(page, 6).locator(".mq-live-error")
    assert "NameError" in error.inner_text()
    cell(page, 5).locator(".mq-live-above").click()
    page.wait_for_function(
        "document.querySelectorAll('.mq-live-status')[3].textContent.startsWith('Ran here')"
    )
    press_run(page, 5)
    press_run(page, 6)
    assert status(page, 6).startswith("Ran here in ")
    assert cell(page, 4).locator(".mq-live-output img").get_attribute("alt")
    press_run(page, 5)
    assert status(page, 6).startswith("Stale: cell 5")
    press_run(page, 6)
    assert status(page, 6).startswith("Ran here in ")
    looping = page.evaluate("() => { minqLive.run('while True: pass'); return minqLive.running }")
    assert looping
    page.evaluate("minqLive.stop()")
    press_run(page, 1)
    assert "names are gone" in status(page, 6)


@pytest.mark.parametrize("dark, width", [(False, 1280), (True, 375)])
def test_controls_pass_axe_and_fit_a_phone(live_page, dark, width):
    page = live_page(CHAPTER, over="file", dark=dark, width=width, touch=width < 400)
    cell(page, 5).locator(".mq-live-edit").click()
    page.wait_for_function("document.activeElement.matches('.cm-content')")
    cell(page, 5).locator(".mq-live-run").click()
    wait(page, 5)
    cell(page, 5).locator(".mq-live-error").wait_for()
    context = {"include": [[".mq-live-bar"], [".mq-live-output"], [".mq-live-editor"]]}
    found = Axe().run(page, context=context, options=WCAG).response["violations"]
    assert not found, json.dumps(found, indent=1)[:4000]
    assert not page.evaluate(WIDE)
    heights = page.locator(".mq-live-bar button:visible").evaluate_all(
        "all => all.map(b => b.getBoundingClientRect().height)"
    )
    assert min(heights) >= 24


def test_a_book_whose_files_are_gone_says_so(browser, book):
    page = browser.new_page()  # one whose console may complain
    page.goto(f"{book.http}{CHAPTER}.html")
    page.wait_for_function(READY, timeout=SECONDS)
    page.route("**/live/numpy-*", lambda route: route.abort())
    found = run(page, "1")
    assert found["status"] == "failed" and "could not be loaded" in found["text"]
    page.unroute("**/live/numpy-*")
    assert run(page, "1 + 1")["text"] == "2", "the next run tries again"
    page.close()


# Every Python that starts from now on finds no memory, as on an old phone.
NO_MEMORY = """WebAssembly.Memory = class { constructor() {
    throw new RangeError("WebAssembly.Memory(): could not allocate memory"); } };"""


def test_a_device_without_memory_gets_a_sentence(live_page):
    page = live_page(CHAPTER, over="file")
    again = page.evaluate_handle(FIRST_OF_ALL, NO_MEMORY)
    page.on("console", lambda message: None)
    press_run(page, 5)
    error = cell(page, 5).locator(".mq-live-error").inner_text()
    assert "too little memory" in error and "Colab" in error
    assert "RangeError" not in error
    again.evaluate("restore => restore()")
    assert run(page, "1 + 1")["text"] == "2", "the next run tries again"


def rewrite(page, number, source):
    """Replace a cell's code in its editor, and run it."""
    if cell(page, number).locator(".cm-content").count() == 0:
        cell(page, number).locator(".mq-live-edit").click()
    cell(page, number).locator(".cm-content").focus()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source)
    page.keyboard.press("Control+Enter")
    wait(page, number)


def test_a_figure_is_drawn_from_the_values_of_an_edited_cell(live_page):
    """Reset brings the book's figure back, with its question."""
    page = live_page("ch03_uniform_affine", over="file")
    figure, note = cell(page, 3).locator(".ws-root"), cell(page, 3).locator(".mq-live-note")
    figure.locator(".mq-question").wait_for()
    source = (
        "from minqbook.widgets import AffinePlayground\nAffinePlayground([-1.0, 0.5, 3.0], bits=2)"
    )
    rewrite(page, 3, source)
    assert note.inner_text() == "The figure below is drawn from your values."
    bits = figure.get_by_role("slider", name="bits").first
    assert bits.input_value() == "2" and figure.locator(".mq-question").count() == 0
    rewrite(page, 3, "3")
    assert note.inner_text() == "The figure below is the book's: this cell made another value."
    cell(page, 3).locator(".mq-live-reset").click()
    figure.locator(".mq-question").wait_for()


# --- The library in 32 bits, and another browser --------------------------------------------------


def test_the_library_holds_where_int_has_32_bits(live_page):
    """The examples of its docstrings, and sums beyond 2^31, which NumPy's int would wrap there."""
    page = live_page(CHAPTER, over="file")
    found = run(
        page,
        """
import doctest, importlib, re
import numpy as np
class Values(doctest.OutputChecker):  # a type is printed where it is not NumPy's own
    def check_output(self, want, got, options):
        want, got = (re.sub(r",\\s*dtype=int\\d+", "", text) for text in (want, got))
        return super().check_output(want, got, options)
runner = doctest.DocTestRunner(Values())
assert np.array([1]).dtype == np.int32
tried = 0
for name in ("affine", "grid", "granularity", "floats", "ranges", "range_search", "translate",
             "fold", "mac.array", "mac.energy", "mac.layer", "mac.products", "mac.requantization",
             "mac.widths"):
    module = importlib.import_module(f"minq.{name}")
    for example in doctest.DocTestFinder().find(module, f"minq.{name}"):
        if "torch" in example.docstring:
            continue
        result = runner.run(example)
        assert not result.failed, example.name
        tried += result.attempted
from minq.mac import requantize
for scale, rule in ((0.5, lambda n: (n + 1) // 2), (0.75, lambda n: (3 * n + 2) // 4)):
    assert requantize(range(-9, 9), scale, signed=True).tolist() == [rule(n) for n in range(-9, 9)]
from minq.mac import int_matmul, accumulator_bits
W, x = np.full((1, 70_000), 255), np.full((70_000,), 255)
exact = int(int_matmul(W, x[:, None])[0, 0])
(tried, exact)
""",
    )
    assert found["status"] == "ok", found["stdout"] + found["traceback"]
    tried, exact = json.loads(found["text"].replace("(", "[").replace(")", "]"))
    assert tried > 50 and exact == 70_000 * 255 * 255 > 2**31


def test_firefox_runs_and_stops_cells_from_a_disk(book, tmp_path, measure):
    if find_firefox() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ADVICE)
    with open_firefox(tmp_path) as firefox:
        firefox.goto(f"{book.file}{CHAPTER}.html")
        firefox.evaluate(
            f"new Promise(d => {{ const t = setInterval(() => {READY} && d(t), 50) }})"
        )
        clock = time.monotonic()
        source = json.dumps("import minq\nprint(round(minq.sqnr([1.0, 2.0], [1.0, 2.1]), 1))\n3")
        found = firefox.evaluate(f"minqLive.run({source})", timeout=240)
        measure("live-firefox", cold_ms=1000 * (time.monotonic() - clock))
        assert (found["status"], found["stdout"], found["text"]) == ("ok", "27.0\n", "3")
        plot = json.dumps("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
        assert len(firefox.evaluate(f"minqLive.run({plot})", timeout=240)["figures"]) == 1
        ms, state = firefox.evaluate("""(async () => {
            const looping = minqLive.run("while True: pass");
            await new Promise(done => setTimeout(done, 500));
            const start = performance.now();
            minqLive.stop();
            return [performance.now() - start, (await looping).status];
        })()""")
        assert state == "stopped" and ms < 300
        assert firefox.problems == []


def test_firefox_checks_an_exercise_and_reads_a_picture(book, tmp_path):
    if find_firefox() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ADVICE)
    until = (
        "new Promise(d => {{ const t = setInterval(() => ({}) && (clearInterval(t), d(1)), 50) }})"
    )
    with open_firefox(tmp_path) as firefox:
        firefox.goto(f"{book.file}{CHAPTER}.html")
        firefox.evaluate(until.format(READY))
        verdict, words = firefox.evaluate(
            """(async () => {
            const exercise = Object.values(minqExercises.all)[0];
            await exercise.ask();
            return [exercise.result.dataset.verdict, exercise.result.textContent];
        })()""",
            timeout=240,
        )
        assert verdict == "wrong" and "no answer yet" in words
        firefox.goto(f"{book.file}intro.html")
        answers = (
            "[...document.querySelectorAll('.mqp-card li:first-child')].map(e => e.textContent)"
        )
        firefox.evaluate(until.format("document.querySelector('.mqp-card')"))
        before = firefox.evaluate(answers)
        firefox.evaluate(
            """[...document.querySelectorAll('.minq-OwnPicture button')]
            .find(b => b.textContent.startsWith('Run ')).click()"""
        )
        here = "document.querySelector('.minq-OwnPicture').dataset.answers === 'here'"
        firefox.evaluate(until.format(here), timeout=240)
        after = firefox.evaluate(answers)
        assert len(before) == 3 and [a[0] for a in after] == [b[0] for b in before]
        for a, b in zip(after, before, strict=True):  # stored by another machine
            assert abs(float(a[1:-2]) - float(b[1:-2])) <= 2
        assert firefox.problems == []
