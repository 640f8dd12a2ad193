"""What the user wants: how keys are selected, and what is tuned for a model."""

from .default import (
    CENTRE_STRIDE,
    CLASSES_PER_OCTAVE,
    HIGHEST_RANK,
    LOWEST_OCTAVE,
    LOWEST_RANK,
    MOST_HEAVY,
    PEAK,
    PRESETS,
    RUN,
    SPREAD_SHARE,
    WINDOW_ALIGNMENT,
    SampleAttentionConfig,
    as_config,
)
from .tuned import PREFIX, SUFFIX, Interval, Tuned, names_tuned

__all__ = [
    "CENTRE_STRIDE",
    "CLASSES_PER_OCTAVE",
    "HIGHEST_RANK",
    "LOWEST_OCTAVE",
    "LOWEST_RANK",
    "MOST_HEAVY",
    "PEAK",
    "PREFIX",
    "PRESETS",
    "RUN",
    "SPREAD_SHARE",
    "SUFFIX",
    "WINDOW_ALIGNMENT",
    "Interval",
    "SampleAttentionConfig",
    "Tuned",
    "as_config",
    "names_tuned",
]
