"""Blocks of `sample_attention_prefill`: what a model names comes back, however they overlap."""

import asyncio
import itertools
import threading

import pytest
import torch
import transformers

from sample_attention import SampleAttentionConfig
from sample_attention.errors import UnsupportedAttention
from sample_attention.integrations.sessions import session_of
from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import sample_attention_prefill


def test_a_second_thread_is_refused(tiny):
    model, inside, finish, errors = tiny("llama"), threading.Event(), threading.Event(), []

    def other():
        try:
            with sample_attention_prefill(model):
                inside.set()
                finish.wait()
        except UnsupportedAttention as error:
            errors.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    refused = pytest.raises(UnsupportedAttention, match="block of another thread or task")
    with refused, sample_attention_prefill(model):
        pass
    assert model.config._attn_implementation == NAME  # the refused one changed nothing
    finish.set()
    thread.join()
    assert not errors
    assert model.config._attn_implementation == "eager"
    with sample_attention_prefill(model):  # and it is free again
        assert model.config._attn_implementation == NAME


@pytest.mark.parametrize("outside", [False, True])
def test_a_second_task_is_refused(outside, tiny):
    """But for a block around the loop, in which each task may open its own after another."""
    model = tiny("llama")
    reached = []

    async def task(name, wait):
        with sample_attention_prefill(model):
            reached.append(name)
            await asyncio.sleep(wait)

    async def both():
        return await asyncio.gather(task("a", 0.2), task("b", 0), return_exceptions=True)

    async def in_turn():
        await task("a", 0)
        await asyncio.gather(task("b", 0))

    if outside:
        with sample_attention_prefill(model):
            asyncio.run(in_turn())
        assert reached == ["a", "b"]
    else:
        _, second = asyncio.run(both())
        assert isinstance(second, UnsupportedAttention)
        assert "another thread or task" in str(second)
        assert reached == ["a"]
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_that_end_in_any_order(order, tiny):
    """As those of coroutines do; the one opened last and still open counts."""
    model = tiny("llama")
    configs = [SampleAttentionConfig(coverage=x) for x in (0.5, 0.6, 0.7)]
    blocks = [sample_attention_prefill(model, config) for config in configs]
    for block in blocks:
        block.__enter__()
    left = list(range(3))
    for i in order:
        layer = model.model.layers[0].self_attn
        assert session_of(layer).config == configs[left[-1]]
        assert model.config._attn_implementation == NAME
        blocks[i].__exit__(None, None, None)
        left.remove(i)
    assert session_of(layer) is None
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_models_that_share_a_configuration(first_to_end, tiny):
    one = tiny("llama")
    models = one, transformers.LlamaForCausalLM(one.config).eval()
    assert models[0].config is models[1].config
    blocks = [sample_attention_prefill(model) for model in models]
    for block in blocks:
        block.__enter__()
    blocks[first_to_end].__exit__(None, None, None)
    assert one.config._attn_implementation == NAME
    blocks[1 - first_to_end].__exit__(None, None, None)
    assert one.config._attn_implementation == "eager"


def test_a_model_that_cannot_be_switched_keeps_nothing():
    model = transformers.BloomForCausalLM(transformers.BloomConfig(n_layer=1, hidden_size=64))
    refused = pytest.raises(UnsupportedAttention, match="cannot be chosen")
    with refused, sample_attention_prefill(model):
        pass
    assert all(session_of(module) is None for module in model.modules())


def test_what_is_no_model_is_refused(tiny):
    model = tiny("llama")
    others = torch.nn.DataParallel(model), model.model.layers[0], "smollm2-135m", None
    for other in others:
        refused = pytest.raises(UnsupportedAttention, match=f"got a {type(other).__name__}; acc")
        with refused, sample_attention_prefill(other):
            pass
