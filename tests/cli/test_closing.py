"""The closing words fit every outcome of a comparison."""

from itertools import product

import pytest

from sample_attention.cli.closing import answer_words, closing_words

SPEEDUPS = {"faster": 1.6, "equal": 1.02, "slightly slower": 0.97, "slower": 0.5}
MASSES = {"reached": 0.97, "missed": 0.5, "unmeasured": None}


def outcome(speedup, mass, *, same=True, repeats=1, sparse_layers=3):
    return {
        "methods": {
            "dense": {},
            "sample_attention": {
                "density": 0.16, "sparse_layers": sparse_layers, "retained_mass": {"mean": mass}
            },
        },
        "ttft_speedup": speedup, "same_text": same, "config": {"coverage": 0.95},
        "timing": {"order": ["dense", "sample_attention"] * repeats},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("speed", "mass", "same", "repeats"), [*product(SPEEDUPS, MASSES, [True, False], [1, 3])]
)
def test_every_outcome_is_told_as_it_is(speed, mass, same, repeats):
    words = " ".join(
        closing_words(outcome(SPEEDUPS[speed], MASSES[mass], same=same, repeats=repeats))
    )
    assert ("1.60 times as fast" in words) == (speed == "faster")
    assert ("about as long" in words) == (speed in ("equal", "slightly slower"))
    assert ("slower here, 2.00 times" in words) == (speed == "slower")
    assert ("busy" in words and "too short" in words) == (speed == "slower")
    assert ("the gain" in words) == (speed != "slower")
    assert ("reaches the coverage" in words) == (mass == "reached")
    assert ("was not reached" in words) == (mass == "missed")
    assert ("not measured" in words) == (mass == "unmeasured")
    assert ("wrote the same" in words) == same
    assert ("the two differ" in words) == (not same)
    assert ("timed once" in words) == (repeats == 1)
    assert "None" not in words


@pytest.mark.parametrize("speedup", [0.5, 2.0])
def test_the_reason_is_the_density_where_most_was_computed(speedup):
    content = outcome(speedup, 0.97)
    content["methods"]["sample_attention"]["density"] = 0.9
    words = " ".join(closing_words(content))
    assert ("most pairs" in words) == (speedup < 1)
    assert "busy" not in words


@pytest.mark.parametrize(("speed", "same"), [*product(SPEEDUPS, [True, False])])
def test_a_run_that_was_dense_claims_nothing(speed, same):
    words = closing_words(outcome(SPEEDUPS[speed], 1.0, same=same, repeats=3, sparse_layers=0))
    assert len(words) == 1
    assert "differ by chance" in words[0]


@pytest.mark.parametrize(
    ("dense", "sparse", "told"),
    [(True, True, "by both"), (True, False, "sparse attention lost it"),
     (False, True, "by sample-attention alone"), (False, False, "by neither")],
)  # fmt: skip
def test_who_answered_right(dense, sparse, told):
    content = {
        "expected_answer": "65125",
        "right_answer": {"dense": dense, "sample_attention": sparse},
    }
    assert told in answer_words(content)
    assert answer_words(content).startswith("65125")
