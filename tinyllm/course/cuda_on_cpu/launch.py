"""One launch: the structures of runtime.h filled in, the kernel run, what it did counted, traced and reported."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .arguments import Memory
from .library import Library

ORDERS = ("forward", "reverse", "shuffled")


class KernelError(RuntimeError):
    """The kernel broke a rule; the message says which thread did what, and where."""


@dataclass(frozen=True)
class Access:
    """One step of a traced thread; as text, the line that is printed."""

    verb: str  # reads, writes, updates; or the barrier that it comes to
    place: str = ""  # x[3], or a byte of shared memory
    value: str = ""
    shared: tuple[int, int] | None = None  # the first byte and how many, of shared memory
    line: int = 0  # of the program, from 1; 0 if that is unknown
    text: str = ""  # that line

    def __str__(self) -> str:
        did = f"{self.verb:<7} {self.place} = {self.value}" if self.place else self.verb
        return f"{did:<42} {f'line {self.line} `{self.text}`' if self.text else 'an unknown line'}"


@dataclass
class Settings:
    order: str = "forward"  # in which threads and blocks take their turns
    races: bool = True  # report two unordered accesses to one place, one of them a write
    trace: tuple | None = None  # (block, thread), each a number or a tuple (x, y, z): tell what that thread does
    told: Callable[[Access], object] = print
    seed: int = 0  # of the shuffled order
    step_limit: int = 50_000_000  # accesses of one thread, then it is taken to run for ever


_settings = Settings()


@contextlib.contextmanager
def settings(**changes: Any) -> Iterator[None]:
    """How launches run inside the block: the fields of `Settings`."""
    global _settings
    before, _settings = _settings, replace(_settings, **changes)
    if _settings.order not in ORDERS:
        wrong, _settings = _settings.order, before
        raise ValueError(f"order is one of {', '.join(ORDERS)}, not {wrong!r}")
    try:
        yield
    finally:
        _settings = before


@dataclass
class Counts:
    """What a launch did. Bytes are the program's own accesses, one by one: no cache stands in between."""

    read: int = 0  # bytes of global memory
    written: int = 0
    loads: int = 0  # accesses to global memory, whatever their width
    stores: int = 0
    shared_read: int = 0  # bytes
    shared_written: int = 0
    barriers: int = 0  # a block's
    warp_syncs: int = 0  # shuffles, votes, __syncwarp: a warp's
    atomics: int = 0
    by_argument: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (bytes read, bytes written)


class _Event(ctypes.Structure):
    _fields_ = [("thread", ctypes.c_uint32), ("when", ctypes.c_uint32), ("where", ctypes.c_uint32)]


class _Region(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("argument", ctypes.c_int32), ("flags", ctypes.c_int32),
        ("item", ctypes.c_uint32), ("granule", ctypes.c_uint32), ("cells", ctypes.c_void_p),
        ("written", ctypes.c_void_p),
        ("reads", ctypes.c_uint64), ("writes", ctypes.c_uint64),
        ("bytes_read", ctypes.c_uint64), ("bytes_written", ctypes.c_uint64),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32), ("region", ctypes.c_int32), ("where", ctypes.c_uint32), ("size", ctypes.c_uint32),
        ("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint8 * 16),
    ]  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("arguments", ctypes.c_void_p),
        ("regions", ctypes.POINTER(_Region)), ("region_count", ctypes.c_int32), ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64), ("step_limit", ctypes.c_uint64), ("dynamic", ctypes.c_uint64),
        ("dynamic_size", ctypes.c_uint64), ("traced_block", ctypes.c_int64), ("traced_thread", ctypes.c_int64),
        ("steps", ctypes.POINTER(_Step)), ("step_capacity", ctypes.c_int32), ("step_count", ctypes.c_int32),
        ("barriers", ctypes.c_uint64), ("warp_syncs", ctypes.c_uint64), ("atomics", ctypes.c_uint64),
        ("message", ctypes.c_char * 1024),
    ]  # fmt: skip


CONSTANT, SHARED = 1, 2
TRACE_LENGTH = 10_000


