"""Which passages a search reads, and which are kept for validation."""

from itertools import pairwise

import pytest

from sample_attention.errors import InvalidInput
from sample_attention.lab.tuning import passages

LENGTH, APART = 100, 25
SIZES = {"prose": 180, "code": 9000}


@pytest.fixture(autouse=True)
def texts(monkeypatch):
    """A token is the text's initial and its place there."""
    monkeypatch.setattr(passages, "reference_text", lambda kind: kind[0] * SIZES[kind])
    monkeypatch.setattr(
        passages, "encode", lambda _, text: tuple(f"{x}{i}" for i, x in enumerate(text))
    )
    monkeypatch.setattr(passages, "start_tokens", lambda _: ())


def split(count, texts=("prose", "code")):
    return passages.split_passages(None, texts, LENGTH, count, APART)


def test_texts_take_turns_and_come_to_the_count():
    for group in split(3):
        assert [passage[0][0] for passage in group] == ["p", "c", "p"]
        assert {len(passage) for passage in group} == {LENGTH}


def test_no_row_is_measured_twice_and_validation_comes_later():
    firsts, seconds = split(4)
    for kind in "pc":
        ends = [int(x[-1][1:]) for x in (*firsts, *seconds) if x[0][0] == kind]
        assert len(ends) == 4
        assert all(b - a >= APART for a, b in pairwise(ends))


def test_short_texts_say_what_helps():
    with pytest.raises(InvalidInput, match="text 'prose' has 180 tokens; 6 passages of 100"):
        split(6)
    assert len(split(6, ("code",))[1]) == 6
