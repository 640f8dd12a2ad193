"""How keys are selected, as a user says it: three rules, presets of them, and tuned files."""

from .fixed import (
    BINS_PER_OCTAVE,
    CENTRE_STRIDE,
    HIGHEST_RANK,
    LOWEST_OCTAVE,
    LOWEST_RANK,
    MOST_HEAVY,
    PEAK,
    RUN,
    SPREAD_SHARE,
    WINDOW_ALIGNMENT,
)
from .parts import Budget, Check, PooledQueries, QueryMoments, Ranking, SampledRows
from .presets import PRESETS, as_config, config_from_json, fields_of, preset, with_fields
from .published import MlsysConfig, PaperConfig
from .rule import Config
from .sample_attention import SampleAttentionConfig
from .tuned import PREFIX, SUFFIX, Interval, Tuned, names_tuned

__all__ = [
    "BINS_PER_OCTAVE",
    "CENTRE_STRIDE",
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
    "Budget",
    "Check",
    "Config",
    "Interval",
    "MlsysConfig",
    "PaperConfig",
    "PooledQueries",
    "QueryMoments",
    "Ranking",
    "SampleAttentionConfig",
    "SampledRows",
    "Tuned",
    "as_config",
    "config_from_json",
    "fields_of",
    "names_tuned",
    "preset",
    "with_fields",
]
