"""Configurations in JSON: schema 2, and the flat object of version 0.1, which is schema 1.

    {"schema": 2, "rule": "sample_attention", "coverage": 0.945, ...,
     "ranking": {"kind": "query_moments", ...}, "budget": {...}, "check": {...}}

Schema 1 has no field `schema`. Its 22 fields were those of all rules together; which rule they
are follows from `chunk_tails` and `segment`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidConfig

SCHEMA = 2
"""Version of the format that is written."""

NAMES = ("sample_attention", "paper", "mlsys")
"""Of the rules."""

_OLD_DEFAULTS: dict[str, Any] = {
    "coverage": 0.945, "head_coverage": None, "depth_contrast": 4, "coverage_at": 16384,
    "slash_coverage": None, "segment": 128, "row_stride": 4, "chunk_tails": None, "pool": 128,
    "spread": True, "probes": 2048, "outliers": 8, "runs": 0.0625, "key_block": 1, "window": 128,
    "window_ratio": None, "residual": True, "dense_tail": 64, "dense_prefix": 1024,
    "dense_above": 0.75, "held_out": 0, "guard": None,
}  # fmt: skip
"""The fields of schema 1 and what they were where a text left them out."""

OLD_FIELDS = tuple(_OLD_DEFAULTS)
"""Names of the fields of schema 1."""

_RENAMED = {
    "sample_attention": {
        "coverage": "coverage", "window": "window", "segment": "segment",
        "row_stride": "sample_stride", "dense_prefix": "dense_prefix", "dense_tail": "dense_tail",
        "dense_above": "dense_above",
    },
    "paper": {
        "coverage": "coverage", "row_stride": "sample_stride", "window_ratio": "window_ratio",
        "dense_tail": "dense_tail",
    },
    "mlsys": {
        "coverage": "coverage", "slash_coverage": "slash_coverage", "chunk_tails": "chunks",
        "key_block": "key_block",
    },
}  # fmt: skip
"""By rule, fields of schema 1 with their names in schema 2."""

_NEEDED: dict[str, dict[str, Any]] = {
    "sample_attention": {
        "slash_coverage": None, "key_block": 1, "window_ratio": None, "residual": True,
    },
    "paper": {
        "residual": False, "head_coverage": None, "depth_contrast": 1, "coverage_at": None,
        "slash_coverage": None, "key_block": 1, "pool": None, "spread": False, "segment": None,
        "probes": None, "outliers": 0,
    },
    "mlsys": {
        "head_coverage": None, "depth_contrast": 1, "coverage_at": None, "window": 0,
        "window_ratio": None, "dense_tail": 0, "pool": None, "spread": False, "segment": None,
        "probes": None, "outliers": 0,
    },
}  # fmt: skip
"""By rule, fields of schema 1 that changed its plans, and the only value it has now."""


def content_of(text: str) -> tuple[str, dict[str, Any]]:
    """The name of a rule and its fields as schema 2 has them, from a text of either schema.

    Raises:
        InvalidConfig: not a JSON object, another schema, no such rule, or a text of schema 1 that
            has unknown fields or values that together are no rule any more.
    """
    try:
        given: Any = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidConfig(f"accepted: a JSON object with fields as names, got {text!r}")
    content: dict[str, Any] = {**given}
    if "schema" not in content:
        return _from_old(content)
    schema, name = content.pop("schema"), content.pop("rule", None)
    if schema != SCHEMA:
        raise InvalidConfig(f"a configuration of schema {schema!r}; accepted: {SCHEMA}")
    if name not in NAMES:
        raise InvalidConfig(f"unknown rule {name!r}; accepted: {', '.join(NAMES)}")
    return name, content


def _from_old(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    unknown = sorted({*given} - {*_OLD_DEFAULTS})
    if unknown:
        raise InvalidConfig(
            f"unknown fields {', '.join(unknown)}; accepted without a schema, as of version 0.1: "
            f'{", ".join(_OLD_DEFAULTS)}; with "schema": {SCHEMA}: those of the rule'
        )
    name = "sample_attention"
    if given.get("chunk_tails") is not None:
        name = "mlsys"
    elif given.get("segment", 128) is None:
        name = "paper"
    old = {**_OLD_DEFAULTS, **_NEEDED[name], **given}  # the oldest texts lack what came later
    _check_old(name, old)
    content = {new: old[field] for field, new in _RENAMED[name].items()}
    content["check"] = {"held_out_rows": old["held_out"], "min_retained_mass": old["guard"]}
    if name == "sample_attention":
        content["ranking"] = _ranking(old)
        content["budget"] = {
            "layer_ratio": old["depth_contrast"], "tighten_below": old["coverage_at"],
            "heads": old["head_coverage"],
        }  # fmt: skip
    return name, content


def _check_old(name: str, old: Mapping[str, Any]) -> None:
    """Check that the fields that the rule has no longer had the value that it means now."""
    wrong = [f"{x}={old[x]!r}" for x, only in _NEEDED[name].items() if old[x] != only]
    if name == "paper" and old["window_ratio"] is None:
        wrong.append("window_ratio=None")
    if wrong:
        raise InvalidConfig(
            f"fields of version 0.1 that the rule {name!r} cannot express: {', '.join(wrong)}; "
            f"accepted: {_accepted(name)}"
        )


def _accepted(name: str) -> str:
    pairs = [f"{x}={only!r}" for x, only in _NEEDED[name].items()]
    return ", ".join([*pairs, *["a window_ratio"] * (name == "paper")])


def _ranking(old: Mapping[str, Any]) -> dict[str, Any]:
    if not old["spread"]:
        if old["probes"] is not None or old["outliers"]:
            raise InvalidConfig(
                "fields of version 0.1 that contradict each other: spread=False needs probes=None "
                f"and outliers=0, got probes={old['probes']}, outliers={old['outliers']}"
            )
        if old["pool"] is None:
            return {"kind": "sampled_rows"}
        return {"kind": "pooled_queries", "rows": old["pool"]}
    if old["pool"] != old["segment"]:
        raise InvalidConfig(
            "fields of version 0.1 that contradict each other: spread=True needs pool=segment, "
            f"got pool={old['pool']}, segment={old['segment']}"
        )
    return {
        "kind": "query_moments", "sampled_keys": old["probes"], "farthest_rows": old["outliers"],
        "run_share": old["runs"],
    }  # fmt: skip


def old_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of schema 1 that mean the same as an object of schema 2: to compare old records.

    Fields that the rule never read have the values of the presets of version 0.1.
    """
    name, check = content["rule"], content["check"]
    old = {**_OLD_DEFAULTS, **_NEEDED[name]}
    old |= {field: content[new] for field, new in _RENAMED[name].items()}
    old |= {"held_out": check["held_out_rows"], "guard": check["min_retained_mass"]}
    if name != "sample_attention":
        return old | {"runs": None, "dense_prefix": 0, "residual": False}
    ranking, budget = content["ranking"], content["budget"]
    old |= {
        "depth_contrast": budget["layer_ratio"], "coverage_at": budget["tighten_below"],
        "head_coverage": budget["heads"],
    }  # fmt: skip
    if ranking["kind"] == "query_moments":
        return old | {
            "pool": content["segment"], "probes": ranking["sampled_keys"],
            "outliers": ranking["farthest_rows"], "runs": ranking["run_share"],
        }  # fmt: skip
    no_moments = {"spread": False, "probes": None, "outliers": 0, "runs": None}
    return old | no_moments | {"pool": ranking.get("rows")}
