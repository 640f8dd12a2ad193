"""Made-up inputs: tensors of a shape, with a plan of random lists or with keys that stand out.

The time of attending depends on how long the lists are and not on what stands in them, so random
lists measure it at any density. Random tensors have no structure to find: where a selection is
measured, some keys are made to attract the queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import SampleAttentionConfig
from ..errors import InvalidConfig, InvalidInput
from ..plan import StripePlan
from ..problem import Problem


@dataclass(frozen=True)
class Inputs:
    """What attention is measured on.

    Attributes:
        name: as records state it.
        q: `[B, H, S, D]`.
        k: `[B, Hkv, S, D]`.
        v: like k.
        layer: that was given them, and how many its model has; None: of no model.
    """

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    layer: tuple[int, int] | None = None


@dataclass(frozen=True)
class Shape:
    """Sizes of random tensors.

    Attributes:
        batch: sequences.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: D.
    """

    batch: int = 1
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128


def random_inputs(
    shape: Shape, length: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Inputs:
    """Normal q, k and v of one length."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(heads: int) -> Tensor:
        sizes = shape.batch, heads, length, shape.head_dim
        return torch.randn(sizes, dtype=dtype, device=device, generator=generator)

    kv_heads = shape.num_kv_heads
    return Inputs("random", normal(shape.num_heads), normal(kv_heads), normal(kv_heads))


def planted_inputs(
    shape: Shape, length: int, share: float, dtype: torch.dtype, device: torch.device, seed: int
) -> Inputs:  # fmt: skip
    """Normal q, k and v, where a share of the keys, drawn at random, holds 99 % of the attention.

    Raises:
        InvalidInput: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InvalidInput(f"density {share}; accepted: above 0 and below 1")
    random = random_inputs(shape, length, dtype, device, seed)
    generator = torch.Generator(device).manual_seed(seed + 1)
    kv_heads, dim = shape.num_kv_heads, shape.head_dim
    direction = torch.randn(kv_heads, 1, dim, device=device, generator=generator)
    direction /= direction.norm(dim=-1, keepdim=True)
    boost = math.log(99 * (1 - share) / share)  # of the scores of planted keys
    added = (direction * math.sqrt(boost * math.sqrt(dim))).to(dtype)
    planted = torch.rand(random.k.shape[:3], device=device, generator=generator) < share
    random.q.add_(added.repeat_interleave(shape.num_heads // kv_heads, 0))
    random.k.addcmul_(planted[..., None].to(dtype), added)
    return Inputs("planted", random.q, random.k, random.v)


def random_plan(
    inputs: Inputs, density: float, config: SampleAttentionConfig, seed: int
) -> StripePlan:
    """A plan of a density, whose lists hold random keys left of the window.

    Args:
        inputs: what it is for.
        density: computed pairs over causal pairs, reached up to chance.
        config: gives segment, window and their alignment.
        seed: of the keys.

    Raises:
        InvalidConfig: the configuration has no segments.
        InvalidInput: the density is below that of the window, or above 1.
    """
    if config.segment is None:
        raise InvalidConfig("random lists need segments; choose a preset or --config segment=128")
    problem, device = Problem.of(inputs.q, inputs.k, inputs.v), inputs.q.device
    batch, num_heads, length, _ = inputs.q.shape
    align, window = config.window_alignment, config.window_for(length)
    starts = torch.arange(0, length, config.segment, device=device)
    edges = (starts // align * align - window + 1).clamp(min=0)
    share = _share_of_keys(edges, length, density, config)
    generator = torch.Generator(device).manual_seed(seed)
    keys = torch.arange(length, device=device)
    counts: list[Tensor] = []
    lists: list[Tensor] = []
    for _ in range(batch * num_heads):
        for some in edges.split(128):  # bounds the memory of the draws
            draw = torch.rand(len(some), length, device=device, generator=generator)
            keep = (draw < share) & (keys < some[:, None])
            counts.append(keep.sum(1, dtype=torch.int32))
            lists.append(keep.nonzero()[:, 1].int())
    sizes = torch.cat(counts).view(batch, num_heads, len(edges))
    ends = sizes.flatten().cumsum(0, dtype=torch.int64)
    return StripePlan(
        indices=torch.cat(lists),
        offsets=ends.view(sizes.shape) - sizes,
        counts=sizes,
        dense=torch.zeros_like(sizes, dtype=torch.bool),
        sequences=problem.sequences,
        segment=config.segment,
        window=torch.full((batch,), window, dtype=torch.int32, device=device),
        window_alignment=align,
    )


def _share_of_keys(
    edges: Tensor, length: int, density: float, config: SampleAttentionConfig
) -> float:
    """How much of the keys left of `edges` makes up a density together with the window."""
    segment, align = config.segment or length, config.window_alignment
    rows = torch.arange(length, device=edges.device)
    band = rows + 1 - (rows // align * align - config.window_for(length) + 1).clamp(min=0)
    heights = torch.full_like(edges, segment)
    heights[-1] = length - (len(edges) - 1) * segment
    pairs, window_pairs = length * (length + 1) / 2, int(band.sum())
    free = int((edges * heights).sum())
    share = (density * pairs - window_pairs) / free if free else 0.0
    if not 0 <= share <= 1:
        raise InvalidInput(
            f"density {density} at {length} tokens: the window alone is "
            f"{window_pairs / pairs:.3f} and all lists together reach "
            f"{(window_pairs + free) / pairs:.3f}; choose a density between, or other lengths"
        )
    return share
