"""One layer of a quantized network computed twice: figure 4a in integers, figure 4b in floats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import traitlets

from minq.mac import fold_zero_points, int_matmul, requantize
from minqbook.widgets.base import Widget, within

MOST = 100_000  # integers: inputs and weights of all layers travel with the page
WORK = 4_000_000  # products of a layer: the page computes all of them in a blink
FLOATS = {"double": np.float64, "single": np.float32, "half": np.float16}


class TwoPaths(Widget):
    """Figure 4 with digits: what the device computes beside what the simulation computes.

        device      y_int = clamp(round(A M 2^-shift) + z_y),   A = W_int x_int + b_int - z_x sum W
        simulation  y_int = clamp(round(y / s_y) + z_y),        y = activation(W^ x^ + b^)

    q: a network with frozen quantizers, as ``minq.ptq`` returns it. picture: one input of it,
    (1, C, H, W). layers: names of convolutions and linear layers, or {name: title}. Each must read
    and write a grid of at most 8 bits; between the layer and its output's quantizer there may be a
    ReLU or another clamp.

    ``device()`` and ``simulated()`` are all outputs of the chosen layer, (C, H, W), both ways, in
    ``floats``: "double", "single" or "half", to which every result is rounded. The biases are on
    the grid of the accumulator in both, b_int = round(b / (s_w s_x)). layer: which of the layers
    is shown; channel, row, column: which of its outputs; term: which product of its sum.

    Raises ValueError where a layer is unknown, not a convolution or linear layer, does not read and
    write grids, or is too large.
    """

    layers = traitlets.List().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)  # per layer x_int - n as uint8, then W_int as int8
    layer = traitlets.Int(0).tag(sync=True)
    channel = traitlets.Int(0).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    term = traitlets.Int(0).tag(sync=True)
    floats = traitlets.Enum(list(FLOATS), "single").tag(sync=True)
    shown = ("layer", "channel", "row", "column", "floats")

    def __init__(
        self,
        q: Any,
        picture: Any,
        layers: Iterable[str] | Mapping[str, str],
        *,
        alt: str = "One output of a layer computed twice, side by side: with integers as a device "
        "does, and with floats on grids as a simulation does. Products, their sum, bias, "
        "activation and rounding stand below each other with all their digits, and end in the same "
        "integer.",
        **traits: Any,
    ) -> None:
        titles = dict(layers) if isinstance(layers, Mapping) else {name: name for name in layers}
        if not titles:
            raise ValueError("layers is empty; name at least one layer, see minq.graph.layers(q)")
        found, packed = [], b""
        for name, layer in zip(titles, collect(q, picture, titles), strict=True):
            x, weight = layer.pop("x"), layer.pop("weight")
            layer |= {"title": titles[name], "start": _start(layer, x, weight)}
            layer["at"] = len(packed)
            packed += (x - layer["x_grid"][0]).astype(np.uint8).tobytes()
            packed += weight.astype(np.int8).tobytes()
            found.append(layer)
        if len(packed) > MOST:
            raise ValueError(
                f"the layers hold {len(packed):,} integers, but at most {MOST:,} travel with the "
                "page; choose fewer or smaller layers"
            )
        which = traits.get("layer", 0)
        if not 0 <= which < len(found):
            raise ValueError(f"layer must be from 0 to {len(found) - 1}, not {which}")
        place = ("channel", "row", "column", "term")
        sizes = (*found[which]["out"], math.prod(found[which]["kernel"][1:]))
        for key, size in zip(place, sizes, strict=True):
            if not 0 <= traits.get(key, 0) < size:
                raise ValueError(f"{key} must be from 0 to {size - 1}, not {traits[key]}")
        start = dict(zip(place, found[which]["start"], strict=True))
        super().__init__(layers=found, data=packed, alt=alt, **(start | traits))

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> int:
        return within(proposal, 0, len(self.layers) - 1)

    def device(self) -> np.ndarray:
        """All outputs of the layer as the device's integers, int32 (C, H, W)."""
        return _device(self._layer, *self._integers)

    def simulated(self) -> np.ndarray:
        """The integers behind all outputs of the simulation, int32 (C, H, W)."""
        return _simulated(self._layer, *self._integers, FLOATS[self.floats])

    @property
    def _layer(self) -> dict[str, Any]:
        return self.layers[self.layer]

    @property
    def _integers(self) -> tuple[np.ndarray, np.ndarray]:
        layer = self._layer
        sizes = math.prod(layer["in"]), math.prod(layer["kernel"])
        x = np.frombuffer(self.data, np.uint8, sizes[0], layer["at"]).astype(np.int32)
        weight = np.frombuffer(self.data, np.int8, sizes[1], layer["at"] + sizes[0])
        return x.reshape(layer["in"]) + layer["x_grid"][0], weight.reshape(layer["kernel"])


