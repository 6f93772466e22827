"""What stands for anywidget in the page, where there is no kernel to talk to.

A widget of the book is made, checked and printed as everywhere; the page has its script already.
In the page's Python this file is the module anywidget (book/_ext/live.py).
"""

from __future__ import annotations

from typing import Any

import traitlets


class AnyWidget(traitlets.HasTraits):
    """A widget's traits and its text, without a kernel."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        return {"text/plain": repr(self)}, {}
