"""From the text of a .cu file to a loaded library: one g++ call, remembered by a hash of everything that went in.

The text is compiled as it stands, with one rewrite: `extern __shared__ T name[];` has no counterpart in C++ and becomes
a pointer to the launch's dynamic shared memory.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME = ["runtime.cpp", "hooks.cpp"]
CHECKS = "thread,alignment,null,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow"
# No contraction: a * b + c is two roundings. No tree-sra: a float4 assigned at once is one access, not four.
# No gnu-unique: the statics of two loaded libraries stay two.
FLAGS = "-std=c++17 -O1 -g1 -fPIC -ffp-contract=off -fno-tree-sra -fno-strict-aliasing -fno-gnu-unique".split()
FLAGS += ["-w", "-U_FORTIFY_SOURCE"]


class CompileError(RuntimeError):
    """The compiler refused the kernel; the message is the compiler's."""


def compiler() -> str | None:
    """The path of g++, or None where it is not installed or is another compiler under that name (macOS)."""
    found = shutil.which("g++")
    return found if found and "Free Software Foundation" in _version(found) else None


@functools.cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True).stdout


def _cache() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "all"
    folder = Path(os.environ.get("CUDA_ON_CPU_CACHE", f"{tempfile.gettempdir()}/cuda-on-cpu-{user}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@functools.cache
def _toolchain() -> tuple[str, str]:
    """The compiler, and a hash of it with the headers and the runtime."""
    path = compiler()
    if path is None:
        raise CompileError("kernels run on the CPU only where g++ is installed (Debian, Ubuntu: apt install g++)")
    files = sorted(HERE.glob("*.cpp")) + sorted(HERE.glob("*.h")) + sorted(HERE.glob("include/**/*.*h"))
    digest = hashlib.sha256(_version(path).encode() + " ".join([CHECKS, *FLAGS]).encode())
    for file in files:
        digest.update(file.read_bytes())
    return path, digest.hexdigest()


def _run(command: list[str], output: Path) -> None:
    """Runs g++, which writes beside ``output``; the file appears whole, so that two test runs may share the cache."""
    partial = output.with_name(f"{output.name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr)
    os.replace(partial, output)


def _runtime() -> list[str]:
    path, digest = _toolchain()
    objects = []
    for name in RUNTIME:
        built = _cache() / f"{digest[:24]}-{name}.o"
        if not built.exists():
            _run([path, "-std=c++17", "-O2", "-fPIC", "-U_FORTIFY_SOURCE", "-c", str(HERE / name)], built)
        objects.append(str(built))
    return objects


DYNAMIC = re.compile(
    r"extern\s+__shared__\s+((?:__align__\s*\(\s*\w+\s*\)\s*)?)([\w:]+(?:\s+[\w:]+)*)\s+(\w+)\s*\[\s*\]\s*;"
)
KERNEL = re.compile(r'extern\s+"C"\s*__global__[^;{(]*?\bvoid\b[^;{(]*?(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')


def parameter_names(source: str, kernel: str) -> list[str]:
    """The names of a kernel's parameters, for messages."""
    found = re.search(rf"__global__[^;{{]*?\b{kernel}\s*\(([^)]*)\)", source)
    if not found:
        return []
    text, depth, parts = re.sub(r"//[^\n]*|/\*.*?\*/", "", found.group(1), flags=re.S), 0, [""]
    for letter in text:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [(re.findall(r"\w+", part) or ["?"])[-1] for part in parts]


class Library:
    """A compiled .cu text: its kernels, loaded."""

    def __init__(self, source: str, options: tuple[str, ...] = ()) -> None:
        path, digest = _toolchain()
        self.source = source
        names = list(dict.fromkeys(KERNEL.findall(source)))
        defines = [option for option in options if option.startswith(("-D", "-I"))]
        carray = '#include "cupy/carray.cuh"\n' if "CArray<" in source else ""
        text = f'#include "cuda_cpu.h"\n{carray}#line 1 "kernel.cu"\n'
        text += DYNAMIC.sub(r"\1\2* \3 = (\2*)cuda::dynamic_shared();", source)
        text += '\n#line 1 "entry points"\n' + "".join(f"CUDA_KERNEL({name})\n" for name in names)
        key = hashlib.sha256("\0".join([digest, text, *defines]).encode()).hexdigest()[:24]
        self.path = _cache() / f"{key}.so"
        if not self.path.exists():
            with tempfile.TemporaryDirectory() as folder:
                text_file, obj = Path(folder, "kernel.cu"), Path(folder, "kernel.o")
                text_file.write_text(text, encoding="utf-8")
                _run(
                    [
                        path,
                        *FLAGS,
                        f"-fsanitize={CHECKS}",
                        f"-I{HERE / 'include'}",
                        *defines,
                        "-xc++",
                        "-c",
                        str(text_file),
                    ],
                    obj,
                )
                _run([path, "-shared", "-Wl,-Bsymbolic", str(obj), *_runtime()], self.path)
        self.functions = ctypes.PyDLL(str(self.path))  # PyDLL: a launch keeps the interpreter's lock
        self.functions.cuda_static_shared.restype = ctypes.c_void_p

    def signature(self, kernel: str) -> list[str]:
        """A kernel's parameter types: "const float32*", "int32", "structure40"."""
        try:
            describe = self.functions[f"cuda_signature_{kernel}"]
        except AttributeError:
            raise CompileError(f'the source has no `extern "C" __global__ void {kernel}(...)`') from None
        describe.restype = ctypes.c_char_p
        return describe().decode().split(";")[:-1]

    def static_shared(self) -> tuple[int, int]:
        """Address and size of the static shared memory of all the text's kernels."""
        size = ctypes.c_uint64()
        address = self.functions.cuda_static_shared(ctypes.byref(size))
        return address or 0, size.value

    def line(self, instruction: int) -> int:
        """The line of the source that an instruction (an offset into the library) comes from; 0 if unknown."""
        tool = shutil.which("addr2line")
        if tool is None:
            return 0
        # One byte back: what is known is the return address, the instruction after the call.
        done = subprocess.run([tool, "-i", "-e", str(self.path), hex(instruction - 1)], capture_output=True, text=True)
        found = re.search(r"kernel\.cu:(\d+)", done.stdout)
        return int(found.group(1)) if found else 0


@functools.lru_cache(maxsize=512)
def library(source: str, options: tuple[str, ...] = ()) -> Library:
    """The library of a text; the same text is loaded once."""
    return Library(source, options)
