"""Dense providers: who takes what, in which order, and what reaches the packages they call."""

import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import library

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Sequences
from sample_attention.dense import attention, dense, dense_with_lse, flash_attention, provider
from sample_attention.dense.base import Facts
from sample_attention.dense.flash_attention import FlashAttention3, FlashAttention4
from sample_attention.dense.fused import CUDNN_VERSION, CudnnAttention, FlashAttention2
from sample_attention.dense.gpu import ALIGNMENT, aligned, import_first, on_device_of
from sample_attention.dense.registry import PROVIDERS, choose_provider, provider_verdicts
from sample_attention.dense.sdpa import MergedAttention
from sample_attention.problem import Problem
from sample_attention.testing import assert_matches_oracle, make_qkv

FA3_MODULES = ("fa3_fwd_interface", "flash_attn_interface")
NAMES = [p.name for p in PROVIDERS]
GPU = torch.device("cuda", 0)


def wanted(layout="square", **changes):
    """The facts of a call that every provider for GPUs takes, where the layout allows."""
    return Facts(GPU, torch.bfloat16, 128, layout)._replace(**changes)


class Interface(ModuleType):
    """What FlashAttention 3 and 4 have in common, in plain PyTorch; keeps what it was given."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def batched(self, q, k, v, scale, causal):
        assert causal
        self.calls.append((q, k, v))
        return bottom_right(q, k, v, scale)

    def packed(self, q, k, v, totals, longest, scale, causal):
        assert causal
        assert all(ends.dtype == torch.int32 for ends in totals)
        assert [int(ends.diff().max()) for ends in totals] == longest
        self.calls.append((q, k, v))
        out, lse = torch.full_like(q, torch.nan), torch.full((q.shape[1], len(q)), torch.nan)
        ends = list(zip(*(ends.tolist() for ends in totals), strict=True))
        for (q0, k0), (q1, k1) in itertools.pairwise(ends):
            part = bottom_right(q[None, q0:q1], k[None, k0:k1], v[None, k0:k1], scale)
            out[q0:q1], lse[:, q0:q1] = part[0][0], part[1][0]
        return out, lse


class Interface3(Interface):
    """The signatures of FlashAttention 3; arguments that we leave alone are left out."""

    def flash_attn_func(
        self, q, k, v, *, softmax_scale=None, causal=False, return_attn_probs=False
    ):
        out, lse = self.batched(q, k, v, softmax_scale, causal)
        return (out, lse) if return_attn_probs else out

    def flash_attn_varlen_func(
        self, q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        softmax_scale=None, causal=False, return_attn_probs=False,
    ):  # fmt: skip
        totals, longest = (cu_seqlens_q, cu_seqlens_k), [max_seqlen_q, max_seqlen_k]
        out, lse = self.packed(q, k, v, totals, longest, softmax_scale, causal)
        return (out, lse) if return_attn_probs else out


LIBRARY = "sample_attention_test_fa3"
# The schema of fa3-fwd 0.0.3, and of flash-attention's `hopper` folder at 0251105a.
SCHEMA = """fwd(
    Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = None,
    Tensor? q_v = None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None,
    Tensor? cu_seqlens_k = None, Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None,
    Tensor? seqused_k = None, int? max_seqlen_q = None, int? max_seqlen_k = None,
    Tensor? page_table = None, Tensor? kv_batch_idx = None, Tensor? leftpad_k = None,
    Tensor? rotary_cos = None, Tensor? rotary_sin = None, Tensor? seqlens_rotary = None,
    Tensor? q_descale = None, Tensor? k_descale = None, Tensor? v_descale = None,
    float? softmax_scale = None, bool is_causal = False, int window_size_left = -1,
    int window_size_right = -1, int attention_chunk = 0, float softcap = 0.0,
    bool is_rotary_interleaved = False, Tensor? scheduler_metadata = None, int num_splits = 0,
    bool? pack_gqa = None, int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, Tensor)"""


class Operator3(Interface3):
    """The operator of FlashAttention 3 under its functions, which must not be called then."""

    def fwd(self, *args):
        given = dict(zip(flash_attention.ARGUMENTS, args, strict=False))
        assert given["num_splits"] == 1
        q, k, v, scale, causal = (
            given[name] for name in ("q", "k", "v", "softmax_scale", "is_causal")
        )
        totals = given["cu_seqlens_q"], given["cu_seqlens_k"]
        longest = [given["max_seqlen_q"], given["max_seqlen_k"]]
        packed = totals[0] is not None
        out = (
            self.packed(q, k, v, totals, longest, scale, causal)
            if packed
            else self.batched(q, k, v, scale, causal)
        )
        return *out, q.new_empty(0), q.new_empty(0)

    def flash_attn_func(self, *_, return_attn_probs=False, **__):
        raise NotImplementedError

    flash_attn_varlen_func = flash_attn_func


class Interface4(Interface):
    """The signatures of FlashAttention 4, likewise; it always returns two."""

    def flash_attn_func(self, q, k, v, *, softmax_scale=None, causal=False, return_lse=False):
        out, lse = self.batched(q, k, v, softmax_scale, causal)
        return out, lse if return_lse else None

    def flash_attn_varlen_func(
        self, q, k, v, *, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
        max_seqlen_k=None, softmax_scale=None, causal=False, return_lse=False,
    ):  # fmt: skip
        totals, longest = (cu_seqlens_q, cu_seqlens_k), [max_seqlen_q, max_seqlen_k]
        out, lse = self.packed(q, k, v, totals, longest, softmax_scale, causal)
        return out, lse if return_lse else None


def bottom_right(q, k, v, scale):
    """Causal attention of `[B, S, H, D]` tensors, and its lse `[B, H, S]`."""
    group = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), *(x.transpose(1, 2).repeat_interleave(group, 1) for x in (k, v))
    scores = (q @ k.mT).float() * scale
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    scores.masked_fill_(~mask, -torch.inf)
    out = scores.softmax(-1).to(v.dtype) @ v
    return out.transpose(1, 2).contiguous(), scores.logsumexp(-1)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """An H100 with torch's own kernels and no package; a function that installs packages."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: CUDNN_VERSION)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for name in (*FA3_MODULES, "flash_attn", "flash_attn.cute", "fa3_fwd_config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import_first.cache_clear()
    choose_provider.cache_clear()

    def install(name, module):
        monkeypatch.setitem(sys.modules, name, module)
        import_first.cache_clear()
        choose_provider.cache_clear()
        return module

    yield install
    import_first.cache_clear()
    choose_provider.cache_clear()


@pytest.fixture
def fa3(machine):
    return machine(FA3_MODULES[0], Interface3(FA3_MODULES[0]))


@pytest.fixture
def install_operator(machine, monkeypatch):
    """A function from a schema and an interface to the operator's registration on the CPU."""
    libraries = []

    def install(schema, interface):
        operators = library.Library(LIBRARY, "FRAGMENT")
        operators.define(schema)
        operators.impl("fwd", getattr(interface, "fwd", None) or bottom_right, "CPU")
        libraries.append(operators)
        monkeypatch.setitem(flash_attention.OPERATORS, FA3_MODULES[0], LIBRARY)
        return machine(FA3_MODULES[0], interface)

    yield install
    for operators in libraries:
        operators._destroy()
    vars(torch.ops).pop(LIBRARY, None)


@pytest.fixture
def fa3_operator(install_operator):
    return install_operator(SCHEMA, Operator3(FA3_MODULES[0]))


@pytest.fixture
def fa4(machine):
    machine("flash_attn", ModuleType("flash_attn"))
    return machine("flash_attn.cute", Interface4("flash_attn.cute"))


def chosen(facts):
    found = choose_provider(facts)
    return None if found is None else found.name


def test_the_order_is_that_of_speed(fa4, machine):
    del fa4
    assert chosen(wanted()) == "fa4"
    machine(FA3_MODULES[1], Interface3(FA3_MODULES[1]))
    assert chosen(wanted()) == "fa3"
    assert NAMES[:5] == ["fa3", "fa4", "cudnn", "fa2", "sdpa"]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (wanted(), "cudnn"),
        (wanted(lse=True), "cudnn"),
        (wanted("chunk"), "fa2"),
        (wanted("chunk", lse=True), "fa2"),
        (wanted("row"), "sdpa"),
        (wanted("row", lse=True), MergedAttention.name),
        (wanted("packed"), None),
        (wanted("several"), None),
        (wanted(dtype=torch.float32), "sdpa"),
        (wanted(head_dim=100), "sdpa"),
        (wanted(head_dim=256), "fa2"),
        (wanted(device=torch.device("cpu")), "sdpa"),
        (wanted("chunk", device=torch.device("cpu")), MergedAttention.name),
        (wanted(device=torch.device("cpu"), lse=True), MergedAttention.name),
    ],
)
def test_what_torch_alone_offers(facts, name):
    assert chosen(facts) == name


@pytest.mark.parametrize("layout", ["square", "chunk", "packed"])
def test_fa3_takes_every_prefill(fa3, layout):
    del fa3
    for lse in (False, True):
        assert chosen(wanted(layout, lse=lse)) == "fa3"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (wanted(device=torch.device("cpu")), "device cpu; accepted: an NVIDIA GPU"),
        (wanted(dtype=torch.float32), "float32; accepted: torch.bfloat16"),
        (wanted(head_dim=100), "head dim 100; accepted: multiples of 8 up to"),
        (wanted(head_dim=264), "head dim 264"),
        (wanted("row"), "decoding"),
    ],
)
def test_refusals_that_kernels_share(fa3, fa4, facts, words):
    del fa3, fa4
    for candidate in PROVIDERS[:4]:
        assert words in candidate.refusal(facts)


@pytest.mark.parametrize(
    ("candidate", "capability", "accepts"),
    [
        (FlashAttention3(), (8, 0), False),
        (FlashAttention3(), (10, 0), False),
        (FlashAttention4(), (8, 9), False),
        (FlashAttention4(), (10, 0), True),
        (CudnnAttention(), (8, 0), False),
        (FlashAttention2(), (8, 0), True),
        (FlashAttention2(), (7, 5), False),
    ],
)
def test_capabilities(monkeypatch, fa3, fa4, candidate, capability, accepts):
    del fa3, fa4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    reason = candidate.refusal(wanted())
    assert (reason is None) == accepts
    assert accepts or f"sm_{capability[0]}{capability[1]}; accepted: sm_" in reason


def test_head_dims_of_fa4_on_blackwell(monkeypatch, fa4):
    del fa4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (10, 0))
    refused = [d for d in (64, 128, 192, 256) if FlashAttention4().refusal(wanted(head_dim=d))]
    assert refused == [192]


def test_packages_that_are_not_installed():
    verdict = FlashAttention3().refusal(wanted())
    assert verdict == "fa3_fwd_interface or flash_attn_interface is not installed"
    assert FlashAttention4().refusal(wanted()) == "flash_attn.cute is not installed"


def test_flash_attention_2_alone_is_not_fa4(machine):
    machine("flash_attn", ModuleType("flash_attn"))
    assert FlashAttention4().refusal(wanted()) == "flash_attn.cute is not installed"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise ImportError('undefined symbol: x\\nmore')", "undefined symbol: x"),
        ("raise OSError('libcudart.so.13')", "libcudart.so.13"),
        ("raise AttributeError('made for another torch')", "made for another torch"),
    ],
)
def test_a_broken_package_is_a_refusal(monkeypatch, tmp_path, text, words):
    (tmp_path / f"{FA3_MODULES[0]}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert FlashAttention3().refusal(wanted()) == f"{FA3_MODULES[0]} does not import: {words}"
    assert chosen(wanted()) == "cudnn"


def test_the_second_package_stands_in_for_a_broken_first(monkeypatch, tmp_path, machine):
    (tmp_path / f"{FA3_MODULES[0]}.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    machine(FA3_MODULES[1], Interface3(FA3_MODULES[1]))
    assert chosen(wanted()) == "fa3"


def test_a_package_without_the_argument_is_too_old(machine):
    old = machine(FA3_MODULES[0], ModuleType(FA3_MODULES[0]))
    old.flash_attn_func = bottom_right
    verdict = FlashAttention3().refusal(wanted())
    assert verdict == "fa3_fwd_interface is too old: it has no return_attn_probs"


@pytest.mark.parametrize(
    ("left_out", "facts", "words"),
    [
        ("FP16", wanted(dtype=torch.float16), "leaves out FP16"),
        ("FP16", wanted(), None),
        ("VARLEN", wanted("packed"), "leaves out VARLEN"),
        ("VARLEN", wanted("chunk"), None),
        ("HDIM256", wanted(head_dim=256), "ends at head dim 192"),
        ("HDIM256", wanted(head_dim=192), None),
    ],
)
def test_kernels_that_a_build_of_fa3_leaves_out(fa3, machine, left_out, facts, words):
    del fa3
    listed = ModuleType("fa3_fwd_config")
    flags = {"FLASHATTENTION_DISABLE_SPLIT": False, f"FLASHATTENTION_DISABLE_{left_out}": True}
    listed.CONFIG = {"build_flags": flags}
    machine("fa3_fwd_config", listed)
    reason = FlashAttention3().refusal(facts)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize("version", [None, CUDNN_VERSION - 1])
def test_cudnn_that_is_old_or_absent(monkeypatch, version):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    assert CudnnAttention().refusal(wanted()).startswith(f"cuDNN {version}; accepted")
    assert chosen(wanted()) == "fa2"


def test_torch_without_flash_attention(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert "leaves it out" in FlashAttention2().refusal(wanted())
    assert chosen(wanted("chunk")) == MergedAttention.name


def every_key(q, k, sequences=None):
    return sa.select(q, k, SampleAttentionConfig(coverage=1), sequences=sequences)


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: schema.replace(", int sm_margin = 0", ""),
        lambda schema: schema.replace("sm_margin = 0", "sm_margin = 0, Tensor? sinks = None"),
        lambda schema: schema.replace("is_causal", "causal"),
    ],
    ids=["fewer", "more", "another name"],
)
def test_an_operator_that_is_not_known_is_left_to_the_package(install_operator, change):
    interface = install_operator(change(SCHEMA), Interface3(FA3_MODULES[0]))
    q, k, v = make_qkv(60, 100, num_heads=4, num_kv_heads=2)
    out, lse = FlashAttention3()(q, k, v, 0.1)
    assert_matches_oracle(out, lse, q, k, v, every_key(q, k), scale=0.1)
    assert len(interface.calls) == 1


def test_the_current_gpu_is_not_set_again(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: entered.append(x) or "guard")
    for device, guarded in ((1, False), (0, True), (-1, False)):
        x = SimpleNamespace(is_cuda=device >= 0, get_device=lambda device=device: device)
        assert (on_device_of(x) == "guard") == guarded
    assert len(entered) == 1


PACKAGES = {
    "fa3": FlashAttention3, "fa3_operator": FlashAttention3, "fa4": FlashAttention4
}  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("q_len", [60, 100])
def test_batches_reach_flash_attention_without_a_copy(request, package, q_len):
    interface = request.getfixturevalue(package)
    candidate = PACKAGES[package]()
    q, k, v = make_qkv(q_len, 100, batch=2, num_heads=4, num_kv_heads=2)
    out, lse = candidate(q, k, v, 0.1)
    assert_matches_oracle(out, lse, q, k, v, every_key(q, k), scale=0.1)
    for given, ours in zip(interface.calls[0], (q, k, v), strict=True):
        assert given.shape == (2, ours.shape[2], ours.shape[1], ours.shape[3])
        assert given.data_ptr() == ours.data_ptr()


@pytest.mark.parametrize("package", PACKAGES)
def test_packed_sequences_reach_flash_attention_in_one_call(request, monkeypatch, package):
    interface = request.getfixturevalue(package)
    candidate = PACKAGES[package]()
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(150, 200, num_heads=4, num_kv_heads=2))
    sequences = Sequences.packed_from(torch.tensor([0, 90, 140]), torch.tensor([0, 120, 200]))
    asked = []
    monkeypatch.setattr(
        attention, "choose_provider", lambda facts: asked.append(facts) or candidate
    )
    problem = Problem.of(q, k, v, sequences)
    views = [x.transpose(0, 1)[None] for x in (q, k, v)]
    out, lse = dense_with_lse(*views, problem, problem.scale(None))
    assert [facts.layout for facts in asked] == ["packed"]
    assert len(interface.calls) == 1
    assert interface.calls[0][0].data_ptr() == q.data_ptr()
    # Ten tokens of q belong to no sequence: zeros, and an lse of -inf.
    plan = every_key(q, k, sequences)
    assert_matches_oracle(out[0].transpose(0, 1), lse[0], q, k, v, plan)


