"""python -m minqbook.chip: the small networks in C on an emulated microcontroller, chip.json.

The same as ``python -m minqbook.tables chip``; a run that was stopped goes on where it ended.
"""

from minqbook.tables.registry import measure

if __name__ == "__main__":
    measure("chip")
