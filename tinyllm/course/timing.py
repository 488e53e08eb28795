"""What functions cost, measured so that they can be compared: in turns, in processor time, with one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from threadpoolctl import threadpool_limits

import tinyllm
from tinyllm.backend.names import is_whole, kind_of

LEAST = 0.02  # seconds of one measurement: on Windows the clock of a process ticks every 0.016


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
    """The median processor time of each function.

    They are called in turns, and every second round in the opposite order, so that whatever else the machine does
    meets all of them alike. Processor time does not count what waits. A function that takes less than 20 ms is called
    several times for each measurement.

    Parameters
    ----------
    functions : mapping of str to callable
        By name; each is called without arguments, and once before it is measured.
    rounds : int
        Measurements of each.

    Returns
    -------
    dict of str to float
        Seconds a call.

    Raises
    ------
    TypeError
        If it is no mapping, or what stands under a name is no function.
    ValueError
        If there are no functions, or no rounds.
    """
    if not isinstance(functions, Mapping):
        raise TypeError(f'in_turns takes functions by name, not {kind_of(functions)}: in_turns({{"base": f}})')
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name!r} must be a function without arguments, not {kind_of(function)}: lambda: f(x)")
    if not functions:
        raise ValueError('in_turns needs a function to time: in_turns({"base": f})')
    if not is_whole(rounds) or rounds < 1:
        raise ValueError(f"rounds must be at least 1 and a whole number, not {rounds!r}")
    threads = tinyllm.get_num_threads()
    tinyllm.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            return _medians(functions, rounds)
    finally:
        tinyllm.set_num_threads(threads)


def _medians(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    calls = {name: _enough(function) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        for name in functions if turn % 2 == 0 else reversed(list(functions)):
            seconds[name].append(_measure(functions[name], calls[name]) / calls[name])
    return {name: median(found) for name, found in seconds.items()}


def _enough(function: Callable[[], Any]) -> int:
    """How many calls take at least `LEAST`, a power of two; of a function that mostly waits, fewer."""
    function()
    calls, began = 1, time.perf_counter()
    while _measure(function, calls) < LEAST and time.perf_counter() - began < 10 * LEAST:
        calls *= 2
    return calls


def _measure(function: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        function()
    return time.process_time() - start
