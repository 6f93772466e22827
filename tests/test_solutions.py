"""Numbers that a solution in words tells: computed again, so that none is a slip or grows old."""

from __future__ import annotations

import json
import math
from pathlib import Path

import exercises as tool
import nbformat
import pytest

from minq.mac import access_energy, add_energy, multiply_energy

BOOK = Path(__file__).resolve().parents[1] / "book"


def solution(label: str) -> str:
    """The text of one solution, on one line."""
    (path,) = BOOK.glob(f"{label.split('-')[1]}_*.ipynb")
    cells = (cell.source for cell in nbformat.read(path, as_version=4).cells)
    found = {m["label"]: m["text"] for text in cells for m in tool.SOLUTION.finditer(text)}
    return " ".join(found[label].split())


def records(name: str) -> list[dict]:
    return json.loads((BOOK / "results" / f"{name}.json").read_text("utf-8"))["records"]


def says(label: str, *told: str) -> None:
    text = solution(label)
    assert not [words for words in told if words not in text], text


def test_balance_of_fetching_and_arithmetic():
    fetch = [access_energy(bits, "dram") for bits in (32, 8)]
    work = [multiply_energy(32, 32, floating=True) + add_energy(32, floating=True)]
    work += [multiply_energy(8, 8) + add_energy(32)]
    k, m = fetch[0] / fetch[1], work[0] / work[1]
    balance = [e / a for e, a in zip(fetch, work, strict=True)]
    one = (fetch[0] + work[0]) / (fetch[1] + work[1])
    many = 2 / (1 / k + 1 / m)  # the harmonic mean, as the solution proves
    says("ex-ch01-7", f"$B^* = {balance[0]:.0f}$ for FP32 and {balance[1]:.0f} for 8 bits")
    says("ex-ch01-7", f"$k = {k:g}$ and $m = {m:.1f}$", f"One input is {one:.1f} times cheaper")
    says("ex-ch01-7", f"a batch of {balance[0]:.0f} is {many:.1f} times cheaper")


def test_switches_without_adaround():
    def best(**fixed):
        fixed |= {"bits": "W8A8"}
        found = [r for r in records("hero") if all(r[k] == v for k, v in fixed.items())]
        return max(r["sqnr"] for r in found if r["rounding"] != "adaround")

    says("ex-ch10-1", f"together give {best(per_channel=False):.1f} dB")
    says("ex-ch10-1", f"without equalization {best(per_channel=False, equalize=False):.1f} dB")
    says("ex-ch10-1", f"correction {best(per_channel=False, rounding='nearest'):.1f} dB")
    most = best(per_channel=True)
    assert most == best(per_channel=True, equalize=False)
    plain = best(per_channel=True, rounding="nearest")
    says(
        "ex-ch10-1", f"equalization, {most:.1f} dB", f"({best(per_channel=True, equalize=True):.1f}"
    )
    says("ex-ch10-1", f"costs {most - plain:.1f} dB ({plain:.1f} dB)")


def test_what_the_weights_must_reach():
    needed = -10 * math.log10(10**-2.5 - 10**-2.7)
    says("ex-ch10-6", f"gives {needed:.1f} dB")
    assert 25 + 4 < needed and 25 + 2 == 27


def test_training_or_not():
    cells = {(r["network"], r["bits"], r["per_channel"]): r for r in records("qat")}

    def within(bits, what, grain):
        found = (r for (_, b, g), r in cells.items() if (b, g) == (bits, grain))
        return {r["network"] for r in found if r["fp32"] - r[what] <= 1}

    trained = {"resnet_basic", "text_encoder"}
    dense = {"segmenter", "detector"}
    assert within("W4A4", "test", False) == trained and not within("W4A4", "ptq", False)
    assert dense <= within("W4A8", "test", False) - within("W4A8", "ptq", False)
    assert not within("W4A4", "ptq", True) and dense <= within("W4A8", "ptq", True)
    more = {"resnet_bottleneck", "mobilenet_v2"}
    assert within("W4A4", "test", True) == trained | more
    kept = [cells[n, "W4A4", False] for n in ("resnet_basic", "text_encoder")]
    says("ex-ch15-1", *(f"{r['test']:.1f} of {r['fp32']:.1f} %" for r in kept))
    kept = [cells[n, "W4A8", False] for n in ("segmenter", "detector")]
    says("ex-ch15-1", *(f"{r['test']:.1f} of {r['fp32']:.1f}" for r in kept))
    says(
        "ex-ch15-1", *(f"({cells[n, 'W4A8', True]['ptq']:.1f})" for n in ("segmenter", "detector"))
    )
    kept = [cells[n, "W4A4", True] for n in ("resnet_bottleneck", "mobilenet_v2")]
    says("ex-ch15-1", *(f"({r['test']:.1f} of {r['fp32']:.1f})" for r in kept))


def test_a_chip_with_little_memory():
    m3 = {(r["network"], r["numbers"]): r for r in records("chip") if r["chip"] == "Cortex-M3"}
    four = ("resnet_basic", "resnet_bottleneck", "mobilenet_v2", "inception")
    kb = lambda name, numbers, part: m3[name, numbers][part] / 1000  # noqa: E731
    near = lambda value, told: value == pytest.approx(told, rel=0.03)  # noqa: E731
    says("ex-ch19-1", "about 300 kB of flash and an arena of 50 kB", "about 700 kB", "about 148 kB")
    assert near(kb("inception", "float", "flash"), 300) and near(
        kb("inception", "float", "arena"), 50
    )
    assert near(kb("resnet_basic", "float", "flash"), 700)
    assert all(near(kb(n, "float", "arena"), 148) for n in four[1:3])
    says("ex-ch19-1", "about 180 kB of flash, and no arena exceeds 38 kB")
    assert near(max(kb(n, "INT8", "flash") for n in four), 180)
    assert max(kb(n, "INT8", "arena") for n in four) < 38


@pytest.mark.parametrize(
    "label, told",
    [
        ("ex-ch11-8", f"$\\kappa = {64 * 3072 / (12 * 255**2):.2f}$"),
        ("ex-ch11-8", f"{12 * 255**2 // 3072} pictures"),
        ("ex-ch12-1", f"about {(0.81 - 0.43) / (0.87 - 0.43):.0%}".replace("%", " %")),
        ("ex-ch15-7", f"{3 / (2 * math.sqrt(math.pi)) * 100 * math.sqrt(0.95 * 0.05 / 2000):.2f}"),
        ("ex-ch16-6", f"\\approx {224 / math.sqrt(384):.0f}$"),
        ("ex-ch16-7", f"{round(4 * 384**2 / 2, -5):,.0f} instead of nine million"),
        ("ex-ch17-1", f"g = 16 / 1.125 \\approx {16 / (1 + 16 / 128):.1f}"),
        ("ex-ch17-6", f"about {round((8e9 - 7e9 / 2) / (2 * 32 * 32 * 128 * 16 / 8), -2):,.0f}"),
        ("ex-ch09-8", f"$9 \\cdot 0.1 + 2 \\cdot 2.8 \\cdot 0.05 = {9 * 0.1 + 5.6 * 0.05:.2f}$"),
        ("ex-ch09-8", f"\\cdot 0.45 = {0.9 + 5.6 * 0.45:.2f}$"),
        ("ex-ch07-7", f"= {1 / 6.75 + 0.75 / 9:.2f}$ before"),
        ("ex-ch07-7", f"= {1 + 0.75**2:.2f}$ after"),
    ],
)
def test_arithmetic(label, told):
    says(label, told)
