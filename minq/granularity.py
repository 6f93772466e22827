"""How many values share one scale and zero-point: per tensor, per channel, or per group.

    ====================  ===========================  ===============================
    granularity           value                        shape of scale and zero_point
    ====================  ===========================  ===============================
    per tensor            ``Granularity()``            ``()``
    per channel           ``Granularity(a)``           ``(x.shape[a],)``
    per group of g        ``Granularity(a, g)``        ``(x.shape[a], ceil(row / g))``
    per group, one row    ``Granularity(group=g)``     ``(ceil(size / g),)``
    ====================  ===========================  ===============================

For groups, the values of a channel are one row, read in memory order and cut into pieces of g; the
last piece may be shorter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from array_api_compat import is_numpy_array

from minq._checks import Array, check_axis, check_count, namespace


@dataclass(frozen=True)
class Granularity:
    """Which values share a scale: all; those of one index along ``axis``; ``group`` of a row.

    Raises:
        TypeError, ValueError: ``group`` is not a positive whole number.

    >>> Granularity(axis=0).scale_shape((64, 32, 3, 3))
    (64,)
    """

    axis: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None:
            check_count(self.group, "group")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that scale and zero_point have for data of ``shape``.

        Args:
            shape: of the data.

        Returns:
            (), (channels,), (groups,) or (channels, groups).

        Raises:
            ValueError: the data have no such axis.

        >>> Granularity().scale_shape((64, 32, 3, 3)), Granularity(group=4).scale_shape((10,))
        ((), (3,))
        >>> Granularity(axis=0, group=128).scale_shape((64, 32, 3, 3))
        (64, 3)
        """
        rows = () if self.axis is None else (shape[check_axis(self.axis, len(shape))],)
        if self.group is None:
            return rows
        return (*rows, math.ceil(math.prod(shape) // math.prod(rows) / self.group))

    def align(self, v: Array, shape: tuple[int, ...], name: str = "scale") -> Array:
        """``v``, one value for each scale, so that it broadcasts against data of ``shape``.

        Args:
            v: of ``scale_shape(shape)``, or a single number.
            shape: of the data.
            name: what an error calls it.

        Returns:
            A view of ``v``, or each of its values repeated for a group.

        Raises:
            ValueError: ``v`` has another shape.

        >>> Granularity(axis=1).align(np.array([1.0, 2.0]), (3, 2, 5)).shape
        (1, 2, 1)
        >>> Granularity(group=2).align(np.array([1.0, 2.0]), (3,))
        array([1., 1., 2.])
        """
        xp, shape = namespace(v), tuple(shape)
        expected = self.scale_shape(shape)
        if math.prod(v.shape) == 1 and len(v.shape) <= 1:
            return xp.reshape(v, ())
        if tuple(v.shape) != expected:
            raise ValueError(
                f"{name} has shape {tuple(v.shape)}, but data of shape {shape} with "
                f"axis={self.axis}, group={self.group} needs {expected} or a single number"
            )
        axis = None if self.axis is None else check_axis(self.axis, len(shape))
        if self.group is None:
            return xp.reshape(v, [-1 if k == axis else 1 for k in range(len(shape))])
        row_length = math.prod(shape) // math.prod(v.shape[:-1])
        v = xp.broadcast_to(v[..., None], (*v.shape, self.group))  # (..., groups, group)
        v = xp.reshape(v, (*v.shape[:-2], -1))[..., :row_length]  # (..., row_length)
        if axis is None:
            return xp.reshape(v, shape)
        others = [size for k, size in enumerate(shape) if k != axis]
        return xp.moveaxis(xp.reshape(v, (shape[axis], *others)), 0, axis)

    def split(self, x: Array) -> list[Array]:
        """x as rows that share a scale.

        Args:
            x: data of any shape.

        Returns:
            One array (rows, values), and one more where the last group of a channel is shorter.

        >>> [part.tolist() for part in Granularity(group=2).split(np.arange(5))]
        [[[0, 1], [2, 3]], [[4]]]
        """
        xp = namespace(x)
        if self.axis is None:
            rows = xp.reshape(x, (1, -1))
        else:
            axis = check_axis(self.axis, len(x.shape))
            rows = xp.reshape(xp.moveaxis(x, axis, 0), (x.shape[axis], -1))
        if is_numpy_array(rows):
            rows = np.ascontiguousarray(rows)  # the order of a sum must not depend on strides
        if self.group is None:
            return [rows]
        whole = rows.shape[1] // self.group * self.group
        parts = [xp.reshape(rows[:, :whole], (-1, self.group))] if whole else []
        return [*parts, rows[:, whole:]] if whole < rows.shape[1] else parts

    def join(self, parts: list[Array], shape: tuple[int, ...]) -> Array:
        """One value for each row of ``split(x)``, together again.

        Args:
            parts: (rows, 1), one for each array of ``split(x)``.
            shape: of x.

        Returns:
            The values in ``scale_shape(shape)``.

        >>> Granularity(group=2).join([np.array([[0.5], [2.5]]), np.array([[4.0]])], (5,))
        array([0.5, 2.5, 4. ])
        """
        xp, channels = namespace(parts[0]), 1 if self.axis is None else shape[self.axis]
        by_channel = [xp.reshape(part, (channels, -1)) for part in parts]
        return xp.reshape(xp.concat(by_channel, axis=1), self.scale_shape(shape))
