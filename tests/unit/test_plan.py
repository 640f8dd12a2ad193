"""What a plan says: allowed pairs, density, retained mass, pictures."""

import pytest
import torch

import sample_attention as sa
from sample_attention import SampleAttentionConfig, SampledRows, Sequences, preset
from sample_attention.errors import InvalidInput, PlanMismatch
from sample_attention.plan import HeldOut, render, segment_starts
from sample_attention.plan.render import SHADES
from sample_attention.problem import Problem
from sample_attention.selection.rows import chunk_tail_rows, held_out_rows, strided_rows
from sample_attention.testing import make_plan, make_qkv


def uniform(q_len, kv_len, heads=1):
    q, kv = torch.zeros(1, heads, q_len, 2), torch.zeros(1, heads, kv_len, 2)
    return Problem.of(q, kv, kv).sequences


def picture(plan, h=0):
    return ["".join(".#"[x] for x in row) for row in plan.to_dense(0, h)]


def test_the_drawing_of_select():
    plan = make_plan(uniform(8, 8), [[[[], [0]]]], segment=4, window=2, window_alignment=4)
    assert picture(plan) == [
        "#.......",
        "##......",
        "###.....",
        "####....",
        "#..##...",
        "#..###..",
        "#..####.",
        "#..#####",
    ]


def test_the_rule_of_the_module():
    """Every clause: dense segment, dense tail, window by row, listed blocks, causality."""
    plan = make_plan(
        uniform(7, 9), [[[[1], [0], []]]], segment=4, window=1,
        key_block=2, dense_tail=1,
    )  # fmt: skip
    assert picture(plan) == [
        "..#......",
        "..##.....",
        "##..#....",
        "##...#...",
        "##....#..",
        "##.....#.",
        "#########",
    ]


@pytest.mark.parametrize("offset", [0, 3, 4, 9])
def test_segments_of_a_call(offset):
    starts = segment_starts(offset, 13, 4)
    assert [p for lo, hi in starts for p in range(lo, hi)] == list(range(offset, 13))
    assert len({lo // 4 for lo, _ in starts}) == len(starts)
    assert all((hi - 1) // 4 == lo // 4 for lo, hi in starts)
    with pytest.raises(InvalidInput):
        segment_starts(13, 13, 4)


def test_density_of_a_plan_by_hand():
    plan = make_plan(uniform(8, 8, 2), [[[[], [0]], [[], [-1]]]], segment=4, window=2,
                     window_alignment=4)  # fmt: skip
    masks = torch.stack([plan.to_dense(0, h) for h in range(2)])
    assert torch.equal(plan.density()[0], masks.sum((1, 2)).double() / 36)
    assert plan.density()[0, 1] > plan.density()[0, 0]


@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize(("align", "key_block"), [(1, 1), (4, 1), (16, 4), (1, 16)])
def test_density_equals_the_mask(window, align, key_block):
    lists = [[[[0, 2], [-1], [1], []], [[], [0, 1], [0], [3]]]]
    plan = make_plan(
        uniform(50, 61, 2), lists, segment=16, window=window, window_alignment=align,
        key_block=key_block, dense_tail=3,
    )  # fmt: skip
    masks = torch.stack([plan.to_dense(0, h) for h in range(2)])
    causal = sum(range(12, 62))
    assert torch.equal(plan.density()[0], masks.sum((1, 2)).double() / causal)


@pytest.mark.parametrize("name", ["default", "fast", "pooled", "paper", "mlsys"])
def test_density_of_selected_plans_equals_their_masks(name):
    q, k, _ = make_qkv(300, 700, batch=2, num_heads=2)
    sequences = Sequences.left_padded(torch.tensor([700, 450]), 300, 700)
    narrow = (
        {"window": 32, "dense_prefix": 0, "dense_tail": 0}
        if name in ("default", "fast", "pooled")
        else {}
    )
    config = preset(name, coverage=0.7, **narrow)
    plan = sa.select(q, k, config, sequences=sequences)
    for n, (_, _, q_len, _, kv_len) in enumerate(sequences.rows()):
        causal = sum(range(kv_len - q_len + 1, kv_len + 1))
        masks = torch.stack([plan.to_dense(n, h) for h in range(2)])
        assert torch.equal(plan.density()[n], masks.sum((1, 2)).double() / causal)
    assert plan.density().min() < 1


def test_with_dense_changes_only_the_flagged_heads():
    q, k, _ = make_qkv(200, batch=2)
    plan = sa.select(
        q, k, SampleAttentionConfig(dense_prefix=0, dense_tail=0, window=8, coverage=0.5)
    )
    heads = torch.tensor([[True, False], [False, False]])
    flagged = plan.with_dense(heads)
    assert flagged.density()[0, 0] == 1
    assert torch.equal(flagged.density()[~heads], plan.density()[~heads])
    assert not plan.dense.all()


def test_retained_mass_reads_the_held_out_rows():
    plan = make_plan(uniform(8, 8), [[[[], []]]], segment=4, window=1)
    rows = torch.tensor([[[1, 3], [5, -1]]], dtype=torch.int32)
    dense_lse = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]]])
    plan = sa.StripePlan(**{**vars(plan), "held_out": HeldOut(rows, dense_lse)})
    lse = torch.tensor([0.5, 0.25, 0.5, 0.75, 0.5, 2.0, 0.5, 0.5]).log()
    mass = plan.retained_mass(lse[None, None])
    expected = torch.tensor([[[[0.25, 0.75], [1.0, torch.nan]]]])
    torch.testing.assert_close(mass, expected, equal_nan=True)
    with pytest.raises(PlanMismatch):
        sa.StripePlan(**{**vars(plan), "held_out": None}).retained_mass(lse[None, None])