@pytest.mark.parametrize("move", [lambda x: x[..., 1:9], lambda x: x[..., :8]])
def test_memory_that_a_kernel_cannot_read_is_copied(move):
    x = torch.randn(1, 2, 5, 9, dtype=torch.bfloat16)
    given = aligned(move(x))
    assert torch.equal(given, move(x))
    assert given.data_ptr() % ALIGNMENT == 0
    assert not any(stride % 8 for stride in given.stride()[:-1])


def test_memory_that_a_kernel_can_read_is_not_copied():
    fused = torch.randn(2, 5, 3, 4, 16, dtype=torch.bfloat16)
    for part in fused.unbind(2):
        assert aligned(part.transpose(1, 2)).data_ptr() == part.data_ptr()


PADDED = Sequences.left_padded(torch.tensor([50, 20]), 50, 50)
PACKED = Sequences.packed_from(torch.tensor([0, 30, 49]), torch.tensor([0, 31, 50]))


@pytest.mark.parametrize(
    ("sequences", "q_len", "name"),
    [
        (None, 50, "sdpa"),
        (PADDED, 50, "sdpa, one sequence at a time"),
        (PACKED, 49, f"{MergedAttention.name}, one sequence at a time"),
    ],
    ids=["batched", "padded", "packed"],
)
def test_the_provider_on_a_cpu(sequences, q_len, name):
    q, k, v = make_qkv(q_len, 50, batch=2)
    if sequences is PACKED:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    problem = Problem.of(q, k, v, sequences)
    assert provider(problem) == name
    verdicts = provider_verdicts(problem)
    assert list(verdicts) == NAMES
    assert "device cpu" in verdicts["fa3"]


def test_explain_names_the_provider_and_every_verdict():
    q, k, v = make_qkv(64)
    answer = sa.explain(q, k, v)
    assert answer.dense_verdicts["sdpa"] == "accepted"
    for name in NAMES:
        assert f"  {name}: {answer.dense_verdicts[name]}" in str(answer)


def test_a_choice_is_made_once(fa3):
    del fa3
    choose_provider(wanted())
    assert choose_provider(wanted()) is choose_provider(wanted())
    assert choose_provider.cache_info().misses == 1


def test_sequences_with_gaps_are_not_packed():
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(50, num_heads=2))
    table = torch.tensor([[0, 0, 20, 0, 20], [0, 25, 25, 25, 25]], dtype=torch.int32)
    sequences = Sequences(table, 25, 25, packed=True)
    problem = Problem.of(q, k, v, sequences)
    assert Facts.of(problem).layout == "several"
    out = sa.sample_attention(q, k, v, sequences=sequences)
    assert_matches_oracle(out, None, q, k, v, every_key(q, k, sequences))


def test_each_sequence_runs_as_it_would_alone():
    q, k, v = make_qkv(60, batch=3, num_heads=4, num_kv_heads=2)
    sequences = Sequences.left_padded(torch.tensor([60, 31, 1]), 60, 60)
    problem = Problem.of(q, k, v, sequences)
    out = dense(q, k, v, problem, 0.3)
    for b, length in enumerate((60, 31, 1)):
        alone = [x[b : b + 1, :, 60 - length :] for x in (q, k, v)]
        assert torch.equal(out[b : b + 1, :, 60 - length :], dense(*alone, Problem.of(*alone), 0.3))
