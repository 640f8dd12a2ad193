"""Where the key of a position lies: the one place where kernels know of pages.

Key j of a sequence lies in slot `j % PAGE_SIZE` of the page that entry `j // PAGE_SIZE` of its row
of the page table names. Without pages (PAGE_SIZE 0) keys lie one after another.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_offsets(keys, mask, page_table_ptr, page_stride, slot_stride, PAGE_SIZE: tl.constexpr):
    """Offsets in elements, int64, from the first key of a head to `keys`.

    The page table is read where `mask` holds (None: everywhere); other offsets mean nothing.
    """
    if PAGE_SIZE == 0:
        offsets = keys.to(tl.int64) * slot_stride
    else:
        pages = tl.load(page_table_ptr + keys // PAGE_SIZE, mask=mask)
        offsets = pages.to(tl.int64) * page_stride + (keys % PAGE_SIZE).to(tl.int64) * slot_stride
    return offsets
