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
from .config import (
    Budget,
    Check,
    MlsysConfig,
    PaperConfig,
    PooledQueries,
    QueryMoments,
    SampleAttentionConfig,
    SampledRows,
    Tuned,
    preset,
)
from .plan import StripePlan
from .problem import Sequences

__version__ = "0.2.0"

__all__ = [
    "AttentionOutput",
    "Budget",
    "Check",
    "Measured",
    "MlsysConfig",
    "PaperConfig",
    "PooledQueries",
    "QueryMoments",
    "SampleAttentionConfig",
    "SampledRows",
    "Sequences",
    "StripePlan",
    "Tuned",
    "__version__",
    "attend",
    "explain",
    "measured_attention",
    "preset",
    "sample_attention",
    "select",
]
