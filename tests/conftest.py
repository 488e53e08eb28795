"""Hypothesis profiles, chosen by ``HYPOTHESIS_PROFILE``: dev (quick, default), ci (the same examples always), deep."""

from __future__ import annotations

import os

from backends import NAMES
from hypothesis import HealthCheck, settings

# No deadline: the first call of anything is slow, and a shared machine is slow at random.
settings.register_profile("dev", deadline=None, max_examples=30)
slow = [HealthCheck.too_slow]
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True, suppress_health_check=slow)
settings.register_profile("deep", deadline=None, max_examples=1000, suppress_health_check=slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_addoption(parser):
    said = f"where the tests of the table of primitives run, separated by commas: {', '.join(NAMES)}"
    parser.addoption("--backend", default="numpy,cuda_on_cpu", help=said)


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("backend").split(",")
        if not set(chosen) <= set(NAMES):
            raise ValueError(f"--backend {','.join(chosen)}: there are {', '.join(NAMES)}")
        metafunc.parametrize("backend", chosen)
