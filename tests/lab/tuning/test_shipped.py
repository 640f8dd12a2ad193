"""Tuned configurations that ship: each keeps its budget on passages that were not searched on.

Every check also has a change of a sound file that it must object to, so that it holds as well while
no file ships.
"""

import json
import re
from dataclasses import replace
from importlib import resources

import pytest

from sample_attention import SampleAttentionConfig, Tuned
from sample_attention.config import Interval, tuned
from sample_attention.lab.models import PINNED_WEIGHTS
from sample_attention.lab.tuning import ErrorBudget

SHIPPED = ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2-135m")
"""Names of all of them; `docs/how-to/tune.md` lists the same."""

LEAST_REQUESTS = 8
"""On which a shipped configuration was validated: its bounds then hold 19 times in 20."""


def objections(found):
    """What speaks against shipping a tuned configuration."""
    said = [] if found.model in PINNED_WEIGHTS else [f"{found.model} is no pinned model"]
    for name in ("date", "commit", "sample_attention", "torch", "device"):
        if not found.provenance.get(name):
            said.append(f"its provenance lacks {name}")
    if len(found.measured) != len(found.intervals):
        return [*said, f"{len(found.measured)} measurements of {len(found.intervals)} intervals"]
    if all(interval.config.dense for interval in found.intervals):
        said.append("it is dense at every length")
    for interval, row in zip(found.intervals, found.measured, strict=True):
        said += [f"from {interval.min_kv_len} keys: {x}" for x in _objections_to(interval, row)]
    return said


def _objections_to(interval, row):
    said, facts, default = [], row["validated"], ErrorBudget()
    if row["config"] != json.loads(interval.config.to_json()):
        said.append("another configuration was measured")
    if interval.min_kv_len not in (0, row["length"]):
        said.append(f"measured at {row['length']}")
    if row["max_kl"] > default.max_kl or row["min_mass"] < default.min_mass:
        said.append("the budget is beyond the default")
    if facts["kl_bound"] > row["max_kl"] or facts["retained_mass_bound"] < row["min_mass"]:
        said.append("beyond its budget")
    if facts["coverage"] != interval.config.coverage:
        said.append("another coverage was validated")
    if row["requests"] < LEAST_REQUESTS:
        said.append(f"validated on {row['requests']} requests")
    if not row["finished"]:
        said.append("the search was cut short")
    return said


def sound():
    config = SampleAttentionConfig(coverage=0.94)
    facts = {"coverage": 0.94, "kl_bound": 0.009, "retained_mass_bound": 0.93}
    row = {
        "config": json.loads(config.to_json()), "length": 8192, "requests": 8, "finished": True,
        "max_kl": 0.01, "min_mass": 0.9, "validated": facts,
    }  # fmt: skip
    origin = dict.fromkeys(("date", "commit", "sample_attention", "torch", "device"), "known")
    return Tuned("smollm2-135m", (Interval(0, config),), (row,), origin)


def changed(**fields):
    found = sound()
    return replace(found, measured=({**found.measured[0], **fields},))


def test_the_files_are_those_named_here_and_in_the_documentation(request):
    files = sorted(path.stem for path in tuned.SHIPPED.glob("*.json"))
    assert files == sorted(SHIPPED)
    page = (request.config.rootpath / "docs" / "how-to" / "tune.md").read_text("utf-8")
    assert sorted({*re.findall(r"tuned:([a-z0-9.-]+)", page)}) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_keep_their_budget(name):
    assert resources.files("sample_attention").joinpath("config", "data", f"{name}.json").is_file()
    found = Tuned.load(f"tuned:{name}")
    assert found.model == name
    assert not objections(found)


def test_nothing_is_said_of_a_sound_file():
    assert not objections(sound())


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(sound(), model="no-such"), "no pinned model"),
        (replace(sound(), provenance={}), "lacks commit"),
        (replace(sound(), measured=()), "0 measurements of 1 intervals"),
        (sound().with_fields({"coverage": 1.0}), "dense at every length"),
        (sound().with_fields({"window": 64}), "another configuration was measured"),
        (sound().with_fields({"coverage": 0.9}), "another coverage was validated"),
        (changed(max_kl=0.02), "beyond the default"),
        (changed(min_mass=0.8), "beyond the default"),
        (changed(max_kl=0.008), "beyond its budget"),
        (changed(min_mass=0.95), "beyond its budget"),
        (changed(requests=4), "validated on 4 requests"),
        (changed(finished=False), "cut short"),
    ],
)
def test_the_checks_object(found, words):
    assert words in " ".join(objections(found))
