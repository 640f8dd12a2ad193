"""Our rule: every segment its own columns; queries rank them, exact rows count.

It shares no code with the engines.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import (
    BINS_PER_OCTAVE,
    CENTRE_STRIDE,
    HIGHEST_RANK,
    LOWEST_OCTAVE,
    LOWEST_RANK,
    MOST_HEAVY,
    PEAK,
    RUN,
    SPREAD_SHARE,
    WINDOW_ALIGNMENT,
    PooledQueries,
    QueryMoments,
    SampleAttentionConfig,
)
from .attend import per_head, positions, probabilities, sampled


def select_default(
    q: Tensor, k: Tensor, rule: SampleAttentionConfig, scale: float | None = None
) -> Tensor:
    """The mask that the rule selects: bool `[H, Sq, Skv]`.

    A key is kept in the window, in segments of the dense prefix and tail, and in the columns of
    the row's segment.
    """
    (p, j), kv_len, segment = positions(q, k), k.shape[1], rule.segment
    causal = (j <= p).expand(q.shape[0], -1, -1)
    if rule.dense:
        return causal
    align = min(segment, WINDOW_ALIGNMENT)
    window = causal & (j > p // align * align - rule.window)
    in_tail = torch.isin(p // segment, (p // segment)[p >= kv_len - rule.dense_tail])
    always = in_tail | ((p // segment + 1) * segment <= rule.dense_prefix)
    return causal & (window | always | _columns(q, k, window[0], rule, scale))


def _columns(
    q: Tensor, k: Tensor, window: Tensor, rule: SampleAttentionConfig, scale: float | None
) -> Tensor:
    """The columns of each row's segment: bool `[H, Sq, Skv]`."""
    (p, j), prob, keys = positions(q, k), probabilities(q, k, scale), per_head(k, q)
    keep = torch.zeros_like(prob, dtype=torch.bool)
    segment = (p // rule.segment)[:, 0]
    shares = rule.budget.heads or (rule.coverage,) * len(q)
    for g in segment.unique():
        rows = segment == g
        outside = (~window & (j <= p))[rows]  # a row's keys that only a list can keep
        selectable = outside.any(0)
        exact_rows = sampled(p[rows], rule.sample_stride)
        for h, share in enumerate(shares):
            if not bool(exact_rows.any()):
                keep[h, rows] = True
            elif isinstance(rule.ranking, QueryMoments):
                keep[h, rows] = _by_moments(
                    q[h, rows], keys[h], p[rows, 0], outside[0], rule, share, scale
                )
            else:
                exact = rank = (prob[h, rows] * outside)[exact_rows].mean(0)
                if isinstance(rule.ranking, PooledQueries):
                    pool = rule.ranking.rows
                    rank = _pooled_rank(q[h, rows], keys[h], p[rows], outside, pool, scale)
                keep[h, rows] = _filter(_bin(rank), exact, selectable, rule, share)
    return keep


def _filter(
    bins: Tensor, exact: Tensor, selectable: Tensor, rule: SampleAttentionConfig, share: float,
    peaks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Stage 2: columns by bin of rank until window and columns hold `share` of the mass."""
    need = _need(exact, selectable, rule, share)
    chosen = selectable & _smallest_bins(bins, exact * selectable, need)
    if peaks is not None:
        chosen |= selectable & peaks
    if chosen.sum() > rule.dense_above * selectable.sum():
        return torch.ones_like(selectable)
    return chosen


def _need(exact: Tensor, selectable: Tensor, rule: SampleAttentionConfig, share: float) -> float:
    if rule.budget.tighten_below is not None:
        fewer = min(1.0, float(selectable.sum()) / rule.budget.tighten_below)
        share = 1 - (1 - share) * math.sqrt(fewer)
    return share - (1 - float((exact * selectable).sum()))


def _pooled_rank(
    q: Tensor, k: Tensor, p: Tensor, outside: Tensor, rows_of_pool: int,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """Mean over pools of the softmax of the pool's mean query, on keys that all its rows see."""
    pool = (p // rows_of_pool)[:, 0]
    ranks: list[Tensor] = []
    for i in pool.unique():
        rows = pool == i
        mean = q[rows].mean(0) * (q.shape[-1] ** -0.5 if scale is None else scale)
        first = int(p[rows].min())
        hidden = torch.arange(len(k), device=k.device) > first
        scores = (k @ mean).masked_fill(hidden, -math.inf)
        ranks.append(torch.softmax(scores, -1) * outside[rows].all(0))
    return torch.stack(ranks).mean(0)


def _by_moments(
    q: Tensor, k: Tensor, p: Tensor, selectable: Tensor, rule: SampleAttentionConfig,
    share: float, scale: float | None,
) -> Tensor:  # fmt: skip
    """Mean and variance of the queries rank, exact rows count on sampled columns.

    Sampled are columns at equal distances, each standing for `step`, and heavy ones, of more than
    one in MOST_HEAVY of the sum of all ranks, which the former tell. Peaks are kept as well,
    columns of more than one in PEAK of the mass of a farthest row, and runs around high ones.
    """
    ranking = rule.ranking
    if not isinstance(ranking, QueryMoments):
        raise TypeError(f"not ranked by moments: {rule!r}")
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    count, most = int(selectable.sum()), ranking.sampled_keys or len(k)
    if count == 0:
        return selectable
    step = 1
    while step * most < count:
        step *= 2
    j = torch.arange(len(k), device=k.device)
    regular = selectable & ((j + 1) % step == 0)
    exponent = rank_exponent(q, k, count, scale)
    octave = torch.floor(exponent / math.log(2) * BINS_PER_OCTAVE)  # one bin, one value
    top = octave[regular].max()
    total = step * torch.exp2((octave[regular] - top) / BINS_PER_OCTAVE).sum()
    heavy_from = top + torch.ceil(BINS_PER_OCTAVE * torch.log2(total / MOST_HEAVY))
    bins = (octave - heavy_from).clamp(LOWEST_RANK, HIGHEST_RANK)
    heavy = selectable & (bins >= 0)
    if step > 1 and heavy.sum() > 2 * MOST_HEAVY:
        return torch.ones_like(selectable)
    weight = torch.where(heavy, 1.0, step * regular.double()) * selectable

    rows = sampled(p[:, None], rule.sample_stride)
    scores = factor * q[rows] @ k.T
    scores = scores.masked_fill(j > p[rows, None], -math.inf)
    weighted = scores + torch.log(torch.where(selectable, weight, 1.0))
    lse = torch.logsumexp(weighted, -1, keepdim=True)
    exact = torch.exp(weighted - lse).mean(0) * selectable
    farthest = _farthest_rows(q[rows], ranking.farthest_rows)
    shares = torch.exp(scores - lse)[farthest] * selectable
    peaks = (shares > 1 / PEAK).any(0)
    if ranking.run_share is not None:
        peaks |= _runs((shares > ranking.run_share).any(0))
    return _filter(bins, exact, selectable, rule, share, peaks)


def _runs(high: Tensor) -> Tensor:
    """Blocks of RUN columns that hold a high peak, and those beside; the first holds none."""
    block = torch.arange(len(high), device=high.device) // RUN
    of_high = block[high & (block > 0)]
    return torch.isin(block, torch.cat([of_high - 1, of_high, of_high + 1]))


def _farthest_rows(q: Tensor, count: int) -> list[int]:
    """Rows of q `[R, D]` farthest from the mean row, and from those chosen before."""
    distance = (q - q.mean(0)).square().sum(-1)
    rows: list[int] = []
    for _ in range(count):
        rows.append(int(distance.argmax()))
        distance = torch.minimum(distance, (q - q[rows[-1]]).square().sum(-1))
    return rows


def rank_exponent(q: Tensor, k: Tensor, count: int, scale: float | None = None) -> Tensor:
    """What ranks a key for the rows of q `[R, D]`, as a logarithm: k `[Skv, D]` to `[Skv]`.

    scale mu.k + SPREAD_SHARE scale^2 / 2 sum_d var_d ((k_d - c_d)^2 - c_d^2), of the rows' mean and
    variance and the centre c of the `count` keys to choose from. With a share of 1 it would be the
    log of the mean of exp(scale q.(k - c)) over normal queries, but for what is the same for all k.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    half = SPREAD_SHARE * factor**2 / 2
    mean, variance = q.mean(0), q.var(0, unbiased=False)
    centred = factor * mean - 2 * half * variance * _centre(k, count)
    return k @ centred + half * (k.square() @ variance)


def _centre(k: Tensor, count: int) -> Tensor:
    """Mean of one in CENTRE_STRIDE of the first `count` keys, as far as whole runs of them go."""
    whole = count // WINDOW_ALIGNMENT * WINDOW_ALIGNMENT
    sampled = k[CENTRE_STRIDE - 1 : whole : CENTRE_STRIDE]
    return sampled.mean(0) if len(sampled) else torch.zeros_like(k[0])


def _smallest_bins(bins: Tensor, mass: Tensor, need: float) -> Tensor:
    """The fewest whole bins, from the highest, whose mass reaches `need`: bool mask."""
    order = bins.argsort(descending=True, stable=True)
    keep = torch.zeros_like(mass, dtype=torch.bool)
    reached = 0.0
    for c in bins[order].unique_consecutive():
        if reached >= need:
            break
        keep |= bins == c
        reached = float(mass[keep].sum())
    return keep


def _bin(rank: Tensor) -> Tensor:
    """floor(8 (m - 1)) + 8 e of rank = m 2^e, 1 <= m < 2: the exponent and three mantissa bits."""
    mantissa, exponent = torch.frexp(rank.float())
    steps = torch.floor((2 * mantissa - 1) * BINS_PER_OCTAVE)
    lowest = LOWEST_OCTAVE * BINS_PER_OCTAVE
    bins = (exponent - 1) * BINS_PER_OCTAVE + steps
    return torch.where(rank > 0, bins, lowest).clamp(min=lowest)
