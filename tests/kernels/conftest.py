"""When a selection in low precision is the right one."""

import math

import pytest
import torch

from sample_attention import (
    MlsysConfig,
    PooledQueries,
    QueryMoments,
    SampleAttentionConfig,
    reference,
)
from sample_attention.config import BINS_PER_OCTAVE, WINDOW_ALIGNMENT, with_fields
from sample_attention.reference import default
from sample_attention.testing import plan_masks


@pytest.fixture
def assert_selected():
    """Check a plan against `reference.select` in fp64, up to what rounding may turn.

    Kept are no fewer pairs than the reference keeps for a coverage one rounding lower, and no more
    than for one rounding higher. Beyond that only columns whose ranks lie within one bin of each
    other may differ, which is where a rounded rank falls into the next bin.
    """
    return _assert_selected


def _assert_selected(plan, q, k, config, n=0):
    """For sequence `n` of the plan: q `[H, Sq, D]` and k `[Hkv, Skv, D]`."""
    q, k, rounding = q.cpu().double(), k.cpu().double(), torch.finfo(q.dtype).eps / 2
    given, expected = plan_masks(plan, n).cpu(), reference.select(q, k, config)
    if torch.equal(given, expected):
        return
    sums = k.shape[1] * torch.finfo(torch.float32).eps
    by_segment = isinstance(config, SampleAttentionConfig)
    if by_segment:  # masses are stored in bf16
        sums += torch.finfo(torch.bfloat16).eps * (1 - config.coverage)
    fewest, most = (reference.select(q, k, _covering(config, x)) for x in (1 - sums, 1 + sums))
    wrong = (given & ~most) | (fewest & ~given)
    assert by_segment or not wrong.any(), f"{int(wrong.sum())} pairs"
    segment = torch.arange(k.shape[1] - q.shape[1], k.shape[1]) // config.segment
    for h, g in {(h, int(segment[i])) for h, i in wrong.any(-1).nonzero().tolist()}:
        rows, keys = q[h, segment == g], k[h * len(k) // len(q)]
        moments = isinstance(config.ranking, QueryMoments)
        largest = _largest_exponent(rows, keys, moments=moments)
        step = (1 + 1 / BINS_PER_OCTAVE) * math.exp(2 * rounding * largest + sums)
        ranks = _ranks(q[h], keys, segment == g, config)
        ranks = ranks[wrong[h, segment == g].any(0)]
        assert ranks.max() <= ranks.min() * step, (
            f"head {h}, segment {g}: {len(ranks)} columns of ranks {ranks.min()} to {ranks.max()}"
        )


def _largest_exponent(q, k, *, moments):
    """Bounds what is rounded: products of a query, or of a mean and a variance, with a key."""
    factor = q.shape[-1] ** -0.5
    largest = factor * q.norm(dim=-1).max() * k.norm(dim=-1).max()
    if moments:
        largest = largest + factor**2 * (k.square() @ q.var(0, unbiased=False)).max()
    return float(largest)


def _covering(config, factor):
    shares = {"coverage": min(1.0, config.coverage * factor)}
    if isinstance(config, MlsysConfig):
        shares["slash_coverage"] = min(1.0, config.slash_coverage * factor)
    return with_fields(config, **shares)


def _ranks(q, k, rows, config):
    """What the reference ranks columns by, for the rows of one segment."""
    p = torch.arange(len(k) - len(q), len(k))[:, None]
    align = min(config.segment, WINDOW_ALIGNMENT)
    edge = p // align * align - config.window
    outside = (torch.arange(len(k)) <= edge)[rows]
    if isinstance(config.ranking, QueryMoments):
        return torch.exp(reference.rank_exponent(q[rows], k, int(outside[0].sum()))) * outside[0]
    if isinstance(config.ranking, PooledQueries):
        return default._pooled_rank(q[rows], k, p[rows], outside, config.ranking.rows, None)
    probability = reference.probabilities(q[None], k[None])[0, rows] * outside
    return probability[(p[rows, 0] % config.sample_stride) == config.sample_stride // 2].mean(0)
