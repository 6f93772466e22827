"""The tables of the book and of the paper: what was measured, and the commands that measure it."""

from minq._lazy import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "registry": "TABLES measure",
        "settings": "NAIVE",
        "counts": "CALIBRATION CONFIGURATIONS TEST HERO_TEST HERO_CALIBRATION BEST_TEST"
        " BEST_CALIBRATION RATES RATES_AT_8_BITS RANGE_RATE RATE_STEPS BATCH",
    },
)
