"""Chapters 10 and 15: the two pipelines, step by step, with what each step needs."""

from __future__ import annotations

from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel

LEFT, WIDE, HIGH = 0, 214, 40


@drawn
def ptq_pipeline() -> Drawing:
    """Post-training quantization: four steps on the weights, then one walk with data."""
    first = Panel(
        "before any data",
        "Four steps, one after the other, none of which needs data: fold batch norms; equalize"
        " neighbouring layers and absorb high biases, which changes weights; add the quantizers,"
        " symmetric for weights, asymmetric for activations; set the ranges of the weights.",
        height=286,
    )
    _steps(
        first,
        [
            ("capture the graph,\nfold batch norms", "chapter 5", "green"),
            ("equalize, absorb\nhigh biases", "chapter 7", "green"),
            ("add quantizers", "chapters 4, 5", "green"),
            ("ranges of the weights", "chapter 6", "green"),
        ],
    )
    walk = Panel(
        "one walk, from input to output",
        "Are there unlabelled pictures? If yes, each layer is rounded by AdaRound. If not, weights"
        " are rounded to the nearest level and biases corrected by formula. Then the ranges of the"
        " activations are set, from the pictures, or else from what batch norm knows. The result is"
        " the quantized network.",
        height=286,
    )
    walk.box(60, 24, 220, HIGH, "unlabelled pictures?", "yellow", full=0.16, round_=20)
    for x, words, below, tone, anchor in (
        (0, "yes", "AdaRound\nchapter 9", "red", "end"),
        (176, "no", "nearest, correct\nbiases: chapter 8", "green", "start"),
    ):
        walk.arrow((x + 82, 65), (x + 82, 90))
        walk.text(x + 82 + (-8 if x == 0 else 8), 77, words, anchor=anchor, size=12)
        walk.box(x, 92, 164, HIGH, below, tone, full=0.12)
        walk.arrow((x + 82, 133), (x + 82, 154))
    for x, words, tone in (
        (0, "ranges by MSE\nfrom the pictures", "red"),
        (176, "ranges from\nbatch norm", "green"),
    ):
        walk.box(x, 156, 164, HIGH, words, tone, full=0.12)
        walk.arrow((x + 82, 197), (x + 82, 222))
    walk.box(0, 224, 340, HIGH - 8, "quantized network", "ink", full=0.06, bold=True)
    walk.text(170, 274, "red: reads pictures; green: needs none", tone="soft", size=SMALL)
    return Drawing(
        "ptq_pipeline",
        "What changes weights comes first, what sets ranges last: every step works on the network"
        " that all steps before it have left, and only the last walk needs pictures.",
        (first, walk),
    )


@drawn
def qat_pipeline() -> Drawing:
    """Quantization-aware training: a start by post-training means, then a loop with labels."""
    start = Panel(
        "prepare: where training starts",
        "Five steps: the trained network with its batch norms folded; equalize layers; add"
        " quantizers, with weights rounded to nearest; set the ranges from pictures; put batch norm"
        " back if it is to stay, and make the ranges trainable. Where post-training quantization"
        " would round cleverly and correct biases, nothing is done.",
        height=346,
    )
    _steps(
        start,
        [
            ("trained network,\nbatch norms folded", "chapter 5", "green"),
            ("equalize layers", "chapter 7", "green"),
            ("add quantizers", "chapter 5", "green"),
            ("set ranges", "chapter 14", "green"),
            ("batch norm: fold, dynamic\nor keep; free the ranges", "chapter 13", "blue"),
        ],
    )
    loop = Panel(
        "train, then finish",
        "A loop: forward through rounded weights and activations; the loss, from labelled data;"
        " backward, where the straight-through estimator passes the roundings over; a step of the"
        " optimizer, which moves weights and ranges; and forward again. Behind the loop, finish"
        " folds what is left of batch norm and fixes the ranges.",
        height=346,
    )
    places = [
        ("forward, rounded", "blue"),
        ("loss", "red"),
        ("backward,\nstraight through", "blue"),
        ("step: weights\nand ranges", "blue"),
    ]
    for i, (words, tone) in enumerate(places):
        y = 24 + 60 * i
        loop.box(40, y, 164, HIGH, words, tone, full=0.12)
        if i < 3:
            loop.arrow((122, y + HIGH + 1), (122, y + 59))
    loop.arrow((39, 224), (16, 224), (16, 44), (38, 44), tone="blue")
    loop.text(270, 104, "labelled data", tone="red")
    loop.arrow((226, 104), (206, 104), tone="red")
    loop.text(214, 164, "chapter 12", anchor="start", size=SMALL, tone="soft")
    loop.arrow((122, 245), (122, 272))
    loop.text(130, 258, "at the end", anchor="start", size=SMALL, tone="soft")
    loop.box(40, 274, 164, HIGH, "finish: fold, fix ranges", "green", full=0.12, size=12)
    loop.text(214, 294, "no quantizer moves\nany more", anchor="start", size=SMALL, tone="soft")
    return Drawing(
        "qat_pipeline",
        "Quantization-aware training starts where post-training quantization has set its ranges,"
        " and lets the loss of labelled data decide each rounding anew in every step.",
        (start, loop),
    )


def _steps(p: Panel, steps: list[tuple[str, str, str]]) -> None:
    """Boxes under each other, each with its chapter beside it."""
    for i, (words, chapter, tone) in enumerate(steps):
        y = 24 + 64 * i
        p.box(LEFT, y, WIDE, HIGH, words, tone, full=0.12)
        p.text(WIDE + 12, y + HIGH / 2, chapter, anchor="start", tone="soft", size=SMALL)
        if i < len(steps) - 1:
            p.arrow((LEFT + WIDE / 2, y + HIGH + 1), (LEFT + WIDE / 2, y + 63))
