"""The methods that SampleAttention is compared with, each by its published rule.

Each is a frozen dataclass of its published settings that makes plans, and is accepted wherever a
configuration is: `measured_attention(q, k, v, XAttention())`, `sample_attention_prefill(model,
XAttention())`. The same kernels attend to all of them.
"""

from .density import at_density
from .flexprefill import FlexPrefill
from .method import Method
from .minference import VerticalSlash
from .streaming_llm import StreamingLLM
from .xattention import XAttention

METHODS: dict[str, Method] = {
    "a_shape": StreamingLLM(sinks=128, window=3968),
    "flexprefill": FlexPrefill(),
    "streaming_llm": StreamingLLM(),
    "vertical_slash": VerticalSlash(),
    "xattention": XAttention(),
}
"""Every method at its published settings."""

__all__ = [
    "METHODS",
    "FlexPrefill",
    "Method",
    "StreamingLLM",
    "VerticalSlash",
    "XAttention",
    "at_density",
]