# --- The integers of a layer ----------------------------------------------------------------------


def collect(q: Any, picture: Any, names: Iterable[str]) -> list[dict[str, Any]]:
    """What the widget knows of each layer: its integers, its grids, and what it does to them.

    x (C, H, W) and weight (N, C / groups, kh, kw) are integer arrays, the rest is ready for JSON.
    """
    import torch

    from minq import graph

    if not isinstance(q, torch.fx.GraphModule):
        raise TypeError(
            f"q must be a quantized network, as minq.ptq.ptq returns it, not {type(q).__name__}"
        )
    known = graph.layers(q)
    for name in names:
        if name not in known:
            raise ValueError(f"no layer is called {name!r}; there are {', '.join(known)}")
    values: dict[Any, Any] = {}

    class Record(torch.fx.Interpreter):
        def run_node(self, node):
            values[node] = super().run_node(node)
            return values[node]

    with torch.no_grad():
        Record(q).run(picture)
    return [_layer_of(q, name, known[name], values) for name in names]


def _layer_of(q: Any, name: str, node: Any, values: Mapping[Any, Any]) -> dict[str, Any]:
    """One layer: its shapes, its grids and limits, its integers."""
    from minq import graph

    kind = graph.op(node)
    if kind not in ("conv2d", "linear"):
        raise ValueError(f"{name} is a {kind}; the picture knows conv2d and linear")
    act, q_x, q_w, q_y = _around(q, name, node)
    x, weight, bias = values[graph.input_of(node)], graph.weight_of(q, node), graph.bias_of(q, node)
    if len(x) != 1 or x.ndim not in (2, 4):
        raise ValueError(
            f"{name} reads {tuple(x.shape)}; pass one picture, so that it is (1, C, H, W) or (1, C)"
        )
    x_int = q_x.quantize(x).numpy()[0].reshape(x.shape[1], *(x.shape[2:] or (1, 1)))
    w_int = q_w.quantize(weight).numpy().reshape(*weight.shape, *(1,) * (4 - weight.ndim))
    grids = _grids(name, (q_x, q_w, q_y), len(w_int))
    b = np.zeros(len(w_int)) if bias is None else bias.double().numpy()
    b_int = np.rint(b / (np.array(grids["s_w"]) * grids["s_x"])).astype(np.int64)
    out = values[node][0].shape
    layer = {
        "name": name, "in": list(x_int.shape), "kernel": list(w_int.shape),
        "out": [out[0], *(out[1:] or (1, 1))], **_geometry(node), "bias": b_int.tolist(), **grids,
        "x_grid": list(q_x.grid), "y_grid": list(q_y.grid), "x": x_int, "weight": w_int,
        "limits": _limits(act, len(w_int)),
    }  # fmt: skip
    _check_work(name, w_int, b_int, layer["out"])
    ends = grids["s_y"], grids["z_y"], *q_y.grid
    layer["range"] = [_range(pair, *ends) for pair in layer["limits"]]
    return layer


