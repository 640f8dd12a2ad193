"""SampleAttention: long-prompt prefill made fast by adaptive structured sparse attention."""

from .api import (
    AttentionOutput,
    Measured,
    attend,
    explain,
    measured_attention,
    sample_attention,
    select,
)
from .config import SampleAttentionConfig, Tuned
from .plan import StripePlan
from .problem import Sequences

__version__ = "0.1.0"

__all__ = [
    "AttentionOutput",
    "Measured",
    "SampleAttentionConfig",
    "Sequences",
    "StripePlan",
    "Tuned",
    "__version__",
    "attend",
    "explain",
    "measured_attention",
    "sample_attention",
    "select",
]
