"""Every family of models gives with SampleAttention what it gives with its eager attention."""

from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig, Tuned
from sample_attention.config import Interval
from sample_attention.errors import InvalidConfig
from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import register, sample_attention_prefill
from sample_attention.routing import policy

DENSE = SampleAttentionConfig(coverage=1.0)
SPECIAL = {"mistral", "gemma2", "phi3", "phimoe"}  # no layer that may run sparse


@pytest.fixture(autouse=True)
def _few_queries_run_sparse(low_crossover):
    pass


def worst(a, b):
    return (a - b).abs().max()


@pytest.mark.parametrize("kind", ["dense", "nearly_all"])
def test_tokens_and_logits_equal_eager(kind, family, tiny, prompt, generated, budget, nearly_all):
    config = DENSE if kind == "dense" else nearly_all
    ids = prompt()
    exact, bound = budget(family, ids)
    model = tiny(family)
    expected = generated(model, ids)
    with sample_attention_prefill(model, config, record=True) as recorder, torch.no_grad():
        assert generated(model, ids) == expected
        calls = list(recorder.layers)
        assert worst(model(ids).logits, exact) <= bound
    assert [c.layer for c in calls] == [0, 1]
    assert any(c.route.sparse for c in calls) == (kind == "nearly_all" and family not in SPECIAL)


def test_the_sparse_path_drops_keys_and_says_so(family, tiny, prompt, sparse, logits):
    model = tiny(family)
    with sample_attention_prefill(model, sparse, record=True, keep_plans=[1]) as recorder:
        changed = logits(model, prompt(length=200))
    assert changed.isfinite().all()
    for call in recorder.layers:
        assert call.density.shape == (4,)
        assert (call.q_len, call.kv_len) == (200, 200)
        if not call.route.sparse:
            assert call.retained_mass_mean is None
            assert "computed exactly" in call.route.reason
            continue
        assert call.density.mean() < 1
        mean, low = call.retained_mass_mean, call.retained_mass_min
        assert ((low <= call.retained_mass_p5) & (low <= mean) & (mean <= 1)).all()
        assert (call.plan is not None) == (call.layer == 1)
    assert any(c.route.sparse for c in recorder.layers) == (family not in SPECIAL)


def test_density_of_a_window_is_exact(tiny, prompt, logits):
    model = tiny("mistral")
    with sample_attention_prefill(model, record=True) as recorder:
        logits(model, prompt(length=60))
    window = model.config.sliding_window
    share = sum(min(p + 1, window) for p in range(60)) / (60 * 61 / 2)
    assert recorder.layers[0].density.tolist() == [share] * 4


def test_a_window_of_all_keys_is_no_window(tiny, prompt, nearly_all, logits):
    model = tiny("mistral")
    with sample_attention_prefill(model, nearly_all, record=True) as recorder:
        logits(model, prompt(length=model.config.sliding_window))
    assert all(c.route.sparse for c in recorder.layers)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 32},
        {"cache_implementation": "static", "prefill_chunk_size": 32},
        {"num_beams": 2},
        {"use_cache": False},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_caches_and_chunks(options, family, tiny, prompt, generated, nearly_all):
    ids, model = prompt(), tiny(family)
    expected = generated(model, ids, **options)
    with sample_attention_prefill(model, nearly_all):
        assert generated(model, ids, **options) == expected


def test_chunks_that_are_whole_segments_select_the_same_keys(tiny, prompt, sparse, generated):
    model, ids = tiny("llama"), prompt(length=160)
    with sample_attention_prefill(model, sparse, keep_plans=[0]) as recorder:
        once = generated(model, ids)
        whole = recorder.layers[0].plan.to_dense(0, 2)
        recorder.layers.clear()
        assert generated(model, ids, prefill_chunk_size=64) == once
    chunks = [c.plan for c in recorder.layers if c.layer == 0]
    assert [c.sequences.max_kv_len for c in chunks] == [64, 128, 160]
    assert any(c.density().mean() < 1 for c in chunks)
    parts = [torch.nn.functional.pad(m, (0, 160 - m.shape[1])) for m in
             (c.to_dense(0, 2) for c in chunks)]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole)


def test_several_blocks_restore_what_was_there(tiny, prompt, logits, sparse):
    model, ids = tiny("llama"), prompt()
    before = logits(model, ids)
    with sample_attention_prefill(model, "paper", record=True) as outer:
        with sample_attention_prefill(model, sparse, record=True) as inner:
            logits(model, ids)
        assert model.config._attn_implementation == NAME
        seen = len(outer.layers)
        logits(model, ids)
    assert (seen, len(outer.layers), len(inner.layers)) == (0, 2, 2)
    with pytest.raises(ZeroDivisionError), sample_attention_prefill(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, ids), before)


