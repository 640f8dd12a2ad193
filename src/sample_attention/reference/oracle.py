"""The algorithm on one page: dense, explicit masks, any dtype (the tests run it in fp64).

One sequence at a time: q `[H, Sq, D]`, k and v `[Hkv, Skv, D]`, masks bool `[H, Sq, Skv]`.
This file is the oracle of every test. It shares no code with the backends.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..config import (
    CENTRE_STRIDE,
    CLASSES_PER_OCTAVE,
    HIGHEST_RANK,
    LOWEST_OCTAVE,
    LOWEST_RANK,
    MOST_HEAVY,
    PEAK,
    RUN,
    SPREAD_SHARE,
    WINDOW_ALIGNMENT,
    SampleAttentionConfig,
)


def probabilities(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Dense causal softmax P = softmax(q k^T scale), bottom-right aligned: `[H, Sq, Skv]`."""
    return torch.softmax(_scores(q, k, scale), dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax renormalised over the kept pairs: out `[H, Sq, D]` and natural lse `[H, Sq]`.

    A row that keeps nothing gives zeros and an lse of -inf. Where v has another dtype than q and
    k, the softmax is rounded to it before it meets the values.
    """
    scores = _scores(q, k, scale).masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    kept = torch.exp(scores - lse[..., None]).masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return kept.to(v.dtype) @ _per_head(v, q), lse


def retained_mass(q: Tensor, k: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Dense probability on the kept keys, per row: `[H, Sq]`; its minimum is the paper's CRA."""
    return (probabilities(q, k, scale) * mask).sum(-1)


def select(
    q: Tensor, k: Tensor, config: SampleAttentionConfig, scale: float | None = None
) -> Tensor:
    """The mask that the configuration selects: bool `[H, Sq, Skv]`."""
    q_len, kv_len = q.shape[1], k.shape[1]
    p = torch.arange(kv_len - q_len, kv_len, device=q.device)[:, None]
    j = torch.arange(kv_len, device=q.device)[None]
    causal = j <= p
    align = config.window_alignment
    window = causal & (j > p // align * align - config.window_for(kv_len))
    segment = config.segment or 2**62
    in_tail = p >= kv_len - config.dense_tail
    if config.segment is not None:
        in_tail = torch.isin(p // segment, (p // segment)[in_tail])
    always = in_tail | ((p // segment + 1) * segment <= config.dense_prefix)
    if config.dense:
        return causal.expand(q.shape[0], -1, -1)
    prob = probabilities(q, k, scale)
    if config.chunk_tails is not None:
        columns = _blocks(prob, p, j, config)
    elif config.segment is None:
        columns = _whole(prob, window, p, config)
    else:
        columns = _segments(q, k, prob, window, p, j, config, scale)
    return causal & (window | always | columns)


def _whole(prob: Tensor, window: Tensor, p: Tensor, config: SampleAttentionConfig) -> Tensor:
    """v1: one set of columns for every row, from rows at equal distances."""
    sampled = _sampled(p, config)
    if not bool(sampled.any()):
        return torch.ones_like(prob, dtype=torch.bool)
    mass = prob[:, sampled].mean(1)
    counted = (prob * ~window)[:, sampled].mean(1) if config.residual else mass
    need = config.coverage - (1 - counted.sum(-1))
    keep = torch.stack([_smallest_set(m, m, x) for m, x in zip(counted, need, strict=True)])
    return keep[:, None].expand_as(prob)


def _segments(
    q: Tensor, k: Tensor, prob: Tensor, window: Tensor, p: Tensor, j: Tensor,
    config: SampleAttentionConfig, scale: float | None,
) -> Tensor:  # fmt: skip
    """Ours: every segment its own columns; mean queries rank, exact rows count."""
    keep = torch.zeros_like(prob, dtype=torch.bool)
    segment = (p // (config.segment or 1))[:, 0]
    for g in segment.unique():
        rows = segment == g
        outside = (~window & (j <= p))[rows]  # a row's keys that only a list can keep
        selectable = outside.any(0)
        sampled = _sampled(p[rows], config)
        for h, share in enumerate(config.coverage_of(len(q))):
            of_head = replace(config, coverage=share, head_coverage=None)
            if not bool(sampled.any()):
                keep[h, rows] = True
                continue
            if config.spread:
                keep[h, rows] = _spread_segment(
                    q[h, rows], _per_head(k, q)[h], p[rows, 0], outside[0], of_head, scale
                )
                continue
            exact = (prob[h, rows] * outside)[sampled].mean(0)
            rank = exact
            if config.pool is not None:
                rank = _pooled_rank(q[h, rows], _per_head(k, q)[h], p[rows], outside, config, scale)
            chosen = _filter(_class(rank), exact, selectable, of_head)
            keep[h, rows] = chosen
    return keep


def _filter(
    classes: Tensor, exact: Tensor, selectable: Tensor, config: SampleAttentionConfig,
    peaks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Stage 2: columns by class of rank until window and columns hold `coverage` of the mass."""
    need = _need(exact, selectable, config)
    chosen = selectable & _smallest_classes(classes, exact * selectable, need)
    if peaks is not None:
        chosen |= selectable & peaks
    if chosen.sum() > config.dense_above * selectable.sum():
        return torch.ones_like(selectable)
    return chosen


def _need(exact: Tensor, selectable: Tensor, config: SampleAttentionConfig) -> float:
    outside, coverage = float((exact * selectable).sum()), config.coverage
    if config.coverage_at is not None:
        fewer = min(1.0, float(selectable.sum()) / config.coverage_at)
        coverage = 1 - (1 - coverage) * math.sqrt(fewer)
    return coverage - (1 - outside) if config.residual else coverage * outside


def _pooled_rank(
    q: Tensor, k: Tensor, p: Tensor, outside: Tensor, config: SampleAttentionConfig,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """Mean over pools of the softmax of the pool's mean query, on keys that all its rows see."""
    pool = (p // (config.pool or 1))[:, 0]
    ranks: list[Tensor] = []
    for i in pool.unique():
        rows = pool == i
        mean = q[rows].mean(0) * (q.shape[-1] ** -0.5 if scale is None else scale)
        first = int(p[rows].min())
        hidden = torch.arange(len(k), device=k.device) > first
        scores = (k @ mean).masked_fill(hidden, -math.inf)
        ranks.append(torch.softmax(scores, -1) * outside[rows].all(0))
    return torch.stack(ranks).mean(0)


def _spread_segment(
    q: Tensor, k: Tensor, p: Tensor, selectable: Tensor, config: SampleAttentionConfig,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """The default: mean and variance of the queries rank, exact rows count on probed columns.

    Probed are columns at equal distances, each standing for `step`, and heavy ones, of more than
    one in MOST_HEAVY of the sum of all ranks, which the former tell. Peaks are kept as well,
    columns of more than one in PEAK of the mass of an outlier row, and runs around high ones.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    count, probes = int(selectable.sum()), config.probes or len(k)
    if count == 0:
        return selectable
    step = 1
    while step * probes < count:
        step *= 2
    j = torch.arange(len(k), device=k.device)
    regular = selectable & ((j + 1) % step == 0)
    exponent = spread_exponent(q, k, count, scale)
    octave = torch.floor(exponent / math.log(2) * CLASSES_PER_OCTAVE)  # one class, one value
    top = octave[regular].max()
    total = step * torch.exp2((octave[regular] - top) / CLASSES_PER_OCTAVE).sum()
    heavy_from = top + torch.ceil(CLASSES_PER_OCTAVE * torch.log2(total / MOST_HEAVY))
    classes = (octave - heavy_from).clamp(LOWEST_RANK, HIGHEST_RANK)
    heavy = selectable & (classes >= 0)
    if step > 1 and heavy.sum() > 2 * MOST_HEAVY:
        return torch.ones_like(selectable)
    weight = torch.where(heavy, 1.0, step * regular.double()) * selectable

    sampled = _sampled(p[:, None], config)
    scores = factor * q[sampled] @ k.T
    scores = scores.masked_fill(j > p[sampled, None], -math.inf)
    weighted = scores + torch.log(torch.where(selectable, weight, 1.0))
    lse = torch.logsumexp(weighted, -1, keepdim=True)
    exact = torch.exp(weighted - lse).mean(0) * selectable
    outliers = _outlier_rows(q[sampled], config.outliers)
    shares = torch.exp(scores - lse)[outliers] * selectable
    peaks = (shares > 1 / PEAK).any(0)
    if config.runs is not None:
        peaks |= _runs((shares > config.runs).any(0))
    return _filter(classes, exact, selectable, config, peaks)


def _runs(high: Tensor) -> Tensor:
    """Blocks of RUN columns that hold a high peak, and those beside; the first holds none."""
    block = torch.arange(len(high), device=high.device) // RUN
    of_high = block[high & (block > 0)]
    return torch.isin(block, torch.cat([of_high - 1, of_high, of_high + 1]))


def _outlier_rows(q: Tensor, count: int) -> list[int]:
    """Rows of q `[R, D]` farthest from the mean row, and from those chosen before."""
    distance = (q - q.mean(0)).square().sum(-1)
    rows: list[int] = []
    for _ in range(count):
        rows.append(int(distance.argmax()))
        distance = torch.minimum(distance, (q - q[rows[-1]]).square().sum(-1))
    return rows


def spread_exponent(q: Tensor, k: Tensor, count: int, scale: float | None = None) -> Tensor:
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


def _blocks(prob: Tensor, p: Tensor, j: Tensor, config: SampleAttentionConfig) -> Tensor:
    """v3: blocks of columns and of slashes, each direction to its own threshold."""
    block, q_len = config.key_block, len(p)
    chunks = config.chunk_tails or 1
    row_block, key_block = p // block, j // block
    keep = torch.zeros_like(prob, dtype=torch.bool)
    for c in range(chunks):
        end = (c + 1) * q_len // chunks
        start = max(c * q_len // chunks, end - 128)
        if start == end:
            continue
        distance = p[start:end] - j
        for h, tail in enumerate(prob[:, start:end]):
            by_column = _sum_by(key_block.expand_as(tail), tail)
            by_slash = _sum_by((distance.clamp(min=0) // block), tail * (distance >= 0))
            columns = _smallest_set(by_column, by_column, config.coverage * by_column.sum())
            slashes = _smallest_set(
                by_slash, by_slash, (config.slash_coverage or 1) * by_slash.sum()
            )
            keep[h] |= columns[key_block]
            for t in slashes.nonzero()[:, 0]:  # a slash crosses two blocks of each row of blocks
                keep[h] |= (row_block - key_block == t) | (row_block - key_block == t + 1)
    nothing = ~(keep & (j <= p)).any(-1, keepdim=True)
    return keep | (nothing & (row_block == key_block))


def _smallest_set(rank: Tensor, mass: Tensor, need: Tensor | float) -> Tensor:
    """The fewest entries, by falling rank, whose mass reaches `need`: bool mask."""
    order = rank.argsort(descending=True, stable=True)
    before = mass[order].cumsum(0) - mass[order]
    keep = torch.zeros_like(mass, dtype=torch.bool)
    keep[order] = before < need
    return keep


def _smallest_classes(classes: Tensor, mass: Tensor, need: float) -> Tensor:
    """The fewest whole classes, from the highest, whose mass reaches `need`: bool mask."""
    order = classes.argsort(descending=True, stable=True)
    keep = torch.zeros_like(mass, dtype=torch.bool)
    reached = 0.0
    for c in classes[order].unique_consecutive():
        if reached >= need:
            break
        keep |= classes == c
        reached = float(mass[keep].sum())
    return keep


def _class(rank: Tensor) -> Tensor:
    """floor(8 (m - 1)) + 8 e of rank = m 2^e, 1 <= m < 2: the exponent and three mantissa bits."""
    mantissa, exponent = torch.frexp(rank.float())
    steps = torch.floor((2 * mantissa - 1) * CLASSES_PER_OCTAVE)
    lowest = LOWEST_OCTAVE * CLASSES_PER_OCTAVE
    classes = (exponent - 1) * CLASSES_PER_OCTAVE + steps
    return torch.where(rank > 0, classes, lowest).clamp(min=lowest)


def _sampled(p: Tensor, config: SampleAttentionConfig) -> Tensor:
    return (p % config.row_stride == config.row_stride // 2)[:, 0]


def _sum_by(group: Tensor, x: Tensor) -> Tensor:
    size = int(group.max()) + 1
    return torch.zeros(size, dtype=x.dtype, device=x.device).scatter_add_(
        0, group.flatten(), x.flatten()
    )


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    q_len, kv_len = q.shape[1], k.shape[1]
    scores = (q @ _per_head(k, q).mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    j = torch.arange(kv_len, device=q.device)
    return scores.masked_fill(j > j[kv_len - q_len :, None], -math.inf)


def _per_head(kv: Tensor, q: Tensor) -> Tensor:
    return kv.repeat_interleave(q.shape[0] // kv.shape[0], 0)
