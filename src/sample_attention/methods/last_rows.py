"""The last rows of a call, whose exact softmax some methods take as a sample of all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .heads import Heads


def last_rows_probabilities(heads: Heads, rows: int) -> Tensor:
    """Causal softmax of the last `rows` queries, or of all if there are fewer: `[M, R, Skv]`."""
    scores = heads.q[:, -rows:] @ heads.k.T * heads.scale
    count, kv_len = scores.shape[1:]
    positions = torch.arange(kv_len - count, kv_len, device=scores.device)
    hidden = torch.arange(kv_len, device=scores.device) > positions[:, None]
    return torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1)


def mass_by_distance(prob: Tensor) -> Tensor:
    """Sums of the probabilities of the last rows over pairs at equal distance: `[M, Skv]`."""
    heads, rows, kv_len = prob.shape
    width = kv_len + rows - 1
    padded = torch.nn.functional.pad(prob, (rows - 1, 0))
    # One more step to the right in every row: a slash becomes a column, the nearest one the last.
    shifted = padded.as_strided((heads, rows, kv_len), (rows * width, width + 1, 1))
    return shifted.sum(1).flip(-1)
