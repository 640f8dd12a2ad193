"""StreamingLLM, which keeps the same for every input, against their definition row by row."""

import pytest

import sample_attention as sa
from sample_attention.errors import InvalidConfig
from sample_attention.methods import METHODS, StreamingLLM
from sample_attention.testing import make_qkv, plan_masks

LENGTHS = [(130, 130), (300, 300), (70, 333)]


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize(("sinks", "window"), [(4, 20), (0, 1), (200, 60)])
def test_streaming_llm_keeps_sinks_and_window(q_len, kv_len, sinks, window):
    q, k, _ = make_qkv(q_len, kv_len, num_heads=2, num_kv_heads=1)
    masks = plan_masks(sa.select(q, k, StreamingLLM(sinks, window)))
    for i in range(q_len):
        p = i + kv_len - q_len
        kept = [j <= p and (j < sinks or j > p - window) for j in range(kv_len)]
        assert masks[:, i].tolist() == [kept, kept]


def test_a_shape_is_that_of_minference():
    assert METHODS["a_shape"] == StreamingLLM(sinks=128, window=3968)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be an integer from 1"),
        ({"sinks": -1}, "sinks must be an integer from 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidConfig, match=message):
        StreamingLLM(**options)
