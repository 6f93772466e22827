"""Chapters 5, 16 and 17: where a network's quantizers sit."""

from __future__ import annotations

from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel

# What insert_quantizers does with a block: the operators whose results it rounds (green dots), and
# the layers whose weights it rounds (blue squares). The tests compare with what it really does.
ATTENTION = ("query", "key", "value", "matmul", "softmax", "matmul", "output", "add", "norm")
MLP = ("mlp.0", "mlp.1", "mlp.2", "add", "norm")
ATTENTION_WEIGHTS, MLP_WEIGHTS = 4, 2


class _Block(Panel):
    """A panel of operators, each with a dot behind it if its result is rounded."""

    dots = 0
    squares = 0

    def operator(
        self, x: float, y: float, name: str, width: float = 92, weights: bool = False, **look
    ) -> None:
        """A box centred at x, with its top at y; weights: it has some, and they are rounded."""
        self.box(x - width / 2, y, width, 28, name, **look)
        if weights:
            self.box(x - width / 2 - 5, y + 9, 10, 10, tone="blue", full=1, round_=0)
            self.squares += 1

    def result(self, *points: tuple[float, float], at: float = 10) -> None:
        """An arrow whose beginning carries the dot of a quantizer."""
        self.arrow(*points)
        x, y = points[0]
        self.dot(x, y + at, 5, "green")
        self.dots += 1


@drawn
def residual_quantizers() -> Drawing:
    """A residual block: three results are rounded, and two are not."""
    p = _Block(
        "a residual block, batch norms folded",
        "From top to bottom: the block's input, rounded already; a convolution with rounded"
        " weights; its ReLU, whose result is rounded; a second convolution with rounded weights,"
        " whose result is rounded; the addition with the block's input, which comes along the"
        " shortcut; a ReLU, whose result is rounded. Nothing is rounded between a convolution and"
        " its ReLU, nor between the addition and its ReLU.",
        height=372,
        width=340,
    )
    x = 100
    p.text(x, 34, "input, rounded", tone="soft", size=12)
    p.arrow((x, 44), (x, 62))
    p.operator(x, 64, "convolution", 110, weights=True)
    p.arrow((x, 93), (x, 110))
    p.operator(x, 112, "ReLU", 70)
    p.result((x, 141), (x, 172))
    p.operator(x, 174, "convolution", 110, weights=True)
    p.result((x, 203), (x, 234))
    p.operator(x, 236, "add", 70)
    p.arrow((x, 265), (x, 282))
    p.operator(x, 284, "ReLU", 70)
    p.result((x, 313), (x, 344))
    p.arrow((x, 52), (24, 52), (24, 250), (x - 37, 250))
    for y, words in (
        (101, "nothing: fused"),
        (152, "behind the activation"),
        (214, "its scale must meet\nthe shortcut's"),
        (273, "nothing: fused"),
    ):
        p.text(172, y, words, anchor="start", tone="soft" if "fused" in words else "green", size=12)
    _legend(p, 362, 0)
    return Drawing(
        "residual_quantizers",
        "A quantizer stands where new numbers are written to memory, behind the activation or the"
        " sum, and nowhere between operators that the device computes in one go.",
        (p,),
    )


@drawn
def transformer_quantizers() -> Drawing:
    """One layer of BERT: attention on the left, the MLP on the right."""
    left = _Block(
        "attention",
        "The input goes to three linear layers with rounded weights, for queries, keys and values;"
        " all three results are rounded. Queries times keys are rounded, the softmax of them is"
        " rounded, that times the values is rounded. A linear layer with rounded weights follows,"
        " rounded too. It is added to the input, which comes along a shortcut; the sum is rounded,"
        " and so is the layer norm behind it.",
        height=464,
    )
    columns = (62, 152, 242)
    left.text(152, 32, "input, rounded", tone="soft", size=12)
    for x, name in zip(columns, ("query", "key", "value"), strict=True):
        left.arrow((152, 42), (x, 58) if x == 152 else (x, 60))
        left.operator(x, 62, name, 72, weights=True)
    left.result((62, 91), (62, 104), (100, 120), at=4)
    left.result((152, 91), (140, 120), at=4)
    left.operator(120, 122, "query · key", 100)
    left.result((120, 151), (120, 180))
    left.operator(120, 182, "softmax", 80)
    left.result((120, 211), (142, 240), at=8)
    left.result((242, 91), (242, 210), (190, 240), at=8)
    left.operator(160, 242, "times value", 100)
    left.result((160, 271), (160, 300))
    left.operator(160, 302, "linear", 80, weights=True)
    left.result((160, 331), (160, 352))
    left.operator(160, 354, "add", 80, tone="red", full=0.15)
    left.result((160, 383), (160, 404))
    left.operator(160, 406, "layer norm", 100)
    left.result((160, 435), (160, 460))
    left.arrow((152, 50), (316, 50), (316, 368), (202, 368))
    left.text(110, 369, "outliers", anchor="end", tone="red", size=12)

    right = _Block(
        "MLP",
        "The layer norm's result goes to a linear layer with rounded weights, whose result is"
        " rounded; through GELU, rounded; through a second linear layer with rounded weights,"
        " rounded. It is added to the layer norm's result, which comes along a shortcut; the sum,"
        " where the outliers are, is rounded, and so is the layer norm behind it.",
        height=464,
    )
    x = 120
    right.text(x, 32, "input, rounded", tone="soft", size=12)
    right.arrow((x, 42), (x, 60))
    for y, name, weights in ((62, "linear", True), (128, "GELU", False), (194, "linear", True)):
        right.operator(x, y, name, 80, weights=weights)
        right.result((x, y + 29), (x, y + 64))
    right.operator(x, 260, "add", 80, tone="red", full=0.15)
    right.result((x, 289), (x, 324))
    right.operator(x, 326, "layer norm", 100)
    right.result((x, 355), (x, 386))
    right.arrow((x, 50), (240, 50), (240, 274), (162, 274))
    right.text(70, 275, "outliers", anchor="end", tone="red", size=12)
    right.text(232, 160, "shortcut", anchor="end", tone="soft", size=SMALL)
    _legend(right, 448, 0)
    return Drawing(
        "transformer_quantizers",
        f"A layer of BERT has {len(ATTENTION) + len(MLP)} quantizers for activations and"
        f" {ATTENTION_WEIGHTS + MLP_WEIGHTS} for weights; two of them, on the sums of the residual"
        " stream, meet the outliers.",
        (left, right),
    )


