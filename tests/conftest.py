"""Fixtures of every test: a seed, the backends by name, poisoned memory, repeatable examples."""

import time

import pytest
import torch
from hypothesis import HealthCheck, settings

import sample_attention as sa
from sample_attention.config import as_config
from sample_attention.lab.records import Provenance, append_record, installed_version
from sample_attention.problem import Problem
from sample_attention.routing import policy
from sample_attention.testing import nan_poison

from . import machine

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


STARTED = time.monotonic()


def pytest_addoption(parser):
    parser.addoption(
        "--record", metavar="PATH", help="add a line: how the tests ended, and on what"
    )


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--record")
    if path is None:
        return
    ends = ("passed", "failed", "error", "skipped", "xfailed")
    row = {"tests": config.args}
    row |= {end: len(terminalreporter.stats.get(end, [])) for end in ends}
    row |= {"seconds": round(time.monotonic() - STARTED), "triton": installed_version("triton")}
    row |= Provenance.collect("cuda" if torch.cuda.is_available() else "cpu").as_row()
    append_record(path, row)


def pytest_configure(config):
    config.pluginmanager.register(machine)
    # Small tensors: a second thread costs more in waiting than it computes.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=machine.ON_CPU)
def backend(request):
    return request.param


@pytest.fixture
def select(backend):
    """`sample_attention.select` on a backend; skips with the backend's own reason."""

    def call(q, k, config="default", **options):
        problem = Problem.of(q, k, k, options.get("sequences"))
        _skip_if_refused(backend, problem, as_config(config))
        with nan_poison():
            return sa.select(q, k, config, backend=backend, **options)

    return call


@pytest.fixture
def attend(backend):
    """`sample_attention.attend` on a backend, in memory that holds NaN until it is written."""

    def call(q, k, v, plan, **options):
        _skip_if_refused(backend, Problem.of(q, k, v, plan.sequences))
        with nan_poison():
            return sa.attend(q, k, v, plan, backend=backend, **options)

    return call


@pytest.fixture
def always_sparse(monkeypatch):
    """The policy finds that sparse pays at every length."""
    anywhere = policy.Crossover(min_kv_len=1, min_q_len=1, measured="a test")
    monkeypatch.setattr(policy, "CROSSOVERS", {"cpu": anywhere})


def _skip_if_refused(backend, problem, config=None):
    reason = machine.refusal(backend, problem, config)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
