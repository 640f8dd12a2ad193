"""Dense causal attention by the fastest provider at hand, which `explain` names.

`dense_with_lse` and `limited` serve layers that fused attention alone does not compute: sinks need
the log-sum-exp, and windows and capped scores change which scores there are.
"""

from .attention import dense, dense_with_lse
from .limited import limited
from .registry import provider, provider_verdicts

__all__ = ["dense", "dense_with_lse", "limited", "provider", "provider_verdicts"]
