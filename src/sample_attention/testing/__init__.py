"""What a test of attention needs: structured inputs, plans by hand, a computed error budget."""

from .inputs import make_pages, make_plan, make_qkv
from .memory import nan_poison
from .oracle import (
    OracleError,
    assert_matches_mask,
    assert_matches_oracle,
    plan_masks,
    split_sequences,
)

__all__ = [
    "OracleError",
    "assert_matches_mask",
    "assert_matches_oracle",
    "make_pages",
    "make_plan",
    "make_qkv",
    "nan_poison",
    "plan_masks",
    "split_sequences",
]
