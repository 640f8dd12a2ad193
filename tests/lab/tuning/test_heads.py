"""What heads are worth: the estimate beside what the model loses, and who gets which coverage."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from sample_attention import SampleAttentionConfig  # noqa: E402
from sample_attention.config import Interval, Tuned  # noqa: E402
from sample_attention.lab.contenders import DENSE, Contender  # noqa: E402
from sample_attention.lab.models import LoadedModel  # noqa: E402
from sample_attention.lab.reading import compare_text, text_logits  # noqa: E402
from sample_attention.lab.tuning.heads import HEAD_COVERAGES, HeadProfile, profile_heads  # noqa: E402

LAYERS = 3
CONFIG = SampleAttentionConfig(
    dense_prefix=0,
    dense_tail=0,
    window=16,
    segment=32,
    pool=32,
    dense_above=1.0,
    coverage_at=None,
    runs=None,
)


def made_up(weights):
    """Heads that lose in proportion to their weight, and compute alike."""
    coverages = torch.tensor(HEAD_COVERAGES, dtype=torch.float64)
    density = (0.05 + 0.4 * coverages**6).expand(*weights.shape, -1)
    return HeadProfile(weights[..., None] * (1 - coverages) ** 2, density)


def chosen(profile, coverage):
    """Mean density and whole loss of the table at a coverage."""
    at = torch.tensor([[HEAD_COVERAGES.index(x) for x in row] for row in profile.table(coverage)])
    found = (x.gather(2, at[..., None]) for x in (profile.density, profile.loss))
    return [float(part) for part in (next(found).mean(), next(found).sum())]


@pytest.mark.parametrize("coverage", [0.85, 0.9, 0.95])
def test_tables_lose_less_at_the_density_of_one_coverage(coverage):
    profile = made_up(torch.rand(3, 4, dtype=torch.float64) ** 4)
    density, loss = chosen(profile, coverage)
    i = HEAD_COVERAGES.index(coverage)
    assert density <= float(profile.density[..., i].mean())
    assert loss < 0.7 * float(profile.loss[..., i].sum())


def test_worthier_heads_keep_more():
    table = made_up(torch.tensor([[0.0, 0.1, 1.0, 10.0]], dtype=torch.float64)).table(0.9)
    assert table[0][0] == HEAD_COVERAGES[0]
    assert list(table[0]) == sorted(table[0])
    assert len(set(table[0])) > 2


def test_heads_alike_have_what_all_have():
    profile = made_up(torch.ones(2, 3, dtype=torch.float64))
    assert profile.table(0.93) == ((0.93,) * 3,) * 2
    between = profile.table(0.92)  # no head can have it
    assert {x for row in between for x in row} <= {0.9, 0.93}


@pytest.fixture
def loaded():
    """Weights large enough for attention to be uneven, so that plans are sparse."""
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=64, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None, attention_dropout=0.5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.normal_(std=0.3)
            layer.self_attn.k_proj.weight.normal_(std=0.3)
    return LoadedModel(model, None, 512, "tiny")


def test_the_estimate_is_about_what_the_model_loses(loaded):
    """Here by layer; errors of the first one cancel in part on their way."""
    passages = [tuple(torch.randint(60, (256,)).tolist()) for _ in range(16)]
    profile = profile_heads(loaded, passages, CONFIG, rows=64)
    i = HEAD_COVERAGES.index(0.7)
    predicted = profile.loss[..., i].sum(1)
    for layer in range(1, LAYERS):
        table = tuple(((0.7 if x == layer else 0.999999),) * 4 for x in range(LAYERS))
        method = Contender("", config=Tuned("", (Interval(0, CONFIG, table),)))
        lost = []
        for passage in passages:
            dense = text_logits(loaded, passage, Contender(DENSE))[0]
            lost.append(compare_text(passage, text_logits(loaded, passage, method), dense).kl)
        measured = sum(lost) / len(lost)
        assert measured / 2 < float(predicted[layer]) < 2 * measured
    assert predicted.tolist() == sorted(predicted.tolist(), reverse=True)


def test_a_profile_leaves_the_model_as_it_was(loaded):
    model, ids = loaded.model, torch.arange(50)[None]
    before = model(ids).logits
    implementation = model.config._attn_implementation
    profile_heads(loaded, [tuple(range(50))], CONFIG, 8)
    assert model.config._attn_implementation == implementation
    assert not model.training
    assert not model.is_gradient_checkpointing
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(ids).logits, before)
