"""The GGUF container: metadata and the place of every tensor, read without any dependency.

A GGUF file is `magic, version, counts`, then key-value metadata, then one record per tensor
(name, dimensions, type, offset), then padding, then the tensor bytes. All numbers are
little-endian. Vocabularies make the metadata hundreds of thousands of strings long, so it is
parsed here with `struct` on a memory map (0.3 s) instead of by `gguf.GGUFReader` (10 s).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import SampleAttentionError

Scalar = int | float | bool | str
MetadataValue = Scalar | list[Scalar]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_STRING: Final = 8
_ARRAY: Final = 9
_SCALAR_FORMATS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_UINT32: Final = struct.Struct("<I")
_UINT64: Final = struct.Struct("<Q")


class UnsupportedGGUF(SampleAttentionError, ValueError):
    """A GGUF file that is damaged, or of a kind that cannot be loaded right here."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: its GGUF name, as in `blk.0.attn_q.weight`.
        shape: row-major shape, as torch has it (GGUF stores it reversed).
        type_id: the number of its quantisation type (`gguf.GGMLQuantizationType`).
        offset: position of its first byte, counted from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """The part of a GGUF file before its tensor bytes.

    Attributes:
        path: the file.
        metadata: every key with its value; arrays are lists.
        tensors: every tensor by name, in file order.
    """

    path: Path
    metadata: dict[str, MetadataValue]
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """The model family, as in `llama` or `qwen2`."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the number under `key`, or `default`; raise when there is neither."""
        return int(self._number(key, default))

    def real(self, key: str, default: float | None = None) -> float:
        """Return the number under `key`, or `default`; raise when there is neither."""
        return float(self._number(key, default))

    def strings(self, key: str) -> list[str]:
        """Return the array of strings under `key`, empty when there is none."""
        value = self.metadata.get(key, [])
        return [str(item) for item in value] if isinstance(value, list) else []

    def integers(self, key: str) -> list[int]:
        """Return the array of whole numbers under `key`, empty when there is none."""
        value = self.metadata.get(key, [])
        return [int(item) for item in value] if isinstance(value, list) else []

    def token_id(self, key: str) -> int | None:
        """Return the token under `tokenizer.ggml.KEY`, None when there is no such key.

        Raises:
            UnsupportedGGUF: it is not a token of the vocabulary.
        """
        name, tokens = f"tokenizer.ggml.{key}", self.metadata.get("tokenizer.ggml.tokens")
        if name not in self.metadata:
            return None
        value, count = self.metadata[name], len(tokens) if isinstance(tokens, list) else 0
        if type(value) is int and 0 <= value < count:
            return value
        raise UnsupportedGGUF(
            f"{self.path} has {value!r} under the metadata key '{name}'; its vocabulary has "
            f"{count:,} tokens, from 0; give a transformers folder or hub id instead"
        )

    def _number(self, key: str, default: float | None) -> float:
        value = self.metadata.get(key, default)
        if isinstance(value, int | float):
            return value
        raise UnsupportedGGUF(
            f"{self.path} has {value!r} under the metadata key '{key}', where one number is "
            "needed; files whose layers differ in shape are not supported"
        )


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the metadata and the tensor table of a GGUF file.

    Raises:
        UnsupportedGGUF: not a GGUF file, another version than 2 or 3, big-endian or cut off.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UnsupportedGGUF(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _parse(path, _Cursor(view, len(_MAGIC)))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise UnsupportedGGUF(
                f"{path} is damaged: its header cannot be read ({error!r}); fetch it again"
            ) from error


def _parse(path: Path, cursor: _Cursor) -> GGUFHeader:
    version = cursor.uint32()
    if version not in _VERSIONS:
        raise UnsupportedGGUF(
            f"{path} has GGUF version {version}; versions 2 and 3, little-endian, are read"
        )
    num_tensors, num_keys = cursor.uint64(), cursor.uint64()
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.uint32())
    records = [cursor.tensor_record() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    step = alignment if isinstance(alignment, int) and alignment > 0 else 32
    start = -(-cursor.position // step) * step
    tensors = {
        name: TensorInfo(name, shape, type_id, start + offset)
        for name, shape, type_id, offset in records
    }
    return GGUFHeader(path, metadata, tensors)


class _Cursor:
    """A reading position in the mapped file."""

    def __init__(self, view: mmap.mmap, position: int) -> None:
        self.view = view
        self.position = position

    def uint32(self) -> int:
        self.position += 4
        return int(_UINT32.unpack_from(self.view, self.position - 4)[0])

    def uint64(self) -> int:
        self.position += 8
        return int(_UINT64.unpack_from(self.view, self.position - 8)[0])

    def string(self) -> str:
        length = self.uint64()
        start, end = self.position, self.position + length
        if end > len(self.view):
            raise struct.error(f"a string of {length} bytes at {start} passes the end")
        self.position = end
        return self.view[start:end].decode("utf-8")

    def value(self, kind: int) -> MetadataValue:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.uint32(), self.uint64()
            if item == _STRING:
                return [self.string() for _ in range(count)]
            return self._scalars(item, count)
        return self._scalars(kind, 1)[0]

    def _scalars(self, kind: int, count: int) -> list[Scalar]:
        code = _SCALAR_FORMATS[kind]
        size = struct.calcsize(code) * count
        if self.position + size > len(self.view):
            raise struct.error(f"{count} numbers at {self.position} pass the end")
        self.position += size
        layout = f"<{count}{code[1]}"
        return list(struct.unpack_from(layout, self.view, self.position - size))

    def tensor_record(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        dimensions = [self.uint64() for _ in range(self.uint32())]
        return name, tuple(reversed(dimensions)), self.uint32(), self.uint64()
