"""The one table of operators: what each ATen operator is to every pass.

Capture, folding, simulation, equalization, the data-free branch, integer compilation and the cost
model look an operator up here, by the short name that ``minq.graph.op`` gives, and ask for a trait.
To add an operator, add its entry. Two registries stand
next to the code they register, since they hold functions: ``minq.deploy`` (the lowering named by
``integer``) and ``minq.export.rewrite`` (operators that are written as others at capture).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "convolution",  # layers: operators with a weight of their own
    "transposed",
    "linear",
    "embedding",
    "product",  # of two tensors; an operand that is a parameter is quantized as a weight
    "activation",  # hardware applies it before it rounds: no quantizer stands before it
    "compute",  # new values, which are quantized again
    "rescale",  # a product with a number: the values stay on their grid, with another scale
    "move",  # moves values, or picks from them: what was on a grid stays on it
    "join",  # puts several tensors together, which are rounded once, on the result's grid
    "make",  # a new tensor: a constant, whatever its shape was taken from
    "index",  # whole numbers that say where something lies
    "float",  # has no place on integers, and is named in a warning
]
Moments = Literal["", "keep", "integrate", "add", "cat", "rescale", "reshape"]


@dataclass(frozen=True)
class Clip:
    """Bounds of an operator that clips: its defaults, and the names of those that are arguments.

    The named bounds follow the data in this order, as arguments 1 and 2.
    """

    low: float | None = None
    high: float | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    """The traits of one operator; all defaults together are those of an unknown one."""

    role: Role = "float"

    # --- arguments ---
    operands: tuple[int, ...] = (0,)
    """Positions of the tensors that it computes with; a list of tensors counts as one."""
    weight: int | None = None
    """Position of a layer's weight; its bias is argument 2."""
    value: float | None = None
    """The number that a maker fills its tensor with, where the operator itself says which."""
    value_at: int | None = None
    """Position of the number that it fills (part of) its result with."""

    # --- as a function ---
    clip: Clip | None = None
    """Where it clips; see ``minq.graph.clip_bounds``."""
    tabulated: bool = False
    """A function of one number, once all other operands are constants."""
    singular: bool = False
    """Infinite somewhere: its input is not rounded, or the level 0 would be infinite."""
    ordered: bool = False
    """It compares values, so more steps must mean more: the scale must be positive."""
    zero_fill: bool = False
    """It fills up with zeros, so the zero-point must be 0."""
    within: tuple[float, float] | None = None
    """Bounds of all its results, where they are known."""
    normalizes: Literal["", "softmax", "norm"] = ""
    """It computes with rows of values."""
    masks: bool = False
    """Masks are made with it, one element at a time."""

    # --- equalization, eq. (20) to (24) ---
    homogeneous: bool = False
    """f(s x) = s f(x) for a positive scale of each channel; see ``minq.ptq.channels`` for moves."""
    shifts: bool = False
    """f(x - c) = f(x) - c, for ReLU where x is at least c."""

    # --- without data, eq. (18), (19) and (25) to (28) ---
    moments: Moments = ""
    """The rule of ``minq.ptq.datafree`` for its outputs' moments. Layers and clips have their own:
    "keep" those of the input, "integrate" over a Gaussian, or by the operator's own formula."""

    # --- on the device ---
    integer: str = ""
    """The lowering of ``minq.deploy`` that makes integers of it; none, and it stays in float."""
    float_kernel: bool = False
    """Torch has no kernel of it for all integers."""
    uncounted: bool = False
    """It multiplies matrices that ``minq.deploy.cost`` does not count."""

    # --- capture ---
    shape_operand: bool = False
    """Its second operand is only a shape."""
    view: Literal["", "always", "maybe"] = ""
    """Its result shows the storage of its first argument; "maybe" depends on the strides."""
    random: Literal["", "training"] = ""
    """It draws random numbers only while a model trains."""

    @property
    def layer(self) -> bool:
        """Whether it has a weight of its own."""
        return self.weight is not None

    @property
    def spatial(self) -> bool:
        """Whether it is a convolution, transposed or not: with kernel, stride and groups."""
        return self.role in ("convolution", "transposed")

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies matrices, with a weight or with each other."""
        return self.layer or self.role == "product"

    @property
    def computes(self) -> bool:
        """Whether its result is rounded to a grid of its own."""
        return self.multiplies or self.role in ("activation", "compute", "join")

    @property
    def passes(self) -> bool:
        """Whether its result stays on its input's grid, up to a factor."""
        return self.role in ("move", "rescale")

    @property
    def reshapes(self) -> bool:
        """Whether it only gives the same values another shape."""
        return self.moments == "reshape"

    @property
    def elementwise(self) -> bool:
        """Whether each number of a mask stays one number behind it."""
        return self.masks or self.role in ("move", "join")


