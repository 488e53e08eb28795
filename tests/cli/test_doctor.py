"""What `tinyllm doctor` says about threads."""

from __future__ import annotations

import pytest

from tinyllm.cli import doctor


@pytest.mark.parametrize(
    ("speeds", "count"),
    [
        ({1: 100.0, 2: 190.0}, 2),  # a quiet machine
        ({1: 100.0, 2: 20.0}, 1),  # a busy one: the threads wait for each other
        ({1: 100.0, 2: 180.0, 4: 185.0}, 2),  # nearly as fast with fewer
        ({1: 100.0}, 1),
    ],
)
def test_the_fewest_threads_that_are_nearly_as_fast(speeds, count):
    said = doctor.advice(speeds, "OPENBLAS_NUM_THREADS", None)
    assert f"set OPENBLAS_NUM_THREADS={count} (now not set" in said and "1: 100" in said


def test_what_is_set_is_told():
    assert "(now MKL_NUM_THREADS=3)" in doctor.advice({1: 1.0}, "MKL_NUM_THREADS", "MKL_NUM_THREADS=3")


def test_where_no_process_can_be_started(monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("there are no processes here")

    monkeypatch.setattr(doctor.subprocess, "run", refused)
    assert doctor.threads(2).startswith("could not be measured; set ")


def test_each_measurement_has_its_own_number_of_threads(monkeypatch):
    asked = []

    class Done:
        stdout = "50.0\n"

    def run(command, env, **kwargs):
        asked.append({env[name] for name in doctor.THREADS})
        return Done()

    monkeypatch.setattr(doctor.subprocess, "run", run)
    said = doctor.threads(6)
    assert asked == [{"1"}, {"2"}, {"4"}, {"6"}] and said.startswith("1: 50, 2: 50, 4: 50, 6: 50 GFLOP/s")


def test_a_real_measurement():
    assert doctor.speed(1) > 0
