"""Workers of the eager backend: same bits as one thread, modes and thread counts kept."""

import threading
import time

import pytest
import torch

from sample_attention import Sequences, attend, preset, select
from sample_attention.kernels.parallel import run_all
from sample_attention.selection.eager import moments as spread
from sample_attention.testing import make_qkv

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


PRESETS = {name: preset(name, held_out_rows=3) for name in ("default", "pooled", "paper", "mlsys")}


def one_sequence():
    return *make_qkv(3000, num_heads=2, num_kv_heads=1), None


def packed():
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(3000, num_heads=4, num_kv_heads=2))
    return q, k, v, Sequences.packed_from(torch.tensor([0, 1300, 1301, 3000]))


@pytest.mark.parametrize("layout", [one_sequence, packed])
@pytest.mark.parametrize("name", PRESETS)
def test_results_do_not_depend_on_the_number_of_threads(name, layout):
    q, k, v, sequences = layout()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        plan = select(q, k, PRESETS[name], sequences=sequences)
        held_out = plan.held_out
        lists = plan.indices, plan.counts, plan.offsets, plan.dense, held_out.rows, held_out.lse
        results.append((*lists, *attend(q, k, v, plan)))
    assert len(results[0][0]) or results[0][3].any()
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_no_step_of_the_selection_is_split_over_cores(name, monkeypatch):
    seen = []
    softmax = torch.softmax

    def look(*args, **options):
        seen.append(torch.get_num_threads())
        return softmax(*args, **options)

    monkeypatch.setattr(torch, "softmax", look)
    q, k, _ = make_qkv(3000, num_heads=2, num_kv_heads=1)
    select(q, k, PRESETS[name])
    assert seen
    assert set(seen) == {1}


def test_one_key_head_is_work_for_several_workers(monkeypatch):
    """Segments are taken a few at a time, by whoever is free."""
    both = threading.Barrier(2, timeout=60)
    ranks = spread._ranks

    def meet(*args):
        if len(met) < 2:
            met.add(threading.get_ident())
            both.wait()
        return ranks(*args)

    met = set()
    monkeypatch.setattr(spread, "_ranks", meet)
    q, k, _ = make_qkv(3000, num_heads=1)
    select(q, k)
    assert len(met) == 2


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


def test_an_error_in_making_a_task_is_raised():
    def broken():
        yield lambda: None
        raise RuntimeError("broken source")

    with pytest.raises(RuntimeError, match="broken source"):
        run_all(broken(), CPU)


def test_no_task_begins_after_an_error():
    begun = []

    def fail():
        raise RuntimeError("broken task")

    def source():
        yield fail
        for i in range(1000):
            yield lambda i=i: begun.append(i) or time.sleep(1e-3)

    with pytest.raises(RuntimeError, match="broken task"):
        run_all(source(), CPU)
    assert len(begun) < 1000


def test_tasks_are_made_when_a_worker_is_free():
    made, done, most = 0, [], 0

    def source():
        nonlocal made, most
        for _ in range(50):
            made += 1
            most = max(most, made - len(done))
            yield lambda: done.append(None)

    run_all(source(), CPU)
    assert len(done) == 50
    assert most <= torch.get_num_threads()