def check_shape(kernel: str, grid: tuple, block: tuple) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block as three numbers each, within what every card since 2012 allows."""
    if not isinstance(grid, tuple) or not isinstance(block, tuple):
        raise TypeError(f"{kernel}: grid and block are tuples of one to three numbers")
    full = ((*map(int, grid), 1, 1, 1)[:3], (*map(int, block), 1, 1, 1)[:3])
    for what, shape, limits in ("grid", full[0], (2**31 - 1, 65535, 65535)), ("block", full[1], (1024, 1024, 64)):
        if any(not 1 <= n <= most for n, most in zip(shape, limits, strict=True)):
            raise ValueError(f"{kernel}: a {what} of {shape}: each number is at least 1 and at most {limits}")
    threads = full[1][0] * full[1][1] * full[1][2]
    if threads > 1024:
        raise ValueError(f"{kernel}: a block of {full[1]} has {threads} threads; 1024 is the most")
    return full


def _flat(index: object, shape: tuple[int, ...]) -> int:
    x, y, z = (*index, 0, 0, 0)[:3] if isinstance(index, tuple) else (index, 0, 0)
    return x + shape[0] * (y + shape[1] * z)


class Run:
    """A launch of ``kernel`` from ``library``; ``arrays`` {argument: (array, constant)}, ``names`` of all arguments."""

    def __init__(self, library: Library, kernel: str, grid: tuple, block: tuple, shared: int, shared_limit: int,
                 arrays: dict[int, tuple[np.ndarray, bool]], names: list[str]) -> None:  # fmt: skip
        self.library, self.kernel, self.arrays, self.names = library, kernel, arrays, names
        self.grid, self.block = check_shape(kernel, grid, block)
        self.memory = Memory(arrays, shared)
        self.dynamic = shared
        self.static = library.static_shared()
        total = shared + self.static[1]
        if total > max(shared_limit, 48 * 1024):
            raise ValueError(
                f"{kernel}: {total} bytes of shared memory; above 49152 max_dynamic_shared_size_bytes must be set"
            )
        self._keep: list = []  # buffers that the structures point to

    def _regions(self) -> list[_Region]:
        regions = []
        for place in self.memory.places:
            index = place.arguments[0]
            item = self.arrays[index][0].dtype.itemsize
            size = place.high - place.low
            granule = min(self.arrays[i][0].dtype.itemsize for i in place.arguments)
            granule = 4 if granule >= 4 and size % 4 == 0 else 2 if granule >= 2 and size % 2 == 0 else 1
            flags = CONSTANT if place.constant else 0
            regions.append(_Region(place.begin, place.begin + size, index, flags, item, granule))
        for begin, size in (self.static, (self.memory.dynamic, self.dynamic)):
            if size:
                written = np.zeros(size, np.uint8)
                self._keep.append(written)
                regions.append(_Region(begin, begin + size, -1, SHARED, 1, 1, None, written.ctypes.data))
        if _settings.races:
            for region in regions:
                cells = np.zeros((region.end - region.begin) // region.granule * 3 * ctypes.sizeof(_Event), np.uint8)
                self._keep.append(cells)
                region.cells = cells.ctypes.data
        return regions

    def go(self, values: list[bytes]) -> Counts:
        """Runs the kernel on its arguments' bytes, and copies back what it may have written."""
        buffers = [ctypes.create_string_buffer(value, max(1, len(value))) for value in values]
        pointers = (ctypes.c_void_p * max(1, len(buffers)))(*(ctypes.addressof(b) for b in buffers))
        found = self._regions()
        regions = (_Region * max(1, len(found)))(*found)
        launch = _Launch(
            grid=self.grid, block=self.block, arguments=ctypes.addressof(pointers), regions=regions,
            region_count=len(found), order=ORDERS.index(_settings.order), seed=_settings.seed,
            step_limit=_settings.step_limit, dynamic=self.memory.dynamic, dynamic_size=self.dynamic,
        )  # fmt: skip
        if _settings.trace:
            steps = (_Step * TRACE_LENGTH)()
            launch.traced_block = _flat(_settings.trace[0], self.grid)
            launch.traced_thread = _flat(_settings.trace[1], self.block)
            launch.steps, launch.step_capacity = steps, TRACE_LENGTH
        enter = self.library.functions[f"cuda_enter_{self.kernel}"]
        failed = self.library.functions.cuda_launch(ctypes.byref(launch), enter)
        if _settings.trace:
            for step in steps[: launch.step_count]:
                _settings.told(self._access(step, found))
        if failed:
            raise KernelError(f"{self.kernel}: {self._explained(launch.message.decode())}")
        self.memory.copy_back()
        return self._counts(launch, regions[: len(found)])

    def _text(self, number: int) -> str:
        lines = self.library.source.splitlines()
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""

    def _line(self, number: int) -> str:
        text = self._text(number)
        return f"line {number} `{text}`" if text else "an unknown line"

    def _argument(self, index: int) -> str:
        array = self.arrays[index][0]
        return f"argument {self.names[index]!r} ({array.dtype.name}, {array.size} elements)"

    def _explained(self, message: str) -> str:
        message = re.sub(r"<#(\d+)>", lambda m: self._argument(int(m[1])), message)
        message = re.sub(r"<([0-9a-f]+)>", lambda m: self._line(self.library.line(int(m[1], 16))), message)
        return re.sub(r"\bline (\d+)\b(?! `)", lambda m: self._line(int(m[1])), message)

    def _access(self, step: _Step, regions: list[_Region]) -> Access:
        if step.kind == 3:
            return Access(ctypes.string_at(step.offset).decode(), line=step.where, text=self._text(step.where))
        region, raw = regions[step.region], bytes(step.bytes[: step.size])
        line = self.library.line(step.where)
        verb, text = ("reads", "writes", "updates")[step.kind], self._text(line)
        if region.argument < 0:
            shown = f"{np.frombuffer(raw, np.float32)[0]:g}" if step.size == 4 else f"0x{raw[::-1].hex()}"
            return Access(verb, f"shared byte {step.offset}", shown, (step.offset, step.size), line, text)
        dtype = self.arrays[region.argument][0].dtype
        first, count = step.offset // dtype.itemsize, max(1, step.size // dtype.itemsize)
        span = f"{first}" if count == 1 else f"{first}:{first + count}"
        whole = step.size % dtype.itemsize == 0
        shown = ", ".join(f"{x}" for x in np.frombuffer(raw, dtype)) if whole else f"0x{raw[::-1].hex()}"
        return Access(verb, f"{self.names[region.argument]}[{span}]", shown, None, line, text)

    def _counts(self, launch: _Launch, regions: list[_Region]) -> Counts:
        counts = Counts(barriers=launch.barriers, warp_syncs=launch.warp_syncs, atomics=launch.atomics)
        for region in regions:
            if region.argument < 0:
                counts.shared_read += region.bytes_read
                counts.shared_written += region.bytes_written
                continue
            counts.read += region.bytes_read
            counts.written += region.bytes_written
            counts.loads += region.reads
            counts.stores += region.writes
            counts.by_argument[self.names[region.argument]] = (region.bytes_read, region.bytes_written)
        return counts
