"""Selection by the Triton kernels, in Triton's interpreter; `make test` runs this on its own."""

import importlib

import pytest
import torch

import sample_attention as sa
from sample_attention import SampleAttentionConfig, SampledRows, Sequences, preset
from sample_attention.config import with_fields
from sample_attention.errors import UnsupportedProblem
from sample_attention.plan import segment_starts
from sample_attention.testing import (
    assert_matches_oracle,
    make_pages,
    make_qkv,
    nan_poison,
    split_sequences,
)

pytestmark = pytest.mark.interpreted

Q_ENDS, KV_ENDS = torch.tensor([0, 70, 75, 165, 166]), torch.tensor([0, 70, 160, 400, 440])
"""A whole prompt, rows within a segment, a cached prefix with cut segments, one row."""

SMALL = {"dense_prefix": 0, "dense_tail": 0, "segment": 64, "sample_stride": 8, "window": 40}
POOLED, MOMENTS = preset("pooled", rows=16, **SMALL), preset("default", tighten_below=None, **SMALL)
HEADS = (0.4, 0.97)
SEGMENTS = {
    "segments of 64": {},
    "segments of 16": {"segment": 16, "sample_stride": 4, "rows": 8, "window": 16},
    "segments of 96": {"segment": 96, "rows": 32, "window": 33},
    "segments of 256": {"segment": 256, "rows": 64},
    "two tiles of sampled rows": {
        "segment": 256,
        "sample_stride": 1,
        "ranking": SampledRows(),
        "window": 3,
    },
    "two tiles of mean queries": {"segment": 384, "rows": 2, "window": 9},
    "one row sampled": {"sample_stride": 64},
    "pool is the segment": {"rows": 64},
    "sampled rows rank": {"ranking": SampledRows()},
    "coverage low": {"coverage": 0.5},
    "less is lost of few columns": {"coverage": 0.5, "tighten_below": 400},
    "coverage high": {"coverage": 0.999, "dense_above": 1.0},
    "window of one": {"window": 1},
    "window beyond the prompt": {"window": 5000},
    "dense prefix within a segment": {"dense_prefix": 140},
    "dense tail": {"dense_tail": 30},
    "dense above little": {"dense_above": 0.1},
    "held out": {"held_out_rows": 5},
    "a coverage for each head": {"heads": HEADS, "window": 20},
}
BY_MOMENTS = {
    "moments": {"sampled_keys": 16},
    "moments, segments of 128": {"segment": 128, "sampled_keys": 32, "sample_stride": 2},
    "moments, segments of 32": {"segment": 32, "sampled_keys": 20, "sample_stride": 1},
    "moments, segments of 16": {"segment": 16, "sampled_keys": 16, "sample_stride": 4},
    "moments, every column": {"sampled_keys": 512},
    "moments, coverage low": {"coverage": 0.4, "sampled_keys": 16, "window": 1},
    "moments, coverage high": {"coverage": 0.999, "dense_above": 1.0, "sampled_keys": 16},
    "moments, dense prefix": {"dense_prefix": 140, "sampled_keys": 16},
    "moments, held out": {"held_out_rows": 5, "sampled_keys": 16},
    "moments, a coverage for each head": {"heads": HEADS, "sampled_keys": 16, "window": 9},
    "moments, no farthest rows": {"farthest_rows": 0, "sampled_keys": 16, "window": 16},
    "moments, three farthest rows": {
        "farthest_rows": 3,
        "sampled_keys": 16,
        "coverage": 0.6,
        "window": 5,
    },
    "moments, most farthest rows": {
        "farthest_rows": 16,
        "sampled_keys": 16,
        "coverage": 0.6,
        "window": 1,
    },
    "moments, nothing but peaks": {
        "coverage": 1e-6,
        "sampled_keys": 16,
        "farthest_rows": 4,
        "run_share": None,
        "window": 2,
    },
    "moments, less is lost of few columns": {
        "tighten_below": 700,
        "sampled_keys": 16,
        "coverage": 0.4,
    },
    "moments, nothing but runs": {
        "coverage": 1e-6,
        "sampled_keys": 16,
        "run_share": 1 / 64,
        "window": 2,
    },
    "moments, runs of half a row's mass": {
        "coverage": 0.3,
        "sampled_keys": 16,
        "run_share": 0.5,
        "window": 7,
    },
}
PAPER = {
    "paper": {},
    "paper, many tiles": {"sample_stride": 1, "coverage": 0.6},
    "paper, rows strided by 7": {"sample_stride": 7, "dense_tail": 3},
    "paper, no row sampled": {"sample_stride": 2000},
    "paper, window of one key": {"window_ratio": 1e-6, "sample_stride": 5, "coverage": 0.7},
    "paper, held out": {"held_out_rows": 7},
}
MLSYS = {
    "mlsys": {},
    "mlsys, blocks of 64": {"key_block": 64, "coverage": 0.5, "slash_coverage": 0.5},
    "mlsys, near all": {"key_block": 32, "coverage": 0.97, "slash_coverage": 0.9},
    "mlsys, blocks of 16": {
        "key_block": 16, "coverage": 0.5, "slash_coverage": 0.5, "chunks": 1,
    },
}  # fmt: skip
CONFIGS = (
    {name: with_fields(POOLED, **fields) for name, fields in SEGMENTS.items()}
    | {name: with_fields(MOMENTS, **fields) for name, fields in BY_MOMENTS.items()}
    | {name: preset("paper", **fields) for name, fields in PAPER.items()}
    | {name: preset("mlsys", **fields) for name, fields in MLSYS.items()}
)
FEW = [
    "segments of 64", "two tiles of sampled rows", "moments", "paper, rows strided by 7",
    "mlsys, blocks of 64",
]  # fmt: skip


