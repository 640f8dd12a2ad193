"""The search, on made-up models whose best configuration is known, and what selecting costs."""

import itertools
import time
from dataclasses import replace

import pytest

from sample_attention import SampleAttentionConfig
from sample_attention.errors import InvalidConfig, InvalidInput
from sample_attention.tuning import Budget, Reading, Search
from sample_attention.tuning.cost import sampling_density
from sample_attention.tuning.search import COVERAGES, SEGMENTS, SHAPES

LENGTH = 4096
BASE = SampleAttentionConfig()
POOLED = SampleAttentionConfig.preset("pooled")
BUDGET = Budget(max_kl=0.02, min_mass=0.9)


def made_up(config, index):
    """Error falls and density rises with coverage; coarser sampling costs accuracy."""
    rough = config.row_stride / 32 + 512 / config.probes
    kl = (1 - config.coverage) * (0.1 + rough + index / 10) * (1 + 64 / config.window)
    density = 0.3 * config.coverage**4 + config.window / LENGTH
    return Reading(density, kl / 4, 1 - (1 - config.coverage) / 2)


def searched(read=made_up, budget=BUDGET, **options):
    search = Search(read, 2, LENGTH, budget, **options)
    return search, search.run(BASE)


def test_the_result_is_within_the_budget_and_cheaper_than_its_neighbours():
    search, finished = searched()
    best = search.best
    assert finished
    assert best.within(BUDGET)
    assert best == search.measure(best.config)
    for name, values in SHAPES.items():
        for value, coverage in itertools.product(values, COVERAGES):
            other = search.measure(replace(best.config, **{name: value}, coverage=coverage))
            assert not other.within(BUDGET) or other.cost >= best.cost


def test_few_prefills_are_needed():
    used = []
    search, _ = searched(on_reading=used.append)
    every = len(COVERAGES)
    for values in SHAPES.values():
        every *= len(values)
    assert search.trials <= len(used) <= 2 * search.trials < 2 * every / 10


def test_nothing_within_the_budget_is_dense():
    search, finished = searched(lambda *_: Reading(0.1, 1.0, 0.99))
    assert finished
    assert search.best.config == replace(BASE, coverage=1.0)
    assert search.best.cost == 1


def test_retained_mass_counts_like_kl():
    search, _ = searched(budget=Budget(max_kl=10.0, min_mass=0.98))
    assert search.best.reading.mass >= 0.98


def test_the_deadline_keeps_what_was_found():
    search, finished = searched(deadline=time.monotonic() - 1)
    assert not finished
    assert search.best.config.dense
    assert search.trials == 1


@pytest.mark.parametrize("segment", SEGMENTS)
def test_every_shape_is_a_configuration(segment):
    base = replace(BASE, segment=segment, pool=segment)
    for values in itertools.product(*SHAPES.values()):
        replace(base, **dict(zip(SHAPES, values, strict=True)))


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (POOLED, 1 / 8 + 1 / 32),
        (replace(POOLED, pool=None), 1 / 8),
        (replace(POOLED, row_stride=32, pool=64), 1 / 32 + 1 / 64),
        (SampleAttentionConfig.preset("paper"), 1 / 20),
        (replace(BASE, coverage=1.0), 0),
    ],
)
def test_sampling_costs_its_share_of_rows(config, share):
    assert abs(sampling_density(config, 65536) - share) <= share / 100


@pytest.mark.parametrize("given", [{"max_kl": -1.0}, {"max_kl": float("nan")}, {"min_mass": 0.0}])
def test_bad_budgets(given):
    with pytest.raises((InvalidInput, InvalidConfig)):
        Budget(**given)
