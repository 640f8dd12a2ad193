"""What the Triton backends refuse where Triton interprets its kernels, on any device."""

from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig
from sample_attention.attention import hopper, triton
from sample_attention.kernels.device import DTYPES, DTYPES_INTERPRETED, interpreted
from sample_attention.problem import Problem
from sample_attention.problem.forms import DTYPES as EVERY
from sample_attention.routing.engines import refusal_of
from sample_attention.testing import make_qkv

pytest.importorskip("triton")
SPELLINGS = ["1", "y", "yes", "on", "true", "TRUE"]


@pytest.fixture
def facts(monkeypatch):
    """The facts of a call on an H100, of any dtype."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    hopper._device_refusal.cache_clear()
    problem = replace(Problem.of(*make_qkv(300, head_dim=64)), device=torch.device("cuda", 0))
    yield lambda dtype: replace(problem, dtype=dtype)
    hopper._device_refusal.cache_clear()


@pytest.mark.parametrize("value", [None, "0", "", "off", *SPELLINGS])
@pytest.mark.parametrize("subject", [None, SampleAttentionConfig()], ids=["any", "select"])
def test_dtypes_by_how_kernels_run(facts, monkeypatch, value, subject):
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    known = DTYPES_INTERPRETED if value in SPELLINGS else DTYPES
    for dtype in EVERY:
        refused = refusal_of("triton", facts(dtype), subject)
        assert (refused is None) == (dtype in known), refused
        on_hopper = refusal_of("hopper", facts(dtype), subject)
        assert (on_hopper is None) == (value not in SPELLINGS and dtype in DTYPES), on_hopper
    if value in SPELLINGS:
        assert "bfloat16 in Triton's interpreter" in triton.engine.refusal(facts(torch.bfloat16))
        assert "Gluon" in hopper.engine.refusal(facts(torch.bfloat16))


@pytest.mark.parametrize("value", ["0", "", "off", "2", *SPELLINGS])
def test_the_variable_is_read_as_triton_reads_it(monkeypatch, value):
    from triton import knobs

    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreted() == knobs.runtime.interpret
