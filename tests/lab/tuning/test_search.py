"""The search, on made-up models whose best configuration is known, and what selecting costs."""

import itertools
import math
import random
import time
from dataclasses import replace

import pytest

from sample_attention import SampledRows, preset
from sample_attention.config import with_fields
from sample_attention.errors import InvalidConfig, InvalidInput
from sample_attention.lab.tuning import ErrorBudget, Reading, Search, Trial
from sample_attention.lab.tuning.cost import attention_cost, sampling_density
from sample_attention.lab.tuning.search import COVERAGES, SHAPES

LENGTH = 32768
BASE = preset("default", sample_stride=8, sampled_keys=1024, window=256)
POOLED = preset("pooled")
BUDGET = ErrorBudget(max_kl=0.01, min_mass=0.9)
REQUESTS = 8


def made_up(config, index):
    """Error falls and density rises with coverage; coarser sampling costs accuracy."""
    rough = config.sample_stride / 64 + 256 / config.ranking.sampled_keys + config.segment / 512
    kl = (1 - config.coverage) * (0.2 + rough + index / 100) * (1 + 64 / config.window)
    density = 0.3 * config.coverage**4 + config.window / LENGTH
    return Reading(density, kl / 8, 1 - (1 - config.coverage) / 2)


def noisy(config, index):
    """Few tokens carry the error, so that requests differ much; each has its own structure."""
    reading = made_up(config, 0)
    drawn = random.Random(f"{index} {config.coverage}").lognormvariate(0, 0.4)
    return replace(reading, density=reading.density * (1 + index / 20), kl=reading.kl * drawn)


def searched(read=made_up, budget=BUDGET, requests=REQUESTS, base=BASE, **options):
    search = Search(read, requests, LENGTH, budget, **options)
    return search, search.run(base)


def neighbours(config):
    """Every configuration that differs in one field, and in coverage."""
    for name, values in SHAPES.items():
        for value, coverage in itertools.product(values, COVERAGES):
            yield with_fields(config, **{name: value}, coverage=coverage)


def test_the_result_is_within_the_budget_and_cheaper_than_its_neighbours():
    search, finished = searched()
    best = search.best
    assert finished
    assert best.within(BUDGET)
    for config in neighbours(best.config):
        readings = tuple(made_up(config, i) for i in range(REQUESTS))
        other = Trial(config, sampling_density(config, LENGTH), readings)
        assert not other.within(BUDGET) or other.cost >= best.cost


@pytest.mark.parametrize("read", [made_up, noisy])
def test_few_prefills_are_needed(read):
    used = []
    searched(read, on_reading=used.append)
    assert 0 < len(used) + REQUESTS < 200  # with those by dense attention


def test_nothing_within_the_budget_is_dense():
    search, finished = searched(lambda *_: Reading(0.1, 1.0, 0.99))
    assert finished
    assert search.best.config == replace(BASE, coverage=1.0)
    assert search.best.cost == 1


def test_retained_mass_counts_like_kl():
    search, _ = searched(budget=ErrorBudget(max_kl=10.0, min_mass=0.98))
    assert search.best.mean.mass >= search.best.mass_bound >= 0.98


def test_the_mean_alone_is_not_enough():
    """Half of the requests lose nothing, the others nearly twice what the budget allows."""
    uneven = Trial(BASE, 0.1, tuple(Reading(0.2, kl, 1.0) for kl in (0.0, 0.018) * 4))
    even = Trial(BASE, 0.1, (Reading(0.2, 0.009, 1.0),) * 8)
    assert uneven.mean.kl == pytest.approx(even.mean.kl) == even.kl_bound
    assert even.within(BUDGET)
    assert not uneven.within(BUDGET)


def test_keys_of_small_segments_cost_their_gathering():
    halved = with_fields(BASE, segment=64)
    assert attention_cost(halved, 0.1) == 2 * attention_cost(BASE, 0.1) == 0.2
    assert attention_cost(replace(halved, coverage=1.0), 1.0) == 1


def test_validation_raises_the_coverage_until_the_budget_is_kept():
    search = Search(made_up, REQUESTS, LENGTH, BUDGET)
    search.validate(replace(BASE, coverage=0.6))
    best, at = search.best, COVERAGES.index(search.best.config.coverage)
    assert best.within(BUDGET)
    assert replace(best.config, coverage=0.6) == replace(BASE, coverage=0.6)
    short = replace(BASE, coverage=COVERAGES[at - 1])
    assert at > COVERAGES.index(0.6)
    assert not replace(best, readings=tuple(made_up(short, i) for i in range(8))).within(BUDGET)


def test_validation_keeps_what_is_within_the_budget():
    search = Search(made_up, REQUESTS, LENGTH, BUDGET)
    search.validate(replace(BASE, coverage=0.99))
    assert search.best.config.coverage == 0.99
    assert search.trials == 1


def test_validation_ends_dense():
    search = Search(lambda *_: Reading(0.1, 1.0, 0.99), REQUESTS, LENGTH, BUDGET)
    search.validate(replace(BASE, coverage=0.9))
    assert search.best.config == replace(BASE, coverage=1.0)


def test_what_was_validated_keeps_its_budget_on_other_requests():
    """Nearly always, though requests differ much; where the mean decided, in half of the cases."""
    spread, runs, kept = 0.6, 60, 0
    for run in range(runs):

        def read(config, index, run=run):
            drawn = random.Random(f"{run} {index}").lognormvariate(0, spread)
            return Reading(0.1, (1 - config.coverage) * drawn / 5, 0.99)

        search = Search(read, REQUESTS, LENGTH, BUDGET)
        search.validate(replace(BASE, coverage=0.9))
        true_kl = (1 - search.best.config.coverage) * math.exp(spread**2 / 2) / 5
        kept += true_kl <= BUDGET.max_kl
    assert kept >= 0.85 * runs


def test_the_deadline_keeps_what_was_found():
    search, finished = searched(deadline=time.monotonic() - 1)
    assert not finished
    assert search.best.config.dense
    assert search.trials == 1


def test_every_shape_is_a_configuration():
    for segment, *values in itertools.product(*SHAPES.values()):
        others = dict(zip(list(SHAPES)[1:], values, strict=True))
        with_fields(BASE, segment=segment, **others)


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (POOLED, 1 / 8 + 1 / 32),
        (with_fields(POOLED, ranking=SampledRows()), 1 / 8),
        (with_fields(POOLED, sample_stride=32, rows=64), 1 / 32 + 1 / 64),
        (preset("paper"), 1 / 20),
        (replace(BASE, coverage=1.0), 0),
    ],
)
def test_sampling_costs_its_share_of_rows(config, share):
    assert abs(sampling_density(config, 65536) - share) <= share / 100


@pytest.mark.parametrize("given", [{"max_kl": -1.0}, {"max_kl": float("nan")}, {"min_mass": 0.0}])
def test_bad_budgets(given):
    with pytest.raises((InvalidInput, InvalidConfig)):
        ErrorBudget(**given)
