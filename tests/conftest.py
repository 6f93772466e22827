"""Settings shared by all tests."""

import equation_lines
from hypothesis import settings

# A busy machine is no failure; the same examples on every machine are worth more than new ones.
settings.register_profile("minq", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minq")


def pytest_configure(config):
    config.pluginmanager.register(equation_lines.Plugin())
