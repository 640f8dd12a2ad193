"""The rules that a user writes: presets, parts, layers, and their texts in JSON."""

import dataclasses
import json
import math

import pytest

from sample_attention import (
    Budget,
    Check,
    MlsysConfig,
    PaperConfig,
    PooledQueries,
    QueryMoments,
    SampleAttentionConfig,
    SampledRows,
    preset,
)
from sample_attention.config import PRESETS, as_config, config_from_json, fields_of, with_fields
from sample_attention.config.sample_attention import LEAST_COVERAGE
from sample_attention.config.schema import OLD_FIELDS, old_fields
from sample_attention.errors import InvalidConfig
from sample_attention.selection.geometry import coverage_of, plan_form, window_for

OFF = {
    "head_coverage": None, "depth_contrast": 1, "coverage_at": None, "slash_coverage": None,
    "segment": None, "row_stride": 4, "chunk_tails": None, "pool": None, "spread": False,
    "probes": None, "outliers": 0, "runs": None, "key_block": 1, "window": 128,
    "window_ratio": None, "residual": False, "dense_tail": 0, "dense_prefix": 0,
    "dense_above": 0.75, "held_out": 0, "guard": None,
}  # fmt: skip
DEFAULT = {
    **OFF, "coverage": 0.945, "depth_contrast": 4, "coverage_at": 16384, "segment": 128,
    "pool": 128, "spread": True, "probes": 2048, "outliers": 8, "runs": 0.0625, "residual": True,
    "dense_tail": 64, "dense_prefix": 1024,
}  # fmt: skip
OLD = {
    "default": DEFAULT,
    "fast": {**DEFAULT, "coverage": 0.85},
    "pooled": {
        **OFF, "coverage": 0.95, "segment": 128, "row_stride": 8, "pool": 32, "window": 256,
        "residual": True, "dense_tail": 64, "dense_prefix": 1024,
    },
    "paper": {
        **OFF, "coverage": 0.95, "row_stride": 20, "window_ratio": 0.08, "dense_tail": 128,
    },
    "mlsys": {
        **OFF, "coverage": 0.95, "slash_coverage": 0.95, "chunk_tails": 2, "key_block": 128,
        "window": 0,
    },
}  # fmt: skip
"""The presets as version 0.1 wrote them, field by field."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_version_0_1_are_those_of_today(name):
    assert set(OLD[name]) == set(OLD_FIELDS)
    assert config_from_json(json.dumps(OLD[name])) == PRESETS[name]
    assert PRESETS[name].from_json(json.dumps(OLD[name])) == PRESETS[name]
    again = old_fields(PRESETS[name].to_values())
    read = {"row_stride", "window", "dense_above"}  # some rules never read these
    assert {x: y for x, y in again.items() if x not in read or name in ("default", "fast")} == {
        x: y for x, y in OLD[name].items() if x not in read or name in ("default", "fast")
    }


def test_published_rules_have_the_published_numbers():
    paper = PaperConfig(coverage=0.95, sample_stride=20, window_ratio=0.08, dense_tail=128)
    assert preset("paper") == paper == PaperConfig()
    assert preset("mlsys") == MlsysConfig(
        coverage=0.95, slash_coverage=0.95, chunks=2, key_block=128
    )


def test_fast_is_the_default_that_keeps_less():
    fast = preset("fast")
    assert fast == SampleAttentionConfig(coverage=fast.coverage)
    assert fast.coverage < SampleAttentionConfig().coverage


def test_presets_and_their_names():
    assert as_config("default") == SampleAttentionConfig()
    assert as_config(PRESETS["paper"]) is PRESETS["paper"] is preset("paper")
    assert preset("paper", coverage=0.8) == PaperConfig(coverage=0.8)


def test_fields_of_parts_are_replaced_by_name():
    assert preset("default", sampled_keys=64, heads=(0.5,), held_out_rows=4, window=9) == (
        SampleAttentionConfig(
            window=9,
            ranking=QueryMoments(sampled_keys=64),
            budget=Budget(heads=(0.5,)),
            check=Check(held_out_rows=4),
        )
    )
    pooled = with_fields(SampleAttentionConfig(), ranking=PooledQueries(), rows=8)
    assert pooled.ranking == PooledQueries(rows=8)
    assert with_fields(pooled) is pooled
    assert fields_of(PaperConfig()) == (
        "coverage", "sample_stride", "window_ratio", "dense_tail", "check", "held_out_rows",
        "min_retained_mass",
    )  # fmt: skip
    with pytest.raises(InvalidConfig, match="unknown fields rows; accepted: coverage, window"):
        preset("default", rows=8)


VALUES = [
    SampleAttentionConfig, PaperConfig, MlsysConfig, QueryMoments, PooledQueries, SampledRows,
    Budget, Check,
]  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_frozen_named_and_compared_by_their_fields(kind):
    names = tuple(field.name for field in dataclasses.fields(kind))
    assert names == kind.FIELDS
    value = kind()
    assert value == kind()
    assert hash(value) == hash(kind())
    assert value != object()
    for name in names:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 0.5)
    with pytest.raises(TypeError):
        kind(1)


def test_kinds_with_the_same_numbers_are_not_equal():
    assert SampleAttentionConfig() != preset("fast")
    assert PooledQueries() != SampledRows()
    assert len({*PRESETS.values(), SampleAttentionConfig(), PaperConfig()}) == len(PRESETS)


def test_numbers_that_are_equal_make_equal_values():
    for one, other in [
        (SampleAttentionConfig(coverage=1), SampleAttentionConfig(coverage=1.0)),
        (Budget(layer_ratio=2), Budget(layer_ratio=2.0)),
        (preset("default", heads=[0.5, 0.25]), preset("default", heads=(0.5, 0.25))),
    ]:  # fmt: skip
        assert one == other
        assert hash(one) == hash(other)
        assert one.to_json() == other.to_json()


@pytest.mark.parametrize(
    ("config", "kv_len", "window"),
    [
        (SampleAttentionConfig(window=7), 100, 7),
        (PaperConfig(window_ratio=0.08), 100, 8),
        (PaperConfig(window_ratio=0.08), 101, 9),
        (PaperConfig(window_ratio=1.0), 50, 50),
        (MlsysConfig(), 50, 0),
    ],
)
def test_window_for(config, kv_len, window):
    assert window_for(config, kv_len) == window


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (preset("pooled", segment=16, rows=16), (16, 16, 1, 0)),
        (preset("pooled", segment=128), (128, 128, 1, 0)),
        (preset("pooled", segment=512), (512, 128, 1, 0)),
        (PaperConfig(dense_tail=3), (2**30, 1, 1, 3)),
        (MlsysConfig(key_block=32), (32, 1, 32, 0)),
        (MlsysConfig(key_block=1), (1, 1, 1, 0)),
    ],
)
def test_plan_form(config, form):
    assert tuple(plan_form(config)) == form


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        (SampleAttentionConfig(), False),
        (SampleAttentionConfig(coverage=1), True),
        (SampleAttentionConfig(coverage=1, budget=Budget(heads=(0.5,))), False),
        (PaperConfig(coverage=1.0), True),
        (MlsysConfig(coverage=1), False),
        (MlsysConfig(slash_coverage=1), False),
        (MlsysConfig(coverage=1, slash_coverage=1), True),
    ],
)
def test_dense(config, dense):
    assert config.dense is dense


class Share(float):
    """A number whose repr is not that of a float, as those of NumPy are."""

    def __repr__(self):
        return f"Share({float(self)})"


@pytest.mark.parametrize(
    "settings",
    [
        *PRESETS.values(),
        preset("default", coverage=1, held_out_rows=4, min_retained_mass=0.1 + 0.2),
        SampleAttentionConfig(coverage=Share(0.7), dense_above=1e-7, ranking=SampledRows()),
        PaperConfig(window_ratio=1 / 3),
    ],
)
def test_json_keeps_every_field_exactly(settings):
    text = settings.to_json()
    values = json.loads(text)
    assert (values.pop("schema"), values.pop("rule")) == (2, settings.NAME)
    values.get("ranking", {}).pop("kind", None)
    assert values == dataclasses.asdict(settings)
    for again in (config_from_json(text), type(settings).from_json(text)):
        assert again == settings
        assert again.to_json() == text


def test_a_coverage_for_each_head():
    settings = preset("default", coverage=1, heads=(0.9, Share(0.95)))
    assert coverage_of(settings, 2) == (0.9, 0.95)
    assert coverage_of(PaperConfig(), 3) == (0.95,) * 3
    again = SampleAttentionConfig.from_json(settings.to_json())
    assert again == settings
    assert again.budget.heads == (0.9, 0.95)
    with pytest.raises(InvalidConfig, match="has 2 shares, and the call 3 query heads"):
        coverage_of(settings, 3)


@pytest.mark.parametrize("layers", [2, 3, 24, 80])
@pytest.mark.parametrize("ratio", [1.5, 4, 64])
def test_losses_of_layers_keep_their_geometric_mean(layers, ratio):
    whole = preset("default", coverage=0.99, layer_ratio=ratio)
    found = [whole.for_layer(layer, layers) for layer in range(layers)]
    lost = [1 - config.coverage for config in found]
    assert math.prod(lost) ** (1 / layers) == pytest.approx(0.01)
    assert lost == pytest.approx(lost[::-1])
    if layers % 2:
        assert lost[0] / lost[layers // 2] == pytest.approx(ratio)
    assert all(with_fields(x, coverage=0.99, layer_ratio=ratio) == whole for x in found)
    assert all(x.for_layer(0, layers) is x for x in found)  # a layer's own is final


def test_depth_leaves_every_layer_a_coverage():
    sparse = preset("default", coverage=0.2, layer_ratio=64)
    assert sparse.for_layer(0, 9).coverage == LEAST_COVERAGE
    assert SampleAttentionConfig(coverage=1).for_layer(0, 9).dense


def test_depth_needs_a_model_and_one_coverage():
    whole = SampleAttentionConfig(coverage=0.9)
    assert whole.for_layer(0, 1).coverage == pytest.approx(0.9)
    assert whole.for_layer(9, 4) == whole.for_layer(3, 4)
    for alike in (preset("default", heads=(0.5, 0.9)), preset("default", layer_ratio=1)):
        assert alike.for_layer(0, 4) is alike
    for published in (PaperConfig(), MlsysConfig()):
        assert published.for_layer(0, 4) is published


def test_json_with_some_fields_takes_the_defaults_for_others():
    assert SampleAttentionConfig.from_json('{"window": 9}') == SampleAttentionConfig(window=9)
    text = '{"schema": 2, "rule": "mlsys", "chunks": 3}'
    assert config_from_json(text) == MlsysConfig(chunks=3)
    text = '{"schema": 2, "rule": "sample_attention", "ranking": {"kind": "pooled_queries"}}'
    assert config_from_json(text) == SampleAttentionConfig(ranking=PooledQueries())


def _new(**fields):
    return json.dumps({"schema": 2, "rule": "sample_attention", **fields})


def _old(name, **fields):
    return json.dumps({**OLD[name], **fields})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"windows": 3, "a": 1}', "unknown fields a, windows; accepted without a schema"),
        ('{"coverage": 2}', "coverage must be"),
        ('{"window": 1.5}', "window must be an integer"),
        ("[]", "accepted: a JSON object"),
        ("coverage=0.9", "not JSON"),
        (None, "not JSON"),
        ('{"schema": 3}', "schema 3; accepted: 2"),
        ('{"schema": 2}', "unknown rule None; accepted: sample_attention, paper, mlsys"),
        (_new(alpha=1), "the rule 'sample_attention' has unknown fields alpha; accepted: coverage"),
        (_new(row_stride=4), "unknown fields row_stride"),
        (_new(ranking=3), "ranking must be an object, got 3"),
        (_new(ranking={"rows": 8}), "ranking of kind None; accepted: query_moments, pooled"),
        (_new(ranking={"kind": "sampled_rows", "rows": 8}), "ranking has unknown fields rows"),
        (_new(budget={"layers": 1}), "budget has unknown fields layers; accepted: layer_ratio"),
        (_old("default", residual=False), "'sample_attention' cannot express: residual=False"),
        (_old("pooled", window_ratio=0.1), "cannot express: window_ratio=0.1"),
        (_old("default", key_block=64), "cannot express: key_block=64"),
        (_old("default", pool=32), "spread=True needs pool=segment, got pool=32, segment=128"),
        (_old("default", spread=False), "needs probes=None and outliers=0, got probes=2048"),
        (_old("paper", residual=True), "'paper' cannot express: residual=True"),
        (_old("paper", window_ratio=None), "'paper' cannot express: window_ratio=None"),
        (_old("mlsys", window=9, dense_tail=3), "cannot express: window=9, dense_tail=3"),
    ],
)
def test_json_that_is_no_configuration(text, words):
    with pytest.raises(InvalidConfig, match=words):
        config_from_json(text)


def test_json_of_another_rule():
    with pytest.raises(InvalidConfig, match="holds the rule 'paper'; accepted: 'mlsys'"):
        MlsysConfig.from_json(PaperConfig().to_json())


def test_the_oldest_texts_of_the_published_rules_are_read():
    """Records of the first months lack the fields that came later."""
    text = {x: y for x, y in OLD["paper"].items() if x not in ("coverage_at", "depth_contrast")}
    assert config_from_json(json.dumps(text)) == PaperConfig()
