"""Batches with padding, packed sequences and caches used directly."""

import pytest
import torch
import transformers

from sample_attention import SampleAttentionConfig
from sample_attention.integrations import arguments
from sample_attention.integrations.transformers import sample_attention_prefill
from sample_attention.routing import policy

LENGTHS = (97, 30, 64)


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


def each_alone(budget, family, ids, lengths=LENGTHS):
    """The logits of each sequence computed on its own, and how far others may be off."""
    alone = [budget(family, ids[i : i + 1, :n]) for i, n in enumerate(lengths)]
    return [exact[0] for exact, _ in alone], max(bound for _, bound in alone)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["", "static"])
def test_left_padded_batch(options, family, tiny, prompt, generated, nearly_all):
    model = tiny(family)
    ids, mask = padded(prompt, "left")
    expected = generated(model, ids, attention_mask=mask, max_new_tokens=8)
    with sample_attention_prefill(model, nearly_all):
        seen = generated(model, ids, attention_mask=mask, max_new_tokens=8, **options)
    assert seen == expected


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_left_padded_batch_in_chunks(family, tiny, prompt, generated, nearly_all):
    model = tiny(family)
    ids, mask = padded(prompt, "left")
    expected = generated(model, ids, attention_mask=mask)
    with sample_attention_prefill(model, nearly_all):
        assert generated(model, ids, attention_mask=mask, prefill_chunk_size=40) == expected


def test_right_padded_batch(family, tiny, prompt, budget, nearly_all, logits):
    ids, mask = padded(prompt, "right")
    exact, bound = each_alone(budget, family, ids)
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all):
        seen = logits(model, ids, attention_mask=mask)
    assert seen.isfinite().all()
    for row, alone in zip(seen, exact, strict=True):
        assert (row[: len(alone)] - alone).abs().max() <= bound


@pytest.mark.parametrize("family", ["llama", "glm4"])
def test_masks_with_gaps(family, tiny, prompt, budget, nearly_all, logits):
    ids, mask = padded(prompt, "right")
    kept = torch.cat([torch.arange(5), torch.arange(9, LENGTHS[1])])
    mask[1, 5:9] = 0
    positions = torch.arange(max(LENGTHS)).repeat(len(LENGTHS), 1)
    positions[1, kept] = torch.arange(len(kept))
    exact, bound = budget(family, ids[1:2, kept])
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all):
        seen = logits(model, ids, attention_mask=mask, position_ids=positions)
    assert seen.isfinite().all()
    assert (seen[1, kept] - exact[0]).abs().max() <= bound


@pytest.mark.parametrize("family", ["llama", "glm4"])
def test_decoding_after_right_padding(family, tiny, prompt, budget, nearly_all, logits):
    ids, mask = padded(prompt, "right")
    lengths, after = torch.tensor(LENGTHS), prompt(len(LENGTHS), 1, seed=5)
    longer = [torch.cat([ids[i, :n], after[i]])[None] for i, n in enumerate(LENGTHS)]
    model, cache = tiny(family), transformers.DynamicCache()
    with sample_attention_prefill(model, nearly_all):
        logits(model, ids, attention_mask=mask, past_key_values=cache)
        mask = torch.cat([mask, torch.ones_like(after)], 1)  # the new token follows the padding
        options = {"position_ids": lengths[:, None], "past_key_values": cache}
        seen = logits(model, after, attention_mask=mask, **options)
    for row, alone in zip(seen, longer, strict=True):
        exact, bound = budget(family, alone)
        assert (row[0] - exact[0, -1]).abs().max() <= bound


def test_an_empty_sequence_beside_others(tiny, prompt, budget, nearly_all, logits):
    ids, mask = padded(prompt, "right")
    mask[1] = 0
    exact, bound = budget("llama", ids[:1])
    model = tiny("llama")
    with sample_attention_prefill(model, nearly_all):
        seen = logits(model, ids, attention_mask=mask)
        alone = logits(model, ids[1:2], attention_mask=mask[1:2])
    assert seen.isfinite().all()
    assert alone.isfinite().all()
    assert (seen[0] - exact[0]).abs().max() <= bound


def test_long_and_short_sequences_are_decided_apart(tiny, prompt, sparse, logits, monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(50, 2, "a test"))
    ids, mask = padded(prompt, "left")
    for family in ("llama", "gpt_oss"):
        model = tiny(family)
        with sample_attention_prefill(model, sparse, record=True) as recorder:
            together = logits(model, ids, attention_mask=mask)
            calls = [c for c in recorder.layers if c.layer == 1]
            assert {(c.route.sparse, c.kv_len) for c in calls} == {
                (True, 97),
                (False, 30),
                (True, 64),
            }
            for row, length in zip(together, LENGTHS, strict=True):
                number = LENGTHS.index(length)
                alone = logits(model, ids[number : number + 1, -length:])[0]
                assert torch.equal(row[-length:].argmax(-1), alone.argmax(-1))


@pytest.mark.parametrize(
    ("how", "use_cache"), [("positions", True), ("positions", False), ("totals", False)]
)
def test_packed_sequences(how, use_cache, family, tiny, prompt, budget, nearly_all, logits):
    ids = prompt(len(LENGTHS))
    exact, bound = each_alone(budget, family, ids)
    packed = torch.cat([ids[i, :n] for i, n in enumerate(LENGTHS)])[None]
    extra = {"position_ids": torch.cat([torch.arange(n) for n in LENGTHS])[None]}
    if how == "totals":
        totals = torch.tensor([0, *LENGTHS, 0]).cumsum(0).int()  # the last one is empty
        longest = max(LENGTHS)
        extra |= {"cu_seq_lens_q": totals, "cu_seq_lens_k": totals.clone()}
        extra |= {"max_length_q": longest, "max_length_k": longest}
    model = tiny(family)
    with sample_attention_prefill(model, nearly_all, record=True) as recorder:
        seen = logits(model, packed, use_cache=use_cache, **extra)
    assert (seen[0] - torch.cat(exact)).abs().max() <= bound
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
def test_static_cache_without_generate(masked, family, tiny, prompt, budget, logits):
    ids = prompt(2)

    def run(model):
        cache = transformers.StaticCache(config=model.config, max_cache_len=128)
        masks = [torch.ones(2, n) if masked else None for n in (90, 97)]
        options = {"past_key_values": cache, "use_cache": True}
        first = logits(model, ids[:, :90], attention_mask=masks[0], **options)
        return torch.cat([first, logits(model, ids[:, 90:], attention_mask=masks[1], **options)], 1)

    exact, bound = budget(family, ids)
    model = tiny(family)
    with sample_attention_prefill(model, SampleAttentionConfig(coverage=1.0)):
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


def test_inference_mode_reads_positions_once_per_pass(tiny, prompt, nearly_all, monkeypatch):
    read = []
    rows_of = arguments.rows_of_positions
    monkeypatch.setattr(arguments, "rows_of_positions", lambda *a: read.append(a) or rows_of(*a))
    model, ids = tiny("llama"), prompt(length=40)
    with torch.inference_mode(), sample_attention_prefill(model, nearly_all, record=True) as seen:
        positions = torch.arange(40)[None]
        model(ids, position_ids=positions)
        assert len(read) == 1
        positions[0, 20:] -= 20
        model(ids, position_ids=positions)
    assert len(read) == 2
    assert [c.kv_len for c in seen.layers] == [40, 40, 20, 20]
