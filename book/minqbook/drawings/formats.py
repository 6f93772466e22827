"""Chapter 1: what the bits of a number are for, in five formats."""

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
