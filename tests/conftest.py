"""Settings shared by all tests."""

import gc
import os

import equation_lines
from hypothesis import settings

# A busy machine is no failure; the same examples on every machine are worth more than new ones.
settings.register_profile("minq", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minq")


def pytest_configure(config):
    config.pluginmanager.register(equation_lines.Plugin())
    if machine := os.environ.get("ANOTHER_MACHINE"):
        import another_machine  # and with it torch, which `pytest -k nothing` need not load

        config.another_machine = another_machine.sum_in_another_order(int(machine))


# What the imports of all tests leave is never garbage: to look through it again and again takes a
# sixth of the time of tests that capture networks.


def pytest_collection():
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
