"""What a result must not depend on: later tokens, batch neighbours, the layout, the chunks."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sample_attention as sa
from sample_attention import QueryMoments, SampledRows, Sequences, preset
from sample_attention.config import with_fields
from sample_attention.plan import segment_starts
from sample_attention.testing import assert_matches_oracle, make_qkv

SMALL = preset(
    "pooled", coverage=0.9, segment=64, sample_stride=8, rows=16, window=24, dense_prefix=64,
    held_out_rows=3,
)  # fmt: skip
CONFIGS = {
    "segments": SMALL,
    "segments of 128, sampled rows rank": preset(
        "pooled",
        coverage=0.8,
        ranking=SampledRows(),
        window=40,
        dense_prefix=0,
        dense_tail=0,
        held_out_rows=2,
    ),
    "segments, moments": with_fields(
        SMALL, ranking=QueryMoments(sampled_keys=16, farthest_rows=0, run_share=None)
    ),
    "paper": preset("paper", coverage=0.7, held_out_rows=2, dense_tail=16),
    "mlsys": preset("mlsys", coverage=0.6, slash_coverage=0.5, key_block=32, held_out_rows=2),
}
BY_SEGMENT = [name for name in CONFIGS if name.startswith("segments")]


def selection(plan, n=0, *, segments=None):
    """For each head and absolute segment what the plan says, as comparable values."""
    _, _, q_len, _, kv_len = plan.sequences.rows()[n]
    offset = kv_len - q_len
    said = {}
    for h in range(plan.num_heads):
        for g, (lo, hi) in enumerate(segment_starts(offset, kv_len, plan.segment)):
            rows = plan.held_out.rows[n, g]
            held = tuple((rows[rows >= 0] + offset).tolist())
            lists = tuple(plan.columns(n, h, g).tolist())
            if segments is None or lo // plan.segment < segments:
                said[h, lo, hi] = lists, bool(plan.dense[n, h, g]), held
    return said


@pytest.mark.parametrize("name", BY_SEGMENT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_later_tokens_do_not_reach_earlier_segments(select, attend, name, dtype):
    config = CONFIGS[name]
    q, k, v = make_qkv(600, num_heads=4, num_kv_heads=2, dtype=dtype)
    plan = select(q, k, config)
    out, lse = attend(q, k, v, plan)
    for segments in (1, 3):
        t = segments * config.segment
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t:] = torch.randn_like(x[:, :, t:]) * 3
        other = select(later[0], later[1], config)
        before = selection(plan, segments=segments)
        assert selection(other, segments=segments) == before
        again, lse_again = attend(*later, other)
        # A run of dense segments is one tile, whose height may change how sums are rounded.
        sparse = ~plan.dense[0, :, :segments].repeat_interleave(config.segment, 1)
        assert torch.equal(out[0, :, :t][sparse], again[0, :, :t][sparse])
        torch.testing.assert_close(again[:, :, :t], out[:, :, :t])
        torch.testing.assert_close(lse_again[:, :, :t], lse[:, :, :t])


@pytest.mark.parametrize("name", CONFIGS)
def test_later_tokens_never_reach_earlier_rows_of_a_plan(select, attend, name):
    q, k, v = make_qkv(300, num_heads=2, num_kv_heads=1)
    plan = select(q, k, CONFIGS[name])
    out, _ = attend(q, k, v, plan)
    k, v = k.clone(), v.clone()
    k[:, :, 171:], v[:, :, 171:] = 1e18, -1e18
    assert torch.equal(attend(q, k, v, plan).out[:, :, :171], out[:, :, :171])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", ["batched", "left padded", "packed"])
def test_a_sequence_alone_equals_itself_in_company(select, attend, layout, name):
    config, lengths = CONFIGS[name], [(300, 420), (171, 171), (1, 260)]
    alone = [make_qkv(*n, num_heads=4, num_kv_heads=2, seed=i) for i, n in enumerate(lengths)]
    if layout == "batched":
        alone = [make_qkv(300, 420, num_heads=4, num_kv_heads=2, seed=i) for i in range(3)]
        together = [torch.cat(xs) for xs in zip(*alone, strict=True)]
        sequences = None
    elif layout == "left padded":
        lengths = [(min(300, kv), kv) for _, kv in lengths]
        alone = [make_qkv(*n, num_heads=4, num_kv_heads=2, seed=i) for i, n in enumerate(lengths)]
        together = [torch.cat([left_pad(x, n) for x in xs]) for xs, n in
                    zip(zip(*alone, strict=True), (300, 420, 420), strict=True)]  # fmt: skip
        sequences = Sequences.left_padded(torch.tensor([kv for _, kv in lengths]), 300, 420)
    else:
        together = [
            torch.cat([x[0].transpose(0, 1) for x in xs]) for xs in zip(*alone, strict=True)
        ]
        ends = [torch.tensor([0, *n]).cumsum(0) for n in zip(*lengths, strict=True)]
        sequences = Sequences.packed_from(*ends)
    plan = select(*together[:2], config, sequences=sequences)
    out, lse = attend(*together, plan)
    assert_matches_oracle(out, lse, *together, plan)
    parts = sa.testing.split_sequences(out, plan.sequences)
    lses = sa.testing.split_sequences(lse, plan.sequences)
    for n, qkv in enumerate(alone):
        own = select(*qkv[:2], config)
        assert selection(own) == selection(plan, n)
        mine = attend(*qkv, own)
        assert torch.equal(mine.out[0], parts[n])
        assert torch.equal(mine.lse[0], lses[n])


def left_pad(x, length):
    return torch.nn.functional.pad(x, (0, 0, length - x.shape[2], 0), value=7.0)


@pytest.mark.parametrize("name", BY_SEGMENT)
@settings(max_examples=8)
@given(st.data())
def test_chunked_prefill_equals_one_call(select, attend, name, data):
    config = replace(CONFIGS[name], dense_tail=0)  # a tail ends the call, not the prompt
    q, k, v = make_qkv(600, num_heads=2, num_kv_heads=1, dtype=torch.float64, seed=5)
    plan = select(q, k, config)
    said = selection(plan)
    out, lse = attend(q, k, v, plan)
    steps = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=9))
    ends = [min(600, sum(steps[:i]) * config.segment) for i in range(len(steps) + 1)] + [600]
    for start, end in itertools.pairwise(ends):
        if start == end:
            continue
        part = q[:, :, start:end], k[:, :, :end], v[:, :, :end]
        chunk = select(*part[:2], config)
        own = selection(chunk)
        assert own == {at: what for at, what in said.items() if at in own}
        got, got_lse = attend(*part, chunk)
        assert_matches_oracle(got, got_lse, *part, chunk)
        torch.testing.assert_close(got, out[:, :, start:end])
        torch.testing.assert_close(got_lse, lse[:, :, start:end])
        torch.testing.assert_close(
            chunk.retained_mass(got_lse)[:, 0],
            plan.retained_mass(lse)[:, 0, start // config.segment :][:, : chunk.counts.shape[2]],
            equal_nan=True,
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_of_batch_rows_is_free(select, name):
    q, k, _ = make_qkv(260, batch=3, num_heads=2)
    plan = select(q, k, CONFIGS[name])
    turned = select(q.flip(0), k.flip(0), CONFIGS[name])
    assert [selection(plan, n) for n in range(3)] == [selection(turned, 2 - n) for n in range(3)]


@pytest.mark.parametrize("name", CONFIGS)
def test_strides_do_not_matter(select, name):
    q, k, _ = make_qkv(260, num_heads=4, num_kv_heads=2)
    plan = select(q, k, CONFIGS[name])
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    assert selection(select(q, k, CONFIGS[name])) == selection(plan)
