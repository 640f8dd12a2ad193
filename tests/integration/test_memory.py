"""Extra memory is linear in the prompt: a fresh process may not hold rows times keys."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from sample_attention import attend, select
from sample_attention.testing import make_qkv

torch.set_num_threads(int(sys.argv[2]))
q, k, v = make_qkv(int(sys.argv[1]), num_heads=2, head_dim=16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(q, k, v, select(q, k))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def extra_kib(length, threads):
    command = [sys.executable, "-c", SCRIPT, str(length), str(threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("threads", [1, 4])
def test_extra_memory_is_linear(threads):
    """Each worker holds scores of its own, and as many whatever the length."""
    length = 16384
    scores_of_one_head = length * length * 4 / 1024
    assert extra_kib(length, threads) < scores_of_one_head / 4
