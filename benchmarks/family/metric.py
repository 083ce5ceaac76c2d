"""What the metric of a data set is worth: which way is better, and how people read it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.family.intervals import Interval
from modelchain.evaluations import higher_is_better

_LOSS = "/loss"


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation set, as `digits/top1`: a share of one, or a loss in nats."""

    name: str

    @property
    def sign(self) -> int:
        """Times a value: the larger, the better."""
        return 1 if higher_is_better(self.name) else -1

    @property
    def unit(self) -> str:
        """In which it is shown."""
        return "nats" if self._is_loss else "percent"

    @property
    def scale(self) -> int:
        """What a value is multiplied with to be shown."""
        return 1 if self._is_loss else 100

    def shown(self, value: Interval, *, sign: bool = False) -> str:
        """As 93.1 ± 0.4."""
        return value.shown(scale=self.scale, digits=3 if self._is_loss else 1, sign=sign)

    def rounded(self, value: float) -> str:
        """A mean, with a digit more."""
        return f"{self.scale * value:.{4 if self._is_loss else 2}f}"

    @property
    def _is_loss(self) -> bool:
        return self.name.endswith(_LOSS)
