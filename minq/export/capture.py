"""Any network as a graph of operators that the passes can read and change.

``capture`` runs ``torch.export`` on a copy of the model and gives a ``torch.fx.GraphModule``: a
plain module that trains, moves, saves and copies as any other. Its graph holds ATen operators, its
parameters keep their names.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from minq import graph
from minq.affine import sqnr
from minq.export.chance import drop_dropout, random_places, warn_of_chance
from minq.export.constants import fold_constants
from minq.export.fills import write_as_fill
from minq.export.inplace import functional
from minq.export.parts import in_parts
from minq.export.plain import plain
from minq.export.recurrent import write_out
from minq.export.refusals import CaptureError, refuse, why
from minq.export.rewrite import rewrite
from minq.export.sizes import Caught, conditions
from minq.export.spread import fold_spread
from minq.graph import Network
from minq.graph.batches import arguments_for, flatten_outputs, normal
from minq.graph.network import check_shape, check_sizes, own_sizes, tensor_inputs


def capture(model: nn.Module, example: Any, *, dynamic_batch: bool = True) -> fx.GraphModule:
    """The model in evaluation mode as a graph of ATen operators.

    Args:
        model: any network; it is left alone. A captured one is copied.
        example: what the model is called with (see ``as_arguments``), on whatever device; the first
            dimension of each tensor is the batch, and stays free. Where the model takes another
            path for other sizes, the network keeps the condition and refuses them.
        dynamic_batch: whether the batch size stays free.

    Returns:
        The network, on the model's device.

    Raises:
        CaptureError: ``torch.export`` cannot follow the model, for example because a branch depends
            on values.
        TypeError: for what is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    model = unwrapped(model)
    if graph.is_captured(model):
        return copy.deepcopy(model)
    refuse(model)
    with outside():
        args, kwargs = tree_map_only(Tensor, normal, arguments_for(model, example))
        return _capture(evaluation_copy(model), args, kwargs, dynamic_batch)


def unwrapped(model: Any) -> Any:
    """The model inside ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


@contextmanager
def outside() -> Iterator[None]:
    """Leave autocast, inference mode and no_grad, whatever the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode.

    Weight norm and pruning keep a computed tensor beside its parameters, which cannot be copied;
    they compute it again at each call.
    """
    computed = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    memo: dict[int, Any] = {id(v): v.detach().clone() for v in computed if v.grad_fn is not None}
    try:
        return copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and capture works on a copy: "
            f"copy.deepcopy(model) says {str(error).strip().splitlines()[:1]}. Take out of the "
            "model what cannot be copied, or give its class a __deepcopy__"
        ) from error


# --- torch.export ---------------------------------------------------------------------------------


def _capture(model: nn.Module, args: tuple, kwargs: dict, dynamic_batch: bool) -> Network:
    batch = _batch_size(args, kwargs)
    if not dynamic_batch or batch is None:
        return _finished(model, _exported(model, args, kwargs, False), args, kwargs)
    # A batch of one would be taken for a constant.
    tries = [_repeated(args, kwargs, batch, 2)] if batch == 1 else []
    tries.append((args, kwargs))
    for more in tries:
        try:
            exported = _exported(model, *more, True)
            break
        except CaptureError:
            if more is tries[-1]:
                raise
    gm = _finished(model, exported, *more)
    size = _batch_size(*more)
    if _is_fixed(gm) and size is not None:
        # Perhaps only because the batch is as large as something else is by accident.
        try:
            other = _repeated(args, kwargs, batch, size + 1)
            free = _finished(model, _exported(model, *other, True), *other)
            check_sizes(free, tree_leaves(more))
        except Exception:
            free = gm
        if not _is_fixed(free):
            gm = free
        elif size == batch:
            warnings.warn(
                f"the model fixes its batch size at {size}, and takes no other then; len(x) and "
                "int(x.shape[0]) in forward do that, x.shape[0] does not",
                stacklevel=5,
            )
    _check_one(model, gm, args, kwargs, batch)
    if batch == 1 and not _takes(gm, args, kwargs):
        warnings.warn(
            "the model takes another path for one sample than for several, or fixes its batch "
            "size; captured with one, the network takes batches of one and no others",
            stacklevel=4,
        )
        return _finished(model, _exported(model, args, kwargs, False), args, kwargs)
    return gm


def _exported(model: nn.Module, args: tuple, kwargs: dict, dynamic: bool) -> tuple[Any, Caught]:
    try:
        named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise CaptureError(
            f"the example does not fit {type(model).__name__}.forward"
            f"{inspect.signature(model.forward)}: {error}"
        ) from error
    shapes = tree_map(_free_batch, named) if dynamic else None
    first: Exception | None = None
    for mode in (torch.enable_grad, torch.no_grad):  # the second for inference_mode in forward
        try:
            with mode(), warnings.catch_warnings(), Caught() as caught:
                warnings.filterwarnings("ignore", "The tensor attribute")  # of old weight norm
                exported = torch.export.export(
                    model, args, kwargs, dynamic_shapes=shapes, strict=False
                )
                return exported, caught
        except Exception as error:
            first = first or error
            if "nference tensor" not in str(error):
                break
    assert first is not None
    raise CaptureError(why(model, first)) from first


def _free_batch(value: Any) -> dict[int, Any] | None:
    """The first dimension of a tensor may vary."""
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None


def _batch_size(args: tuple, kwargs: dict) -> int | None:
    """The first dimension of the first tensor."""
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.ndim]
    return tensors[0].shape[0] if tensors else None


def _repeated(args: tuple, kwargs: dict, batch: int, size: int) -> tuple[tuple, dict]:
    """The same inputs with ``size`` samples: the first of them again and again, or fewer."""

    def resized(x: Tensor) -> Tensor:
        if not x.ndim or x.shape[0] != batch:
            return x  # no batch
        return torch.cat([x, *[x[:1]] * (size - batch)]) if size > batch else x[:size]

    return tree_map_only(Tensor, resized, (args, kwargs))


def _takes(gm: Network, args: tuple, kwargs: dict) -> bool:
    """Whether the network is for inputs of the example's sizes."""
    values = tree_leaves((args, kwargs))
    try:
        check_sizes(gm, values)
        for node, value in tensor_inputs(gm, values):
            check_shape(node, value)
    except ValueError:
        return False
    return True


