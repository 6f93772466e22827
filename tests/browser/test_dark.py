"""In the dark nothing shines; a figure that waits for a guess shows itself, and stays in place."""

import io

import pytest
from bookpage import ROOT, toc_pages
from PIL import Image
from stage import stage

from minqbook.widgets import AffinePlayground, Question

NOTEBOOKS = [name for name in toc_pages() if (ROOT / "book" / f"{name}.ipynb").exists()]
LIGHT = (
    140  # of 255: the mean of a picture in the dark; a photo stays below, a white sheet does not
)

# The picture below an element, with all that lies above it on the page hidden.
LOOK = """async element => {
    for (const e of document.querySelectorAll('.bd-header, .bd-header-article, .header-article'))
        e.style.display = 'none';
    for (const fold of document.querySelectorAll('details')) fold.open = true;
    element.scrollIntoView({ block: 'center' });
    await Promise.all([...element.querySelectorAll('img')].map(i => i.decode()));
}"""

# What moves when the reader skips the question: [places before, after, the browser's own sum].
OPEN = """async host => {
    const wait = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)));
    const places = () => [host.querySelector('.mq-question'), host.querySelector('figure'),
        ...document.querySelectorAll('.bd-article :is(h1, h2)')].map(e => {
            const { x, y, width, height } = e.getBoundingClientRect();
            return [x, y, width, height].map(Math.round);
        });
    let shift = 0;
    const add = list => { for (const e of list) if (!e.hadRecentInput) shift += e.value; };
    const watch = new PerformanceObserver(list => add(list.getEntries()));
    host.scrollIntoView();
    await wait();
    watch.observe({ type: 'layout-shift' });
    const before = places();
    host.querySelector('.mq-ask [type=button]').click();
    await wait();
    add(watch.takeRecords());
    return [before, places(), shift];
}"""


def pixels(locator):
    return Image.open(io.BytesIO(locator.screenshot())).convert("L")


def mean(picture):
    return sum(level * n for level, n in enumerate(picture.histogram())) / (
        picture.width * picture.height
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_page_in_the_dark(open_page, name):
    page = open_page(name, dark=True, width=375)
    for widget in page.widgets(skip=False):
        if widget.root.locator(".mq-question.mq-shut").count():
            shows_itself_and_does_not_jump(widget)
    for output in page.page.locator(".bd-article .cell_output:is(:has(img), :has(table))").all():
        output.evaluate(LOOK)
        if output.is_visible():
            does_not_shine(output)


def shows_itself_and_does_not_jump(widget):
    figure = widget.root.locator("figure")
    assert figure.evaluate("f => f.inert")
    seen = [e for e in figure.locator(".mq-plot :is(svg, canvas)").all() if e.is_visible()]
    assert seen, "an empty box"
    for hidden in (".mq-readouts", ".mq-caption", ".mq-value", ".mq-answer"):
        assert not any(e.is_visible() for e in figure.locator(hidden).all()), hidden
    faint = pixels(figure)
    low, high = faint.getextrema()
    assert high - low > 40, "nothing to be seen"
    before, after, shift = widget.evaluate(OPEN)
    assert before == after and shift == 0
    assert not figure.evaluate("f => f.inert")
    assert pixels(figure).histogram() != faint.histogram()


def does_not_shine(output):
    picture, html = pixels(output), output.inner_html()[:200]
    assert mean(picture) < LIGHT, html
    right, bottom = picture.width - 2, picture.height - 2
    corners = [picture.getpixel((x, y)) for x in (1, right) for y in (1, bottom)]
    assert min(corners) < 64, f"a box: {html}"
    low, high = picture.getextrema()
    assert high - low > 100, f"nothing to be seen: {html}"


@pytest.mark.parametrize("colour", ["#0072b2", "#c24e00", "#00805e", "#000000"])
def test_colours_of_plots_contrast_in_the_dark(open_page, colour):
    """The page's own style on a picture of one colour: 4.5 against the page, as text needs."""
    page = open_page("ch03_uniform_affine", dark=True).page
    box = page.locator(".cell_output img").first
    box.evaluate(
        """(img, colour) => {
            const size = { width: 40, height: 40 };
            const canvas = Object.assign(document.createElement('canvas'), size);
            const c = canvas.getContext('2d');
            c.fillStyle = 'white'; c.fillRect(0, 0, 40, 40);
            c.fillStyle = colour; c.fillRect(10, 10, 20, 20);
            img.src = canvas.toDataURL(); img.width = img.height = 40;
            img.style.height = '40px';
            return img.decode();
        }""",
        colour,
    )
    picture = Image.open(io.BytesIO(box.screenshot())).convert("RGB")
    ground, ink = (
        picture.getpixel((2, 2)),
        picture.getpixel((picture.width // 2, picture.height // 2)),
    )
    assert ground == (18, 18, 18), "not the page's own black"
    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 4.5


def luminance(colour):
    parts = [v / 255 for v in colour]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_longest_answer_and_a_skip_take_the_same_room(browser, tmp_path):
    """The verdict on a guess has two lines on a phone, "Skipped." has one."""
    question = Question("How much?", low=0, high=480, unit="channels", answer=375.0)
    widget = AffinePlayground(question=question)
    with stage(browser, tmp_path, widget, width=300, skip=False) as shown:
        before, after, _ = shown.evaluate(OPEN)
        assert before == after
