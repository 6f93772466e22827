"""How much of everything the tables take. No torch here, so that the page's Python has it too."""

CALIBRATION = 128
"""Inputs that the small networks are calibrated on."""

CONFIGURATIONS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A8": (3, 8), "W2A8": (2, 8)}
TEST = 1000
HERO_TEST, HERO_CALIBRATION = 64, 32
BEST_TEST, BEST_CALIBRATION = 500, 128
RATES, RANGE_RATE, STEPS, BATCH = (3e-4, 1e-3, 3e-3), 1e-2, 400, 64
RATES_AT_8_BITS = (3e-5, 1e-4, 3e-4)  # what is close to the trained network is led more gently
RATE_STEPS = 250
