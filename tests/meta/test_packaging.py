"""The source archive holds all that its tests and pages need, and links follow one setting."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {".github", ".gitignore", "pyproject.toml"}
"""The first is of use in a repository alone; the others are always part of an archive."""

ADDRESS = "https://example.org/owner/sample-attention"


def included():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[tool.hatch.build.targets.sdist]")[1].split("\n[")[0]
    return {path.lstrip("/") for path in re.findall(r'"(/[^"]+)"', section)}


def test_everything_of_the_repository_is_in_the_archive():
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode or "pyproject.toml" not in done.stdout.split():
        pytest.skip("not a checkout")
    tracked = {path.split("/")[0] for path in done.stdout.split("\n") if path}
    assert tracked - LEFT_OUT == included()


def test_everything_in_the_archive_exists():
    assert not [path for path in included() if not (ROOT / path).exists()]


@pytest.fixture
def hook():
    """The functions of hatch_build.py, whose class needs hatchling."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text("utf-8"))
    wanted = [
        x for x in tree.body
        if isinstance(x, ast.FunctionDef)
        or (isinstance(x, ast.Assign) and x.targets[0].id.isupper())
    ]  # fmt: skip
    found = {"re": re}
    exec(compile(ast.Module(wanted, []), "hatch_build.py", "exec"), found)
    return found


def test_links_follow_the_address_of_the_repository(hook):
    text = (ROOT / "README.md").read_text("utf-8")
    linked = hook["with_links"](text, ADDRESS)
    targets = re.findall(r"\]\(([^)]+)\)", linked)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    assert f"]({ADDRESS}/blob/main/docs/tutorials/first-call.md)" in linked
    assert f"]({ADDRESS}/raw/main/docs/figures/gpu_speedup.svg)" in linked
    assert all(url.startswith(ADDRESS) for url in hook["project_urls"](ADDRESS).values())


def test_without_an_address_links_stay_relative(hook):
    text = (ROOT / "README.md").read_text("utf-8")
    assert hook["with_links"](text, "") == text
    assert hook["project_urls"]("") == {}
