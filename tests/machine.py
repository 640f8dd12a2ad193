"""Which cases are for this machine, known before any of them runs: the others are left out.

A skip is thereby something to read. Tensors of the fixtures `select` and `attend` lie on the CPU.
"""

from collections import Counter

import pytest
import torch

from sample_attention.kernels.device import interpreted
from sample_attention.problem import Problem
from sample_attention.problem.forms import DTYPES
from sample_attention.routing.engines import BACKENDS, refusal_of

LEFT_OUT = pytest.StashKey()
"""How many cases are for another machine, by what it has."""

HEAD_DIMS = (16, 64)


def refusal(backend, problem, config=None):
    """Why a backend does not take a problem, or does not select by a configuration."""
    return refusal_of(backend, problem, config)


def refused_always(backend, *, dtype=None, head_dim=None):
    """Why a backend refuses every problem on the CPU of what is given; None: it takes one."""
    reason = None
    for known in DTYPES if dtype is None else (dtype,):
        for dim in HEAD_DIMS if head_dim is None else (head_dim,):
            x = torch.empty(1, 1, 1, dim, dtype=known, device="cpu")
            reason = refusal(backend, Problem.of(x, x, x))
            if reason is None:
                return None
    return reason


ON_CPU = [name for name in BACKENDS if refused_always(name) is None]
"""Backends that take tensors of the CPU: Triton's in its interpreter only."""


def missing(item):
    """The machine that a case is for, where that is not this one."""
    gpu = item.get_closest_marker("gpu")
    if gpu is not None and not torch.cuda.is_available():
        return "machines with an NVIDIA GPU"
    if gpu is not None and gpu.args and torch.cuda.get_device_capability() != gpu.args[0]:
        return "GPUs of sm_{}{}".format(*gpu.args[0])
    if item.get_closest_marker("interpreted") and not interpreted():
        return "Triton's interpreter (TRITON_INTERPRET=1 from the start)"
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "backend" not in params or not {"select", "attend"} & set(item.fixturenames):
        return None
    given = {name: params[name] for name in ("dtype", "head_dim") if name in params}
    reason = refused_always(params["backend"], **given)
    return reason and f"other backends than {params['backend']}: {reason}"


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    needs = [missing(item) for item in items]
    config.stash[LEFT_OUT] = Counter(need for need in needs if need)
    left_out = [item for item, need in zip(items, needs, strict=True) if need]
    items[:] = [item for item, need in zip(items, needs, strict=True) if not need]
    config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):  # every worker of pytest-xdist collects the same
    if error is None:
        node.config.stash[LEFT_OUT] = node.workeroutput["left_out"]


def pytest_terminal_summary(terminalreporter, config):
    for need, count in sorted(config.stash.get(LEFT_OUT, {}).items()):
        terminalreporter.write_line(f"{count} cases are for {need}")