def select(q, k, config, **options):
    with nan_poison():
        return sa.select(q, k, config, backend="triton", **options)


def packed(*, seed=3, **options):
    """q, k and v `[T, H, D]`, and their sequences."""
    sizes = int(Q_ENDS[-1]), int(KV_ENDS[-1])
    qkv = make_qkv(*sizes, num_kv_heads=1, head_dim=16, seed=seed, **options)
    return *(x[0].transpose(0, 1) for x in qkv), Sequences.packed_from(Q_ENDS, KV_ENDS)


def lists_of(plan, n):
    """What sequence `n` keeps: a list, or None for dense, by head and segment."""
    _, _, q_len, _, kv_len = plan.sequences.rows()[n]
    segments = range(len(segment_starts(kv_len - q_len, kv_len, plan.segment)))
    return [
        [None if plan.dense[n, h, g] else plan.columns(n, h, g).tolist() for g in segments]
        for h in range(plan.num_heads)
    ]


def every_list(plan):
    return [lists_of(plan, n) for n in range(len(plan.sequences.table))]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_reference(assert_selected, name):
    q, k, _, sequences = packed()
    plan = select(q, k, CONFIGS[name], sequences=sequences)
    parts = split_sequences(q, sequences), split_sequences(k, sequences, keys=True)
    for n, (queries, keys) in enumerate(zip(*parts, strict=True)):
        assert_selected(plan, queries, keys, CONFIGS[name], n)
        for columns in (x for head in lists_of(plan, n) for x in head if x):
            assert columns == sorted(set(columns))


def test_configurations_select():
    """The cases above are neither all dense nor all equal."""
    q, k, _, sequences = packed()
    kept = [
        float(sa.select(q, k, config, sequences=sequences, backend="eager").density()[2].mean())
        for config in CONFIGS.values()
    ]
    assert sum(density < 0.9 for density in kept) > len(kept) / 2
    assert len(set(kept)) > len(kept) / 2


