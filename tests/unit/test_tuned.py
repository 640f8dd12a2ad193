"""Tuned configurations: files, names, and which configuration a call gets."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from sample_attention import (
    SampleAttentionConfig,
    SampledRows,
    Tuned,
    explain,
    measured_attention,
    preset,
    select,
)
from sample_attention import sample_attention as attention
from sample_attention.config import Interval, tuned, with_fields
from sample_attention.errors import InvalidConfig
from sample_attention.selection.rule import as_rule, rule_in_layer
from sample_attention.testing import make_qkv

SHORT = preset(
    "pooled",
    coverage=0.5,
    segment=16,
    sample_stride=4,
    rows=4,
    window=8,
    dense_prefix=0,
    dense_tail=0,
)
LONG = preset(
    "pooled", coverage=0.9, segment=32, sample_stride=8, ranking=SampledRows(), window=16,
    dense_prefix=0, dense_tail=0,
)  # fmt: skip
BOTH = Tuned("tiny", (Interval(0, SHORT), Interval(200, LONG)), ({"kl": 0.1},), {"torch": "2"})


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "folder" / "tuned.json"
    BOTH.save(target)
    return target


@pytest.mark.parametrize(
    ("kv_len", "config"), [(1, SHORT), (199, SHORT), (200, LONG), (9999, LONG)]
)
def test_resolution_by_length(kv_len, config):
    assert BOTH.for_length(kv_len) == config


def test_files_give_back_what_was_written(path):
    assert Tuned.load(path) == BOTH
    assert as_rule(str(path)) == BOTH
    assert json.loads(path.read_text("utf-8"))["schema"] == tuned.TUNED_SCHEMA


@pytest.mark.parametrize(("length", "config"), [(100, SHORT), (300, LONG)])
def test_calls_get_the_configuration_of_their_length(path, length, config):
    q, k, v = make_qkv(length, num_heads=2, num_kv_heads=1)
    sparse = {"policy": "sparse"}
    expected = attention(q, k, v, config, **sparse)
    for rule in (BOTH, str(path)):
        assert torch.equal(attention(q, k, v, rule, **sparse), expected)
        assert torch.equal(measured_attention(q, k, v, rule, **sparse).out, expected)
        assert torch.equal(select(q, k, rule).indices, select(q, k, config).indices)
        assert explain(q, k, v, rule, **sparse).route.sparse


def test_a_dense_interval_runs_dense():
    dense = Tuned("tiny", (Interval(0, SampleAttentionConfig(coverage=1.0)),))
    q, k, v = make_qkv(64, num_heads=2, num_kv_heads=1)
    assert "coverage 1" in explain(q, k, v, dense, policy="sparse").route.reason


def test_fields_are_replaced_everywhere():
    changed = BOTH.with_fields({"window": 24})
    assert [x.config.window for x in changed.intervals] == [24, 24]
    assert [x.config.coverage for x in changed.intervals] == [0.5, 0.9]


TABLE = ((0.3, 0.5), (0.9, 0.98))
BY_HEAD = Tuned("tiny", (Interval(0, SHORT, TABLE), Interval(200, LONG)))


def test_every_layer_has_the_coverages_of_its_heads(tmp_path):
    BY_HEAD.save(tmp_path / "heads.json")
    assert "[ 0.3, 0.5 ]" in (tmp_path / "heads.json").read_text("utf-8")  # a layer is a line
    loaded = Tuned.load(tmp_path / "heads.json")
    assert loaded == BY_HEAD
    for layer, shares in enumerate(TABLE):
        found = loaded.for_layer(layer, 2)
        assert found.for_length(100) == with_fields(SHORT, heads=shares)
        assert found.for_length(200) == LONG.for_layer(layer, 2)
    assert loaded.for_length(100) == SHORT


@pytest.mark.parametrize(("layer", "layers"), [(0, 3), (1, 3), (2, 3), (0, 1), (2, 2), (-1, 2)])
def test_another_number_of_layers_is_refused_in_the_first(layer, layers):
    for asked in (BY_HEAD.for_layer, partial(rule_in_layer, BY_HEAD)):
        with pytest.raises(InvalidConfig) as error:
            asked(layer, layers)
        for words in (
            "tuned for 'tiny'",
            "for 2 layers",
            f"layer {layer} of {layers}",
            "tune this",
        ):
            assert words in str(error.value)


def test_what_has_no_table_suits_every_number_of_layers():
    deep = BOTH.for_layer(2, 3)
    assert [x.config for x in deep.intervals] == [x.config.for_layer(2, 3) for x in BOTH.intervals]


def test_another_coverage_is_that_of_all_heads():
    assert BY_HEAD.with_fields({"window": 24}).intervals[0].heads == TABLE
    changed = BY_HEAD.with_fields({"coverage": 0.7})
    alike = with_fields(SHORT, coverage=0.7, heads=None)
    assert changed.for_layer(1, 2).for_length(100) == alike.for_layer(1, 2)


def test_names_are_those_of_shipped_files(path, monkeypatch):
    monkeypatch.setattr(tuned, "SHIPPED", path.parent)
    tuned._shipped.cache_clear()
    path.rename(path.with_name("tiny.json"))
    assert Tuned.load("tuned:tiny") == BOTH
    with pytest.raises(InvalidConfig, match="accepted: tuned:tiny; or the path"):
        Tuned.load("tuned:huge")
    tuned._shipped.cache_clear()


def test_unknown_names_say_what_there_is():
    with pytest.raises(InvalidConfig, match="there is no tuned configuration 'tuned:no-such'"):
        as_rule("tuned:no-such")


def test_missing_files_name_the_path(tmp_path):
    with pytest.raises(InvalidConfig, match=r"nowhere\.json: No such file"):
        as_rule(str(tmp_path / "nowhere.json"))


def test_files_of_version_0_1_are_read():
    """As this one was written, with a table of heads, before configurations had a schema."""
    text = (Path(__file__).parent / "tuned_0_1.json").read_text("utf-8")
    loaded = Tuned.from_json(text)
    assert loaded.model == "tiny"
    assert loaded.for_length(100) == preset(
        "default", coverage=0.96, sample_stride=8, farthest_rows=4, run_share=None, window=64,
        layer_ratio=1, tighten_below=None,
    )  # fmt: skip
    assert loaded.for_layer(1, 2).for_length(100).budget.heads == (0.97, 0.95)
    assert Tuned.from_json(loaded.to_json()) == loaded
    assert json.loads(loaded.to_json())["schema"] == tuned.TUNED_SCHEMA
    with pytest.raises(InvalidConfig, match="has unknown fields: head_coverage"):
        Tuned.from_json(text.replace('"schema": 1', '"schema": 2'))


def _changed(**fields):
    return json.dumps({**json.loads(BOTH.to_json()), **fields})


def _with_table(table):
    return _changed(intervals=[{"min_kv_len": 0, "config": {}, "heads": table}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "schema None; accepted: 1, 2"),
        (_changed(schema=99), "schema 99; accepted: 1, 2"),
        (_changed(extra=1), "has unknown fields: extra"),
        ('{"schema": 1, "model": "tiny"}', "lacks fields: intervals"),
        (_changed(model=3), "model must be a str, got 3"),
        (_changed(intervals={}), "intervals must be a list"),
        (_changed(measured={}), "measured must be a list"),
        (_changed(intervals=[]), "accepted: 0, then rising lengths"),
        (_changed(intervals=[{"min_kv_len": 5, "config": {}}]), r"is \[5\]; accepted: 0"),
        (_changed(intervals=[{"min_kv_len": "0", "config": {}}]), "must be an integer"),
        (_changed(intervals=[3]), "an interval must be an object, got 3"),
        (_changed(intervals=[{"min_kv_len": 0}]), "an interval lacks fields: config"),
        (_changed(intervals=[{"min_kv_len": 0, "config": {"alpha": 1}}]), "unknown fields alpha"),
        (_with_table(3), "must be a list by layer, got 3"),
        (_with_table([0.5]), "must be a list by layer"),
        (_with_table([[0.5], [1.0]]), "heads must be below 1"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "bad.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InvalidConfig, match=words) as raised:
        Tuned.load(path)
    assert str(path) in str(raised.value)
