"""Real text, and needle prompts of an exact length that hold what they ask for."""

import pytest

from sample_attention.errors import InvalidInput
from sample_attention.lab.models import load_model, needle_prompt, reference_text


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_model(tiny.path).tokenizer


def test_the_reference_is_long_plain_prose():
    text = reference_text()
    assert text == reference_text()
    assert len(text) > 150_000
    assert ">>>" not in text
    assert "::=" not in text
    assert "\n\n\n" not in text


def test_the_code_is_the_standard_library_and_longer():
    text = reference_text("code")
    assert len(text) > 2_000_000
    assert text.index("class ArgumentParser") < text.index("def warn(")
    with pytest.raises(InvalidInput, match="'poems'; accepted: prose, code"):
        reference_text("poems")


@pytest.mark.parametrize("num_tokens", [400, 1000, 5000])
@pytest.mark.parametrize("seed", [0, 1])
def test_length_is_reached_and_never_passed(tokenizer, num_tokens, seed):
    prompt = needle_prompt(tokenizer, num_tokens, seed=seed)
    assert num_tokens - 8 <= len(prompt.token_ids) <= num_tokens
    assert list(prompt.token_ids) == tokenizer(prompt.text)["input_ids"]


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_fact_stands_at_its_depth(tokenizer, depth):
    prompt = needle_prompt(tokenizer, 8000, depth=depth)
    assert prompt.text.count(prompt.answer) == 2
    assert abs(prompt.text.index(prompt.answer) / len(prompt.text) - depth) < 0.06


def test_it_is_a_chat_that_ends_with_the_question(tokenizer):
    prompt = needle_prompt(tokenizer, 1000)
    assert prompt.text.startswith("<|im_start|>user\n")
    assert prompt.question in prompt.text[-400:]
    assert prompt.text.index(prompt.answer) < prompt.text.index(prompt.question)


def test_seeds_choose_the_fact_and_are_reproducible(tokenizer):
    assert needle_prompt(tokenizer, 600, seed=3) == needle_prompt(tokenizer, 600, seed=3)
    answers = {needle_prompt(tokenizer, 600, seed=seed).answer for seed in range(5)}
    assert len(answers) == 5


def test_text_longer_than_the_reference_repeats_it(tokenizer):
    assert len(needle_prompt(tokenizer, 150_000).token_ids) > 149_900


def test_a_tokenizer_without_a_chat_template_gets_plain_text(tiny):
    tokenizer = load_model(tiny.path).tokenizer
    tokenizer.chat_template = None
    prompt = needle_prompt(tokenizer, 500)
    assert "<|im_start|>" not in prompt.text


@pytest.mark.parametrize("num_tokens", [0, 20])
def test_too_short_a_prompt_is_refused(tokenizer, num_tokens):
    with pytest.raises(InvalidInput, match=f"num_tokens is {num_tokens}"):
        needle_prompt(tokenizer, num_tokens)


@pytest.mark.parametrize("depth", [-0.1, 1.5])
def test_a_depth_outside_the_text_is_refused(tokenizer, depth):
    with pytest.raises(InvalidInput, match="depth"):
        needle_prompt(tokenizer, 1000, depth=depth)
