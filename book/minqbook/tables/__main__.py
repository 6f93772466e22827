"""python -m minqbook.tables --model resnet18 --data DIR: a row of the paper's tables, on real data;
--help says more. Without --model: measure the results that the book shows, into book/results/.

    python -m minqbook.tables ptq     table 6 on the small networks, naive rounding and pipeline
    python -m minqbook.tables hero    EfficientNet-Lite0: what each step of the pipeline is worth
    python -m minqbook.tables best    EfficientNet-Lite0: the best settings, on more pictures
    python -m minqbook.tables rates   learning rates for table 10, chosen on the validation split
    python -m minqbook.tables qat     table 10 on the eight small networks
    python -m minqbook.tables length  its W4A4 networks, trained four times as long
    python -m minqbook.tables norm    three ways to treat batch norm while training
    python -m minqbook.tables start   what training starts from: equalization, ranges, biases
    python -m minqbook.tables minilm  two transformers at 8 bits: what helps against outliers
    python -m minqbook.tables chip    the small networks in C on a microcontroller, emulated
    python -m minqbook.tables llm     a language model in fewer bits: perplexity, text, bytes, time
    python -m minqbook.tables rows    the paper's networks at full size: time, memory, agreement

A run that was stopped goes on where it ended: a cell that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import sys

from minqbook.tables.registry import TABLES, measure


def main() -> None:
    if any(a.split("=")[0] == "--model" for a in sys.argv):
        from minqbook.tables.real import main as measure_row

        measure_row()
        return
    parser = argparse.ArgumentParser(prog="python -m minqbook.tables", description=__doc__)
    parser.add_argument("table", nargs="*", help=f"{', '.join(TABLES)}; by default all")
    parser.add_argument("--limit", type=int, help="stop after so many cells")
    arguments = parser.parse_args()
    for table in arguments.table or TABLES:
        if table not in TABLES:
            parser.error(f"there is no table {table!r}; there are {', '.join(TABLES)}")
        measure(table, limit=arguments.limit)


if __name__ == "__main__":
    main()
