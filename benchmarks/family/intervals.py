"""Means with 95 % intervals, by Student's t: the few values that a study has are taken as normal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean of `count` values, and half the width of its 95 % interval; nan where one value tells no width."""

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half_width

    def shown(self, *, scale: float = 1.0, digits: int = 1, sign: bool = False) -> str:
        """Mean and half width, as 93.1 ± 0.4."""
        plus = "+" if sign else ""
        mean = f"{scale * self.mean:{plus}.{digits}f}"
        return mean if math.isnan(self.half_width) else f"{mean} ± {scale * self.half_width:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Of independent values. ValueError without any."""
    from scipy.stats import t

    if not values:
        raise ValueError("no values, no mean")
    count = len(values)
    if count == 1:
        return Interval(values[0], math.nan, 1)
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Interval(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(count), count)
