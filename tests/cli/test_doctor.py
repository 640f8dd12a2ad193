"""`doctor`: what is here and what would run."""

import re
from pathlib import Path

from sample_attention.backends import NAMES
from sample_attention.cli.doctor import EXTRAS

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_json_holds_environment_and_verdicts(cli):
    done = cli("doctor", "--json")
    assert done.code == 0
    facts = done.json
    assert {"python", "torch", "threads", "extras", "devices", "crossovers"} <= facts.keys()
    cpu = facts["devices"][0]
    assert cpu["device"] == "cpu"
    assert set(cpu["backends"]) == set(NAMES)
    assert cpu["backends"]["eager"] == "accepted"
    assert cpu["dense_provider"]


def test_people_see_the_same_facts(cli):
    facts, text = cli("doctor", "--json").json, " ".join(cli("doctor").out.split())
    for word in (facts["torch"], *NAMES, facts["devices"][0]["dense_provider"], "sparse pays"):
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
