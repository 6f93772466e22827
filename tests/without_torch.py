"""Run cells as a page does: with NumPy, and without PyTorch.

    python without_torch.py < cells > results

cells: JSON, a list of runs, each a list of sources; results: [kind, message] for each run, with
the name of the exception, or "passed" and what was printed.
"""

import contextlib
import io
import json
import sys

ABSENT = ("torch", "torchvision", "scipy", "sklearn", "matplotlib")


class NotInThePage:
    """Stands before all finders of modules."""

    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ImportError(f"a page has no {name}")


def run(cells: list[str]) -> tuple[str, str]:
    """What a run of cells, in a kernel of their own, ends with."""
    names, printed = {"__name__": "__main__"}, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            for number, cell in enumerate(cells):
                exec(compile(cell, f"cell {number}", "exec"), names)
    except Exception as error:
        return type(error).__name__, str(error)
    return "passed", printed.getvalue()


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInThePage())
    print(json.dumps([run(cells) for cells in json.load(sys.stdin)]))