def _around(q: Any, name: str, node: Any) -> tuple[Any, Any, Any, Any]:
    """The activation function behind a layer, and the quantizers of input, weight and output."""
    from minq import graph
    from minq.simulate import is_quantizer

    source, users = graph.input_of(node), list(node.users)
    while not is_quantizer(source) and graph.traits(source).role == "move":
        source = source.all_input_nodes[0]
    act = users[0] if len(users) == 1 and graph.traits(users[0]).clip else None
    users = list(act.users) if act is not None else users
    ends = source, graph.weight_node(node), users[0]
    if not all(map(is_quantizer, ends)):
        raise ValueError(
            f"{name} needs a quantizer before it, on its weight, and right behind it or its "
            "activation function; choose another layer"
        )
    q_x, q_w, q_y = (q.get_submodule(n.target) for n in ends)
    if max(q_x.bits, q_w.bits, q_y.bits) > 8:
        raise ValueError(f"{name} has more than 8 bits; bytes travel with the page")
    return act, q_x, q_w, q_y


def _grids(name: str, quantizers: tuple[Any, Any, Any], outputs: int) -> dict[str, Any]:
    """Scales and zero-points of input, weight and output; a weight may have one for each output."""
    (s_x, z_x), (s_w, _), (s_y, z_y) = map(_grid, quantizers)
    if len(s_x) > 1 or len(s_y) > 1 or len(s_w) not in (1, outputs):
        raise ValueError(f"{name} has other grids than one per tensor, or per output of the weight")
    return {"s_x": s_x[0], "z_x": z_x, "s_w": s_w, "s_y": s_y[0], "z_y": z_y}


def _geometry(node: Any) -> dict[str, Any]:
    """Pairs of stride, padding and dilation, and the number of groups."""
    from minq import graph

    found = {}
    for place, key, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1)):
        given = graph.argument(node, place, key, default) if graph.op(node) == "conv2d" else default
        found[key] = _pair(given)
    return found | {"groups": graph.groups_of(node)}


def _check_work(name: str, weight: np.ndarray, bias: np.ndarray, out: list[int]) -> None:
    """Refuse what a page would take long to compute, and sums of more than 32 bits."""
    k = math.prod(weight.shape[1:])
    if k * math.prod(out) > WORK:
        raise ValueError(f"{name} takes more than {WORK:,} products; choose a smaller layer")
    if k * 128 * 255 + np.abs(bias).max() >= 2**31:
        raise ValueError(f"the sums of {name} may not fit into 32 bits")


def _limits(act: Any, outputs: int) -> list[list[float | None]]:
    """Where the activation function clips, in real numbers: one [low, high], or one per output."""
    from minq import graph

    if act is None:
        return [[None, None]]
    bounds = graph.clip_bounds(act)
    if bounds is None or any(v.numel() not in (1, outputs) for v in bounds):
        raise ValueError(
            f"{graph.op(act)} clips neither all outputs alike nor each channel as a whole"
        )
    count = max(v.numel() for v in bounds)
    columns = (v.double().reshape(-1).expand(count).tolist() for v in bounds)
    return [[None if math.isinf(v) else v for v in pair] for pair in zip(*columns, strict=True)]


def _range(limits: list[float | None], scale: float, zero_point: int, n: int, p: int) -> list[int]:
    """The same limits on the output's grid: rounding keeps the order, so it may come first."""
    ends = zip(limits, (n, p), strict=True)
    return [end if v is None else min(max(round(v / scale) + zero_point, n), p) for v, end in ends]


def _grid(quantizer: Any) -> tuple[list[float], int]:
    scale, zero_point = quantizer.scale_zero_point()
    return scale.double().reshape(-1).tolist(), int(zero_point.reshape(-1)[0])


def _pair(value: Any) -> list[int]:
    if isinstance(value, str):
        raise ValueError(f"padding={value!r} is a word; give the convolution numbers")
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


