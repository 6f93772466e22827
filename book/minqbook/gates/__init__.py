"""The array of chapter 2 as a circuit: simulated by Icarus Verilog, counted by Yosys.

The sources are in ``book/hardware``.

    ``icarus``      compiles a test bench and runs it
    ``machine``     layers through the array, cycle by cycle, as ``minq.mac.Cycle``
    ``yosys``       a module as gates: how many, of which kind, how deep
    ``activity``    how often the gates of a unit switch while it computes a real layer
    ``table``       what ``python -m minqbook.gates`` measures into ``results/gates.json``
    ``waves``       the simulator's own dump, as chapter 19 shows it
"""
