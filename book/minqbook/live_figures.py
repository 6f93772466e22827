"""Matplotlib's backend in the page: ``plt.show()`` sends each open figure below the cell."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from minqbook import live

SHARP = 2  # pixels of the picture for one of the page


def picture(figure: Figure) -> str:
    """The figure as PNG in base64, cut to what is drawn, as a notebook does."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=SHARP * figure.dpi, bbox_inches="tight")
    return base64.b64encode(file.getvalue()).decode()


class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, **_: Any) -> None:
        from matplotlib import pyplot

        for number in pyplot.get_fignums():
            live.emit("figure", picture(pyplot.figure(number)))
        pyplot.close("all")


class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager
