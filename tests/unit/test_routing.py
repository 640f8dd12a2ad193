"""A call that was seen before: it costs little, and nothing that was remembered makes it wrong."""

import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Tuned
from sample_attention.config import Interval
from sample_attention.dense import attention
from sample_attention.errors import InvalidInput
from sample_attention.problem import Problem
from sample_attention.routing import policy
from sample_attention.routing.policy import Crossover
from sample_attention.testing import assert_matches_oracle, make_qkv

PACKAGE = str(Path(sa.__file__).parent)

# benchmarks/call_cost.py: a call spends about 0.18 µs per function of the package above the
# provider, so 24 of them stay within 5 µs, and the 40 of a layer within 8. Today it is 21 and 34.
MOST_FUNCTIONS, MOST_FUNCTIONS_OF_A_LAYER = 24, 40


class Instant:
    """A provider whose results are there before it is asked."""

    name = "instant"

    def __init__(self, q):
        self.results = torch.zeros_like(q), q.new_zeros(q.shape[:3])

    def __call__(self, *_):
        return self.results


def functions_called(run):
    """The functions of the package that a call runs through, in order."""
    names = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return names


@pytest.fixture
def instant(monkeypatch):
    """Makes every dense call end in a provider that takes no time."""

    def install(q):
        provider = Instant(q)
        monkeypatch.setattr(attention, "choose_provider", lambda _facts: provider)

    return install


@pytest.mark.parametrize("config", ["default", SampleAttentionConfig()], ids=["name", "object"])
@pytest.mark.parametrize("operation", [sa.sample_attention, sa.measured_attention])
def test_a_dense_call_that_was_seen_before_is_short(instant, operation, config):
    q, k, v = make_qkv(100)
    instant(q)
    for _ in range(2):
        names = functions_called(lambda: operation(q, k, v, config))
    assert 5 < len(names) <= MOST_FUNCTIONS, names
    assert not {"check_forms", "refusal", "verdicts"} & set(names)


def test_a_layer_of_a_model_that_was_seen_before_is_short(instant):
    adapter = pytest.importorskip("sample_attention.integrations.transformers")
    q, k, v = make_qkv(100)
    instant(q)
    config, layer = SampleAttentionConfig(), torch.nn.Module()
    layer.layer_idx, layer.config = 1, SimpleNamespace(num_hidden_layers=4)
    layer.is_causal = True
    given = {"scaling": 0.1, "position_ids": torch.arange(100)[None], "use_cache": True}

    def run():
        adapter._attention(adapter.Choice(config), layer, q, k, v, None, **given)

    run()
    names = functions_called(run)
    assert 5 < len(names) <= MOST_FUNCTIONS_OF_A_LAYER, names
    assert not {"check_forms", "refusal", "rows_of_positions"} & set(names)


@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.to("meta"),
        lambda x: x.mT.contiguous().mT,
        lambda x: x[:, :1],
        lambda x: x[0],
        lambda x: x[:0],
        lambda x: x.int(),
        lambda x: x.tolist(),
    ],
    ids=["dtype", "device", "strides", "heads", "rank", "empty", "integers", "list"],
)
def test_what_is_wrong_is_seen_after_a_right_call(which, change):
    given = list(make_qkv(100, head_dim=16))
    sa.sample_attention(*given)
    given[which] = change(given[which])
    for _ in range(2):
        with pytest.raises(InvalidInput):
            sa.sample_attention(*given)


@pytest.mark.parametrize("which", range(2), ids="qk")
def test_another_head_dim_is_seen_after_a_right_call(which):
    given = list(make_qkv(100, head_dim=16))
    sa.sample_attention(*given)
    given[which] = given[which][..., :8]
    for _ in range(2):
        with pytest.raises(InvalidInput, match="head dims differ"):
            sa.sample_attention(*given)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), "1"])
def test_a_wrong_scale_is_seen_after_a_right_call(scale):
    given = make_qkv(100)
    sa.sample_attention(*given, scale=0.3)
    with pytest.raises(InvalidInput, match="scale"):
        sa.sample_attention(*given, scale=scale)


def test_other_tensors_of_the_same_form_are_other_tensors():
    for seed in range(3):
        q, k, v = make_qkv(100, num_heads=4, num_kv_heads=2, seed=seed)
        plan = sa.select(q, k, SampleAttentionConfig(coverage=1))
        for scale in (None, 0.3):
            out = sa.sample_attention(q, k, v, scale=scale)
            assert_matches_oracle(out, None, q, k, v, plan, scale=scale)


def test_a_problem_has_the_facts_of_its_own_tensors():
    x = torch.zeros(2, 4, 60, 16)
    for q_len, dtype, device in (
        (60, torch.float32, "cpu"), (60, torch.bfloat16, "cpu"), (60, torch.bfloat16, "meta"),
        (59, torch.bfloat16, "meta"), (60, torch.float32, "cpu"),
    ):  # fmt: skip
        k = x.to(device, dtype)
        problem = Problem.of(k[:, :, :q_len], k[:, :2], k[:, :2])
        facts = problem.sequences.max_q_len, problem.dtype, problem.device.type
        assert facts == (q_len, dtype, device)
        assert problem.sequences.table.device.type == device
        assert (problem.num_heads, problem.num_kv_heads) == (4, 2)


def sparse(q, k, v, config):
    """Whether a call runs sparse, which `explain` must say as well."""
    route = sa.measured_attention(q, k, v, config).route
    assert sa.explain(q, k, v, config).route == route
    return route.sparse


def test_the_policy_is_asked_anew(monkeypatch):
    q, k, v = make_qkv(300)
    config = SampleAttentionConfig(dense_prefix=0, dense_tail=0, window=8)
    dense = sa.sample_attention(q, k, v, config)
    assert not sparse(q, k, v, config)
    assert not torch.equal(sa.sample_attention(q, k, v, config, policy="sparse"), dense)
    all_of_it = sa.explain(q, k, v, replace(config, coverage=1.0), policy="sparse")
    assert not all_of_it.route.sparse
    assert not sparse(q, k, v, config)
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", Crossover(300, 1, "a test"))
    assert sparse(q, k, v, config)
    monkeypatch.setattr(policy, "CROSSOVERS", {"cpu": Crossover(301, 1, "a test")})
    assert not sparse(q, k, v, config)
    monkeypatch.setattr(policy, "CROSSOVERS", {})
    assert torch.equal(sa.sample_attention(q, k, v, config), dense)


@pytest.mark.usefixtures("always_sparse")
def test_the_configuration_is_that_of_the_call():
    q, k, v = make_qkv(300)
    wide, narrow = (SampleAttentionConfig(dense_prefix=0, dense_tail=0, window=n) for n in (128, 8))
    tuned = Tuned("a model", (Interval(0, wide), Interval(300, narrow)))
    given = [wide, narrow, tuned, replace(wide), "default", "paper"]
    once = [sa.sample_attention(q, k, v, config) for config in given]
    again = [sa.sample_attention(q, k, v, config) for config in given]
    assert all(map(torch.equal, once, again))
    assert torch.equal(once[1], once[2])
    assert not torch.equal(once[0], once[1])


def test_threads_do_not_mix_their_calls():
    inputs = [make_qkv(n, n + 5 * (n % 2), seed=n) for n in range(20, 60)]
    expected = [sa.sample_attention(*qkv) for qkv in inputs]
    wrong = []

    def work(offset):
        for i in range(len(inputs)):
            at = (i + offset) % len(inputs)
            if not torch.equal(sa.sample_attention(*inputs[at]), expected[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(7 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
