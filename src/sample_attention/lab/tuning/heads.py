"""What each head's coverage is worth: the error of the model where one head keeps less.

Where a head's output changes by d, the distribution p of the next token moves, to second order, by

    KL = 1/2 E_y [(grad log p(y) . d)^2],    y drawn from p

so that one forward and one backward pass with dense attention price every head at every coverage.
Segments select for themselves: their errors are taken as independent. A price for computed pairs
then gives every head the coverage at which more would cost more than it saves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._extras import require
from ...config import SampleAttentionConfig
from ...errors import UnsupportedAttention
from ...integrations.arguments import unsupported
from ...integrations.layers import LayerCall, compute
from ...integrations.recording import Recorder
from ..generation import last_logits
from ..models import LoadedModel
from .passages import Passage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Table = tuple[tuple[float, ...], ...]
"""Coverages by layer and head."""

HEAD_COVERAGES = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
"""What a head's coverage may be."""

NAME = "sample_attention_profile"
HALVINGS = 60


@dataclass(frozen=True)
class HeadProfile:
    """What every head loses and computes at each of `HEAD_COVERAGES`, the others being dense.

    Attributes:
        loss: KL(dense || sparse) of the next token in nats, fp64 `[layers, heads, coverages]`.
        density: computed pairs over causal pairs, like loss; 1 where a layer cannot run sparse.
    """

    loss: Tensor
    density: Tensor
    _tables: dict[float, Table] = field(
        default_factory=dict[float, Table], init=False, compare=False
    )

    def table(self, coverage: float) -> Table:
        """Coverages by layer and head that lose least at the density of one coverage for all."""
        if coverage not in self._tables:
            self._tables[coverage] = self._allocate(self._density_at(coverage))
        return self._tables[coverage]

    def _density_at(self, coverage: float) -> float:
        """Between the coverages that were measured, linearly."""
        known, found = [0.0, *HEAD_COVERAGES, 1.0], [0.0, *self.density.mean((0, 1)).tolist(), 1.0]
        at = next(i for i, x in enumerate(known) if x >= coverage)
        share = (coverage - known[at - 1]) / (known[at] - known[at - 1])
        return found[at - 1] + share * (found[at] - found[at - 1])

    def _allocate(self, density: float) -> Table:
        """Bisect the price of a pair, in octaves: the dearer, the fewer are computed."""
        low, high = -80.0, 40.0
        for _ in range(HALVINGS):
            price = (low + high) / 2
            chosen = self._at_price(2.0**price)
            found = float(self.density.gather(2, chosen[..., None]).mean())
            low, high = (price, high) if found > density else (low, price)
        chosen = self._at_price(2.0**high)
        return tuple(tuple(HEAD_COVERAGES[i] for i in row) for row in chosen.tolist())

    def _at_price(self, price: float) -> Tensor:
        """Index of the coverage of each layer and head."""
        return (self.loss + price * self.density).argmin(2)


def profile_heads(
    loaded: LoadedModel, passages: Sequence[Passage], config: SampleAttentionConfig, rows: int,
    on_passage: Callable[[], None] = lambda: None,
) -> HeadProfile:  # fmt: skip
    """Price the coverage of every head on passages.

    Args:
        loaded: the model; its attention is dense, by torch.
        passages: token ids of each.
        config: of the selection, apart from its coverage.
        rows: the last rows of a passage, whose next tokens are looked at.
        on_passage: called after every passage.

    Raises:
        UnsupportedAttention: layers with sinks or capped scores, which torch does not compute; or
            none that attends to all keys.
    """
    watches: list[_Watch] = []
    for passage in passages:
        watches.append(_watched(loaded, passage, config, rows))
        on_passage()
    if not any(watch.found for watch in watches):
        raise UnsupportedAttention(
            f"{loaded.name}: no layer attends to all keys, so none can run sparse: nothing to tune"
        )
    loss, density = (_mean_of(watches, part) for part in (0, 1))
    # Keeping more loses no more: what a sample says against that is noise.
    return HeadProfile(loss.flip(2).cummax(2).values.flip(2), density)


def _mean_of(watches: Sequence[_Watch], part: int) -> Tensor:
    """Over passages `[layers, heads, coverages]`; a layer that was not seen loses nothing."""
    found = [{layer: x[part] for layer, x in watch.found.items()} for watch in watches]
    known = next(iter(found[0].values()))
    nothing = torch.full_like(known, float(part))
    layers = 1 + max(map(max, found))
    return torch.stack([
        torch.stack([one.get(layer, nothing) for one in found]).mean(0) for layer in range(layers)
    ])  # fmt: skip


