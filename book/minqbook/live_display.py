"""What stands for IPython in the page: ``display`` and ``HTML``, all that the book uses of it.

In the page's Python this file is the modules IPython and IPython.display (book/_ext/live.py). The
page shows tables and marked words of the HTML, and nothing that could load or run (live.js).
"""

from __future__ import annotations

from minqbook import live

version_info = 9, 0  # Matplotlib asks where it finds an IPython, and leaves one like this alone


class HTML:
    """A text that the page shows as HTML."""

    def __init__(self, data: str) -> None:
        self.data = data

    def _repr_html_(self) -> str:
        return self.data


def display(*values: object) -> None:
    """Show each value as that of a last expression is shown."""
    for value in values:
        live.show(value)


def get_ipython() -> None:
    """None, since there is no shell: Matplotlib asks for that too."""
