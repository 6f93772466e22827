"""AdaRound in a browser: its formulas are the library's, its run is that of autograd and Adam."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import affine
from minqbook.widgets import AdaRoundPlay
from minqbook.widgets.bundle import bundle

NAMES = ["rectifiedSigmoid", "initialV", "softWeight", "roundingPenalty", "annealedBeta",
         "layerOf", "runAdaRound", "randomRoundings", "seeded"]  # fmt: skip
SOURCE = bundle("adaround_play.js") + f"\nexport {{ {', '.join(NAMES)} }};"
LAYER = "m.layerOf(Float64Array.from(l[0]), ...l.slice(1))"
AWAY = """root => root.querySelector('.mq-dots .mq-purple[style]')
    .getAttribute('d').split('M').length - 1"""
HEIGHTS = """root => [...root.querySelectorAll('.mq-dots path[style]')]
    .flatMap(p => [...p.getAttribute('d').matchAll(/M[-\\d.]+ ([-\\d.]+)/g)].map(m => +m[1]))"""


def layer(outputs=6, width=12, rows=200, seed=0):
    """Weights, and inputs that go together as those of real layers do."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(0.5, 1, (rows, 3)) @ rng.normal(size=(3, width)) + 0.3, 0)
    return np.float32(rng.normal(size=(outputs, width))), np.float32(x)


def packed(w):
    data = np.frombuffer(w.data, "<f4").astype(float).tolist()
    return [data, w.sizes, w.scale, w.bits]


def errors(w, q):
    """(q - W) G (q - W)^T of each output, in float64."""
    weight, gram = (a.astype(float) for a in w.arrays)
    return np.einsum("ok,kl,ol->o", q - weight, gram, q - weight)


def nearest(w):
    weight = w.arrays[0].astype(float)
    scale, axis = (w.scale, 0) if len(w.scale) > 1 else (w.scale[0], None)
    return affine.fake_quantize(weight, scale, 0, w.bits, signed=True, axis=axis)


def decibels(w, error):
    weight, gram = (a.astype(float) for a in w.arrays)
    return 10 * np.log10(error / np.einsum("ok,kl,ol->", weight, gram, weight))


def test_formulas_are_the_librarys(js):
    torch = pytest.importorskip("torch")
    from minq.ptq.soft_rounding import (
        annealed_beta,
        initial_v,
        rectified_sigmoid,
        regularizer,
        soft_quantize,
    )

    rng = np.random.default_rng(0)
    v, w = rng.normal(0, 3, 300), rng.normal(0, 3, 300)
    v[:5] = 2 * np.log(11) * np.array([-1, -0.5, 0, 0.5, 1])  # h is 0 or 1 from 0.5 on
    got = js(SOURCE, """(m, [v, w, s, grid]) => ({
        h: v.map(m.rectifiedSigmoid), start: w.map(x => m.initialV(x, s)),
        soft: w.map((x, j) => m.softWeight(x, v[j], s, grid)),
        penalty: [20, 7.5, 2].map(b => m.roundingPenalty(v, b)),
        beta: [1, 10, 500].map(n => Array.from({ length: n }, (_, t) => m.annealedBeta(t, n))),
    })""", [v.tolist(), w.tolist(), 0.5, [-8, 7]])  # fmt: skip
    tv, tw, s = torch.tensor(v), torch.tensor(w), torch.tensor(0.5, dtype=torch.float64)
    near = dict(rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got["h"], rectified_sigmoid(tv), **near)
    np.testing.assert_allclose(got["start"], initial_v(tw, s), **near)
    np.testing.assert_allclose(got["soft"], soft_quantize(tw, tv, s), **near)
    for beta, penalty in zip([20, 7.5, 2], got["penalty"], strict=True):
        assert penalty == pytest.approx(float(regularizer(tv, beta)), rel=1e-9)
    for n, betas in zip([1, 10, 500], got["beta"], strict=True):
        assert betas == pytest.approx([annealed_beta(t, n) for t in range(n)], rel=1e-9)


