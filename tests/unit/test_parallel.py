"""Workers of the eager backend: same bits as one thread, modes and thread counts kept."""

import threading

import pytest
import torch

from sample_attention import SampleAttentionConfig, attend, select
from sample_attention.backends.eager.parallel import run_all
from sample_attention.testing import make_qkv

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads():
    q, k, v = make_qkv(1500, num_heads=4, num_kv_heads=2)
    plan = select(q, k, SampleAttentionConfig(dense_prefix=256, coverage=0.7))
    many = attend(q, k, v, plan)
    torch.set_num_threads(1)
    one = attend(q, k, v, plan)
    assert torch.equal(many.out, one.out)
    assert torch.equal(many.lse, one.lse)


def test_workers_run_torch_on_one_thread_and_nobody_else_does():
    seen = []
    run_all([lambda: seen.append(torch.get_num_threads())] * 4, CPU)
    assert seen == [1] * 4
    assert torch.get_num_threads() == 2
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen[-1] == 2


def test_workers_take_over_the_callers_modes():
    seen = []

    def look():
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    with torch.inference_mode():
        run_all([look], CPU)
    with torch.no_grad():
        run_all([look], CPU)
    run_all([look], CPU)
    assert seen == [(True, False), (False, False), (False, True)]


def test_the_first_error_of_a_task_is_raised():
    def fail():
        raise RuntimeError("broken task")

    with pytest.raises(RuntimeError, match="broken task"):
        run_all([fail], CPU)
