"""Where the key of a position lies: the one place where kernels know of pages.

Key j of a sequence lies in slot `j % PAGE_SIZE` of the page that entry `j // PAGE_SIZE` of its row
of the page table names. Without pages (PAGE_SIZE 0) keys lie one after another.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_offsets(
    keys, mask, page_table_ptr, page_stride, slot_stride,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets in elements from the first key of a head to `keys`: int64 where WIDE, else int32.

    The page table is read where `mask` holds (None: everywhere); other offsets mean nothing.
    """
    if PAGE_SIZE == 0:
        if WIDE:
            keys = keys.to(tl.int64)
        offsets = keys * slot_stride
    else:
        pages = tl.load(page_table_ptr + keys // PAGE_SIZE, mask=mask)
        slots = keys % PAGE_SIZE
        if WIDE:
            pages, slots = pages.to(tl.int64), slots.to(tl.int64)
        offsets = pages * page_stride + slots * slot_stride
    return offsets
