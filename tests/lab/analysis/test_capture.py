"""Captured tensors are those of the layer; the model computes what it computed before."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

import sample_attention as sa  # noqa: E402
from sample_attention import reference  # noqa: E402
from sample_attention.errors import InvalidInput  # noqa: E402
from sample_attention.integrations.transformers import sample_attention_prefill  # noqa: E402
from sample_attention.lab.capture import capture_attention  # noqa: E402
from sample_attention.lab.generation import end_tokens, generate_greedily, prefill, warm_up  # noqa: E402
from sample_attention.routing import policy  # noqa: E402


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval()


@pytest.fixture
def tokens():
    return torch.randint(50, (1, 120))


def test_attention_of_the_capture_is_that_of_the_model(model, tokens):
    outputs = {}
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs, i=i: outputs.__setitem__(i, inputs[0])
        )
        for i, layer in enumerate(model.model.layers)
    ]
    with torch.inference_mode(), capture_attention(model, [0, 2]) as captured:
        model(tokens)
    for hook in hooks:
        hook.remove()
    assert sorted(captured) == [0, 2]
    for i, x in captured.items():
        everything = torch.ones(4, 120, 120, dtype=torch.bool)
        out, _ = reference.attend(x.q[0], x.k[0], x.v[0], everything, x.scale)
        torch.testing.assert_close(out.transpose(0, 1).flatten(1), outputs[i][0])
        assert x.mask is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_results_and_implementation_stay(model, tokens, implementation):
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        before = model(tokens).logits
        with capture_attention(model, [1]):
            during = model(tokens).logits
        after = model(tokens).logits
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(during, before)
    assert torch.equal(after, before)


def test_inside_sample_attention_it_sees_the_same_call(model, tokens, monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(64, 64, "a test"))
    config = sa.preset("pooled", dense_prefix=32, segment=32, window=16)
    with (
        torch.inference_mode(),
        sample_attention_prefill(model, config, keep_plans=[1]) as recorder,
        capture_attention(model, [1]) as captured,
    ):
        model(tokens)
    plan = next(x.plan for x in recorder.layers if x.layer == 1)
    again = sa.select(captured[1].q, captured[1].k, config, scale=captured[1].scale)
    assert all(torch.equal(plan.to_dense(0, h), again.to_dense(0, h)) for h in range(4))


def test_other_models_are_not_captured(model, tokens):
    other = transformers.LlamaForCausalLM(model.config).double().eval()
    with torch.inference_mode(), capture_attention(model, [0]) as captured:
        other(tokens)
    assert not captured


def test_decoding_is_passed_over_and_errors_restore(model, tokens):
    with capture_attention(model, [0]) as captured:
        generate_greedily(model, tokens, 4)
    assert captured[0].q.shape[2] == tokens.shape[1]
    with pytest.raises(KeyError), capture_attention(model, [0]):
        raise KeyError
    with torch.inference_mode():
        model(tokens)
    assert captured[0].q.shape[2] == tokens.shape[1]


def test_layers_that_are_not_there_are_refused(model):
    with pytest.raises(InvalidInput, match="no layer 3; accepted: 0 to 2"):
        capture_attention(model, [0, 3]).__enter__()


def test_greedy_generation_is_that_of_transformers(model, tokens):
    found = generate_greedily(model, tokens, 8)
    theirs = model.generate(tokens, max_new_tokens=8, do_sample=False)
    assert list(found.token_ids) == theirs[0, tokens.shape[1] :].tolist()
    assert found.ttft_s > 0
    assert found.decode_s > 0


def test_generation_stops_at_the_end_token(model, tokens, monkeypatch):
    found = generate_greedily(model, tokens, 8).token_ids
    end = found[-1]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])
    assert end_tokens(model) == {end}
    calls = []
    stopped = generate_greedily(model, tokens, 8, lambda: calls.append(1))
    assert stopped.token_ids == found[: found.index(end)]
    assert len(calls) == len(stopped.token_ids)


def test_warm_up_and_prefill_leave_the_model_alone(model, tokens):
    before = model.config._attn_implementation
    warm_up(model, tokens, sa.SampleAttentionConfig())
    prefill(model, tokens)
    assert model.config._attn_implementation == before