TABLE = ((0.2, 0.5, 0.9, 0.99), (0.99, 0.9, 0.5, 0.2))


def test_layers_have_their_tuned_coverages(tiny, prompt, logits, sparse):
    model, ids = tiny("llama"), prompt(length=200)
    tuned = Tuned("tiny", (Interval(0, sparse, TABLE),))
    with sample_attention_prefill(model, tuned, record=True) as recorder:
        found = logits(model, ids)
    for call, shares in zip(recorder.layers, TABLE, strict=True):
        by_share = [density for _, density in sorted(zip(shares, call.density, strict=True))]
        assert by_share == sorted(by_share)
        assert by_share[0] < by_share[-1]
    alike = Tuned("tiny", (Interval(0, sparse, ((sparse.coverage,) * 4,) * 2),))
    results = []
    for config in (alike, sparse):
        with sample_attention_prefill(model, config):
            results.append(logits(model, ids))
    assert torch.equal(*results)
    assert not torch.equal(found, results[0])
    register(tuned)
    try:
        model.set_attn_implementation(NAME)
        assert torch.equal(logits(model, ids), found)
    finally:
        register()


def test_layers_keep_what_their_depth_says(tiny, prompt, logits, sparse, monkeypatch):
    model, ids = tiny("llama"), prompt(length=200)
    monkeypatch.setattr(model.config, "num_hidden_layers", 4)  # the two that it has are the first
    deep = replace(sparse, coverage=0.8, depth_contrast=64)
    own = [deep.for_layer(layer, 4).coverage for layer in range(4)]
    assert own[0] < 0.8 < own[1]
    table = tuple((share,) * 4 for share in own)
    by_table = Tuned("tiny", (Interval(0, deep, table),))
    found = []
    for rule in (deep, Tuned("tiny", (Interval(0, deep),)), by_table):
        with sample_attention_prefill(model, rule):
            found.append(logits(model, ids))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with sample_attention_prefill(model, replace(deep, depth_contrast=1)):
        assert not torch.equal(found[0], logits(model, ids))


def test_tables_of_other_models_are_refused(tiny, prompt, logits, sparse):
    model = tiny("llama")
    for table, words in ((TABLE[:1], "for 1 layers"), (((0.5,),) * 2, "has 1 shares")):
        tuned = Tuned("other", (Interval(0, sparse, table),))
        with (
            sample_attention_prefill(model, tuned),
            pytest.raises(InvalidConfig, match=words),
        ):
            logits(model, prompt(length=200))


def test_a_bad_configuration_leaves_the_model_alone(tiny):
    model = tiny("llama")
    with pytest.raises(InvalidConfig, match="default"), sample_attention_prefill(model, "nothing"):
        pass
    assert model.config._attn_implementation == "eager"


def test_registering_again_replaces_the_configuration(tiny, prompt, logits, sparse):
    model, ids = tiny("llama"), prompt()
    register(DENSE)
    model.set_attn_implementation(NAME)
    dense = logits(model, ids)
    register(sparse)
    assert not torch.equal(logits(model, ids), dense)
    register(DENSE)
    register(DENSE)
    assert torch.equal(logits(model, ids), dense)
    register()


def test_the_guard_makes_heads_dense(tiny, prompt, sparse, budget, logits):
    for family in ("llama", "gpt_oss"):  # the second has sinks, and a path of its own
        ids = prompt()
        exact, bound = budget(family, ids)
        model = tiny(family)
        guarded = replace(sparse, guard=1.0)
        with sample_attention_prefill(model, guarded, record=True) as recorder:
            seen = logits(model, ids)
        calls = [c for c in recorder.layers if c.route.sparse]
        assert all((c.guarded <= 1).all() for c in calls)
        assert any((c.guarded == 1).any() for c in calls)
        for call in calls:
            flagged = call.guarded == 1
            assert (call.density[flagged] == 1).all()
            assert (call.retained_mass_min[flagged] == 1).all()
        if all((c.guarded == 1).all() for c in calls):
            assert worst(seen, exact) <= bound


def test_short_prompts_stay_dense(tiny, prompt, monkeypatch, logits, sparse):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(1000, 2, "a test"))
    model = tiny("llama")
    with sample_attention_prefill(model, sparse, record=True) as recorder:
        logits(model, prompt())
    assert [c.route.sparse for c in recorder.layers] == [False, False]
    assert "1000" in recorder.layers[0].route.reason
