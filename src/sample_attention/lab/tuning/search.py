"""The cheapest configuration within an error budget, from few prefills.

For the first shape (segment, row_stride, probes, window) the coverage is bisected: error falls and
density rises with it. From there the search climbs by coordinates: each field in turn takes its
next values below and above, at the best coverage and those beside it, until a round changes
nothing. A trial ends at the first request after which it is beyond the budget, or has cost more
than the best did on the same requests.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import mean

from ...config import SampleAttentionConfig
from ...config.checks import check_share
from ...errors import InvalidInput
from ..statistics import mean_interval
from .cost import attention_cost, sampling_density

COVERAGES = (
    0.5, 0.6, 0.7, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99,
)  # fmt: skip
SHAPES = {
    "segment": (32, 64, 128),
    "row_stride": (2, 4, 8, 16, 32),
    "probes": (512, 1024, 2048, 4096),
    "window": (64, 128, 256, 512, 1024),
}
"""What each field may be; every combination is a configuration, with `pool=segment`."""


@dataclass(frozen=True)
class Budget:
    """How far a configuration may be from dense attention; `Trial.within` says how surely.

    Attributes:
        max_kl: mean KL(dense || sparse) of the next token on the last rows, nats. About the
            relative rise of the perplexity, whatever the model: 0.01 is 1 %.
        min_mass: mean retained mass on held-out rows.

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


NOTHING_LOST = Reading(1.0, 0.0, 1.0)
"""What dense attention gives."""


@dataclass(frozen=True)
class Trial:
    """A configuration and what the requests gave.

    Attributes:
        config: that was measured.
        sampling: cost of the selection, see `sampling_density`.
        readings: one per request.
    """

    config: SampleAttentionConfig
    sampling: float
    readings: tuple[Reading, ...]

    @property
    def mean(self) -> Reading:
        """Means over the requests."""
        found = self.readings
        return Reading(
            mean(x.density for x in found), mean(x.kl for x in found), mean(x.mass for x in found)
        )

    @property
    def kl_bound(self) -> float:
        """Upper end of the 95 % interval of the mean KL, from resampled requests."""
        return mean_interval([x.kl for x in self.readings]).high

    @property
    def mass_bound(self) -> float:
        """Lower end of the 95 % interval of the mean retained mass."""
        return mean_interval([x.mass for x in self.readings]).low

    @property
    def cost(self) -> float:
        """Attention and selection together, mean over the requests; 1 is dense attention."""
        return self.cost_of_first(len(self.readings))

    def cost_of_first(self, count: int) -> float:
        """The cost on the first requests alone."""
        density = mean(x.density for x in self.readings[:count])
        return attention_cost(self.config, density) + self.sampling

    def within(self, budget: Budget) -> bool:
        """Whether the bounds, and not the means alone, stay in the budget."""
        return self.kl_bound <= budget.max_kl and self.mass_bound >= budget.min_mass


@dataclass
class Search:
    """Trials on requests of one length, the cheapest of which within the budget counts.

    Attributes:
        read: measures a configuration on the request of an index.
        requests: how many there are.
        length: tokens of each.
        budget: what is allowed.
        deadline: of `time.monotonic`; no prefill is begun after it.
        on_reading: called after every prefill, with the configuration.
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
        self._start_dense(base)
        try:
            self._bisect(base, 0, len(COVERAGES))
            before = None
            while before != self.best:
                before = self.best
                for name in SHAPES:
                    for shape in self._neighbours(base, name):
                        at = bisect_left(COVERAGES, self.best.config.coverage)
                        self._bisect(shape, max(0, at - 1), min(at + 2, len(COVERAGES)))
        except TimeoutError:
            return False
        return True

    def validate(self, config: SampleAttentionConfig) -> None:
        """Raise the coverage of what was found on other requests until it keeps the budget here.

        The result is `best`; dense attention where no coverage is enough. Error falls with
        coverage, so the first to pass is also the last that a descent from the safest would reach
        before the first failure. Such a fixed sequence of tests may be long without loss of
        confidence, as long as these requests had no part in the search.
        """
        self._start_dense(config)
        for coverage in COVERAGES[bisect_left(COVERAGES, config.coverage) :]:
            if not self._try(replace(config, coverage=coverage)):
                return

    def _start_dense(self, config: SampleAttentionConfig) -> None:
        self.best = Trial(replace(config, coverage=1.0), 0.0, (NOTHING_LOST,) * self.requests)

    def _neighbours(
        self, base: SampleAttentionConfig, name: str
    ) -> Iterator[SampleAttentionConfig]:
        """The best shape with the next values of one field, cheaper sampling first."""
        shape = base if self.best.config.dense else self.best.config
        given, values = getattr(shape, name), SHAPES[name]
        nearest = [x for x in values if x < given][-1:] + [x for x in values if x > given][:1]
        found = [_with(shape, name, value) for value in nearest]
        yield from sorted(found, key=lambda config: sampling_density(config, self.length))

    def _bisect(self, shape: SampleAttentionConfig, low: int, high: int) -> None:
        """Find the least of these coverages within the budget, as long as it can beat the best."""
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
        trial = Trial(config, sampling, ())
        for i in range(n):
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeoutError
            trial = replace(trial, readings=(*trial.readings, self.read(config, i)))
            self.on_reading(_named(config))
            # Requests to come can at best lose nothing.
            kl, lost = (sum(x.kl for x in trial.readings), sum(1 - x.mass for x in trial.readings))
            if kl > n * self.budget.max_kl or lost > n * (1 - self.budget.min_mass):
                return True
            if trial.cost >= self.best.cost_of_first(i + 1):
                return False
        if not trial.within(self.budget):
            return True
        self.best = trial
        return False


def _with(shape: SampleAttentionConfig, name: str, value: int) -> SampleAttentionConfig:
    """The shape with one field replaced, and with `segment` what `spread` ties to it."""
    if name == "segment":
        return replace(shape, segment=value, pool=value)
    return replace(shape, **{name: value})


def _named(config: SampleAttentionConfig) -> str:
    fields = ("coverage", *SHAPES)
    return " ".join(f"{name}={getattr(config, name)}" for name in fields)