# --- The two computations -------------------------------------------------------------------------


def _patches(layer: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """What each output multiplies, padding included: (groups, positions, K)."""
    _, height, width = layer["out"]
    _, cg, kh, kw = layer["kernel"]
    (sh, sw), (ph, pw), (dh, dw) = layer["stride"], layer["padding"], layer["dilation"]
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw)), constant_values=layer["z_x"])
    size = (kh - 1) * dh + 1, (kw - 1) * dw + 1
    seen = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, ::sh, ::sw, ::dh, ::dw]
    seen = seen.reshape(layer["groups"], cg, height * width, kh * kw)
    return seen.transpose(0, 2, 1, 3).reshape(layer["groups"], height * width, -1)


def _device(layer: Mapping[str, Any], x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Integers alone: eq. (13) with the input's zero-point in the bias, then requantization."""
    rows = weight.reshape(len(weight), -1)
    patches, per = _patches(layer, x), len(weight) // layer["groups"]
    acc = np.concatenate(
        [int_matmul(p, rows[g * per : (g + 1) * per].T).T for g, p in enumerate(patches)]
    )
    acc = acc + fold_zero_points(rows, np.array(layer["bias"]), 0, layer["z_x"])[:, None]
    low, high = _ends(layer["range"])
    ratio = np.broadcast_to(np.array(layer["s_w"]) * layer["s_x"] / layer["s_y"], len(weight))
    n, p = layer["y_grid"]
    kind = {"bits": (p - n).bit_length(), "signed": n < 0}
    y = requantize(acc, ratio.copy(), layer["z_y"], axis=0, rounding="half_even", **kind)
    return np.clip(y, low, high).reshape(layer["out"])


def _simulated(
    layer: Mapping[str, Any], x: np.ndarray, weight: np.ndarray, dtype: Any
) -> np.ndarray:
    """Floats on grids; each product, sum and quotient is rounded to ``dtype``, one by one."""
    s_w, s_x, s_y = np.array(layer["s_w"]), layer["s_x"], dtype(layer["s_y"])
    w_hat = weight.reshape(len(weight), -1).astype(dtype) * s_w.astype(dtype)[:, None]
    x_hat = (_patches(layer, x) - layer["z_x"]).astype(dtype) * dtype(s_x)
    x_hat = np.repeat(x_hat, len(weight) // layer["groups"], 0)  # (N, positions, K)
    y = np.zeros(x_hat.shape[:2], dtype)
    for k in range(w_hat.shape[1]):
        y += w_hat[:, k, None] * x_hat[:, :, k]
    y += (s_w * s_x * np.array(layer["bias"])).astype(dtype)[:, None]
    low, high = _ends([[-np.inf if a is None else a, np.inf if b is None else b]
                       for a, b in layer["limits"]])  # fmt: skip
    steps = np.rint(np.clip(y, low.astype(dtype), high.astype(dtype)) / s_y)
    return np.clip(steps + layer["z_y"], *layer["y_grid"]).astype(np.int32).reshape(layer["out"])


def _ends(pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Limits as two columns, one row per output or one for all."""
    low, high = np.array(pairs).T
    return low[:, None], high[:, None]


def _start(layer: Mapping[str, Any], x: np.ndarray, weight: np.ndarray) -> list[int]:
    """A place worth looking at first: in the channel with most levels, the one nearest its middle.

    The product is that in the middle of the kernel.
    """
    y = _device(layer, x, weight).reshape(len(weight), -1)
    channel = max(range(len(y)), key=lambda o: len(np.unique(y[o])))
    place = np.abs(y[channel] - (y[channel].min() + y[channel].max()) / 2).argmin()
    if y.shape[1] == 1:
        channel = int(y[:, 0].argmax())
    return [channel, *map(int, divmod(int(place), layer["out"][2])), weight[0].size // 2]
