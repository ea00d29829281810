"""How a sample brackets the k-th smallest of many magnitudes, on the host and on a device."""

from __future__ import annotations

import math


def stride(total: int) -> int:
    """Every so many of `total` values make a sample of n = (4 total)^(2/3).

    A bracket of +-4 standard deviations around the middle then holds 4 total / sqrt(n) = n values:
    the sample and what is between cost the same. Odd: in step with no power of two of the layout.
    """
    return round((total / 16) ** (1 / 3)) | 1


def bracket(k: int, total: int, sampled: int, width: float) -> tuple[int, int]:
    """Ranks within the sample `width` standard deviations to either side of the k-th of all."""
    middle, deviation = k / total * sampled, math.sqrt(sampled * k * (total - k)) / total
    first = max(middle - width * deviation - 1, 0)
    last = min(middle + width * deviation + 1, sampled - 1)
    return int(first), int(last)