@pytest.mark.parametrize("name", ["default", "fast", "pooled", "paper", "mlsys"])
def test_presets_as_they_are(assert_selected, name):
    q, k, _ = make_qkv(1400, num_heads=1, head_dim=16)
    plan = select(q, k, name)
    assert_selected(plan, q[0], k[0], preset(name))
    assert plan.density().max() < 1


@pytest.mark.parametrize("name", FEW)
def test_half_precision(assert_selected, name):
    q, k, _ = make_qkv(150, 290, num_heads=2, num_kv_heads=1, dtype=torch.float16)
    assert_selected(select(q, k, CONFIGS[name]), q[0], k[0], CONFIGS[name])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(7, 1, 24), (2, 2, 80), (6, 2, 8)], ids=str)
def test_heads_and_head_dims(assert_selected, heads, kv_heads, dim):
    q, k, v = make_qkv(100, 170, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim)
    for name in FEW[::2]:
        plan = select(q, k, CONFIGS[name])
        assert_selected(plan, q[0], k[0], CONFIGS[name])
    out = sa.attend(q, k, v, plan, backend="triton").out
    assert_matches_oracle(out, None, q, k, v, plan)


@pytest.mark.parametrize("name", FEW)
def test_other_sequences_and_padding_change_nothing(name):
    q, k, _, sequences = packed()
    together = select(q, k, CONFIGS[name], sequences=sequences)
    parts = split_sequences(q, sequences), split_sequences(k, sequences, keys=True)
    for n, (queries, keys) in enumerate(zip(*parts, strict=True)):
        alone = select(queries[None], keys[None], CONFIGS[name])
        assert lists_of(alone, 0) == lists_of(together, n)
    padded = [
        torch.cat([x.new_full((1, len(x), 20, 16), torch.nan), x[None]], 2)
        for x in (parts[0][0], parts[1][0])
    ]
    again = select(*padded, CONFIGS[name], sequences=Sequences.left_padded(Q_ENDS[1:2], 90, 90))
    assert lists_of(again, 0) == lists_of(together, 0)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("page_size", [5])
def test_pages_change_nothing(page_size, name):
    q, k, v, sequences = packed()
    expected = select(q, k, CONFIGS[name], sequences=sequences)
    pages, _, paged = make_pages(k, v, sequences, page_size)
    assert every_list(select(q, pages, CONFIGS[name], sequences=paged)) == every_list(expected)