@pytest.mark.parametrize("scale", [0.11, [0.1, 0.12, 0.15, 0.09, 0.11, 0.1]], ids=["one", "each"])
def test_run_is_that_of_autograd_and_adam(js, scale):
    """The grid clips weights of every output: there is an error to descend from the start."""
    torch = pytest.importorskip("torch")
    from minq.ptq.soft_rounding import (
        annealed_beta,
        initial_v,
        rectified_sigmoid,
        regularizer,
        soft_quantize,
    )

    steps, penalty, lr = 60, 0.5, 0.05
    w = AdaRoundPlay(*layer(), scale=scale, bits=4)
    weight, gram = (torch.tensor(a).double() for a in w.arrays)
    s = torch.tensor(w.scale, dtype=torch.float64)
    how = dict(axis=0) if len(s) > 1 else {}
    s = s if len(s) > 1 else s[0]
    unit = torch.tensor(errors(w, nearest(w)))

    def error(q):
        return torch.einsum("ok,kl,ol->o", q - weight, gram, q - weight)

    v = initial_v(weight, s, **how).requires_grad_()
    adam = torch.optim.Adam([v], lr=lr)
    heights, soft = [], []
    for t in range(steps + 1):
        each = error(soft_quantize(weight, v, s, **how))
        heights.append(rectified_sigmoid(v).detach().numpy().ravel().copy())
        soft.append(each.sum().item())
        loss = (weight.shape[1] * each / unit).sum()
        if t >= 0.2 * steps:
            loss = loss + penalty * regularizer(v, annealed_beta(t, steps))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert soft[0] > 0.01 and soft[12] < soft[0]
    call = f"""(m, [l, how]) => {{
        const R = m.runAdaRound({LAYER}, how);
        return {{ ...R, h: R.h.map(h => [...h]) }};
    }}"""
    got = js(SOURCE, call, [packed(w), dict(steps=steps, penalty=penalty, lr=lr)])
    np.testing.assert_allclose(got["h"], heights, atol=1e-7)
    np.testing.assert_allclose(got["soft"], soft, rtol=1e-7)
    # What is shown as rounded is what the library's formula gives for those h.
    u = w.arrays[0].astype(float) / np.reshape(w.scale, (-1, 1))
    for t in (1, 20, 40, 60):
        up = (heights[t] > 0.5).reshape(u.shape)
        q = np.clip(np.floor(u) + up, -8, 7) * np.reshape(w.scale, (-1, 1))
        assert got["hard"][t] == pytest.approx(errors(w, q).sum(), rel=1e-9)
        inside = (np.floor(u) >= -8) & (np.floor(u) < 7)
        assert got["away"][t] == (inside & (up != (np.rint(u) > np.floor(u)))).sum()
    assert got["hard"][0] == pytest.approx(errors(w, nearest(w)).sum(), rel=1e-9)


def test_random_roundings_are_pythons(js):
    def mulberry(a):
        while True:
            a = (a + 0x6D2B79F5) & 0xFFFFFFFF
            t = ((a ^ a >> 15) * (a | 1)) & 0xFFFFFFFF
            t ^= (t + ((t ^ t >> 7) * (t | 61))) & 0xFFFFFFFF
            yield ((t ^ t >> 14) & 0xFFFFFFFF) / 2**32

    w = AdaRoundPlay(*layer(), scale=0.3, seed=7)
    got = js(SOURCE, f"(m, l) => m.randomRoundings({LAYER}, 20, 7)", packed(w))
    numbers, u = mulberry(7), w.arrays[0].astype(float) / 0.3
    for error in got:
        draw = np.array([next(numbers) for _ in range(u.size)]).reshape(u.shape)
        q = 0.3 * np.clip(np.floor(u) + (draw < u - np.floor(u)), -8, 7)
        assert error == pytest.approx(errors(w, q).sum(), rel=1e-9)
    drawn = js(SOURCE, "(m, length) => Array.from({ length }, m.seeded(1))", 20_000)
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.01)  # 5 sigma: 0.0102
    assert np.var(drawn) == pytest.approx(1 / 12, abs=0.003)


def test_beats_nearest_and_is_close_to_the_library(js):
    torch = pytest.importorskip("torch")
    from minq.ptq.adaround import adaround

    weight, x = layer(12, 24, 400, seed=3)
    w = AdaRoundPlay(weight, x)
    how = "{ steps: 500, penalty: 10, lr: 0.05 }"
    hard = js(SOURCE, f"(m, l) => m.runAdaRound({LAYER}, {how}).hard.at(-1)", packed(w))
    tw, tx = torch.tensor(weight).double(), torch.tensor(x).double()
    q = adaround(tw, tx, tx @ tw.T, torch.tensor(w.scale[0], dtype=torch.float64))
    library, plain = (errors(w, v).sum() for v in (q.numpy(), nearest(w)))
    page, library, plain = (decibels(w, e) for e in (hard, library, plain))
    assert page < plain - 3 and abs(page - library) < 3, (page, library, plain)


