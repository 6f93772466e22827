"""A network on integers as C for a microcontroller: one file, no heap, no floats.

write      to_c: the two files, and what it says of them
lower      the program of integers as a list of steps, each a call of one C function;
           windows, operators, resample: what each kind of operator is as a step
views      tensors that are moved, picked or put together: where each number lies
arena      where the steps' results lie in one piece of memory: pure functions
emit, text, constants   steps and integers as C
kernels, functions      the C functions, one for each kind of operator
"""

from minq._lazy import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "write": "to_c CNetwork CTensor",
        "steps": "CannotWrite",
        "arena": "lifetimes place needed best_order",
    },
)
