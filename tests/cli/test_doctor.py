"""`doctor`: what is here and what would run."""

import re
from pathlib import Path

import pytest

from sample_attention.cli.doctor import EXTRAS, TESTED
from sample_attention.lab.records import read_lines
from sample_attention.routing.engines import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = ROOT / "pyproject.toml"
VERSIONS = ROOT / "benchmarks" / "records" / "versions.jsonl"


def test_json_holds_environment_and_verdicts(cli):
    done = cli("doctor", "--json")
    assert done.code == 0
    facts = done.json
    assert {"python", "torch", "threads", "extras", "devices", "crossovers"} <= facts.keys()
    cpu = facts["devices"][0]
    assert cpu["device"] == "cpu"
    assert set(cpu["backends"]) == set(BACKENDS)
    assert cpu["backends"]["eager"] == "accepted"
    assert cpu["dense_provider"]


def test_people_see_the_same_facts(cli):
    facts, text = cli("doctor", "--json").json, " ".join(cli("doctor").out.split())
    for word in (facts["torch"], *BACKENDS, facts["devices"][0]["dense_provider"], "sparse pays"):
        assert word in text


def test_a_missing_package_comes_with_its_install_line(cli, monkeypatch):
    monkeypatch.setattr("sample_attention.cli.doctor.EXTRAS", {"plot": ("no-such-package",)})
    text = " ".join(cli("doctor").out.split())
    assert "missing no-such-package" in text
    assert "'.[plot]'" in text


def test_extras_are_those_of_the_package():
    text = PYPROJECT.read_text("utf-8").split("[project.optional-dependencies]")[1]
    for extra, packages in EXTRAS.items():
        line = re.search(rf"^{extra} = \[(.*)\]$", text, re.M)
        assert line, extra
        assert re.findall(r'"([\w-]+)[>=]', line[1]) == list(packages)


@pytest.mark.parametrize(
    ("version", "position"),
    [
        ("2.5.1", "older than tested"),
        ("2.6.0+cu124", "within the tested range"),
        ("2.13.0", "within the tested range"),
        ("2.14.1+cpu", "within the tested range"),
        ("2.14.2", "newer than tested"),
        ("2.15.0.dev20270101", "newer than tested"),
        ("10.0", "newer than tested"),
        (None, "not installed"),
    ],
)
def test_releases_beside_the_tested_ones(version, position, cli, monkeypatch):
    monkeypatch.setattr("sample_attention.cli.doctor.installed_version", lambda _: version)
    monkeypatch.setattr("sample_attention.cli.doctor.TESTED", {"any": ("2.6.0", "2.14.1")})
    assert cli("doctor", "--json").json["tested"]["any"]["position"] == position
    assert f"{position} (2.6.0 to 2.14.1)" in " ".join(cli("doctor").out.split())


@pytest.mark.parametrize("name", TESTED)
def test_tested_releases_are_those_of_the_record_and_the_bounds(name):
    latest = {row["set"]: row for _, row in read_lines([VERSIONS])}
    recorded = tuple(latest[which][name].split("+")[0] for which in ("oldest", "newest"))
    assert recorded == TESTED[name]
    for which, version in zip(("oldest", "newest"), TESTED[name], strict=True):
        pins = (ROOT / f"constraints-{which}.txt").read_text("utf-8").splitlines()
        assert f"{name}=={version}" in pins
    bound = re.search(rf'"{name}>=([\d.]+)', PYPROJECT.read_text("utf-8"))
    assert bound, name
    assert TESTED[name][0].startswith(f"{bound[1]}.")
