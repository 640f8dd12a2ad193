"""Correct first: what is to be timed is compared with the fp64 reference, on the very inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SampleAttentionError
from ...plan import StripePlan
from ...testing import OracleError, assert_matches_mask
from ..analysis import sample_rows

GATE_ROWS = 64
"""Rows that are compared, beside the first and the last."""

GATE_HEADS = 4
"""Heads that are compared: enough to see different plans, few enough for fp64 keys of 128K."""


class RedGate(SampleAttentionError):
    """The result is wrong on the inputs to be measured: no speed is reported."""


def check_attend(
    out: Tensor, lse: Tensor, qkv: tuple[Tensor, Tensor, Tensor], plan: StripePlan, seed: int
) -> OracleError:
    """Compare rows of the first sequence with the reference over the plan's pairs.

    Args:
        out: like q.
        lse: `[B, H, S]`.
        qkv: q `[B, H, S, D]`, k and v `[B, Hkv, S, D]`.
        plan: what was computed.
        seed: of the rows.

    Raises:
        RedGate: the error is beyond the budget.
    """
    rows, heads = _sample(qkv[0], seed)
    keys = torch.arange(qkv[1].shape[2], device=rows.device)
    mask = torch.stack([plan.allows(0, h, rows, keys) for h in heads.tolist()])
    return _compare("attend", out, lse, qkv, mask, rows, heads)


def check_dense(
    name: str, out: Tensor, qkv: tuple[Tensor, Tensor, Tensor], seed: int
) -> OracleError:
    """Compare rows of a dense result with the reference over all causal pairs.

    Raises:
        RedGate: the error is beyond the budget.
    """
    rows, heads = _sample(qkv[0], seed)
    keys = torch.arange(qkv[1].shape[2], device=rows.device)
    mask = (keys <= rows[:, None]).expand(len(heads), -1, -1)
    return _compare(name, out, None, qkv, mask, rows, heads)


def _sample(q: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    length, num_heads = q.shape[2], q.shape[1]
    ends = torch.tensor([0, length - 1], device="cpu")
    rows = torch.cat([sample_rows(length, GATE_ROWS, seed), ends]).unique()
    heads = (
        torch.linspace(0, num_heads - 1, min(GATE_HEADS, num_heads), device="cpu").round().long()
    )
    return rows.to(q.device), heads.to(q.device)


def _compare(
    name: str, out: Tensor, lse: Tensor | None, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor,
    rows: Tensor, heads: Tensor,
) -> OracleError:  # fmt: skip
    q, k, v = qkv
    at = heads[:, None], rows[None]
    kv_heads = heads // (q.shape[1] // k.shape[1])
    try:
        return assert_matches_mask(
            out[0][at], None if lse is None else lse[0][at],
            (q[0][at], k[0][kv_heads], v[0][kv_heads]), mask, name=name,
        )  # fmt: skip
    except AssertionError as error:
        raise RedGate(f"wrong on the inputs to be measured: {error}") from error
