"""What stands for anywidget in the page, where there is no kernel to talk to.

A widget of the book is made, checked and printed as everywhere; the page has its script already,
and draws it anew with the values that it has here. In the page's Python this file is the module
anywidget (book/_ext/live.py).
"""

from __future__ import annotations

import base64
import json
from typing import Any

import traitlets

STATE = "application/vnd.minq.widget+json"


class AnyWidget(traitlets.HasTraits):
    """A widget's traits and its text, without a kernel."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        state = {name: self._plain(name) for name in self.traits(sync=True)}
        widget = {"name": type(self).__name__, "state": state}
        return {"text/plain": repr(self), STATE: json.dumps(widget)}, {}

    def _plain(self, name: str) -> Any:
        """A value as it travels to the page."""
        value, to_json = getattr(self, name), self.trait_metadata(name, "to_json")
        value = to_json(value, self) if to_json else value
        return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
