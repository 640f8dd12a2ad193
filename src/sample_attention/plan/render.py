"""A plan as text: one head's mask, reduced to a small grid of characters."""

from __future__ import annotations

import torch

from .stripe import StripePlan

SHADES = " .:-=+*#"


def render(plan: StripePlan, n: int = 0, h: int = 0, size: int = 48) -> str:
    """Draw the mask of one sequence and head as `size` lines of `size` characters.

    A cell's shade is the share of its causal pairs that are computed, from ` ` (none) to `#` (all);
    the mask is read at evenly spaced rows, so the cost is linear in the prompt.
    """
    _, _, q_len, _, kv_len = plan.sequences.rows()[n]
    size = min(size, q_len)
    device = plan.indices.device
    rows = ((torch.arange(size, device=device) * 2 + 1) * q_len) // (2 * size)
    keys = torch.arange(kv_len, device=device)
    kept = plan.allows(n, h, rows, keys).double()
    causal = (keys[None] <= (rows + kv_len - q_len)[:, None]).double()
    cell = (keys * size // kv_len).expand(size, -1)
    zeros = kept.new_zeros(size, size)
    pairs = zeros.scatter_add(1, cell, causal)
    share = zeros.scatter_add(1, cell, kept) / pairs.clamp(min=1)
    shade = torch.where(share > 0, (share * (len(SHADES) - 1)).round().clamp(min=1), 0.0).int()
    return "\n".join("".join(SHADES[x] for x in line).rstrip() for line in shade.tolist())
