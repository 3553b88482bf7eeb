"""How well a linear head does on frozen features."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class HeadAccuracy:
    """Test accuracy, between 0 and 1. `all`: with every training sample; `few`: with `samples_a_class` of each
    class, one value a random draw."""

    all: float
    few: tuple[float, ...]
    samples_a_class: int

    @property
    def few_mean(self) -> float:
        return statistics.fmean(self.few)

    @property
    def few_std(self) -> float:
        """Sample standard deviation over the draws; 0 for a single one."""
        return statistics.stdev(self.few) if len(self.few) > 1 else 0.0
