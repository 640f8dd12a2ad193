"""`attend` of every backend against the oracle, on plans made by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from sample_attention import Sequences
from sample_attention.plan import segment_starts
from sample_attention.plan.stripe import WHOLE
from sample_attention.problem import Problem
from sample_attention.testing import (
    assert_matches_oracle,
    make_plan,
    make_qkv,
    plan_masks,
    split_sequences,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEGMENTS = {"segment": 32, "window": 24, "window_alignment": 16}
ROWS = {"segment": WHOLE, "window": 9}
BLOCKS = {"segment": 128, "window": 0, "key_block": 128}


def random_plan(q, k, *, share=0.1, dense_share=0.2, sequences=None, seed=1, **layout):
    """A plan with random lists; empty lists and dense segments occur."""
    sequences = sequences or Problem.of(q, k, k).sequences
    random = torch.Generator().manual_seed(seed)
    block = layout.get("key_block", 1)

    def columns(end):
        if torch.rand((), generator=random) < dense_share:
            return [-1]
        blocks = math.ceil(end / block)
        keep = torch.rand(blocks, generator=random) < share * torch.rand((), generator=random) * 2
        return keep.nonzero()[:, 0].tolist()

    lists = [
        [
            [columns(hi) for _, hi in segment_starts(kv - qn, kv, layout["segment"])]
            for _ in range(q.shape[1])
        ]
        for _, _, qn, _, kv in sequences.rows()
    ]
    return make_plan(sequences, lists, **layout)


def every_key(q, k, **layout):
    return random_plan(q, k, dense_share=2, **layout)


def check(attend, q, k, v, plan, **options):
    out, lse = attend(q, k, v, plan, **options)
    assert_matches_oracle(out, lse, q, k, v, plan, **options)
    return out, lse


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("length", [63, 111])
def test_head_dims(attend, length, head_dim):
    q, k, v = make_qkv(length, num_heads=2, num_kv_heads=1, head_dim=head_dim)
    check(attend, q, k, v, random_plan(q, k, **SEGMENTS))


@pytest.mark.parametrize("layout", [SEGMENTS, ROWS, BLOCKS], ids=["segments", "rows", "blocks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(attend, dtype, layout):
    q, k, v = make_qkv(300, num_heads=2, head_dim=64, dtype=dtype)
    _, lse = check(attend, q, k, v, random_plan(q, k, share=0.3, dense_share=0.0, **layout))
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("layout", [SEGMENTS, ROWS, BLOCKS], ids=["segments", "rows", "blocks"])
@pytest.mark.parametrize("lengths", [(1000, 1000), (1, 63), (17, 111), (130, 700)], ids=str)
def test_lengths_and_cached_prefixes(attend, lengths, layout):
    q, k, v = make_qkv(*lengths, num_heads=2, num_kv_heads=1)
    check(attend, q, k, v, random_plan(q, k, dense_tail=5, **layout))


@pytest.mark.parametrize("heads", [(1, 1), (7, 1), (14, 2), (4, 2), (3, 3)], ids=str)
def test_head_groups(attend, heads):
    q, k, v = make_qkv(111, batch=2, num_heads=heads[0], num_kv_heads=heads[1], head_dim=16)
    check(attend, q, k, v, random_plan(q, k, **SEGMENTS))


@pytest.mark.parametrize("window", [0, 1, 7, 64, 300])
@pytest.mark.parametrize(
    ("segment", "align"),
    [(16, 1), (16, 16), (48, 48), (64, 16), (96, 128), (128, 128), (256, 128), (WHOLE, 1)],
    ids=str,
)
def test_windows(attend, segment, align, window):
    q, k, v = make_qkv(201, 311, num_heads=1, head_dim=16, dtype=torch.float64)
    layout = {"segment": segment, "window": window, "window_alignment": align}
    check(attend, q, k, v, random_plan(q, k, **layout))


@pytest.mark.parametrize("tail", [1, 31, 32, 100, 111, 500])
@pytest.mark.parametrize("layout", [SEGMENTS, ROWS, BLOCKS], ids=["segments", "rows", "blocks"])
def test_dense_tails(attend, tail, layout):
    q, k, v = make_qkv(111, 150, head_dim=16, dtype=torch.float64)
    plan = random_plan(q, k, dense_tail=tail, dense_share=0.0, **layout)
    assert plan_masks(plan)[:, -tail:].sum() == 2 * sum(range(150, max(39, 150 - tail), -1))
    check(attend, q, k, v, plan)


@pytest.mark.parametrize("key_block", [16, 128, 1024])
def test_key_blocks(attend, key_block):
    q, k, v = make_qkv(333, 500, head_dim=16)
    layout = {"segment": key_block, "key_block": key_block, "window": 3}
    check(attend, q, k, v, random_plan(q, k, share=0.5, dense_share=0.0, **layout))


@pytest.mark.parametrize("key_block", [1, 8])
def test_rows_that_keep_nothing(attend, key_block):
    q, k, v = make_qkv(64)
    sequences = Problem.of(q, k, v).sequences
    lists = [[[[], [], [0], [2]], [[], [-1], [], []]]]  # the first rows see no key of block 2
    plan = make_plan(sequences, lists, segment=16, window=0, key_block=key_block)
    out, lse = check(attend, q, k, v, plan)
    assert not plan_masks(plan)[0, :32].any()
    assert not out[0, 0, :32].any()
    assert (lse[0, 0, :32] == -math.inf).all()


STRIDES = {
    "sequence before heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "part of a longer cache": lambda x: F.pad(x, (0, 0, 5, 70))[:, :, 5 : 5 + x.shape[2]],
    "part of a fused projection": lambda x: torch.cat([x, x, x], -1)[..., : x.shape[-1]],
    "every second batch row": lambda x: x.repeat_interleave(2, 0)[::2],
    "one head for all": lambda x: x[:, :1].expand(x.shape),
    "one sequence for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("stride", STRIDES)
def test_strided_inputs(attend, stride):
    q, k, v = (STRIDES[stride](x) for x in make_qkv(63, 111, batch=2, num_heads=4, num_kv_heads=2))
    assert not k.is_contiguous()
    out, lse = check(attend, q, k, v, random_plan(q, k, **SEGMENTS))
    plan = random_plan(q, k, **SEGMENTS)
    again = attend(q.contiguous(), k.contiguous(), v.contiguous(), plan)
    torch.testing.assert_close((out, lse), (again.out, again.lse))


FULL = {
    "dense segments": lambda q, k: every_key(q, k, **SEGMENTS),
    "one dense segment": lambda q, k: every_key(q, k, **ROWS),
    "all columns": lambda q, k: random_plan(q, k, share=math.inf, dense_share=0.0, **SEGMENTS),
    "all rows columns": lambda q, k: random_plan(q, k, share=math.inf, dense_share=0.0, **ROWS),
    "all blocks": lambda q, k: random_plan(q, k, share=math.inf, dense_share=0.0, **BLOCKS),
    "dense tail": lambda q, k: random_plan(q, k, dense_tail=10**6, **SEGMENTS),
    "window": lambda q, k: random_plan(q, k, segment=64, window=10**6, window_alignment=64),
}


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_full_plan_equals_sdpa(attend, full, dtype):
    q, k, v = make_qkv(200, num_heads=4, num_kv_heads=2, dtype=dtype)
    plan = FULL[full](q, k)
    assert (plan.density() == 1).all()
    peer = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert_matches_oracle(peer, None, q, k, v, plan)
    out, _ = check(attend, q, k, v, plan)
    if dtype == torch.float64:
        torch.testing.assert_close(out, peer)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 2.0])
def test_scale(attend, scale):
    q, k, v = make_qkv(111)
    check(attend, q, k, v, random_plan(q, k, **SEGMENTS), scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [SEGMENTS, ROWS], ids=["segments", "rows"])
def test_scores_of_ten_thousand(attend, dtype, layout):
    q, k, v = make_qkv(111, dtype=torch.float64)
    stretch = (1e4 / (q @ k.mT * q.shape[-1] ** -0.5).abs().max()).sqrt()
    q, k, v = (q * stretch).to(dtype), (k * stretch).to(dtype), v.to(dtype)
    plan = random_plan(q, k, dense_share=0.0, **layout)
    out, lse = attend(q, k, v, plan)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    assert lse.abs().max() > 5e3
    assert_matches_oracle(out, lse, q, k, v, plan)


def test_left_padded_batch(attend):
    q, k, v = make_qkv(100, 150, batch=4, num_heads=4, num_kv_heads=2)
    lengths = torch.tensor([150, 120, 37, 1])
    sequences = Sequences.left_padded(lengths, 100, 150)
    out, lse = check(attend, q, k, v, random_plan(q, k, sequences=sequences, **SEGMENTS))
    assert not out[2, :, : 100 - 37].any()
    assert (lse[2, :, : 100 - 37] == -math.inf).all()
    assert out[2, :, 100 - 37 :].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_batch(attend, dtype):
    q_ends, kv_ends = torch.tensor([0, 63, 64, 175]), torch.tensor([0, 100, 150, 300])
    q, k, v = make_qkv(180, 310, num_heads=4, num_kv_heads=2, dtype=dtype)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    sequences = Sequences.packed_from(q_ends, kv_ends)
    out, lse = check(attend, q, k, v, random_plan(q, k, sequences=sequences, **SEGMENTS))
    assert lse.shape == (4, 180)
    assert not out[175:].any()  # rows after the last sequence


def test_rows_do_not_depend_on_other_heads_or_rows(attend):
    q, k, v = make_qkv(100, batch=3, num_heads=4, num_kv_heads=2)
    plan = random_plan(q, k, **SEGMENTS)
    out, lse = attend(q, k, v, plan)
    k, v = k.clone(), v.clone()
    k[1, 0] = torch.nan
    v[1, 0] = torch.nan
    again, lse_again = attend(q, k, v, plan)
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1, :2] = False
    assert torch.equal(out[keep], again[keep])
    assert torch.equal(lse[keep], lse_again[keep])
    assert again[1, :2].isnan().all()


def test_keys_that_no_row_keeps_are_not_read_into_the_result(attend):
    q, k, v = make_qkv(96, num_heads=1)
    plan = make_plan(
        Problem.of(q, k, v).sequences, [[[[3], [3], [3]]]], segment=32, window=8,
        window_alignment=8,
    )  # fmt: skip
    out, _ = check(attend, q, k, v, plan)
    unseen = ~plan_masks(plan)[0, 64:].any(0)
    k, v = k.masked_fill(unseen[:, None], torch.nan), v.masked_fill(unseen[:, None], torch.nan)
    assert torch.equal(attend(q, k, v, plan).out[:, :, 64:], out[:, :, 64:])


def test_repeated_call_is_bit_equal(attend):
    q, k, v = make_qkv(200, dtype=torch.bfloat16)
    plan = random_plan(q, k, **SEGMENTS)
    first, second = attend(q, k, v, plan), attend(q, k, v, plan)
    assert torch.equal(first.out, second.out)
    assert torch.equal(first.lse, second.lse)


def test_inputs_are_not_written(attend, select):
    q, k, v = make_qkv(200)
    before = [x.clone() for x in (q, k, v)]
    attend(q, k, v, select(q, k))
    assert all(torch.equal(x, y) for x, y in zip(before, (q, k, v), strict=True))


def test_sequence_views_of_a_packed_problem():
    q, k, _ = make_qkv(30, 40)
    packed = [x[0].transpose(0, 1) for x in (q, k)]
    sequences = Sequences.packed_from(torch.tensor([0, 10, 30]), torch.tensor([0, 15, 40]))
    first, second = split_sequences(packed[1], sequences, keys=True)
    assert torch.equal(second, k[0, :, 15:])
    assert torch.equal(first, k[0, :, :15])