def test_repr():
    q, k, _ = make_qkv(100, 150, num_heads=3)
    text = repr(sa.select(q, k, "default"))
    assert text == (
        "StripePlan(N=1, H=3, Sq<=100, Skv<=150, segment=128, key_block=1, density=1.000)"
    )
    assert "segment=all" in repr(sa.select(q, k, "paper"))
    assert "key_block=128" in repr(sa.select(q, k, "mlsys"))
    assert "..." not in repr(SampleAttentionConfig())


def test_render_draws_every_pair_of_a_small_plan():
    plan = make_plan(uniform(8, 8), [[[[], [0]]]], segment=4, window=2, window_alignment=4)
    drawn = render(plan)
    expected = [line.replace(".", " ").rstrip() for line in picture(plan)]
    assert drawn.splitlines() == expected


def test_render_shades_the_share_of_pairs():
    sequences = uniform(256, 256)
    full = render(make_plan(sequences, [[[[-1]]]], segment=256, window=1), size=16).splitlines()
    assert [len(line) for line in full] == list(range(1, 17))
    assert set("".join(full)) == {"#"}
    thin = render(make_plan(sequences, [[[[7]]]], segment=256, window=1), size=16).splitlines()
    assert thin[-1][0] == "."  # one key of sixteen
    assert thin[-1][1:-1].strip() == ""
    assert set("".join(thin)) <= set(SHADES)
    assert len(render(make_plan(sequences, [[[[7]]]], segment=256, window=1)).splitlines()) == 48


def test_render_of_a_cached_prefix_and_of_a_padded_batch():
    q, k, _ = make_qkv(40, 100, batch=2)
    sequences = Sequences.left_padded(torch.tensor([100, 30]), 40, 100)
    plan = sa.select(q, k, sequences=sequences)
    assert len(render(plan, 0, 1, size=10).splitlines()) == 10
    assert len(render(plan, 1, 0).splitlines()) == 30


@pytest.mark.parametrize("stride", [1, 2, 7, 8])
@pytest.mark.parametrize("span", [(0, 40), (5, 9), (13, 14), (8, 40)])
def test_strided_rows_are_tied_to_positions(span, stride):
    rows = strided_rows(*span, stride).tolist()
    assert rows == [p for p in range(*span) if p % stride == stride // 2]


@pytest.mark.parametrize("chunks", [1, 2, 3, 500, 2**30])
@pytest.mark.parametrize("span", [(0, 400), (37, 300), (10, 11)])
def test_chunk_tails(span, chunks):
    offset, kv_len = span
    q_len = kv_len - offset
    expected = []
    for c in range(min(chunks, 500)):
        end = offset + (c + 1) * q_len // min(chunks, 500)
        start = offset + c * q_len // min(chunks, 500)
        if end > start:
            expected.append(list(range(max(start, end - 128), end)))
    assert [rows.tolist() for rows in chunk_tail_rows(offset, kv_len, chunks)] == expected


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("count", [0, 1, 4, 100, 2**30])
def test_held_out_rows_are_unsampled_and_spread(count, stride):
    config = preset("default", held_out_rows=count, sample_stride=stride)
    rows = held_out_rows(128, 256, config)
    assert len(rows) == min(count, 128 - 128 // stride)
    assert (rows.diff() > 0).all()
    assert (rows % stride != stride // 2).all()
    assert not len(rows) or (rows.min() >= 128 and rows.max() < 256)


def test_held_out_rows_where_every_row_is_sampled():
    config = preset("pooled", held_out_rows=4, sample_stride=1, ranking=SampledRows())
    assert len(held_out_rows(0, 128, config)) == 4


def test_sequences_of_each_layout():
    padded = Sequences.left_padded(torch.tensor([5, 3, 1]), 4, 5)
    assert padded.rows() == [(0, 0, 4, 0, 5), (1, 1, 3, 2, 3), (2, 3, 1, 4, 1)]
    assert (padded.max_q_len, padded.max_kv_len, padded.packed) == (4, 5, False)
    packed = Sequences.packed_from(torch.tensor([0, 2, 5]), torch.tensor([0, 4, 7]))
    assert packed.rows() == [(0, 0, 2, 0, 4), (0, 2, 3, 4, 3)]
    assert (packed.max_q_len, packed.max_kv_len, packed.packed) == (3, 4, True)
    assert uniform(3, 7).rows() == [(0, 0, 3, 0, 7)]
