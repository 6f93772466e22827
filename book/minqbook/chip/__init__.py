"""A network in C on a microcontroller that QEMU emulates, and on this machine.

toolchain   compilers and emulators: what is there, programs built and run
floats      the same network in floats, for comparison
measure     the cells of results/chip.json; ``python -m minqbook.chip`` measures them
"""
