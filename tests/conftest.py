"""Settings shared by all tests."""

import functools
import sys

import pytest
from hypothesis import settings

# A busy machine is no failure; the same examples on every machine are worth more than new ones.
settings.register_profile("minq", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minq")


def untraced(function):
    """The function, not followed by who measures coverage."""

    @functools.wraps(function)
    def call(*args, **options):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **options)
        finally:
            sys.settrace(tracer)

    return call


@pytest.fixture(autouse=True, scope="session")
def compilers_are_not_traced():
    """Coverage looks at minq; to follow torch's exporters line by line took 40 % of the time."""
    if sys.gettrace() is None:  # nobody measures, or without this price
        yield
        return
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", untraced(torch.export.export))
        patch.setattr(torch.onnx, "export", untraced(torch.onnx.export))
        yield
