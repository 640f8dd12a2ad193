"""The least work of each kernel: products, exponentials and bytes, as formulas of the shapes.

Bytes count every tensor once, however often a kernel reads it: a cache may hold the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import (
    CENTRE_STRIDE,
    WINDOW_ALIGNMENT,
    Config,
    MlsysConfig,
    PaperConfig,
    PooledQueries,
    QueryMoments,
    SampleAttentionConfig,
)
from ..plan import StripePlan, segment_starts
from ..selection.geometry import moments_of, plan_form, stride_of, window_edges, window_for
from ..selection.rows import chunk_tail_rows, held_out_rows, strided_rows
from ..selection.sampled_keys import key_step
from .inputs import Inputs

BIT_BYTES, FLAG_BYTES, BIN_BYTES, BF16_BYTES, ENTRY_BYTES, FP32_BYTES = 1 / 8, 1, 1, 2, 4, 4


@dataclass(frozen=True)
class Rates:
    """Operations per second.

    Attributes:
        flops: floating-point operations of a large matrix product, as measured.
        exps: exponentials, by the number of SMs and the highest clock.
        bytes: read or written by a large copy, as measured.
    """

    flops: float
    exps: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """Least work of a kernel.

    Attributes:
        flops: floating-point operations of matrix products.
        exps: exponentials.
        bytes: read and written.
    """

    flops: float = 0.0
    exps: float = 0.0
    bytes: float = 0.0

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Time of each term alone; the largest is the floor."""
        return {
            "tensor": self.flops / rates.flops,
            "exp": self.exps / rates.exps,
            "bandwidth": self.bytes / rates.bytes,
        }


@dataclass(frozen=True)
class Call:
    """Sizes of a self-attention call that every formula needs.

    Attributes:
        heads: query heads of all sequences together.
        kv_heads: key/value heads of all sequences together.
        length: S.
        head_dim: D.
        element: bytes of an element of q.
        config: the rule of the selection.
    """

    heads: int
    kv_heads: int
    length: int
    head_dim: int
    element: int
    config: Config

    @classmethod
    def of(cls, inputs: Inputs, config: Config) -> Call:
        """The sizes of these inputs."""
        batch, heads, length, head_dim = inputs.q.shape
        return cls(
            batch * heads, batch * inputs.k.shape[1], length, head_dim, inputs.q.element_size(),
            config,
        )  # fmt: skip

    @property
    def q_bytes(self) -> float:
        """Bytes of q, or of out."""
        return self.heads * self.row_bytes * self.length

    @property
    def k_bytes(self) -> float:
        """Bytes of k, or of v."""
        return self.kv_heads * self.row_bytes * self.length

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of q or k."""
        return self.head_dim * self.element


def work_of_selection(call: Call, plan: StripePlan) -> dict[str, Work]:
    """The work of every kernel of `select`, by the name that records give it.

    Args:
        call: sizes and rule.
        plan: what was selected; its lists have to be written.
    """
    config, listed = call.config, listed_columns(call)
    exact, entries = exact_positions(call), int(plan.counts.sum())
    ranking = config.ranking if isinstance(config, SampleAttentionConfig) else None
    queries = 0.0 if isinstance(ranking, (QueryMoments, PooledQueries)) else call.q_bytes
    flagged = BIT_BYTES if isinstance(ranking, QueryMoments) else BIN_BYTES + BIT_BYTES
    found = {
        "finite_check": Work(bytes=call.k_bytes + queries),
        "place_compact": Work(bytes=call.heads * listed * flagged + entries * ENTRY_BYTES),
    }
    if not isinstance(ranking, QueryMoments):
        found["row_lse_rows"] = row_lse(call, exact)
    if config.check.held_out_rows:
        found["row_lse_held_out"] = row_lse(call, _held_out_positions(call))
    if isinstance(config, MlsysConfig):
        blocks = len(exact) // 128 * -(-call.length // config.key_block)
        found["block_mass"] = _mass(call, exact, exact + 1, 2 * FP32_BYTES * blocks)
        return found
    if isinstance(config, PaperConfig):
        found["column_mass"] = _mass(call, exact, exact + 1, FP32_BYTES * call.length)
        mass_and_flags = (FP32_BYTES + FLAG_BYTES) * call.heads * call.length
        found["torch_operators"] = Work(bytes=mass_and_flags)
        return found
    if isinstance(ranking, QueryMoments):
        return found | _work_by_moments(call, ranking, listed)
    found["threshold"] = Work(bytes=call.heads * listed * (BIN_BYTES + BF16_BYTES))
    counted = edges_in_call(call, exact)
    if not isinstance(ranking, PooledQueries):
        found["mass_and_class_pass"] = _mass(call, exact, counted, 3 * listed)
        return found
    means = torch.arange(0, call.length, ranking.rows, device="cpu")
    found["mean_queries"] = Work(bytes=call.q_bytes + call.heads * len(means) * call.row_bytes)
    found["row_lse_means"] = row_lse(call, means)
    found["class_pass"] = _mass(call, means, edges_in_call(call, means), BIN_BYTES * listed)
    found["mass_pass"] = _mass(call, exact, counted, BF16_BYTES * listed)
    return found


def _work_by_moments(call: Call, ranking: QueryMoments, listed: int) -> dict[str, Work]:
    """Heavy columns and peaks are not counted: how many there are is not known here."""
    means = 2 * call.heads * len(_segments(call)) * call.row_bytes
    columns, d = call.heads * listed, call.head_dim
    keys, on_keys, near = (call.heads * x for x in sampled_pairs(call))
    sampled_bytes = call.q_bytes / (stride_of(call.config) or 1)
    read = call.k_bytes + sampled_bytes
    rows = FP32_BYTES * call.heads * len(exact_positions(call))
    runs = call.length // WINDOW_ALIGNMENT * call.kv_heads * call.head_dim * FP32_BYTES
    return _work_of_farthest_rows(call, ranking) | {
        "key_sums": Work(bytes=call.k_bytes / CENTRE_STRIDE + runs),
        "moments": Work(bytes=call.q_bytes + means),
        "rank_probes": Work(4 * d * keys, keys, means),
        "rank_pass": Work(
            4 * d * columns, 0, call.k_bytes + means + (BIN_BYTES + BIT_BYTES) * columns
        ),
        "heavy_lse": Work(bytes=BIT_BYTES * columns + sampled_bytes + 2 * rows),
        "probe_lse": Work(2 * d * (on_keys + near), on_keys + near, read + 3 * rows),
        "probe_mass": Work(2 * d * on_keys, on_keys, read + rows + FP32_BYTES * keys),
        "decide": Work(bytes=rows + FP32_BYTES * keys + (BIN_BYTES + BIT_BYTES) * columns),
    }


def _work_of_farthest_rows(call: Call, ranking: QueryMoments) -> dict[str, Work]:
    """Choosing the farthest rows among those that are sampled, and scoring them on all columns."""
    if not ranking.farthest_rows:
        return {}
    rows = call.heads * ranking.farthest_rows * len(_segments(call))
    pairs = call.heads * farthest_pairs(call)
    written = 2 * BIT_BYTES * call.heads * listed_columns(call)  # peaks, and those of runs
    return {
        "outlier_rows": Work(bytes=call.q_bytes / (stride_of(call.config) or 1)),
        "peaks": Work(2 * call.head_dim * pairs, 0, call.k_bytes + rows * call.row_bytes + written),
    }


def farthest_pairs(call: Call) -> float:
    """Pairs of the farthest rows of one head and the columns that their segments choose from."""
    return float(moments_of(call.config).farthest_rows * listed_columns(call))


def sampled_pairs(call: Call) -> tuple[float, float, float]:
    """Sampled keys of one head's segments; pairs that exact rows score on them, and near rows."""
    ranking, keys, on_keys, near = moments_of(call.config), 0, 0, 0
    exact = exact_positions(call)
    for lo, hi in _segments(call):
        left = int(edges_in_call(call, torch.tensor([hi - 1], device="cpu")))
        regular = left // key_step(left, ranking.sampled_keys)
        rows = int(((exact >= lo) & (exact < hi)).sum())
        keys, on_keys, near = keys + regular, on_keys + rows * regular, near + rows * (hi - left)
    return float(keys), float(on_keys), float(near)


