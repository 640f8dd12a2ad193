"""Numbers of the default rule that no field sets; the oracle and every engine share them."""

WINDOW_ALIGNMENT = 128
"""Rows that share one left edge of the window when a plan has segments, at most."""

BINS_PER_OCTAVE = 8
"""Within a segment ranks are compared by bin: the exponent and three mantissa bits of fp32."""

LOWEST_OCTAVE = -31
"""Ranks below `2 ** LOWEST_OCTAVE` share the lowest bin."""

MOST_HEAVY = 512
"""With `QueryMoments`, columns of more than this share of all ranks, 1 in 512, are heavy: the
sampled rows score them all."""

SPREAD_SHARE = 0.625
"""Share of the variance term that ranks; all of it, right for normal queries, ranks no better."""

CENTRE_STRIDE = 16
"""The variance ranks keys relative to their mean, of one key in this many: a part that moves all
scores of a row alike is nothing to a softmax."""

LOWEST_RANK, HIGHEST_RANK = -128, 127
"""Ranks 16 octaves and more below or above the first heavy one share a bin."""

PEAK = 64
"""Columns of more than 1 in PEAK of a farthest row's mass are peaks; a power of two."""

RUN = 16
"""With `run_share`, columns are taken along by aligned blocks of this many: a word of
`peak_kernel`."""
