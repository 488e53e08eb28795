"""Every kernel compiles for every card CuPy serves, with CuPy's own options, where no card is: NVRTC from pip's wheels.

Also: what the harness runs is, letter by letter, the text CuPy would generate; and the machine code keeps its promises:
no local memory, 16-byte accesses in the fast rungs, no fused multiply-add where bits matter.

    pip install cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime ml_dtypes
"""

from __future__ import annotations

import functools
import io
import re

import numpy as np
import pytest

from tinyllm.backend.cuda.kernels import every
from tinyllm.course.cuda_on_cpu.elementwise import ElementwiseKernel, source

CARDS = (75, 80, 86, 89, 90, 100, 120)
cupy = pytest.importorskip("cupy", reason="not run: CuPy is not installed")


@functools.cache
def options() -> tuple[str, ...]:
    """CuPy's at run time, less the architecture; skips where a wheel is missing."""
    from cupy._core import core

    try:
        cupy.cuda.nvrtc.getVersion()
        return (*core.assemble_cupy_compiler_options(()), "-ftz=true", "--device-as-default-execution-space")
    except (RuntimeError, ImportError) as why:
        pytest.skip(f"not run: {str(why).splitlines()[0]}")


def compiled(text: str, method: str, card: int) -> tuple[bytes, str]:
    """Machine code ("cubin") or PTX, and what the compiler said."""
    from cupy.cuda import compiler

    target = f"-arch={'sm' if method == 'cubin' else 'compute'}_{card}"
    verbose = ("--ptxas-options=-v",) if method == "cubin" else ()
    log = io.StringIO()
    code, _ = compiler._NVRTCProgram(text, "kernel.cu", method=method).compile(
        (*options(), target, *verbose), log_stream=log
    )
    return code if isinstance(code, bytes) else code.encode(), log.getvalue()


def values(kernel, dtype: str) -> tuple[list, list]:
    """Empty arrays and zeros of an elementwise kernel's types, for the generated text."""

    def one(kind: str, name: str):
        number = np.dtype("float32" if kind == "bfloat16" else kind).type(0)
        return number if name in kernel.scalars else np.zeros(1, _dtype(kind))

    parts = ElementwiseKernel(kernel.inputs, kernel.outputs, kernel.body, kernel.name)
    inputs, outputs = kernel.dtypes(dtype)
    return list(parts.parameters), [one(k, p.name) for k, p in zip(inputs + outputs, parts.parameters, strict=True)]


def _dtype(kind: str):
    if kind == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(kind)


def our_text(kernel, dtype: str) -> str:
    """What the harness compiles."""
    if kernel.form == "raw":
        return kernel.text(dtype)
    parameters, given = values(kernel, dtype)
    types = {p.kind: dtype for p in parameters if len(p.kind) == 1}
    return source(tuple(parameters), given, types, 1, kernel.body, kernel.name, kernel.preamble)


def full_text(kernel, dtype: str) -> str:
    """What NVRTC gets: CuPy puts its headers in front of an elementwise kernel."""
    from cupy._core import core

    front = (
        "".join(f"#include <{header}>\n" for header in core._cupy_header_list) if kernel.form == "elementwise" else ""
    )
    return front + our_text(kernel, dtype)


CASES = [pytest.param(k, t, id=f"{k.name}-{t or 'plain'}") for k in every() for t in (k.types or ("",))]
ELEMENTWISE = [case for case in CASES if case.values[0].form == "elementwise"]


@pytest.mark.parametrize(("kernel", "dtype"), ELEMENTWISE)
def test_the_text_is_the_one_cupy_generates(kernel, dtype):
    from cupy._core._carray import Indexer
    from cupy._core._scalar import CScalar

    K = cupy._core._kernel
    theirs = cupy.ElementwiseKernel(kernel.inputs, kernel.outputs, kernel.body, kernel.name, preamble=kernel.preamble)
    parameters, given = values(kernel, dtype)
    dtypes = [v.dtype if isinstance(v, np.ndarray) else None for v in given]
    ins, outs, types = theirs._decide_params_type(tuple(dtypes[: theirs.nin]), tuple(dtypes[theirs.nin :]))
    infos = [
        K._ArgInfo(1, cupy.ndarray, d, 1, True, True)
        if isinstance(v, np.ndarray)
        else K._ArgInfo(3, CScalar, d, 0, True, True)
        for v, d in zip(given, [*ins, *outs], strict=True)
    ]
    infos.append(K._ArgInfo(2, Indexer, None, 1, True, True))
    text = K._get_elementwise_kernel_code(
        tuple(infos), types, theirs.params, theirs.operation, theirs.name, theirs.preamble, **theirs.kwargs
    )
    assert our_text(kernel, dtype) == text


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_a_kernel_compiles_and_keeps_its_variables_in_registers(kernel, dtype, card):
    code, log = compiled(full_text(kernel, dtype), "cubin", card)
    assert code[:4] == b"\x7fELF" and "warning" not in log, log
    used = re.findall(rf"{kernel.name}'? for .*?(\d+) bytes stack frame, (\d+) bytes spill stores", log, re.S)
    assert used and all(numbers == ("0", "0") for numbers in used), log


@pytest.mark.parametrize(("kernel", "dtype"), [case for case in CASES if case.values[0].wide])
def test_a_fast_rung_moves_sixteen_bytes_at_once(kernel, dtype):
    ptx = compiled(full_text(kernel, dtype), "ptx", 90)[0].decode()
    assert re.search(r"(ld|st)\.global\S*\.v4\.[bufs]32|(ld|st)\.global\S*\.v2\.[bufs]64", ptx)


@pytest.mark.parametrize(("kernel", "dtype"), [case for case in CASES if case.values[0].exact])
def test_bits_that_matter_are_not_fused_or_approximated(kernel, dtype):
    ptx = compiled(full_text(kernel, dtype), "ptx", 90)[0].decode()
    assert not re.findall(r"\b(?:fma|mad)\S*\.f(?:16|32|64)\S*|\b\w+\.approx\S*", ptx)


def test_the_checks_see_what_they_look_for():
    bad = 'extern "C" __global__ void k(float* y, int n) { float r[64];' \
        " for (int i = 0; i < 64; i++) r[i * n % 64] = y[i] * y[i] + 1; y[0] = r[n] + __expf(y[1]); }"  # fmt: skip
    log = compiled(bad, "cubin", 90)[1]
    assert re.search(r"[1-9]\d* bytes stack frame", log)
    assert (
        re.search(r"fma\S*\.f32", (ptx := compiled(bad, "ptx", 90)[0].decode()))
        and ".approx" in ptx
        and ".v4" not in ptx
    )
