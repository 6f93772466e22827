r"""The multiply-accumulate array: figures 1 and 2 of the paper as a model one can run and question.

R x C processing elements compute y = W x + b, eq. (1). Each holds one weight, and an accumulator
at the end of each row adds up what its row multiplies:

    C_{n,m} = W_{n,m} x_m,        A_n = b_n + \sum_m C_{n,m}

W has N outputs and M inputs, so the array sees it in T_r T_c tiles, T_r = ceil(N / R) and
T_c = ceil(M / C); B input vectors pass through each tile. **The machine, cycle by cycle:**

- Tiles come in the order "for each row of tiles, for each column of tiles".
- Loading: one cycle writes the weights of one array row. A tile that uses r rows takes r cycles.
- Computing: one cycle takes one input vector's slice of C values to all rows at once; every element
  multiplies, and each row's sum of products is added to A_n of that vector. All of it happens
  within the cycle: no pipeline, no skew, and inputs always arrive in time.
- A_n starts at the bias. One partial sum per row and vector waits in an accumulator memory (R B
  words) until the next tile of that row comes; after the last it leaves, requantized.
- ``double_buffer``: each element has a second weight register, and the next tile is loaded while
  this one computes. The tile after that waits for the slower of the two.

Shapes follow torch's linear layer: weight (N, M), x (M,) or (B, M), results (N,) or (B, N). All
numbers are integers.

    ``array``            the machine: run, traced, and its cycles and traffic in closed form
    ``products``         exact integer products, and what zero-points add to them: eq. (13)
    ``requantization``   accumulators to the next layer's integers without a float
    ``widths``           how wide an accumulator must be
    ``energy``           joules for one operation
    ``layer``            what a whole layer costs
"""

from minq.mac.array import Cycle, MacArray, MacResult
from minq.mac.energy import (
    ACCESS_PJ,
    ADD_PJ,
    MULTIPLY_PJ,
    access_energy,
    add_energy,
    multiply_energy,
)
from minq.mac.layer import MEMORY, LayerCost, MatmulShape, conv_as_matmul, layer_cost
from minq.mac.products import (
    ZeroPointTerms,
    as_integers,
    fold_zero_points,
    int_matmul,
    zero_point_operations,
    zero_point_terms,
)
from minq.mac.requantization import fixed_point_multiplier, requantize, rounded_shift
from minq.mac.widths import accumulator_bits, accumulator_bits_of, bits_for

__all__ = [
    "ACCESS_PJ", "ADD_PJ", "MEMORY", "MULTIPLY_PJ", "Cycle", "LayerCost", "MacArray", "MacResult",
    "MatmulShape", "ZeroPointTerms", "access_energy", "accumulator_bits", "accumulator_bits_of",
    "add_energy", "as_integers", "bits_for", "conv_as_matmul", "fixed_point_multiplier",
    "fold_zero_points", "int_matmul", "layer_cost", "multiply_energy", "requantize",
    "rounded_shift", "zero_point_operations", "zero_point_terms",
]  # fmt: skip
