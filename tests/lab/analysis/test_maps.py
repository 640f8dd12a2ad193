"""Grids of one head against the whole matrix, and the pictures drawn of them."""

import pytest
import torch

import sample_attention as sa
from sample_attention import reference
from sample_attention.errors import InvalidInput, MissingExtra
from sample_attention.lab.analysis.maps import head_map
from sample_attention.lab.capture import AttentionInputs

CONFIG = sa.preset(
    "pooled", coverage=0.8, segment=32, sample_stride=8, rows=16, window=16, dense_prefix=32,
    dense_tail=5,
)  # fmt: skip


@pytest.fixture
def inputs():
    q, k = (3 * torch.randn(1, h, 160, 16, dtype=torch.float64) for h in (2, 1))
    return AttentionInputs(q, k, k, 0.3)


@pytest.fixture
def plan(inputs):
    return sa.select(inputs.q, inputs.k, CONFIG, scale=inputs.scale)


def test_pair_by_pair_it_is_the_plan_and_the_attention(inputs, plan):
    grid = head_map(inputs.q, inputs.k, plan, 1, scale=inputs.scale)
    prob = reference.probabilities(inputs.q[0], inputs.k[0], inputs.scale)[1]
    torch.testing.assert_close(grid.probability, prob.float())
    kept = plan.to_dense(0, 1).float()
    assert torch.equal(grid.window + grid.columns + grid.dense, kept)
    assert torch.equal(grid.causal, torch.ones(160, 160).tril())
    assert bool(grid.columns.any())
    assert bool(grid.dense.any())


def test_cells_hold_the_largest_probability_and_the_share_of_pairs(inputs, plan):
    grid = head_map(inputs.q, inputs.k, plan, 0, cells=40, scale=inputs.scale)
    prob = reference.probabilities(inputs.q[0], inputs.k[0], inputs.scale)[0]
    blocks = prob.unflatten(0, (40, 4)).unflatten(2, (40, 4))
    torch.testing.assert_close(grid.probability, blocks.amax((1, 3)).float())
    kept = plan.to_dense(0, 0).float().unflatten(0, (40, 4)).unflatten(2, (40, 4)).sum((1, 3))
    shares = grid.window + grid.columns + grid.dense
    torch.testing.assert_close(shares * grid.causal * 16, kept)


def test_a_span_is_a_part_of_the_whole(inputs, plan):
    whole = head_map(inputs.q, inputs.k, plan, 0)
    part = head_map(inputs.q, inputs.k, plan, 0, rows=(80, 112), keys=(40, 112))
    assert torch.equal(part.columns, whole.columns[80:112, 40:112])
    assert torch.equal(part.window, whole.window[80:112, 40:112])


@pytest.mark.parametrize("span", [(5, 5), (-1, 4), (0, 161)])
def test_bad_spans_are_refused(inputs, plan, span):
    with pytest.raises(InvalidInput, match="keys"):
        head_map(inputs.q, inputs.k, plan, 0, keys=span)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 2), (60, 40)])
@pytest.mark.parametrize("measured", [True, False])
def test_report_is_drawn_at_any_size(inputs, plan, layers, heads, measured, tmp_path):
    pytest.importorskip("matplotlib")
    from sample_attention.lab.analysis.plots import Panel, draw_report, head_picture

    values = torch.rand(layers, heads, dtype=torch.float64)
    panels = [Panel.density(values), Panel.sparsity_degree(values, 0.95)]
    if measured:
        mass = 0.9 + 0.1 * values
        mass[0, 0] = torch.nan
        panels += [Panel.retained_mass(mass, "mean"), Panel.cra(mass, "least")]
    head = head_picture(inputs, plan, 0, "Layer 1, head 0") if measured else None
    figure = draw_report("Title", "A line\nor two", range(layers), panels, head)
    figure.savefig(tmp_path / "report.png")
    data = (tmp_path / "report.png").read_bytes()
    assert int.from_bytes(data[16:20], "big") >= 1200


def test_drawing_touches_no_global_state(inputs, plan):
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    from sample_attention.lab.analysis.plots import draw_head, head_picture

    before = dict(mpl.rcParams)
    draw_head(head_picture(inputs, plan, 1, "Layer 0, head 1"))
    assert dict(mpl.rcParams) == before


def test_missing_matplotlib_is_named(monkeypatch):
    from sample_attention.lab.analysis.plots import Panel, draw_report

    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pip install .\.\[plot\]"):
        draw_report("T", "S", [0], [Panel.density(torch.ones(1, 1))])
