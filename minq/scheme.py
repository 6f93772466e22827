"""A quantization scheme: bits, granularity, symmetry and range rules, and which layers differ.

``Scheme`` is checked when it is made, and then handed from step to step: ``minq.ptq``,
``minq.qat`` and ``insert_quantizers`` take either a scheme or its fields, as ``weights=4``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from minq._checks import check_count
from minq.cache import Cache
from minq.estimators import MSE, Grouped, Output, as_estimator
from minq.grid import Grid, integer_grid
from minq.minimum import MinimumGrid
from minq.quantizer import Quantizer

ZERO_POINTS = (None, "integer", "real")
"""What may stand in a weight's grid for the number 0."""


@dataclass(frozen=True)
class Scheme:
    """How the tensors of a network are quantized.

    Args:
        weights, activations: bits, 1 to 16, or a ``Grid``, or None for none of that kind.
        per_channel: one scale for each output channel of a weight, or else for each tensor.
        group_size: one scale for so many weights of a channel; needs ``per_channel``.
        weight_zero_point: None, a signed grid around zero; "integer", an unsigned one that is
            moved by an integer, as for activations; or "real", one that starts at the real minimum
            of its weights, see ``minq.minimum``.
        symmetric: activations too get a signed grid without zero-point.
        cache: bits of the keys and values of attention, whatever ``activations`` has; or a
            ``minq.cache.Cache``, which says what shares a scale; or None.
        groups: the last axis of an activation gets so many ranges, see ``ranges.grouped``.
        weight_range, activation_range: an estimator of ``minq.estimators``, its short form
            ("min_max", "percentile", "mse", and "output" for activations), or a function; here it
            becomes the object.
        skip: layers that stay in float, by name or pattern: ``"classifier"``, ``"features.0.*"``.
        layers: other settings for some layers, {pattern: {"weights": 8, "per_channel": True}};
            any field but ``skip`` and ``layers``. The first pattern that fits counts.

    Raises:
        TypeError, ValueError: bits or counts out of range, and estimators, or fields of layers,
            that do not exist.

    >>> scheme = Scheme(weights=4, layers={"head*": {"weights": 8}})
    >>> scheme.of("head.0").weights, scheme.of("body.0").weights
    (8, 4)
    """

    weights: int | Grid | None = 8
    activations: int | Grid | None = 8
    per_channel: bool = False
    group_size: int | None = None
    weight_zero_point: str | None = None
    cache: int | Grid | Cache | None = None
    symmetric: bool = False
    groups: int | None = None
    weight_range: Any = MSE()
    activation_range: Any = Output()
    skip: str | Iterable[str] = ()
    layers: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.weight_zero_point not in ZERO_POINTS:
            raise ValueError(
                f"weight_zero_point must be None, 'integer' or 'real', not "
                f"{self.weight_zero_point!r}"
            )
        if self.weights is not None:
            self.weight_grid()
        if self.activations is not None:
            integer_grid(self.activations, signed=self.symmetric)
        for name in ("group_size", "groups"):
            if (count := getattr(self, name)) is not None:
                check_count(count, name)
        for name in ("weight_range", "activation_range"):
            object.__setattr__(self, name, as_estimator(getattr(self, name)))
        if self.weight_range.by_output:
            raise ValueError(
                'weight_range is judged by no output; pass "mse", and rounding="adaround"'
            )
        object.__setattr__(self, "cache", Cache.made(self.cache))
        skip = (self.skip,) if isinstance(self.skip, str) else tuple(self.skip)
        object.__setattr__(self, "skip", skip)
        for pattern in self.layers or ():
            self.with_pattern(pattern)

    @classmethod
    def made(cls, scheme: Scheme | None, fields: Mapping[str, Any]) -> Scheme:
        """A scheme, or the default one, with some fields changed.

        Raises:
            TypeError: a field that does not exist, or a ``scheme`` that is something else.

        >>> Scheme.made(Scheme(weights=4), {"activations": None}).weights
        4
        """
        if not isinstance(scheme, Scheme | None):
            raise TypeError(f"scheme must be a minq.Scheme, not {type(scheme).__name__}")
        if unknown := sorted(fields.keys() - cls.__dataclass_fields__.keys()):
            raise TypeError(
                f"there is no setting {', '.join(unknown)}; a scheme has "
                f"{', '.join(cls.__dataclass_fields__)}"
            )
        return replace(scheme or cls(), **fields)

    def with_pattern(self, pattern: str) -> Scheme:
        """The scheme of the layers that fit a pattern of ``layers``."""
        fields = dict((self.layers or {})[pattern])
        known = [name for name in self.__dataclass_fields__ if name not in ("skip", "layers")]
        if unknown := sorted(fields.keys() - set(known)):
            raise ValueError(
                f"layers[{pattern!r}] has {', '.join(unknown)}; it may have {', '.join(known)}"
            )
        return replace(self, skip=(), layers=None, **fields)

    def pattern_of(self, names: Iterable[str]) -> str | None:
        """The first pattern of ``layers`` that fits one of a layer's names."""
        fits = (p for p in self.layers or () if any(fnmatch(name, p) for name in names))
        return next(fits, None)

    def of(self, *names: str) -> Scheme:
        """The scheme of a layer, which may have several names."""
        pattern = self.pattern_of(names)
        return self if pattern is None else self.with_pattern(pattern)

    def weight_grid(self) -> Grid:
        """The integers of weights, where these are quantized."""
        assert self.weights is not None
        grid = integer_grid(self.weights, signed=self.weight_zero_point is None)
        if self.weight_zero_point is not None and not grid.even:
            raise ValueError(
                f"{grid} has steps that differ, and 0 among its levels; leave "
                "weight_zero_point=None"
            )
        return MinimumGrid(*grid) if self.weight_zero_point == "real" else grid

    def weight_quantizer(self, axis: int | None) -> Quantizer | None:
        """A quantizer for a weight whose output channels lie along ``axis``, if it has one."""
        if self.weights is None:
            return None
        return Quantizer(
            self.weight_grid(),
            symmetric=self.weight_zero_point is None,
            axis=axis if self.per_channel else None,
            group=self.group_size,
            estimator=self.weight_range,
        )

    def activation_quantizer(self) -> Quantizer | None:
        """A quantizer for an activation, if it has one."""
        if self.activations is None:
            return None
        return Quantizer(
            self.activations,
            signed=self.symmetric,
            symmetric=self.symmetric,
            axis=None if self.groups is None else -1,
            estimator=self.activation_range
            if self.groups is None
            else Grouped(self.groups, self.activation_range),
        )
