"""The map of owners, the workflows and the forms name what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
PACKAGE = "src/sample_attention"

pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="the source archive has no .github")


def owned_paths():
    lines = (GITHUB / "CODEOWNERS").read_text("utf-8").splitlines()
    return [line.split()[0].lstrip("/") for line in lines if line and not line.startswith("#")]


def test_every_owned_path_exists():
    missing = [path for path in owned_paths() if path != "*" and not (ROOT / path).exists()]
    assert not missing, f"CODEOWNERS names what is not here: {missing}"


def test_every_room_of_the_package_has_an_owner():
    rooms = {f"{PACKAGE}/{x.parent.name}/" for x in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert f"{PACKAGE}/plan/" in rooms
    assert not rooms - set(owned_paths()), "add the rooms to CODEOWNERS"


def test_workflows_and_forms_name_targets_of_make():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    files = [*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.md")]
    command = re.compile(r"(?:run: |`|^ +)make (?:--\S+ )*([\w-]+)", re.M)
    named = {name for file in files for name in command.findall(file.read_text("utf-8"))}
    assert {"docs", "dist", "bench-regression"} <= named
    assert not named - targets, "no such targets"
