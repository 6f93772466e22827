"""Chapter 1: what the bits of a number are for, and what one instruction does with them."""

from __future__ import annotations

from minq import floats
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel, plain

BIT, HIGH = 10, 18
# Name, bits of the exponent, bits behind the point or of the integer; the first bit is the sign.
FORMATS = (
    ("float32", 8, 23),
    ("bfloat16", 8, 7),
    ("FP8 E4M3", 4, 3),
    ("INT8", 0, 7),
    ("INT4", 0, 3),
)


def reach(name: str, exponent: int, fraction: int) -> str:
    """The largest number and how finely it is resolved there; of an integer, all it can be."""
    if not exponent:
        return f"−{2**fraction} to {2**fraction - 1}, one step apart"
    largest = floats.E4M3.largest if name.startswith("FP8") else 3e38
    most = f"{largest:g}" if largest < 1e6 else "3 · 10^{38}"
    return f"to {most}, to 1 part in {2 ** (fraction + 1):,}"


@drawn
def bit_fields() -> Drawing:
    """The bits of five formats under each other: sign, exponent, fraction or integer."""
    said = [
        f"{name} has {1 + e + f} bits: a sign, "
        + (f"{e} of exponent, {f} of mantissa" if e else f"and {f} more of the integer")
        + f"; it reaches {plain(reach(name, e, f))}".replace("1038", "10 to the 38").replace(
            "reaches to", "reaches"
        )
        for name, e, f in FORMATS
    ]
    p = Panel("the bits of a number", ". ".join(said) + ".", height=274, width=340)
    for i, (name, exponent, fraction) in enumerate(FORMATS):
        y = 40 + 43 * i
        tones = ["red"] + ["green"] * exponent + ["blue"] * fraction
        for k, tone in enumerate(tones):
            p.box(k * BIT, y, BIT, HIGH, tone=tone, full=0.35, round_=0)
        total = 1 + exponent + fraction
        p.text(0, y - 8, f"{name}: {total} bits", anchor="start", size=12, bold=True)
        p.text(340, y - 8, reach(name, exponent, fraction), anchor="end", size=SMALL, tone="soft")
    for x, tone, words in (
        (0, "red", "sign"),
        (58, "green", "exponent"),
        (148, "blue", "mantissa, or integer"),
    ):
        p.block(x, 255, 10, 10, tone, full=0.6)
        p.text(x + 16, 260, words, anchor="start", size=12)
    return Drawing(
        "bit_fields",
        "A float divides its bits between an exponent, for reach, and a mantissa, for precision; an"
        " integer puts them all into precision and takes its reach from one scale.",
        (p,),
    )


REGISTER, PRODUCTS = 256, 32
# What is multiplied; bits of a number in the register; instructions for 32 products and sums.
WAYS = (
    ("float32", 32, ("multiply and add",) * 4),
    ("int8, multiplied as it is", 8, ("multiply and add",)),
    ("int8, widened to 16 bits first", 16, ("widen",) * 4 + ("multiply",) * 2 + ("add",) * 2),
)
KINDS = {"multiply and add": "blue", "multiply": "blue", "widen": "red", "add": "green"}


@drawn
def registers() -> Drawing:
    """A register of 256 bits full of floats and of integers, and the instructions they take."""
    counts = [len(steps) for _, _, steps in WAYS]
    said = [
        f"{name}: {REGISTER // bits} numbers of {bits} bits fill the register; {PRODUCTS} products"
        f" and their sums take {len(steps)} instruction{'s' * (len(steps) > 1)}"
        + ("" if len(set(steps)) == 1 else ", 4 to widen, 2 to multiply and 2 to add")
        for name, bits, steps in WAYS
    ]
    p = Panel("a register of 256 bits", ". ".join(said) + ".", height=264)
    for i, (name, bits, steps) in enumerate(WAYS):
        y = 48 + 76 * i
        p.text(0, y - 11, name, anchor="start", size=12, bold=True)
        wide = 336 / (REGISTER // bits)
        for k in range(REGISTER // bits):
            p.box(k * wide, y, wide, 18, tone="soft", full=0.12, round_=0)
        for k, step in enumerate(steps):
            p.block(18 * k, y + 25, 15, 11, KINDS[step], full=0.8)
        text = f"{len(steps)} instruction{'s' * (len(steps) > 1)} for {PRODUCTS} products"
        if "widen" in steps:
            text = "8: 4 widen, 2 multiply, 2 add"
        p.text(340, y + 31, text, anchor="end", size=SMALL, tone="soft")
    for x, kind in ((0, "multiply and add"), (140, "widen"), (218, "add")):
        p.block(x, 250, 10, 10, KINDS[kind], full=0.8)
        p.text(x + 16, 255, "multiply (and add)" if x == 0 else kind, anchor="start", size=12)
    return Drawing(
        "registers",
        "A register holds four times as many 8-bit integers as floats. Whether they are multiplied"
        f" four times as fast depends on the instructions: {counts[1]} in place of {counts[0]} with"
        f" the right one, {counts[2]} without it.",
        (p,),
    )