@pytest.mark.parametrize("name", ["segments of 64", "sampled rows rank", "moments"])
def test_chunks_of_a_prompt_change_nothing(name):
    q, k, _ = make_qkv(320, num_kv_heads=1, head_dim=16)
    whole = lists_of(select(q, k, CONFIGS[name]), 0)
    for first, stop in ((0, 128), (128, 320)):
        part = lists_of(select(q[:, :, first:stop], k[:, :, :stop], CONFIGS[name]), 0)
        assert part == [head[first // 64 : stop // 64] for head in whole]


def module(name):
    return importlib.import_module(f"sample_attention.selection.triton.{name}")


@pytest.mark.parametrize(
    "name", ["segments of 16", "two tiles of sampled rows", "moments, segments of 16"]
)
def test_groups_of_segments_change_nothing(monkeypatch, name):
    q, k, _, sequences = packed()
    expected = select(q, k, CONFIGS[name], sequences=sequences)
    monkeypatch.setattr(module("geometry"), "SCRATCH_BYTES", 1)
    together = 2 if CONFIGS[name].segment < 256 else 1
    monkeypatch.setattr(module("select"), "FILTERED_TOGETHER", together)
    monkeypatch.setattr(module("moments"), "RANKED_TOGETHER", 16)
    again = select(q, k, CONFIGS[name], sequences=sequences)
    assert every_list(again) == every_list(expected)


@pytest.mark.parametrize("tile", [16, 128])
@pytest.mark.parametrize("heads", [(3, 1), (6, 2), (7, 1)], ids=str)
def test_lists_that_share_probes_share_tiles(monkeypatch, assert_selected, heads, tile):
    """Of heads that share keys, and of segments side by side, whose distances may differ."""
    q, k, _ = make_qkv(200, 330, num_heads=heads[0], num_kv_heads=heads[1], head_dim=16)
    alone = select(q[:, :, 62:126], k[:, :, :256], CONFIGS["moments"])  # the second of four
    monkeypatch.setattr(module("sampled_mass"), "SAMPLED_TOGETHER", 2 * tile)
    plan = select(q, k, CONFIGS["moments"])
    assert_selected(plan, q[0], k[0], CONFIGS["moments"])
    assert [head[1:2] for head in lists_of(plan, 0)] == lists_of(alone, 0)


@pytest.mark.parametrize("runs", [1, 2, 16])
def test_sums_of_keys_are_joined(monkeypatch, assert_selected, runs):
    """Seven whole runs of keys, whose mean is far from zero."""
    monkeypatch.setitem(module("moments").CENTRES, "TILES", runs)
    q, k, _ = make_qkv(64, 1000, num_heads=2, num_kv_heads=1, head_dim=12)
    k += 2
    plan = select(q, k, CONFIGS["moments"])
    assert not plan.dense.any()
    assert_selected(plan, q[0], k[0], CONFIGS["moments"])


def test_heavy_probes_stand_for_themselves(assert_selected):
    """Column 31 holds nearly all mass and is a regular probe, which would stand for many."""
    config = CONFIGS["moments"]
    q, k, _ = make_qkv(64, 600, num_heads=2, num_kv_heads=1, head_dim=16)
    q[..., 0] = 3.0
    k[0, 0, 31, 0] = 16.0
    plan = select(q, k, config)
    assert not plan.dense.any()
    assert_selected(plan, q[0], k[0], config)
    assert all(31 in columns for head in lists_of(plan, 0) for columns in head)


@pytest.mark.parametrize("name", ["segments of 16", "two tiles of sampled rows"])
def test_normalisers_are_merged_from_chunks_of_the_keys(monkeypatch, assert_selected, name):
    monkeypatch.setattr(module("column_mass"), "LSE_CHUNK", 128)
    q, k, _ = make_qkv(300, num_kv_heads=1, head_dim=16)
    assert_selected(select(q, k, CONFIGS[name]), q[0], k[0], CONFIGS[name])


def test_rows_of_blocks_in_groups_change_nothing(monkeypatch):
    q, k, _, sequences = packed()
    config = CONFIGS["mlsys, blocks of 64"]
    expected = select(q, k, config, sequences=sequences)
    monkeypatch.setattr(module("published"), "ROWS_AT_ONCE", 1)
    assert every_list(select(q, k, config, sequences=sequences)) == every_list(expected)


@pytest.mark.parametrize("name", FEW)
def test_lists_beyond_the_room_become_dense(monkeypatch, name):
    q, k, _, sequences = packed()
    full = select(q, k, CONFIGS[name], sequences=sequences)
    room = int(full.counts.sum()) // 2
    monkeypatch.setattr(module("select"), "ALWAYS_LISTED", room)
    monkeypatch.setattr(module("select"), "LISTED_SHARE", 0.0)
    plan = select(q, k, CONFIGS[name], sequences=sequences)
    ends = full.offsets + full.counts
    assert len(plan.indices) == room
    assert torch.equal(plan.dense, full.dense | (ends > room))
    assert plan.dense.sum() > full.dense.sum()
    for n in range(4):
        for given, expected in zip(lists_of(plan, n), lists_of(full, n), strict=True):
            assert all(x is None or x == y for x, y in zip(given, expected, strict=True))


@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_what_is_not_finite_makes_dense(name, wrong):
    config = CONFIGS[name]
    q, k, _ = make_qkv(200, 330, num_heads=4, num_kv_heads=2, head_dim=16)
    expected = lists_of(select(q, k, config), 0)
    keys, queries = k.clone(), q.clone()
    keys[0, 1, 70, 3] = wrong
    queries[0, 1, 100, 3] = wrong  # position 230, which no row stride samples
    by_key, by_query = lists_of(select(q, keys, config), 0), lists_of(select(queries, k, config), 0)
    assert by_key[:2] == expected[:2]
    assert all(x is None for head in by_key[2:] for x in head)
    assert [by_query[0], *by_query[2:]] == [expected[0], *expected[2:]]
    rows = config.segment if isinstance(config, SampleAttentionConfig) else 1000  # all of the call
    segment = 230 // rows - 130 // rows
    assert by_query[1][segment] is None


def test_more_chunks_than_rows(assert_selected):
    config = preset("mlsys", key_block=64, coverage=0.5, chunks=64)
    q, k, _ = make_qkv(6, 200, num_heads=1, head_dim=16)
    assert_selected(select(q, k, config), q[0], k[0], config)


def test_short_sequences_take_no_room_of_long_ones():
    """Lists of blocks exist for as many rows of blocks as the longest sequence has."""
    q, k, _ = (x[0].transpose(0, 1) for x in make_qkv(330, num_heads=1, head_dim=16))
    sequences = Sequences.packed_from(torch.tensor([0, 20, 40, 330]))
    config = preset("mlsys", key_block=16, coverage=0.99)
    plan = select(q, k, config, sequences=sequences)
    assert plan.counts[2].sum() > len(plan.indices) / 2
    assert not plan.dense.any()


def test_coverage_of_one_is_dense():
    q, k, _, sequences = packed()
    for name in ("default", "pooled", "paper"):
        assert select(q, k, preset(name, coverage=1), sequences=sequences).dense.all()


@pytest.mark.parametrize("name", ["held out", "paper, held out"])
def test_held_out_rows(name):
    q, k, _, sequences = packed()
    held_out = select(q, k, CONFIGS[name], sequences=sequences).held_out
    expected = sa.select(
        q.double(), k.double(), CONFIGS[name], sequences=sequences, backend="eager"
    ).held_out
    assert torch.equal(held_out.rows, expected.rows)
    largest = q.norm(dim=-1).max() * k.norm(dim=-1).max()
    bound = torch.finfo(torch.float32).eps * float(largest)
    torch.testing.assert_close(held_out.lse.double(), expected.lse, atol=bound, rtol=0)


FAR = {"heads": (2**30 + 16, 16), "keys": (16, 2**24)}


@pytest.mark.parametrize("strides", FAR)
@pytest.mark.parametrize("name", FEW)
def test_offsets_beyond_32_bits(name, strides):
    """Memory that is never touched costs nothing: these tensors span 4 GiB."""
    qkv = make_qkv(20, 130, num_heads=3, head_dim=16, dtype=torch.float16)
    far = []
    for x in qkv:
        memory = torch.empty(2**31 + 2**26, dtype=torch.float16)
        far.append(memory.as_strided(x.shape, (0, *FAR[strides], 1)).copy_(x))
    q, k, v = far
    near, there = select(*qkv[:2], CONFIGS[name]), sa.select(q, k, CONFIGS[name], backend="triton")
    assert lists_of(there, 0) == lists_of(near, 0)
    expected = sa.attend(*qkv, near, backend="triton")
    assert torch.equal(sa.attend(q, k, v, near, backend="triton").out, expected.out)


@pytest.mark.parametrize(("keys", "words"), [(None, "sampled_keys=None"), (8192, "keys=8192")])
def test_sampled_keys_have_a_bound(keys, words):
    q, k, _ = make_qkv(100)
    config = preset("default", sampled_keys=keys)
    with pytest.raises(UnsupportedProblem, match=words):
        sa.select(q, k, config, backend="triton")