def _legend(p: Panel, y: float, x: float) -> None:
    p.dot(x + 6, y, 5, "green")
    p.text(x + 16, y, "result rounded", anchor="start", tone="soft", size=SMALL)
    p.box(x + 122, y - 5, 10, 10, tone="blue", full=1, round_=0)
    p.text(x + 138, y, "weights rounded", anchor="start", tone="soft", size=SMALL)


def cache_bytes(bits: int, layers: int = 30, heads: int = 3, size: int = 64) -> float:
    """Bytes of keys and values that SmolLM2 keeps for a token."""
    return 2 * layers * heads * size * bits / 8


@drawn
def decoder_quantizers() -> Drawing:
    """A decoder: weights, cache and activations, each rounded for a reason of its own."""
    p = Panel(
        "one of 30 layers, for one token",
        "The residual stream runs from top to bottom. Attention: norm; linear layers for query, key"
        " and value, with rounded weights; keys and values go to the cache, rounded, and"
        " attention reads those of all tokens from there; a linear layer; the addition. MLP: norm;"
        " three linear layers with rounded weights around a gate; the addition. Sums of the stream"
        f" stay in 16 bits. A token's keys and values take {cache_bytes(16):,.0f} bytes in 16 bits,"
        f" {cache_bytes(4):,.0f} in 4.",
        width=390,
        height=416,
    )
    x = 86
    p.text(x, 30, "residual stream, 16 bits", tone="red", size=12)
    rows = [
        (44, "norm", "line"),
        (88, "query, key, value", "blue"),
        (132, "attention", "green"),
        (176, "linear", "blue"),
        (220, "norm", "line"),
        (264, "gate, up, down", "blue"),
    ]
    p.arrow((170, 30), (184, 30), (184, 345), tone="red")
    for y, name, tone in rows:
        p.box(x - 72, y, 144, 28, name, tone, full=0 if tone == "line" else 0.14)
    for y in (44, 220):
        p.arrow((183, y + 14), (x + 74, y + 14), tone="red")
    for y in (73, 117, 161, 249):
        p.arrow((x, y), (x, y + 14))
    for y in (190, 278):
        p.arrow((x + 73, y), (180, y))
        p.text(192, y, "+", anchor="start", tone="red", bold=True)
    p.box(
        258, 118, 116, 56, "cache: keys and\nvalues of all\ntokens so far", "purple", 0.14, size=12
    )
    p.arrow((x + 73, 102), (316, 102), (316, 116), tone="purple")
    p.arrow((256, 146), (x + 74, 146), tone="purple")
    p.text(
        316, 184, f"{cache_bytes(16) / 1000:.0f} kB a token in 16 bits", size=SMALL, tone="purple"
    )
    p.text(316, 200, f"{cache_bytes(4) / 1000:.1f} kB in 4 bits", size=SMALL, tone="purple")
    for y, tone, words in (
        (366, "blue", "weights: 4 bits, read for every token"),
        (386, "purple", "cache: 8 or 4 bits, longer with every token"),
        (406, "green", "activations: 8 bits, to multiply integers"),
    ):
        p.block(14, y - 5, 10, 10, tone)
        p.text(32, y, words, anchor="start", size=12)
    return Drawing(
        "decoder_quantizers",
        "A decoder has three things to round, each for a reason: weights because every token reads"
        " them, the cache because every token lengthens it, activations to multiply integers.",
        (p,),
    )
