"""Which channels share a range, so that rounding makes least noise."""

from __future__ import annotations

import numpy as np

from minq._checks import Array, as_float, check_count


def channel_groups(widths: Array, groups: int) -> np.ndarray:
    """Which channels share a range.

    Sorted by width, the channels are cut where the noise of rounding is least: a group of N
    channels, the widest r wide, has N r^2 / 12 up to a factor, so sum_g N_g r_g^2 is made as small
    as it can be, exactly, by dynamic programming. Two channels of 100 get a group of their own.

    Args:
        widths: high - low of each channel, (channels,).
        groups: how many, at most as many as channels.

    Returns:
        The group of each channel, 0 to ``groups`` - 1, int64, (channels,).

    Raises:
        TypeError, ValueError: for widths that are not one number a channel, and a number of
            groups that does not fit.

    >>> channel_groups([1.0, 50.0, 2.0, 1.5], 2)
    array([0, 1, 0, 0])
    """
    widths = np.asarray(as_float(widths, "widths"), np.float64)
    groups = check_count(groups, "groups")
    if widths.ndim != 1 or groups > len(widths):
        raise ValueError(
            f"{widths.shape} widths cannot make {groups} groups; give one width a channel, and at "
            "most as many groups as channels"
        )
    order = np.argsort(widths, kind="stable")
    ends = np.arange(len(widths) + 1)
    size = ends - ends[:, None]
    noise = np.append(0.0, widths[order] ** 2)  # of a channel in a group that ends with it
    step = np.where(size > 0, size * noise, np.inf)  # a group of the sorted channels i to j - 1
    best, cuts = step[0], []
    for _ in range(groups - 1):
        total = best[:, None] + step
        cuts.append(total.argmin(0))
        best = total.min(0)
    labels, end = np.zeros(len(widths), np.int64), len(widths)
    for group, cut in zip(range(groups - 1, 0, -1), reversed(cuts), strict=True):
        labels[order[cut[end] : end]] = group
        end = cut[end]
    return labels
