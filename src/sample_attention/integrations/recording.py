"""What the layers of a model did: numbers per layer and head."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..plan import StripePlan
from ..problem import Sequences
from ..routing.route import Route
from .layers import LayerPart


@dataclass(frozen=True)
class LayerStatistics:
    """One call of one layer; tensors are fp64 `[H]` on the CPU, means over the sequences.

    Attributes:
        layer: index in the model; -1 where the layer does not know it.
        q_len: queries of the longest sequence.
        kv_len: keys of the longest sequence.
        route: how the call ran, and why.
        density: computed pairs over causal pairs; 1 where a head was guarded.
        retained_mass_mean: dense probability on the kept keys, mean over the held-out rows; 1 where
            a head was guarded. None when nothing was measured (dense, or `held_out=0`).
        retained_mass_p5: its 5th percentile.
        retained_mass_min: its minimum.
        guarded: share of the sequences for which the head missed the guard and was computed dense.
        plan: what was computed, for the layers in `keep_plans`.
    """

    layer: int
    q_len: int
    kv_len: int
    route: Route
    density: Tensor
    retained_mass_mean: Tensor | None = None
    retained_mass_p5: Tensor | None = None
    retained_mass_min: Tensor | None = None
    guarded: Tensor | None = None
    plan: StripePlan | None = None


@dataclass
class Recorder:
    """Collects `layers` in the order of the calls; decoding (one query) is not recorded.

    A layer has one entry per call: several with chunked prefill, and one for each of the
    neighbouring sequences of a batch that run alike.

    Attributes:
        active: collect anything at all.
        keep_plans: indices of the layers whose plans are kept.
        layers: what was collected.
    """

    active: bool = True
    keep_plans: Collection[int] = ()
    layers: list[LayerStatistics] = field(default_factory=lambda: [])

    def add(self, layer: int, part: LayerPart) -> None:
        """Collect one part of a call."""
        sequences = part.problem.sequences
        if self.active and sequences.max_q_len > 1:
            self.layers.append(_statistics(layer, part, keep_plan=layer in self.keep_plans))


def _statistics(layer: int, part: LayerPart, *, keep_plan: bool) -> LayerStatistics:
    measured, sequences = part.measured, part.problem.sequences
    plan, mass, guarded = measured.plan, measured.retained_mass, measured.guarded
    if plan is None:
        density = _window_density(sequences, part.window).expand(part.problem.num_heads)
    else:
        table = plan.density().cpu()
        density = (table if guarded is None else table.masked_fill(guarded.cpu(), 1.0)).mean(0)
    facts = LayerStatistics(
        layer, sequences.max_q_len, sequences.max_kv_len, measured.route, density.clone(),
        guarded=None if guarded is None else guarded.cpu().double().mean(0),
        plan=plan if keep_plan else None,
    )  # fmt: skip
    if mass is None:
        return facts
    rows = mass.cpu().double().flatten(2)
    if guarded is not None:
        rows = torch.where(guarded.cpu()[..., None] & ~rows.isnan(), 1.0, rows)
    rows = rows.transpose(0, 1).flatten(1)
    return replace(
        facts,
        retained_mass_mean=rows.nanmean(1),
        retained_mass_p5=rows.nanquantile(0.05, dim=1),
        retained_mass_min=rows.nan_to_num(nan=torch.inf).amin(1),
    )


def _window_density(sequences: Sequences, window: int | None) -> Tensor:
    """Pairs inside the window over causal pairs, mean over the sequences: fp64 `[1]`."""
    shares: list[Tensor] = []
    for _, _, q_len, _, kv_len in sequences.rows():
        seen = torch.arange(kv_len - q_len, kv_len, dtype=torch.float64, device="cpu") + 1
        shares.append(seen.clamp(max=window or kv_len).sum() / seen.sum())
    return torch.stack(shares).mean()[None]
