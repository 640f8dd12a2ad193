"""Heads of every family of models are priced, or the model is refused with a remedy."""

import pytest
import torch

from sample_attention import preset
from sample_attention.errors import UnsupportedAttention
from sample_attention.lab.models import LoadedModel
from sample_attention.lab.tuning.heads import HEAD_COVERAGES, profile_heads

CONFIG = preset(
    "default",
    coverage=0.9,
    tighten_below=None,
    segment=16,
    sample_stride=4,
    run_share=None,
    window=8,
    dense_prefix=0,
    dense_tail=0,
)
CAPPED = {"gemma2", "gpt_oss"}
NO_WINDOWS = {"llama", "glm4", "deepseek_v3"}
WINDOWS_ALONE = {"mistral", "phi3", "phimoe"}


def test_heads_of_every_family(family, tiny, prompt):
    loaded = LoadedModel(tiny(family), None, 512, family)
    passages = [tuple(prompt(seed=seed)[0].tolist()) for seed in (1, 2)]
    if family in CAPPED:
        with pytest.raises(UnsupportedAttention, match="tune with --one-coverage"):
            profile_heads(loaded, passages, CONFIG, 16)
        return
    if family in WINDOWS_ALONE:
        with pytest.raises(UnsupportedAttention, match="no layer"):
            profile_heads(loaded, passages, CONFIG, 16)
        return
    profile = profile_heads(loaded, passages, CONFIG, 16)
    assert profile.loss.shape == profile.density.shape == (2, 4, len(HEAD_COVERAGES))
    assert profile.loss.isfinite().all()
    assert (profile.loss[..., :-1] >= profile.loss[..., 1:]).all()
    sparse = profile.density.lt(1).flatten(1).any(1)
    assert sparse.tolist() == [family in NO_WINDOWS, True]
    assert torch.equal(profile.loss.flatten(1).any(1), sparse)
