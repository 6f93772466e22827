"""From a simulated network to a program of integers.

forms      what a tensor of the network stands for
compile    one walk through the graph: what form each operator has
rounding   from any form to integers on a grid, and back to real numbers
linear     layers, products and sums
rational   means, pooling and interpolation, which have a common denominator
moves      operators that move values, pick them, put them together or fill up
tables     functions of one number, of rows, of whole numbers
double     the graph in double precision
"""
