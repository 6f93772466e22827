"""What the passes look for in a captured network, a graph of ATen operators.

- ``ops``: the one table of operators
- ``nodes``, ``numbers``: a node's operator, shape, arguments, bounds and fill values
- ``layers``, ``parameters``: weights and biases, by node and by name
- ``notes``: what passes know of a node or a network
- ``edit``: new operators in place of old ones
- ``network``: a graph that is the same after it is copied, moved, saved and loaded
- ``batches``: data as a network takes it

``minq.export`` makes such a graph of a model.
"""

from minq.graph.edit import call, is_constant, mark_constants, replace, tidy
from minq.graph.layers import (
    bias_node,
    bias_of,
    geometry,
    groups_of,
    input_of,
    is_layer,
    layer_name,
    layers,
    outputs_first,
    own_weight,
    parameter_of,
    place,
    rounded_weight_of,
    set_bias,
    set_weight,
    transpose_weight,
    weight_node,
    weight_of,
)
from minq.graph.network import Network, move_makers, on_cpu
from minq.graph.nodes import (
    argument,
    each,
    is_fixed,
    is_float,
    is_real,
    module_of,
    op,
    operands,
    shape_of,
    traits,
)
from minq.graph.notes import (
    NetworkNotes,
    NodeNotes,
    Share,
    Statistics,
    call_of,
    is_captured,
    network_notes,
    note,
    note_network,
    notes_of,
)
from minq.graph.numbers import (
    clip_arguments,
    clip_bounds,
    constant_number,
    fill_value,
    fills_up,
    set_clip_bounds,
)
from minq.graph.ops import OPERATORS, Clip, Operator
from minq.graph.parameters import device_of, get, put, taken, to_device_of, unused, unused_in

__all__ = [
    "OPERATORS",
    "Clip",
    "Network",
    "NetworkNotes",
    "NodeNotes",
    "Operator",
    "Share",
    "Statistics",
    "argument",
    "bias_node",
    "bias_of",
    "call",
    "call_of",
    "clip_arguments",
    "clip_bounds",
    "constant_number",
    "device_of",
    "each",
    "fill_value",
    "fills_up",
    "geometry",
    "get",
    "groups_of",
    "input_of",
    "is_captured",
    "is_constant",
    "is_fixed",
    "is_float",
    "is_layer",
    "is_real",
    "layer_name",
    "layers",
    "mark_constants",
    "module_of",
    "move_makers",
    "network_notes",
    "note",
    "note_network",
    "notes_of",
    "on_cpu",
    "op",
    "operands",
    "outputs_first",
    "own_weight",
    "parameter_of",
    "place",
    "put",
    "replace",
    "rounded_weight_of",
    "set_bias",
    "set_clip_bounds",
    "set_weight",
    "shape_of",
    "taken",
    "tidy",
    "to_device_of",
    "traits",
    "transpose_weight",
    "unused",
    "unused_in",
    "weight_node",
    "weight_of",
]
