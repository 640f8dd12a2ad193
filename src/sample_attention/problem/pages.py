"""A paged cache: token j of a sequence lies in slot `j % page_size` of one of its pages.

Which page that is stands in the page table, int32 `[N, max_pages]`: entry `[n, j // page_size]`.
Entries past a sequence's last token are never read. Keys and values are `[P, page_size, Hkv, D]`,
P physical pages of any stride.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInput


def gather_pages(x: Tensor, pages: Tensor, length: int) -> Tensor:
    """The first `length` tokens of one sequence, one after another.

    Args:
        x: `[P, ..., page_size, D]`.
        pages: int32 `[max_pages]`, the sequence's row of the page table.
        length: tokens of the sequence.

    Returns:
        A copy `[..., length, D]`.
    """
    used = pages[: -(-length // x.shape[-2])]
    return x.movedim(0, -3).index_select(-3, used).flatten(-3, -2)[..., :length, :]


def check_page_table(page_table: Tensor, page_size: int, kv_lens: list[int]) -> None:
    """Check that a page table has an entry for every page of every sequence.

    Raises:
        InvalidInput: it has not, or is no page table.
    """
    given = type(page_table).__name__
    if isinstance(page_table, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        given = f"{page_table.dtype} {tuple(page_table.shape)}"
        if page_table.dim() == 2 and page_table.dtype == torch.int32:
            given = ""
    if given:
        raise InvalidInput(f"page_table must be an int32 tensor [N, max_pages], got {given}")
    if page_table.stride(1) != 1 and page_table.shape[1] > 1:
        raise InvalidInput(
            f"page_table has strides {page_table.stride()}; its last dimension must be contiguous "
            "(call .contiguous())"
        )
    if len(page_table) != len(kv_lens):
        raise InvalidInput(
            f"page_table has {len(page_table)} row(s) and kv_lens names {len(kv_lens)} "
            "sequence(s); accepted: one row per sequence"
        )
    for n, length in enumerate(kv_lens):
        if length > page_table.shape[1] * page_size:
            raise InvalidInput(
                f"sequence {n} has {length} keys and its row of page_table only "
                f"{page_table.shape[1]} page(s) of {page_size}"
            )


def check_pages(k: Tensor, page_table: Tensor, page_size: int, kv_lens: Tensor) -> None:
    """Check that the pages that the sequences use are pages of `k` `[P, page_size, Hkv, D]`.

    The entries themselves are only looked at on a CPU: elsewhere that would wait for the device.

    Raises:
        InvalidInput: another page size or device, or an entry that names no page.
    """
    if k.shape[1] != page_size:
        raise InvalidInput(
            f"k {tuple(k.shape)} has pages of {k.shape[1]} tokens, the sequences were made with "
            f"page_size={page_size}; accepted: k and v [P, page_size, Hkv, D]"
        )
    if page_table.device != k.device:
        raise InvalidInput(f"page_table lies on {page_table.device} and k on {k.device}")
    if k.device.type != "cpu":
        return
    first = torch.arange(page_table.shape[1], device=k.device) * page_size
    used = first < kv_lens[:, None]
    lowest, highest = (int(x) for x in page_table[used].aminmax())
    if lowest < 0 or highest >= len(k):
        raise InvalidInput(
            f"page_table names pages {lowest} to {highest} for tokens of the sequences; "
            f"k holds pages 0 to {len(k) - 1}"
        )