def _is_fixed(gm: Network) -> bool:
    inputs = [n.meta.get("val") for n in gm.graph.nodes if n.op == "placeholder"]
    batch = [v.shape[0] for v in inputs if isinstance(v, Tensor) and v.ndim][:1]
    return bool(batch) and graph.is_fixed(batch[0])


def _finished(model: nn.Module, program: tuple[Any, Caught], args: tuple, kwargs: dict) -> Network:
    """The network of an exported program, and of the errors that its forward went on after."""
    exported, caught = program
    dropped = drop_dropout(exported)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = in_parts(exported)
            gm, autocast = plain(exported.module())
            if not functional(gm):
                gm, autocast = plain(exported.run_decompositions({}).module())
                functional(gm)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(why(model, error)) from error
    one_dict = len(args) == 1 and isinstance(args[0], dict) and not kwargs
    graph.note_network(
        gm,
        keywords=tuple(kwargs),
        arguments=len(args),
        keys=tuple(args[0]) if one_dict else (),
        sizes=tuple(conditions(model, gm, args, kwargs, caught)),
        random=(*dropped, *(drawn := random_places(gm))),
    )
    warn_of_chance(dropped, drawn)
    caught.warn()
    if autocast:
        warnings.warn(
            f"the model computes in {autocast} where its forward turns autocast on; the network "
            "computes that in its parameters' own type",
            stacklevel=2,
        )
    own_sizes(gm)
    gm = fold_constants(rewrite(write_out(graph.tidy(gm))))
    return write_as_fill(fold_constants(fold_spread(gm)))


@torch.no_grad()
def _check_one(model: nn.Module, gm: Network, args: tuple, kwargs: dict, batch: int) -> None:
    """Whether a batch of one is like the others: torch.export takes for granted that it is none."""
    one = _repeated(args, kwargs, batch, 1)
    if graph.network_notes(gm).random or _is_fixed(gm):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = flatten_outputs(gm(*copy.deepcopy(one[0]), **copy.deepcopy(one[1])))
    except Exception:
        return  # it refuses itself
    try:
        expected = flatten_outputs(model(*one[0], **one[1]))
        alike = expected.shape == outputs.shape and not sqnr(expected, outputs) < 20
    except torch.OutOfMemoryError:
        return
    except Exception:
        alike = False
    if not alike:
        first = next(n for n in gm.graph.nodes if n.op == "placeholder" and graph.shape_of(n))
        known = graph.network_notes(gm).sizes
        graph.note_network(gm, sizes=(*known, f"{first.name}.shape[0] != 1"))
