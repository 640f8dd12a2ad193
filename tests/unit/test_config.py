"""The presets are the published points; the table of the module says the same."""

import dataclasses
import json
import math
import re

import pytest

from sample_attention import SampleAttentionConfig
from sample_attention.config import PRESETS, as_config
from sample_attention.config import default as config
from sample_attention.errors import InvalidConfig

PUBLISHED = {
    "paper": {
        "coverage": 0.95, "slash_coverage": None, "segment": None, "row_stride": 20, "pool": None,
        "chunk_tails": None, "spread": False, "probes": None, "key_block": 1,
        "window_ratio": 0.08, "residual": False, "dense_tail": 128, "dense_prefix": 0,
    },
    "mlsys": {
        "coverage": 0.95, "slash_coverage": 0.95, "segment": None, "chunk_tails": 2, "pool": None,
        "spread": False, "probes": None, "key_block": 128, "window": 0, "window_ratio": None,
        "residual": False, "dense_tail": 0, "dense_prefix": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets(name):
    preset = SampleAttentionConfig.preset(name)
    assert {field: getattr(preset, field) for field in PUBLISHED[name]} == PUBLISHED[name]


MEANING = {"whole call": None, "all": None, "no": False, "yes": True}


def table():
    """Rows of the module's table: field to the cells of each preset."""
    rows = re.findall(r"^\| `(\w+)` +\|[^|]*" + r"\|([^|]*)" * 5 + r"\|$", config.__doc__, re.M)
    names = "paper", "mlsys", "default", "fast", "pooled"
    return {field: dict(zip(names, cells, strict=True)) for field, *cells in rows}


@pytest.mark.parametrize("field", table())
@pytest.mark.parametrize("name", PRESETS)
def test_table_equals_the_presets(field, name):
    cell = table()[field][name].strip()
    preset = PRESETS[name]
    if field == "window" and preset.window_ratio is not None:
        assert cell.startswith(f"{preset.window_ratio * 100:g} %")
    elif cell in MEANING:
        assert getattr(preset, field) is MEANING[cell]
    elif cell != "-":
        assert float(cell.split()[0]) == getattr(preset, field)


def test_table_names_every_field_that_presets_change():
    changed = {
        field.name
        for field in dataclasses.fields(SampleAttentionConfig)
        if len({getattr(preset, field.name) for preset in PRESETS.values()}) > 1
    }
    assert changed - {"window_ratio", "residual"} <= set(table())


def test_fast_is_the_default_that_keeps_less():
    fast = SampleAttentionConfig.preset("fast")
    assert fast == SampleAttentionConfig(coverage=fast.coverage)
    assert fast.coverage < SampleAttentionConfig().coverage


def test_presets_and_their_names():
    assert as_config("default") == SampleAttentionConfig()
    assert as_config(PRESETS["paper"]) is PRESETS["paper"]
    assert SampleAttentionConfig.preset("paper", coverage=0.8).coverage == 0.8
    assert hash(SampleAttentionConfig()) == hash(SampleAttentionConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["paper"].coverage = 0.5


@pytest.mark.parametrize(
    ("fields", "kv_len", "window"),
    [
        ({"window": 7}, 100, 7),
        ({"window_ratio": 0.08}, 100, 8),
        ({"window_ratio": 0.08}, 101, 9),
        ({"window_ratio": 1.0, "window": 3}, 50, 50),
    ],
)
def test_window_for(fields, kv_len, window):
    assert SampleAttentionConfig(**fields).window_for(kv_len) == window


@pytest.mark.parametrize(
    ("segment", "align"), [(None, 1), (16, 16), (64, 64), (128, 128), (256, 128), (512, 128)]
)
def test_window_alignment(segment, align):
    pool = None if segment is None else 16
    assert (
        SampleAttentionConfig.preset("pooled", segment=segment, pool=pool).window_alignment == align
    )


@pytest.mark.parametrize(
    ("preset", "fields", "dense"),
    [
        ("default", {}, False),
        ("default", {"coverage": 1}, True),
        ("default", {"coverage": 1.0}, True),
        ("mlsys", {"coverage": 1}, False),
        ("mlsys", {"slash_coverage": 1}, False),
        ("mlsys", {"coverage": 1, "slash_coverage": 1}, True),
    ],
)
def test_dense(preset, fields, dense):
    assert SampleAttentionConfig.preset(preset, **fields).dense is dense


class Share(float):
    """A number whose repr is not that of a float, as those of NumPy are."""

    def __repr__(self):
        return f"Share({float(self)})"


@pytest.mark.parametrize(
    "settings",
    [
        *PRESETS.values(),
        SampleAttentionConfig(coverage=1, held_out=4, guard=0.1 + 0.2),
        SampleAttentionConfig(coverage=Share(0.7), dense_above=1e-7),
        dataclasses.replace(PRESETS["mlsys"], window_ratio=1 / 3),
    ],
)
def test_json_keeps_every_field_exactly(settings):
    text = settings.to_json()
    assert json.loads(text) == dataclasses.asdict(settings)
    again = SampleAttentionConfig.from_json(text)
    assert again == settings
    assert again.to_json() == text


def test_a_coverage_for_each_head():
    settings = SampleAttentionConfig(coverage=1, head_coverage=(0.9, Share(0.95)))
    assert not settings.dense
    assert settings.coverage_of(2) == (0.9, 0.95)
    again = SampleAttentionConfig.from_json(settings.to_json())
    assert again == settings
    assert again.head_coverage == (0.9, 0.95)
    with pytest.raises(InvalidConfig, match="has 2 shares, and the call 3 query heads"):
        settings.coverage_of(3)
    with pytest.raises(InvalidConfig, match="head_coverage needs segments"):
        SampleAttentionConfig.preset("paper", head_coverage=(0.9,))


@pytest.mark.parametrize("layers", [2, 3, 24, 80])
@pytest.mark.parametrize("contrast", [1.5, 4, 64])
def test_what_layers_may_lose_keeps_its_geometric_mean(layers, contrast):
    whole = SampleAttentionConfig(coverage=0.99, depth_contrast=contrast)
    found = [whole.for_layer(layer, layers) for layer in range(layers)]
    lost = [1 - config.coverage for config in found]
    assert math.prod(lost) ** (1 / layers) == pytest.approx(0.01)
    assert lost == pytest.approx(lost[::-1])
    if layers % 2:
        assert lost[0] / lost[layers // 2] == pytest.approx(contrast)
    assert all(
        dataclasses.replace(x, coverage=0.99, depth_contrast=contrast) == whole for x in found
    )
    assert all(x.for_layer(0, layers) is x for x in found)  # a layer's own is final


def test_depth_leaves_every_layer_a_coverage():
    sparse = SampleAttentionConfig(coverage=0.2, depth_contrast=64)
    assert sparse.for_layer(0, 9).coverage == config.LEAST_COVERAGE
    assert SampleAttentionConfig(coverage=1).for_layer(0, 9).dense


def test_depth_needs_a_model_and_one_coverage():
    whole = SampleAttentionConfig(coverage=0.9)
    assert whole.for_layer(0, 1).coverage == pytest.approx(0.9)
    assert whole.for_layer(9, 4) == whole.for_layer(3, 4)
    by_head = SampleAttentionConfig(head_coverage=(0.5, 0.9))
    assert by_head.for_layer(0, 4) is by_head
    alike = SampleAttentionConfig(depth_contrast=1)
    assert alike.for_layer(0, 4) is alike


def test_json_with_some_fields_takes_the_defaults_for_others():
    assert SampleAttentionConfig.from_json('{"window": 128}') == SampleAttentionConfig(window=128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"windows": 3, "a": 1}', "unknown fields a, windows; accepted: coverage"),
        ('{"coverage": 2}', "coverage must be"),
        ('{"segment": 1.5}', "segment must be an integer"),
        ('{"residual": "yes"}', "residual must be True or False"),
        ("[]", "accepted: a JSON object"),
        ("coverage=0.9", "not JSON"),
        (None, "not JSON"),
    ],
)
def test_json_that_is_no_configuration(text, words):
    with pytest.raises(InvalidConfig, match=words):
        SampleAttentionConfig.from_json(text)