UNKNOWN = Operator()

# What the operators of a row have in common. The entries are grouped by role.
_CONV = {"weight": 1, "integer": "layer"}
_FUSED = {"role": "activation", "integer": "fused"}
_TABLE = {"role": "compute", "tabulated": True, "integer": "pointwise"}
_GAUSS = {**_TABLE, "moments": "integrate"}
_AVERAGE = {"role": "compute", "homogeneous": True, "moments": "keep", "integer": "rational"}
_NORM = {"role": "compute", "normalizes": "norm", "integer": "norm"}
_MOVE = {"role": "move", "integer": "move"}
_POOL = {**_MOVE, "homogeneous": True, "moments": "keep", "ordered": True, "float_kernel": True}
_JOIN = {"role": "join", "operands": (0, 1), "integer": "join"}
_MAKE = {"role": "make", "operands": (), "integer": "make"}
_PAIR = {"role": "compute", "operands": (0, 1), "tabulated": True, "masks": True}

_ENTRIES: list[tuple[str, dict]] = [
    # --- layers and products ---
    ("conv1d conv2d conv3d", {"role": "convolution", **_CONV}),
    ("conv_transpose1d conv_transpose2d conv_transpose3d", {"role": "transposed", **_CONV}),
    ("linear", {"role": "linear", **_CONV}),
    ("embedding", {"role": "embedding", "operands": (1,), "weight": 0, "integer": "embedding"}),
    ("matmul bmm mm", {"role": "product", "operands": (0, 1), "integer": "product"}),
    # --- activation functions that are fused ---
    ("relu", {**_FUSED, "clip": Clip(0.0), "homogeneous": True, "shifts": True}),
    ("relu6", {**_FUSED, "clip": Clip(0.0, 6.0)}),
    ("hardtanh", {**_FUSED, "clip": Clip(-1.0, 1.0, ("min_val", "max_val"))}),
    ("clamp", {**_FUSED, "clip": Clip(names=("min", "max")), "masks": True}),
    ("clamp_min", {**_FUSED, "clip": Clip(names=("min",)), "masks": True}),
    ("clamp_max", {**_FUSED, "clip": Clip(names=("max",)), "masks": True}),
    ("leaky_relu", {**_FUSED, "homogeneous": True, "moments": "integrate"}),
    ("prelu", {**_FUSED, "homogeneous": True}),
    # --- functions of one number ---
    ("sigmoid hardsigmoid", {**_GAUSS, "within": (0.0, 1.0)}),
    ("tanh hardswish silu gelu elu mish softplus", _GAUSS),
    ("log", {**_TABLE, "singular": True, "masks": True}),
    ("log2 log10 log1p rsqrt reciprocal logit", {**_TABLE, "singular": True}),
    ("pow", {**_TABLE, "operands": (0, 1)}),
    ("abs", {**_TABLE, "masks": True}),
    ("rrelu", {**_TABLE, "random": "training"}),
    (
        """selu celu exp exp2 expm1 sqrt square sign sin cos tan asin acos atan sinh cosh asinh erf
        erfc softsign softshrink hardshrink log_sigmoid threshold floor ceil round trunc frac
        remainder fmod floor_divide""",
        _TABLE,
    ),
    # --- sums and products of elements ---
    ("add", {**_PAIR, "moments": "add", "integer": "add"}),
    ("sub rsub", {**_PAIR, "integer": "add"}),
    ("mul", {**_PAIR, "integer": "product"}),
    ("div", _PAIR),
    ("neg", {**_PAIR, "operands": (0,), "integer": "neg"}),
    (
        "rescale",
        {**_PAIR, "role": "rescale", "operands": (0,), "homogeneous": True, "moments": "rescale",
         "integer": "rescale"},
    ),
    ("batch_norm", {"role": "compute", "integer": "batch_norm"}),
    # --- linear functions with rational coefficients ---
    ("mean", {**_AVERAGE, "shifts": True}),
    ("sum cumsum", {"role": "compute", "integer": "rational"}),
    ("adaptive_avg_pool2d", {**_AVERAGE, "shifts": True}),
    ("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool3d", _AVERAGE),
    ("upsample_bilinear2d", _AVERAGE),
    ("upsample_linear1d", {**_AVERAGE, "moments": ""}),
    ("upsample_trilinear3d", {"role": "compute", "integer": "rational"}),
    ("upsample_bicubic2d", {"role": "compute"}),
    # --- functions of rows ---
    ("layer_norm rms_norm group_norm instance_norm", _NORM),
    (
        "softmax",
        {"role": "compute", "normalizes": "softmax", "within": (0.0, 1.0), "integer": "softmax"},
    ),
    ("log_softmax", {"role": "compute", "normalizes": "softmax", "integer": "softmax"}),
    # --- moves ---
    (
        "reshape flatten",
        {**_MOVE, "homogeneous": True, "shifts": True, "moments": "reshape", "view": "maybe"},
    ),
    ("contiguous", {**_MOVE, "homogeneous": True, "moments": "keep", "view": "maybe"}),
    ("clone", {**_MOVE, "homogeneous": True, "moments": "keep"}),
    ("detach alias", {**_MOVE, "view": "always"}),
    ("view_as reshape_as expand_as", {**_MOVE, "shape_operand": True}),
    ("max_pool2d", {**_POOL, "shifts": True}),
    ("max_pool1d max_pool3d", _POOL),
    ("adaptive_max_pool2d", {**_POOL, "moments": ""}),
    (
        """adaptive_max_pool1d adaptive_max_pool3d max_pool2d_with_indices
        max_pool3d_with_indices""",
        {**_MOVE, "ordered": True, "float_kernel": True},
    ),
    ("amax amin max min topk sort", {**_MOVE, "ordered": True}),
    ("argmax argmin argsort", {"role": "index", "ordered": True, "integer": "move"}),
    ("upsample_nearest1d", {**_MOVE, "homogeneous": True, "moments": "keep", "float_kernel": True}),
    ("upsample_nearest2d", {**_MOVE, "homogeneous": True, "moments": "keep", "float_kernel": True}),
    ("upsample_nearest3d", {**_MOVE, "float_kernel": True}),
    ("constant_pad_nd", {**_MOVE, "value_at": 2, "homogeneous": True, "moments": "keep"}),
    (
        "pad",
        {**_MOVE, "value_at": 3, "homogeneous": True, "moments": "keep", "float_kernel": True},
    ),
    ("masked_fill", {**_MOVE, "value_at": 2}),
    ("index_fill", {**_MOVE, "value_at": 3}),
    ("tril triu", {**_MOVE, "zero_fill": True, "masks": True}),
    ("diag_embed", {**_MOVE, "zero_fill": True}),
    ("im2col max_unpool2d max_unpool3d", {**_MOVE, "zero_fill": True, "float_kernel": True}),
    ("to", {"role": "move", "integer": "convert", "masks": True, "view": "maybe"}),
    ("_to_copy type_as", {"role": "move", "integer": "convert", "masks": True}),
    ("convert_element_type", {"role": "move", "integer": "convert"}),
    (
        """unflatten permute transpose t numpy_T mT movedim slice select narrow getitem split
        split_with_sizes tensor_split chunk unbind squeeze unsqueeze expand dropout feature_dropout
        reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle
        pixel_unshuffle channel_shuffle roll flip rot90 tile repeat repeat_interleave index
        index_select gather take_along_dim diagonal unfold""",
        _MOVE,
    ),
    # --- joins ---
    ("cat", {**_JOIN, "operands": (0,), "moments": "cat"}),
    ("stack", {**_JOIN, "operands": (0,)}),
    ("where", {**_JOIN, "operands": (1, 2), "masks": True}),
    ("maximum minimum", {**_JOIN, "ordered": True, "masks": True}),
    ("slice_scatter select_scatter", _JOIN),
    ("index_put masked_scatter", {**_JOIN, "operands": (0, 2)}),
    ("scatter", {**_JOIN, "operands": (0, 3)}),
    # --- makers ---
    ("zeros zeros_like new_zeros zero", {**_MAKE, "value": 0.0}),
    ("ones ones_like new_ones", {**_MAKE, "value": 1.0}),
    ("full full_like fill", {**_MAKE, "value_at": 1}),
    ("new_full", {**_MAKE, "value_at": 2}),
    ("scalar_tensor", {**_MAKE, "value_at": 0}),
    ("empty empty_like new_empty arange linspace eye", _MAKE),
    # --- what stays in float ---
    ("_safe_softmax", {"normalizes": "softmax"}),
    ("nan_to_num", {"masks": True}),
    ("lstm gru", {"uncounted": True, "random": "training"}),
    ("rnn_tanh rnn_relu", {"random": "training"}),
    ("scaled_dot_product_attention", {"uncounted": True, "random": "training"}),
    ("addmm baddbmm addmv mv inner tensordot dot einsum bilinear", {"uncounted": True}),
]  # fmt: skip


def _table() -> dict[str, Operator]:
    table: dict[str, Operator] = {}
    for names, traits in _ENTRIES:
        for name in names.split():
            assert name not in table, f"{name} has two entries"
            table[name] = Operator(**traits)
    return table


OPERATORS = _table()
"""Each operator by its short name."""
