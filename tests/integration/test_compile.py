"""`torch.compile`: one operator in the graph, the same results, and clear ends where it cannot."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import library

import sample_attention as sa
from sample_attention import MlsysConfig, PooledQueries, SampleAttentionConfig, Sequences, preset
from sample_attention.errors import InvalidInput
from sample_attention.routing import compile as ops
from sample_attention.testing import make_qkv

SMALL = preset(
    "pooled",
    coverage=0.6,
    segment=32,
    sample_stride=8,
    rows=8,
    window=8,
    dense_prefix=0,
    dense_tail=0,
)
OPERATOR = torch.ops.sample_attention.sample_attention.default

# The first thing that a fresh process does with the package is to compile it.
FIRST_CALL = """
import sys, torch
import sample_attention as sa
from sample_attention.routing import policy

assert "torch._dynamo" not in sys.modules, "importing the package imports the compiler"
policy.CROSSOVERS[sys.argv[1]] = policy.Crossover(150, 150, "a test")

def layer(q, k, v, config, scale):
    return sa.sample_attention(2 * q, k, v, config, scale=scale) + 1

config = sa.preset(
"pooled", coverage=0.6, segment=32, sample_stride=8, rows=8, window=8, dense_prefix=0, dense_tail=0
)
dynamic = sys.argv[3] == "dynamic"
compiled = torch.compile(layer, backend=sys.argv[2], fullgraph=True, dynamic=dynamic)
dtype = torch.float32 if sys.argv[1] == "cpu" else torch.bfloat16
for q_len, kv_len in ((200, 200), (160, 220), (100, 130)):  # sparse, sparse, dense
    q = torch.randn(2, 4, q_len, 16, device=sys.argv[1], dtype=dtype)
    k, v = torch.randn(2, 2, 2, kv_len, 16, device=sys.argv[1], dtype=dtype)
    for scale in (None, 0.3):
        assert torch.equal(compiled(q, k, v, config, scale), layer(q, k, v, config, scale))
"""


def run_first_call(device, backend, shapes):
    command = [sys.executable, "-c", FIRST_CALL, device, backend, shapes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
def test_the_first_call_of_a_process_may_be_compiled(shapes):
    run_first_call("cpu", "aot_eager", shapes)


@pytest.mark.gpu
@pytest.mark.parametrize("shapes", ["static", "dynamic"])
def test_the_first_call_of_a_process_may_be_compiled_on_a_gpu(shapes):
    run_first_call("cuda", "inductor", shapes)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A compiler that runs graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _inputs):
        self.graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward


def lay_out(layout):
    """q, k, v and sequences, batched, padded or packed."""
    q, k, v = make_qkv(150, 200, batch=2, num_heads=4, num_kv_heads=2)
    if layout == "padded":
        return q, k, v, Sequences.left_padded(torch.tensor([200, 90]), 150, 200)
    if layout == "packed":
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        ends = torch.tensor([0, 100, 150]), torch.tensor([0, 130, 200])
        return q, k, v, Sequences.packed_from(*ends)
    return q, k, v, None


LAYOUTS = ["batched", "padded", "packed"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("always_sparse")
def test_a_compiled_call_equals_an_eager_one(layout):
    q, k, v, sequences = lay_out(layout)

    def layer(q, k, v, sequences):
        return sa.sample_attention(2 * q, k, v, SMALL, sequences=sequences) + 1

    counter = Counter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    assert torch.equal(compiled(q, k, v, sequences), layer(q, k, v, sequences))
    (targets,) = counter.graphs
    assert sum("sample_attention" in target for target in targets) == 1


@pytest.mark.usefixtures("always_sparse")
def test_other_sequences_of_the_same_kind_use_the_same_operator():
    q, k, v, _ = lay_out("packed")
    compiled = torch.compile(sa.sample_attention, backend="aot_eager", fullgraph=True)
    for ends in ([0, 150], [0, 20, 150], [0, 70, 90, 150]):
        sequences = Sequences.packed_from(torch.tensor(ends))
        given = q, k[:150], v[:150], SMALL
        expected = sa.sample_attention(*given, sequences=sequences)
        assert torch.equal(compiled(*given, sequences=sequences), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("always_sparse")
def test_the_operator_passes_the_checks_of_torch(layout):
    q, k, v, sequences = lay_out(layout)
    tables, bounds = ops.flatten_sequences(sequences)
    given = q, k, v, SMALL.to_json(), 0.3, "auto", "auto", tables, bounds
    library.opcheck(OPERATOR, given)
    expected = sa.sample_attention(q, k, v, SMALL, scale=0.3, sequences=sequences)
    assert torch.equal(OPERATOR(*given), expected)


@pytest.mark.usefixtures("always_sparse")
def test_the_configuration_is_part_of_the_graph():
    q, k, v, _ = lay_out("batched")
    counter = Counter()
    compiled = torch.compile(sa.sample_attention, backend=counter, fullgraph=True)
    for config in (SMALL, replace(SMALL, coverage=0.9), "paper", replace(SMALL), SMALL):
        assert torch.equal(compiled(q, k, v, config), sa.sample_attention(q, k, v, config))
    assert len(counter.graphs) == 3, "an equal configuration must not compile again"


MADE = {
    "a preset": lambda: preset("paper", coverage=0.7),
    "fields of parts": lambda: preset("default", sampled_keys=64, heads=(0.5, 0.6, 0.7, 0.8)),
    "by hand": lambda: SampleAttentionConfig(ranking=PooledQueries(rows=16)),
    "published": lambda: MlsysConfig(key_block=16),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.usefixtures("always_sparse")
def test_a_configuration_may_be_made_in_the_graph(name):
    q, k, v, _ = lay_out("batched")
    make = MADE[name]

    def layer(q, k, v):
        return sa.sample_attention(q, k, v, make())

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), layer(q, k, v))


def test_wrong_input_is_refused_as_ever():
    q, k, _, _ = lay_out("batched")
    compiled = torch.compile(sa.sample_attention, backend="aot_eager", fullgraph=True)
    with pytest.raises(InvalidInput, match="Sq=200 > Skv=150"):
        compiled(k, q[:, :2], q[:, :2])


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_gradients_are_refused_when_the_graph_is_made():
    q, k, v, _ = lay_out("batched")
    compiled = torch.compile(sa.sample_attention, backend="aot_eager", fullgraph=True)
    q.requires_grad_()
    with torch.no_grad():
        assert torch.equal(compiled(q, k, v), sa.sample_attention(q, k, v))
    with pytest.raises(Exception, match=r"no backward under torch\.compile"):
        compiled(q, k, v).sum().backward()


def two_steps(q, k, v):
    plan = sa.select(2 * q, k, SMALL)
    return sa.attend(2 * q, k, v, plan).out + 1


def measured(q, k, v):
    return sa.measured_attention(2 * q, k, v, SMALL).out + 1


@pytest.mark.parametrize("steps", [two_steps, measured])
def test_steps_break_the_graph_and_run_as_they_are(steps):
    q, k, v, _ = lay_out("batched")
    counter = Counter()
    compiled = torch.compile(steps, backend=counter)
    assert torch.equal(compiled(q, k, v), steps(q, k, v))
    assert len(counter.graphs) <= 3, "nothing of the package is traced"


@pytest.mark.parametrize("steps", [two_steps, measured])
def test_steps_do_not_fit_into_one_graph(steps):
    q, k, v, _ = lay_out("batched")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compiler"):
        torch.compile(steps, backend="eager", fullgraph=True)(q, k, v)