def assert_shows(widget, w, step):
    settle(widget)
    shown = readouts(widget)
    plain = decibels(w, errors(w, nearest(w)).sum())
    assert number(shown["rounding to nearest"]) == pytest.approx(plain, abs=0.06)
    assert widget.slider("Step").value == step
    away, settled = (int(shown[k].split(" of ")[0]) for k in ("away from nearest", "settled"))
    assert widget.evaluate(AWAY) == away
    heights = np.array(widget.evaluate(HEIGHTS))
    assert len(heights) == w.arrays[0].size
    ends = (heights == heights.min()) | (heights == heights.max())
    assert settled <= ends.sum() or step == 0
    assert not widget.broken_text()
    return number(shown["error now, rounded"]), away, settled


@pytest.mark.parametrize("width", [800, 375])
def test_controls(browser, tmp_path, width):
    w = AdaRoundPlay(*layer())
    with stage(browser, tmp_path, w, width=width, dark=width < 400) as widget:
        last, away, settled = assert_shows(widget, w, 500)
        plain = number(readouts(widget)["rounding to nearest"])
        assert last < plain - 1 and away > 0 and settled > 0.9 * w.arrays[0].size
        widget.click("Reset")
        assert assert_shows(widget, w, 0)[:2] == (plain, 0)
        widget.click("One step")
        assert_shows(widget, w, 1)
        widget.slider("Step").press("ArrowRight", "ArrowRight")
        assert_shows(widget, w, 3)
        widget.slider("Step").set(250)
        assert_shows(widget, w, 250)
        cursor = widget.root.locator(".mq-handle")
        cursor.press("PageUp")
        assert_shows(widget, w, 260)
        cursor.scroll_into_view_if_needed()
        box, mouse = cursor.bounding_box(), widget.root.page.mouse
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(x, y)
        mouse.down()
        mouse.move(x - 40, y, steps=3)
        mouse.up()
        settle(widget)
        assert widget.slider("Step").value < 240
        widget.click("Play")  # with less motion: the end at once
        assert assert_shows(widget, w, 500) == (last, away, settled)
        widget.slider("Regularizer").press("Home")
        assert assert_shows(widget, w, 500)[2] < settled
        widget.slider("Regularizer").press("End")
        assert_shows(widget, w, 500)
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_playing(browser, tmp_path):
    w = AdaRoundPlay(*layer(), steps=100, step=0)
    with stage(browser, tmp_path, w) as widget:
        page = widget.root.page
        page.emulate_media(reduced_motion="no-preference")
        widget.click("Play")
        page.wait_for_timeout(700)
        widget.click("Pause")
        settle(widget)
        held = widget.slider("Step").value
        assert 0 < held < 100
        page.wait_for_timeout(300)
        assert_shows(widget, w, held)


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ([[1.0]], None),
        ([[1e-30, 2e-30]], None),
        ([[0.5, -0.5, 1.0, 0.0]], 0.5),
        ([[9.0, -9.0]], 0.1),
    ],
    ids=str,
)
def test_odd_layers(browser, tmp_path, weight, scale):
    """One weight, tiny ones, all on the grid already, all beyond it."""
    w = AdaRoundPlay(weight, gram=np.eye(len(weight[0])), scale=scale, steps=50)
    with stage(browser, tmp_path, w, width=320) as widget:
        for step in (50, 0, 25):
            widget.slider("Step").set(step)
            settle(widget)
            assert not widget.broken_text()
        for key in ("Home", "End"):
            widget.slider("Regularizer").press(key)
            settle(widget)
            assert not widget.broken_text()


def test_speed(browser, tmp_path, measure):
    w = AdaRoundPlay(*layer(16, 32))
    with stage(browser, tmp_path, w) as widget:
        penalty = sorted(
            widget.slider("Regularizer").set(k)["frame_ms"] for k in range(100, 400, 60)
        )
        step = sorted(widget.slider("Step").set(k)["frame_ms"] for k in range(0, 500, 50))
        measure("adaround", penalty_ms=penalty[2], step_ms=step[5])
        assert penalty[0] < 250 and step[0] < 100