def row_lse(call: Call, positions: Tensor) -> Work:
    """Normalisers of rows: each scores the keys up to its position; all share one reading of K."""
    return _mass(call, positions, positions + 1, FP32_BYTES * len(positions))


def attention(call: Call, pairs: float, entries: int = 0) -> Work:
    """Attending to `pairs` of all heads together: two products and one exponential for each.

    Args:
        call: sizes.
        pairs: causal pairs that are computed.
        entries: of lists that say which.
    """
    tensors = 2 * (call.q_bytes + call.k_bytes)
    lse = FP32_BYTES * call.heads * call.length
    return Work(4 * call.head_dim * pairs, pairs, tensors + lse + ENTRY_BYTES * entries)


def causal_pairs(call: Call) -> float:
    """Pairs of dense causal attention, of all heads together."""
    return call.heads * call.length * (call.length + 1) / 2


def exact_positions(call: Call) -> Tensor:
    """Positions of the rows that are scored exactly: int64 `[R]`."""
    config = call.config
    if isinstance(config, MlsysConfig):
        return torch.cat(chunk_tail_rows(0, call.length, config.chunks))
    return strided_rows(0, call.length, stride_of(config) or 1)


def edges_in_call(call: Call, positions: Tensor) -> Tensor:
    """How many keys lie left of the window of each row."""
    config = call.config
    return window_edges(
        positions, window_for(config, call.length), plan_form(config).window_alignment
    )


def listed_columns(call: Call) -> int:
    """Columns, or blocks of them, that one head's lists can hold, all segments together."""
    config = call.config
    last = torch.tensor([hi - 1 for _, hi in _segments(call)], device="cpu")
    if not isinstance(config, SampleAttentionConfig):
        return int((last // plan_form(config).key_block + 1).sum())
    return int(edges_in_call(call, last).sum())


def _segments(call: Call) -> list[tuple[int, int]]:
    return segment_starts(0, call.length, plan_form(call.config).segment)


def _held_out_positions(call: Call) -> Tensor:
    return torch.cat([held_out_rows(lo, hi, call.config) for lo, hi in _segments(call)])


def _mass(call: Call, rows: Tensor, keys: Tensor, written: float) -> Work:
    """Scoring rows `[R]` against the first `keys` `[R]` keys; `written` bytes per head."""
    pairs = call.heads * float(keys.sum())
    read = call.k_bytes + call.heads * len(rows) * call.row_bytes
    return Work(2 * call.head_dim * pairs, pairs, read + call.heads * written)