@torch.enable_grad()
def _watched(
    loaded: LoadedModel, passage: Passage, config: SampleAttentionConfig, rows: int
) -> _Watch:
    """One passage forward, and the gradient of tokens drawn from what it predicts back."""
    model: Any = loaded.model
    watch = _Watch(config, rows)
    ids = torch.tensor([list(passage)], device=model.device)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with _attending(loaded.model, watch.attend):
        result = model(inputs_embeds=embedded, use_cache=False, **last_logits(model, rows))
        log_p = result.logits[0, -rows:].float().log_softmax(-1)
        generator = torch.Generator(model.device).manual_seed(0)
        drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        torch.autograd.grad(log_p.gather(1, drawn).sum(), embedded)
    return watch


@contextmanager
def _attending(model: PreTrainedModel, attend: Callable[..., Any]) -> Generator[None]:
    """Let a model attend by a function inside a `with` block, and forget activations on its way."""
    interfaces: Any = require("transformers", "transformers")
    language_model: Any = model
    before, training = language_model.config._attn_implementation, language_model.training
    interfaces.AttentionInterface.register(NAME, attend)
    masks = interfaces.AttentionMaskInterface
    masks.register(NAME, masks()["sdpa"])
    language_model.set_attn_implementation(NAME)
    language_model.train()  # without it nothing is recomputed, and activations fill the memory
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    forgets = bool(language_model.supports_gradient_checkpointing)
    if forgets:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if forgets:
            language_model.gradient_checkpointing_disable()
        language_model.train(training)
        language_model.set_attn_implementation(before)


@dataclass
class _Watch:
    """Attends densely, and compares with sparse attention when the gradient comes back.

    Attributes:
        config: of the selection.
        rows: whose next tokens are looked at.
        found: loss and density by layer, fp64 `[heads, coverages]`.
    """

    config: SampleAttentionConfig
    rows: int
    found: dict[int, tuple[Tensor, Tensor]] = field(default_factory=lambda: {})

    @functools.cached_property
    def _dense(self) -> Callable[..., Any]:
        interfaces: Any = require("transformers", "transformers")
        return interfaces.AttentionInterface()["sdpa"]

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
        dropout: float = 0.0, **given: Any,  # noqa: ANN401
    ) -> tuple[Tensor, None]:  # fmt: skip
        """What a model calls: q `[1, H, S, D]`, k and v `[1, Hkv, S, D]`; out `[1, S, H, D]`."""
        del dropout
        for name in ("softcap", "s_aux"):
            if given.get(name) is not None:
                raise unsupported(
                    module, name, "is not what torch's attention computes, whose gradient says "
                    "what heads are worth", "tune with --one-coverage",
                )  # fmt: skip
        out, _ = self._dense(module, q, k, v, mask, **given)
        if out.requires_grad and mask is None:  # windows, which have a mask, run exactly
            layer: Any = module.layer_idx
            q, k, v = (x.detach() for x in (q, k, v))
            call = LayerCall(
                q, k, v, self.config, given.get("scaling"), policy="sparse", keep_plan=True
            )
            out.register_hook(partial(self._price, int(layer), call, out.detach()))
        return out, None

    def _price(self, layer: int, call: LayerCall, dense: Tensor, grad: Tensor) -> None:
        heads, segment = call.q.shape[1], self.config.segment or 1
        loss = torch.zeros(heads, len(HEAD_COVERAGES), dtype=torch.float64, device="cpu")
        density, recorder = torch.ones_like(loss), Recorder()
        for i, coverage in enumerate(HEAD_COVERAGES):
            sparse = replace(call, config=replace(self.config, coverage=coverage))
            out, (part,) = compute(sparse, None)
            recorder.add(layer, part)
            density[:, i] = recorder.layers[-1].density
            moved = out[0].transpose(0, 1).float() - dense[0].float()
            along = (moved * grad[0].float()).sum(-1).T  # [H, S]
            parts = F.pad(along, (0, -along.shape[1] % segment)).unflatten(1, (-1, segment)).sum(2)
            loss[:, i] = parts.double().square().sum(1).cpu() / (2 * self.rows)
        self.found[layer] = loss, density
