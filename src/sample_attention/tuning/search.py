"""The cheapest configuration within an error budget, from few prefills.

For one shape (row_stride, probes, window) the coverage is bisected: error falls and density
rises with it. Shapes follow one another by coordinates: each field in turn takes its other values
beside the best of the rest, those with the cheapest sampling first, until a round changes nothing.
A trial ends at the first request after which it can no longer win.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from ..config import SampleAttentionConfig, check_share
from ..errors import InvalidInput
from .cost import sampling_density

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
SHAPES = {
    "row_stride": (2, 4, 8, 16, 32),
    "probes": (512, 1024, 2048, 4096),
    "window": (64, 128, 256, 512, 1024),
}
"""What each field may be; every combination is a configuration with one of `SEGMENTS`."""

SEGMENTS = (32, 64, 96, 128)
"""Segments of a rule with `spread` that every `row_stride` divides."""


@dataclass(frozen=True)
class Budget:
    """How far a configuration may be from dense attention, as means over the requests.

    Attributes:
        max_kl: KL(dense || sparse) of the next token on the last rows, nats.
        min_mass: retained mass on held-out rows.

    Raises:
        InvalidInput: a negative KL.
        InvalidConfig: a mass outside (0, 1].
    """

    max_kl: float = 0.01
    min_mass: float = 0.9

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.max_kl >= 0:
            raise InvalidInput(f"max_kl is {self.max_kl}; it must be 0 or more")
        check_share("min_mass", self.min_mass)


@dataclass(frozen=True)
class Reading:
    """What one request gave.

    Attributes:
        density: computed pairs over causal pairs, mean over layers and heads.
        kl: see `Budget`.
        mass: retained mass on held-out rows; 1 where nothing was dropped.
    """

    density: float
    kl: float
    mass: float


@dataclass(frozen=True)
class Trial:
    """A configuration and what all requests gave on average.

    Attributes:
        config: that was measured.
        sampling: cost of the selection, see `sampling_density`.
        reading: means over the requests.
    """

    config: SampleAttentionConfig
    sampling: float
    reading: Reading

    @property
    def cost(self) -> float:
        """Density and sampling together; 1 is dense attention."""
        return self.reading.density + self.sampling

    def within(self, budget: Budget) -> bool:
        """Whether the error stays in the budget."""
        return self.reading.kl <= budget.max_kl and self.reading.mass >= budget.min_mass


@dataclass
class Search:
    """Finds the cheapest configuration for one length.

    Attributes:
        read: measures a configuration on the request of an index.
        requests: how many there are.
        length: tokens of each.
        budget: what is allowed.
        deadline: of `time.monotonic`; no prefill is begun after it.
        on_reading: called after every prefill, with the shape.
        best: the cheapest so far; at first dense attention, which is always within the budget.
        trials: configurations of which at least one request was measured.
    """

    read: Callable[[SampleAttentionConfig, int], Reading]
    requests: int
    length: int
    budget: Budget
    deadline: float | None = None
    on_reading: Callable[[str], None] = lambda _: None
    best: Trial = field(init=False)
    trials: int = field(default=0, init=False)
    _over_budget: dict[SampleAttentionConfig, bool] = field(default_factory=dict, init=False)

    def run(self, base: SampleAttentionConfig) -> bool:
        """Search from a configuration, whose other fields stay; the result is `best`.

        Returns:
            Whether the search came to its end before the deadline.
        """
        dense = replace(base, coverage=1.0)
        self.best = Trial(dense, sampling_density(dense, self.length), Reading(1.0, 0.0, 1.0))
        try:
            self._bisect(base)
            before = None
            while before != self.best:
                before = self.best
                for name in SHAPES:
                    for shape in self._neighbours(base, name):
                        self._bisect(shape)
        except TimeoutError:
            return False
        return True

    def measure(self, config: SampleAttentionConfig) -> Trial:
        """A configuration on every request, whatever comes out."""
        return self._mean(config, [self.read(config, i) for i in range(self.requests)])

    def _neighbours(
        self, base: SampleAttentionConfig, name: str
    ) -> Iterator[SampleAttentionConfig]:
        """The best shape with other values of one field, cheapest sampling first."""
        shape = base if self.best.config.dense else self.best.config
        others: list[Any] = [x for x in SHAPES[name] if x != getattr(shape, name)]
        found = [replace(shape, **{name: value}) for value in others]
        yield from sorted(found, key=lambda config: sampling_density(config, self.length))

    def _bisect(self, shape: SampleAttentionConfig) -> None:
        """Keep the shape at the least coverage within the budget, if that beats the best."""
        low, high = 0, len(COVERAGES)
        while low < high:
            middle = (low + high) // 2
            config = replace(shape, coverage=COVERAGES[middle])
            if config not in self._over_budget:
                self._over_budget[config] = self._try(config)
            low, high = (middle + 1, high) if self._over_budget[config] else (low, middle)

    def _try(self, config: SampleAttentionConfig) -> bool:
        """Make the configuration the best if it is; whether it goes beyond the budget."""
        n, sampling = self.requests, sampling_density(config, self.length)
        if sampling >= self.best.cost:
            return False
        self.trials += 1
        readings: list[Reading] = []
        for i in range(n):
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeoutError
            readings.append(self.read(config, i))
            self.on_reading(_named(config))
            # Requests to come can at best lose nothing and compute nothing.
            lost = sum(1 - x.mass for x in readings)
            kl = sum(x.kl for x in readings)
            if kl > n * self.budget.max_kl or lost > n * (1 - self.budget.min_mass):
                return True
            if sampling + sum(x.density for x in readings) / n >= self.best.cost:
                return False
        self.best = self._mean(config, readings)
        return False

    def _mean(self, config: SampleAttentionConfig, readings: list[Reading]) -> Trial:
        means = Reading(
            mean(x.density for x in readings), mean(x.kl for x in readings),
            mean(x.mass for x in readings),
        )  # fmt: skip
        return Trial(config, sampling_density(config, self.length), means)


def _named(config: SampleAttentionConfig) -> str:
    fields = ("coverage", *SHAPES)
    return " ".join(f"{name}={getattr(config, name)}" for name in fields)
