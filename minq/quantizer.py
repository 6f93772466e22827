"""A quantizer as a layer: it observes data, freezes a grid, and can learn that grid further.

    off       passes its input on
    observe   passes its input on, and keeps the range that the estimator finds      eq. (14)-(19)
    frozen    quantizes and dequantizes with the grid of that range                  eq. (7)
    learn     the same, with scale and zero-point as trainable parameters            eq. (36)-(39)

The grid, the range and the stage are part of ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minq._checks import as_float, compute_dtype, saturating_cast
from minq.estimators import Estimator, as_estimator
from minq.granularity import Granularity
from minq.grid import Grid, integer_grid, operands, round_straight_through
from minq.straight_through import fake_quantize_trained, scale_gradient

STAGES = ("off", "observe", "frozen", "learn")
_RANGE = ("low", "high", "scale", "zero_point")


class Quantizer(nn.Module):
    """Fake quantization with a range of its own.

    bits, signed, narrow_range, symmetric, power_of_two, axis, group: as in ``minq.affine``; kept as
        ``grid`` and ``granularity``. A ``Grid`` in place of bits is used as it is.
    estimator: an object of ``minq.estimators``, its short form ("min_max", "percentile", "mse",
        "output"), or any function ``(x, *, axis, group) -> (low, high)``.
    average: how the ranges of several batches become one. False (default for min-max): their union.
        True (default otherwise): their mean.

    The input may have any floating dtype; scale and range are float32 (float64 for float64 input).

    >>> q = Quantizer(bits=2)
    >>> _ = q(torch.tensor([-1.0, 2.0]))          # observes
    >>> q.freeze()(torch.tensor([-1.0, 0.2, 5.0]))
    tensor([-1.,  0.,  2.])
    """

    def __init__(
        self,
        bits: int | Grid = 8,
        *,
        signed: bool = False,
        narrow_range: bool = False,
        symmetric: bool = False,
        power_of_two: bool = False,
        axis: int | None = None,
        group: int | None = None,
        estimator: str | Estimator | Callable[..., tuple[Tensor, Tensor]] = "min_max",
        average: bool | None = None,
    ) -> None:
        super().__init__()
        self.grid = integer_grid(bits, signed=signed, narrow_range=narrow_range)
        self.granularity = Granularity(axis, group)
        self.symmetric, self.power_of_two = symmetric, power_of_two
        self.estimator = as_estimator(estimator)
        self.average = self.estimator.average if average is None else average
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        # Between its extremes a zero-point is learned as a real number, and rounded when used.
        self.zero_point = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_parameter("log2_scale", None)  # what is trained in place of the scale
        self.normalize = False
        self._stage = "observe"

    @property
    def dynamic(self) -> bool:
        """Whether it takes its range from the values themselves, each time; see ``minq.cache``."""
        return False

    def arranged(self, x: Tensor) -> Tensor:
        """The values as ``granularity`` cuts them."""
        return x

    # --- stages -----------------------------------------------------------------------------------

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.grid.bits

    @property
    def stage(self) -> str:
        """One of "off", "observe", "frozen", "learn"."""
        return self._stage

    def off(self) -> Quantizer:
        """Pass the input on from now on."""
        return self._enter("off")

    def observe(self) -> Quantizer:
        """Forget the range and collect a new one."""
        self.batches.zero_()
        return self._enter("observe")

    def freeze(self) -> Quantizer:
        """Quantize from now on, with the grid found so far."""
        self.require_range()
        return self._enter("frozen")

    def learn(self, *, logarithmic: bool = False, normalize: bool = False) -> Quantizer:
        """Quantize from now on, and let an optimizer move the scale (and the zero-point).

        Whoever freezes and learns again finds the same parameters, so that an optimizer that holds
        them goes on; ``forget_training`` drops ``log2_scale``.

        Args:
            logarithmic: train ``log2_scale`` instead of ``scale``. The scale stays positive, and a
                step of the optimizer changes it by a factor, whatever its size. With
                ``power_of_two`` always so, and rounded to a whole power. Without it, the scale is
                the size of the trained number: a step below zero comes out above it.
            normalize: divide the scale's gradient by sqrt(N p), see ``scale_gradient``.

        Returns:
            The quantizer itself.

        Raises:
            RuntimeError: it has no range yet.
        """
        self.require_range()
        self._settle()
        if not (logarithmic or self.power_of_two):
            self.log2_scale = None
        elif self.log2_scale is None:
            self.log2_scale = nn.Parameter(self.scale.detach().log2())
        elif not torch.equal(self._learned_scale().detach(), self.scale):  # it has a new range
            self.log2_scale.data = self.scale.detach().log2()
        self.normalize = normalize
        return self._enter("learn")

    @contextmanager
    def acting_as(self, stage: str) -> Iterator[None]:
        """For a while as at another stage, with the grid in use; afterwards as before.

        No parameter is made, dropped or written to: an optimizer goes on with those it holds.
        """
        before, scale = self._stage, self.scale.data
        self.scale.data = self.scale_zero_point()[0].detach()
        self._stage = stage
        try:
            yield
        finally:
            self._stage, self.scale.data = before, scale

    def forget_training(self) -> Quantizer:
        """Freeze, without what only training needs; an optimizer's ``log2_scale`` is lost."""
        self.freeze()
        self.log2_scale = None
        return self

    def _enter(self, stage: str) -> Quantizer:
        if stage != "learn":
            self._settle()
        self._stage = stage
        learns = stage == "learn"
        self.scale.requires_grad_(learns and self.log2_scale is None)
        self.zero_point.requires_grad_(learns and not self.symmetric)
        if self.log2_scale is not None:
            self.log2_scale.requires_grad_(learns)
        return self

    @torch.no_grad()
    def _settle(self) -> None:
        """Write the scale that is being learned into ``scale``."""
        if self._stage == "learn":
            self.scale.data = self._learned_scale().detach()

    def require_range(self) -> None:
        """Raise RuntimeError where it has no range yet."""
        if self.batches == 0:
            raise RuntimeError(
                "this quantizer has no range yet; call it on data while it observes, or set_range"
            )

    # --- range and grid ---------------------------------------------------------------------------

    @torch.no_grad()
    def set_range(self, low: Tensor | float, high: Tensor | float) -> Quantizer:
        """Use the grid that covers [low, high], whatever was observed."""
        low, high = (
            as_float(torch.as_tensor(v, device=self.scale.device) * 1.0) for v in (low, high)
        )
        dtype = compute_dtype(low)
        scale, zero_point = self.grid.cover(
            low, high, symmetric=self.symmetric, power_of_two=self.power_of_two
        )
        for name, value in zip(_RANGE, (low, high, scale, zero_point), strict=True):
            getattr(self, name).data = value.to(dtype)
        if self.log2_scale is not None:
            self.log2_scale.data = self.scale.detach().log2()
        self.batches.clamp_(min=1)
        return self

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = self.estimator.find(x.detach(), self, self.granularity)
        seen = int(self.batches)
        if seen and low.shape != self.low.shape:
            raise ValueError(
                f"this batch gives a range of shape {tuple(low.shape)}, earlier ones "
                f"{tuple(self.low.shape)}; the axis must keep its size from batch to batch"
            )
        if seen and self.average:
            low = self.low + (low - self.low) / (seen + 1)
            high = self.high + (high - self.high) / (seen + 1)
        elif seen:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.set_range(low, high)
        self.batches.fill_(seen + 1)

    def scale_zero_point(self) -> tuple[Tensor, Tensor]:
        """The scale, positive, and the zero-point in use, ready for the grid's formulas."""
        scale = self._learned_scale() if self._stage == "learn" else self.scale
        if self.symmetric:
            return scale, self.zero_point
        return scale, self.grid.as_zero_point(self.zero_point, round_straight_through)

    def _learned_scale(self) -> Tensor:
        """2^log2_scale, or |scale| where it is trained itself; always with a gradient."""
        if self.log2_scale is None:
            size = torch.where(self.scale < 0, -self.scale, self.scale)
            least = size.detach().clamp(min=torch.finfo(size.dtype).tiny)
            return size + (least - size.detach())  # 0 too is left again
        if self.power_of_two:
            return torch.exp2(round_straight_through(self.log2_scale))
        return torch.exp2(self.log2_scale)

    # --- using it ---------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        if self._stage == "observe":
            self._observe(x)
        if self._stage in ("off", "observe"):
            return x
        dtype = compute_dtype(x)
        scale, zero_point = self.scale_zero_point()
        if self._stage == "learn" and self.normalize:
            shared = x.numel() / scale.numel()  # the values of one scale
            scale = scale_gradient(scale, (max(self.grid.quant_max, 1) * shared) ** -0.5)
        scale, zero_point = (
            self.granularity.align(v.to(dtype), x.shape) for v in (scale, zero_point)
        )
        zero_point = None if self.symmetric else zero_point
        return saturating_cast(
            fake_quantize_trained(x.to(dtype), scale, zero_point, self.grid), x.dtype
        )

    @torch.no_grad()
    def quantize(self, x: Tensor) -> Tensor:
        """The integers themselves, int32, eq. (4)."""
        self.require_range()
        parts = operands(x, *self.scale_zero_point(), self.grid, self.granularity)
        return self.grid.quantize(*parts).to(torch.int32)

    # --- keeping it -------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        return {"stage": self._stage, "normalize": self.normalize}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        stage = state.get("stage")
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {STAGES}, not {stage!r}")
        self.normalize = state.get("normalize", False)
        self._stage = stage  # the scale is the one that was loaded
        self._enter(stage)

    def _save_to_state_dict(self, *args) -> None:
        if self.log2_scale is not None:
            self._settle()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved, kept = state_dict.get(prefix + "_extra_state", {}), None
        if prefix + "log2_scale" in state_dict:
            if self.log2_scale is None:
                self.log2_scale = nn.Parameter(torch.zeros_like(self.scale))
        elif prefix + "scale" in state_dict:
            kept, self.log2_scale = self.log2_scale, None
        # A fresh quantizer does not know yet how many channels there will be.
        for name in (*_RANGE, "log2_scale"):
            if (value := state_dict.get(prefix + name)) is not None:
                mine = getattr(self, name)
                mine.data = torch.empty_like(value, device=mine.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if saved.get("stage") != "learn" and kept is not None:  # an optimizer may hold it
            kept.data = self.scale.detach().abs().log2()
            self.log2_scale = kept.requires_grad_(False)

    def extra_repr(self) -> str:
        grid = [flag for flag in ("signed", "narrow_range") if getattr(self.grid, flag)]
        kind = [flag for flag in ("symmetric", "power_of_two") if getattr(self, flag)]
        kind += [] if self.grid.whole else ["minimum"]
        per = [f"{k}={v}" for k, v in vars(self.granularity).items() if v is not None]
        half = 2 ** (self.bits - 1)
        usual = {(0, 2 * half - 1), (-half, half - 1), (1 - half, half - 1)}
        size = f"bits={self.bits}" if self.grid.even and self.grid in usual else repr(self.grid)
        return ", ".join([size, *grid, *kind, *per, self._stage])
