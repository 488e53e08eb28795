"""A stand-in for CuPy where there is no GPU: an array module whose arrays are not NumPy's, and whose kernels run in
`cuda_on_cpu`.

It is strict where CuPy is strict, so that what passes here does not fail on a card: a NumPy array never meets one of
these in arithmetic, in an index or in a kernel; ``numpy.asarray(x)`` and ``numpy.f(x)`` raise; a reduction gives an
array without axes, never a number. Every time a number crosses to the host (``.get()``, ``.item()``, ``float(x)``,
``if x:``) `synchronisations` counts it.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np

from tinyllm.course import cuda_on_cpu

HALF = {2: np.float16, 14: ml_dtypes.bfloat16, 0: np.float32}
_BASICS = (int, float, bool, complex, str, type(None), type(Ellipsis), slice, np.generic, np.dtype, type)


class OutOfMemoryError(MemoryError):
    """As in ``cupy.cuda.memory``."""


class _Pool:
    """The bytes of all arrays alive, the hooks that are told of each new one, and a limit."""

    used, limit = 0, 1 << 62

    def __init__(self):
        self.hooks = []

    def used_bytes(self):
        return self.used

    def allocate(self, size):
        if self.used + size > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: {self.used:,} bytes).")
        self.used += size
        for hook in self.hooks if size else ():
            hook.malloc_postprocess(size=size)


pool = _Pool()


class MemoryHook:
    name = "MemoryHook"

    def __enter__(self):
        if any(hook.name == self.name for hook in pool.hooks):
            raise KeyError(f"memory hook {self.name} already exists")
        pool.hooks.append(self)
        return self

    def __exit__(self, *_):
        pool.hooks.remove(self)


class ndarray:
    """An array "on the card"."""

    __array_ufunc__ = None  # numpy_array * this is refused
    __hash__ = None

    def __init__(self, a):
        self.a = a
        self.owned = a.nbytes if a.base is None else 0
        pool.allocate(self.owned)

    def __del__(self):
        pool.used -= getattr(self, "owned", 0)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use .get()")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} was given an array of the card; use the backend's xp")

    @property
    def data(self):
        return SimpleNamespace(ptr=self.a.ctypes.data)

    @property
    def base(self):
        return None if self.a.base is None else ndarray(self.a.base)

    def get(self):
        cupy.synchronisations += 1
        return self.a.copy()

    def item(self):
        cupy.synchronisations += 1
        return self.a.item()

    def tolist(self):
        cupy.synchronisations += 1
        return self.a.tolist()

    def __bool__(self):
        cupy.synchronisations += 1
        return bool(self.a)

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    __index__ = __int__

    def __len__(self):
        return len(self.a)

    def __getitem__(self, index):
        return _on(self.a[_off(index)])

    def __setitem__(self, index, value):
        self.a[_off(index)] = _off(value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getattr__(self, name):
        if name.startswith("__"):  # above all __array_interface__, a back door for numpy.asarray
            raise AttributeError(name)
        found = getattr(self.a, name)
        return _wrapped(found) if callable(found) else (_on(found) if isinstance(found, np.ndarray) else found)

    def __repr__(self):
        return f"cupy.{self.a!r}"

    def __matmul__(self, other):
        return cupy.matmul(self, other)


def _operator(name):
    def apply(self, *others):
        out = getattr(self.a, name)(*map(_off, others))
        return self if out is self.a else _on(out)

    return apply


_BINARY = "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
for _name in [f"__{how}{n}__" for n in _BINARY for how in ("", "r", "i")]:
    setattr(ndarray, _name, _operator(_name))
for _name in "__neg__ __pos__ __abs__ __invert__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__".split():
    setattr(ndarray, _name, _operator(_name))
ndarray.__module__ = "cupy"


def _on(y):
    """A result, put on the card; scalars become arrays without axes."""
    if isinstance(y, tuple | list):
        return type(y)(map(_on, y))
    return ndarray(np.asarray(y)) if isinstance(y, np.ndarray | np.generic) else y


def _off(x):
    """An argument, taken off the card; a NumPy array with axes has no business here."""
    if isinstance(x, ndarray):
        return x.a
    if isinstance(x, tuple | list):
        return type(x)(map(_off, x))
    if isinstance(x, dict):
        return {key: _off(value) for key, value in x.items()}
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: a NumPy array of shape {x.shape} met an array of the card")
    return x


def _wrapped(function):
    def call(*args, **kwargs):
        with np.errstate(all="ignore"):  # CuPy warns of nothing
            y = function(*_off(args), **_off(kwargs))
        out = kwargs.get("out")
        return out if out is not None else _on(y)

    return call


def _asarray(x, dtype=None, order=None, **_):
    """CuPy's way onto the card: from here, and only from here and `array`, NumPy arrays come in."""
    if isinstance(x, ndarray):
        return x if dtype is None or x.dtype == dtype else ndarray(x.a.astype(dtype))
    return ndarray(np.array(_off(x) if isinstance(x, tuple | list) else x, dtype=dtype))


def _matmul(a, b):
    x, y = _off(a), _off(b)
    if x.dtype != y.dtype:
        raise TypeError(f"{x.dtype} times {y.dtype}: CuPy would copy both to the wider, and leave the tensor cores")
    if x.dtype.name == "float32" or x.dtype.kind == "f" and x.dtype.itemsize == 8:
        return ndarray(np.asarray(x @ y))
    if x.ndim > 2 or y.ndim > 2:
        raise TypeError(
            f"a stack of {x.dtype} matrices: CuPy would copy it to float32, or fail; see backend/cuda/gemm.py"
        )
    return ndarray((x.astype(np.float32) @ y.astype(np.float32)).astype(x.dtype))


