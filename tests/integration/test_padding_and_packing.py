"""Batches with padding, packed sequences and caches used directly."""

import pytest
import torch
import transformers

from sample_attention import policy
from sample_attention.integrations.transformers import sample_attention_prefill

LENGTHS = (97, 30, 64)
WINDOWED = {"mistral", "phi3", "phimoe", "qwen2", "qwen3", "qwen2_moe", "gemma2", "gemma3", "gpt_oss"}


@pytest.fixture(autouse=True)
def _few_queries_run_sparse(low_crossover):
    pass


def padded(prompt, side):
    """A batch of `LENGTHS` with its mask."""
    ids, longest = prompt(len(LENGTHS)), max(LENGTHS)
    place = torch.arange(longest)
    lengths = torch.tensor(LENGTHS)[:, None]
    mask = place >= longest - lengths if side == "left" else place < lengths
    return ids.masked_fill(~mask, 0), mask.long()


def test_left_padded_batch(family, tiny, prompt, generated, nearly_all):
    model = tiny(family)
    ids, mask = padded(prompt, "left")
    expected = generated(model, ids, attention_mask=mask)
    for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 40}):
        with sample_attention_prefill(model, nearly_all):
            assert generated(model, ids, attention_mask=mask, **options) == expected, options


def test_right_padded_batch(family, tiny, prompt, budget, nearly_all, logits):
    ids, mask = padded(prompt, "right")
    exact, bound = budget(family, ids, attention_mask=mask)
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all):
        seen = logits(model, ids, attention_mask=mask)
    assert seen.isfinite().all()
    assert (seen - exact)[mask.bool()].abs().max() <= bound


@pytest.mark.parametrize("family", ["llama", "glm4"])
def test_masks_with_gaps(family, tiny, prompt, budget, generated, nearly_all, logits):
    ids, mask = padded(prompt, "right")
    model = tiny(family)
    expected = generated(model, ids, attention_mask=mask)  # new tokens follow the padding
    with sample_attention_prefill(model, nearly_all):
        assert generated(model, ids, attention_mask=mask) == expected
    mask[:, 5:9] = 0
    exact, bound = budget(family, ids, attention_mask=mask)
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all):
        seen = logits(model, ids, attention_mask=mask)
    assert seen.isfinite().all()
    assert (seen - exact)[mask.bool()].abs().max() <= bound


def test_an_empty_sequence_beside_others(tiny, prompt, budget, nearly_all, logits):
    ids, mask = padded(prompt, "left")
    mask[1] = 0
    exact, bound = budget("llama", ids, attention_mask=mask)
    model = tiny("llama")
    with sample_attention_prefill(model, nearly_all):
        seen = logits(model, ids, attention_mask=mask)
        alone = logits(model, ids[1:2], attention_mask=mask[1:2])
    assert seen.isfinite().all()
    assert alone.isfinite().all()
    assert (seen - exact)[mask.bool()].abs().max() <= bound


def test_long_and_short_sequences_are_decided_apart(tiny, prompt, sparse, logits, monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(50, 2, "a test"))
    ids, mask = padded(prompt, "left")
    for family in ("llama", "gpt_oss"):
        model = tiny(family)
        with sample_attention_prefill(model, sparse, record=True) as recorder:
            together = logits(model, ids, attention_mask=mask)
            calls = [c for c in recorder.layers if c.layer == 1]
            assert {(c.decision.sparse, c.kv_len) for c in calls} == {(True, 97), (False, 30)}
            for row, length in zip(together, LENGTHS, strict=True):
                number = LENGTHS.index(length)
                alone = logits(model, ids[number : number + 1, -length:])[0]
                assert torch.equal(row[-length:].argmax(-1), alone.argmax(-1))


@pytest.mark.parametrize("how", ["positions", "totals"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_packed_sequences(how, use_cache, family, tiny, prompt, budget, nearly_all, logits):
    ids = prompt(len(LENGTHS))
    alone = [budget(family, ids[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    exact = torch.cat([x[0] for x, _ in alone])
    bound = max(b for _, b in alone)
    packed = torch.cat([ids[i, :n] for i, n in enumerate(LENGTHS)])[None]
    extra = {"position_ids": torch.cat([torch.arange(n) for n in LENGTHS])[None]}
    if how == "totals":
        totals = torch.tensor([0, *LENGTHS, 0], dtype=torch.int32).cumsum(0).int()  # the last is empty
        longest = max(LENGTHS)
        extra |= {"cu_seq_lens_q": totals, "cu_seq_lens_k": totals.clone()}
        extra |= {"max_length_q": longest, "max_length_k": longest}
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all, record=True) as recorder:
        seen = logits(model, packed, use_cache=use_cache, **extra)
    assert (seen[0] - exact).abs().max() <= bound
    assert {c.kv_len for c in recorder.layers} == {max(LENGTHS)}


def test_packed_sequences_in_several_batch_rows(tiny, prompt, budget, nearly_all, logits):
    ids = prompt(2, 80)
    exact, bound = budget("llama", ids.view(4, 40))
    model = tiny("llama")
    with sample_attention_prefill(model, nearly_all):
        positions = torch.arange(40).repeat(2)[None].expand(2, -1)
        seen = logits(model, ids, position_ids=positions)
    assert (seen.view(4, 40, -1) - exact).abs().max() <= bound


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_oss"])
def test_static_cache_without_generate(masked, family, tiny, prompt, budget, nearly_all, logits):
    ids = prompt(2)

    def run(model):
        cache = transformers.StaticCache(config=model.config, max_cache_len=128)
        masks = [torch.ones(2, n) if masked else None for n in (90, 97)]
        options = {"past_key_values": cache, "use_cache": True}
        first = logits(model, ids[:, :90], attention_mask=masks[0], **options)
        return torch.cat([first, logits(model, ids[:, 90:], attention_mask=masks[1], **options)], 1)

    exact, bound = budget(family, ids)
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all):
        assert (run(model) - exact).abs().max() <= bound


def test_inference_mode(tiny, prompt, generated, nearly_all):
    model = tiny("gemma3")
    ids, mask = padded(prompt, "left")
    expected = generated(model, ids, attention_mask=mask)
    with sample_attention_prefill(model, nearly_all), torch.inference_mode():
        assert generated(model, ids, attention_mask=mask) == expected
        assert model(prompt(), position_ids=torch.arange(97)[None]).logits.isfinite().all()


def test_a_written_mask_or_position_is_read_again(tiny, prompt, nearly_all, logits):
    model, ids = tiny("llama"), prompt(length=40)
    positions = torch.arange(40)[None]
    with sample_attention_prefill(model, nearly_all, record=True) as recorder:
        logits(model, ids, position_ids=positions)
        positions[0, 20:] -= 20
        logits(model, ids, position_ids=positions)
    assert [c.kv_len for c in recorder.layers] == [40, 40, 20, 20]