class Kernel:
    def __init__(self, kernel):
        self.kernel = kernel


class ElementwiseKernel(Kernel):
    def __init__(self, *args, **kwargs):
        super().__init__(cuda_on_cpu.ElementwiseKernel(*args, **kwargs))

    def __call__(self, *args, **kwargs):
        cupy.launches += 1
        before = [a for a in args if isinstance(a, ndarray)]
        y = self.kernel(*_off(args), **kwargs)
        return next((a for a in before if a.a is y), None) if isinstance(y, np.ndarray) else y


class RawKernel(Kernel):
    def __init__(self, code, name, **kwargs):
        super().__init__(cuda_on_cpu.RawKernel(code, name, **kwargs))

    def __call__(self, grid, block, args, **kwargs):
        cupy.launches += 1
        for a in args:
            if isinstance(a, ndarray) and not a.a.flags.c_contiguous:
                raise TypeError("a raw kernel takes a pointer; this array is not contiguous")
        self.kernel(grid, block, _off(tuple(args)), **kwargs)


def _matrix(pointer, kind, rows, columns, leading, stride, batch):
    """What cuBLAS sees at an address: (batch, rows, columns), columns first."""
    dtype = np.dtype(HALF[kind])
    size = (batch - 1) * stride + (columns - 1) * leading + rows
    flat = np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(pointer), dtype)
    steps = [stride * dtype.itemsize, dtype.itemsize, leading * dtype.itemsize]
    return np.lib.stride_tricks.as_strided(flat, (batch, rows, columns), steps)


def _gemm_strided_batched(
    handle,
    ta,
    tb,
    m,
    n,
    k,
    alpha,
    a,
    a_kind,
    lda,
    sa,
    b,
    b_kind,
    ldb,
    sb,
    beta,
    c,
    c_kind,
    ldc,
    sc,
    batch,
    compute,
    algo,
):
    assert (compute, handle) == (68, "handle") and lda >= (k if ta else m) and ldb >= (n if tb else k) and ldc >= m
    x = _matrix(a, a_kind, *((k, m) if ta else (m, k)), lda, sa, batch).astype(np.float32)
    y = _matrix(b, b_kind, *((n, k) if tb else (k, n)), ldb, sb, batch).astype(np.float32)
    alpha, beta = (ctypes.c_float.from_address(p).value for p in (alpha, beta))
    assert (alpha, beta) == (1, 0)
    product = (x.swapaxes(1, 2) if ta else x) @ (y.swapaxes(1, 2) if tb else y)
    _matrix(c, c_kind, m, n, ldc, sc, batch)[...] = product.astype(HALF[c_kind])


class _Module(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(np, name)
        if isinstance(found, np.ufunc):
            return _Ufunc(found)
        return _wrapped(found) if callable(found) and not isinstance(found, type) else found


class _Ufunc:
    def __init__(self, ufunc):
        self.ufunc = ufunc

    def __call__(self, *args, **kwargs):
        return _wrapped(self.ufunc)(*args, **kwargs)

    def at(self, x, index, values):
        if x.dtype.name == "bfloat16":
            raise TypeError(f"cupy.{self.ufunc.__name__}.at only supports some dtypes, and {x.dtype} is none of them")
        self.ufunc.at(_off(x), _off(index), _off(values))


cupy = _Module("cupy")
cupy.__version__ = "14.2.0"
cupy.synchronisations = cupy.launches = 0
cupy.ndarray = ndarray
cupy.asarray = _asarray
cupy.array = lambda x, dtype=None, **_: ndarray(np.array(x.a if isinstance(x, ndarray) else x, dtype=dtype))
cupy.ascontiguousarray = lambda x, dtype=None: ndarray(np.ascontiguousarray(_off(x), dtype=dtype))
cupy.asnumpy = lambda x: x.get() if isinstance(x, ndarray) else np.asarray(x)
cupy.matmul = _matmul  # without out=: what CuPy accepts there is not documented for a slice of columns
cupy.get_default_memory_pool = lambda: pool
cupy.ElementwiseKernel, cupy.RawKernel = ElementwiseKernel, RawKernel
cupy.cuda = SimpleNamespace(
    runtime=SimpleNamespace(getDeviceCount=lambda: 1, driverGetVersion=lambda: 13020, runtimeGetVersion=lambda: 13020),
    nvrtc=SimpleNamespace(getVersion=lambda: (13, 2)),
    cublas=SimpleNamespace(gemmStridedBatchedEx=_gemm_strided_batched),
    MemoryHook=MemoryHook,
    device=SimpleNamespace(get_cublas_handle=lambda: "handle"),
)


@contextmanager
def the_device():
    """``set_device("cuda")`` with this module in CuPy's place; everything is put back afterwards."""
    from tinyllm.backend import BACKENDS
    from tinyllm.backend.device import device, set_device

    modules, backend, before = sys.modules.get("cupy"), BACKENDS.pop("cuda", None), device()
    sys.modules["cupy"] = cupy
    try:
        set_device("cuda")
        yield cupy
    finally:
        set_device(before)
        BACKENDS.pop("cuda", None)
        if modules is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = modules
        if backend is not None:
            BACKENDS["cuda"] = backend
