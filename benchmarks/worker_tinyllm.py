"""tinyllm's side of every case."""

from __future__ import annotations

import dis
import linecache
import sys
import threading
import time
import zlib
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from protocol import serve

Step = Callable[[], dict]


def load(spec: dict[str, Any]) -> dict[str, str]:
    import numpy

    import tinyllm
    import tinyllm.generate
    import tinyllm.lora
    import tinyllm.models

    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "tinyllm": tinyllm.__version__,
        "numpy": numpy.__version__,
        "BLAS": f"{blas.get('name')} {blas.get('version')}",
    }


def build(shape: Any, storage: str, numbers: Any) -> Any:
    """The model, weight by weight: no float copy of the whole exists unless `storage` is float32."""
    from tinyllm.models import DecoderModel
    from tinyllm.models.config import llama_shape

    return DecoderModel(
        shape.vocab_size,
        shape.hidden_size,
        shape.num_layers,
        shape.num_heads,
        storage=storage,
        init=lambda name, size: numbers.weight(name.replace("out_proj", "o_proj"), size),
        **llama_shape(
            num_kv_heads=shape.num_kv_heads,
            intermediate_size=shape.intermediate_size,
            rope_theta=shape.rope_theta,
            norm_eps=shape.norm_eps,
            tie_embeddings=shape.tie_embeddings,
            max_seq_len=max(2048, shape.time),
        ),
    )


def add_adapters(model: Any, shape: Any, numbers: Any) -> None:
    """LoRA on the attention's projections, A from the common numbers."""
    from shapes import TARGETS

    from tinyllm.lora import apply_lora

    apply_lora(model, shape.rank, shape.alpha, target_modules=list(TARGETS), verbose=False)
    for name, p in model.named_parameters():
        if ".lora_A." in name:
            layer = name.partition(".lora_A")[0].replace("out_proj", "o_proj")
            p.data[...] = numbers.lora_a(layer, p.shape)


def train(spec: dict[str, Any]) -> Step:
    from shapes import LEARNING_RATE, Numbers, Shape

    import tinyllm
    from tinyllm.backend.cpu.malloc import keep_freed_memory

    shape, numbers = Shape(**spec["shape"]), Numbers(spec.get("seed", 0))
    model = build(shape, spec["base"], numbers)
    if spec["method"] == "lora":
        add_adapters(model, shape, numbers)
    model.checkpointing = spec.get("checkpointing", False)
    optimizer = tinyllm.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    ids, targets = numbers.tokens(shape)
    keep_freed_memory()  # as `tinyllm finetune` does

    def step() -> dict[str, float]:
        began = time.perf_counter()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"seconds": time.perf_counter() - began, "check": loss.item()}

    return step


def decode(spec: dict[str, Any]) -> Step:
    from shapes import Numbers, Shape

    from tinyllm import no_grad
    from tinyllm.generate import generate

    shape, numbers = Shape(**spec["shape"]), Numbers(spec.get("seed", 0))
    model = build(shape, "float32", numbers).eval()
    prompt = numbers.prompt(shape)
    with no_grad():
        check = model.loss(prompt[:, :-1], prompt[:, 1:]).item()

    def step() -> dict[str, float]:
        times = [time.perf_counter()]
        for new in (1, shape.new_tokens):
            generate(model, prompt[0], new)
            times.append(time.perf_counter())
        prefill, whole = times[1] - times[0], times[2] - times[1]
        return {"prefill": prefill, "decode": (whole - prefill) / (shape.new_tokens - 1), "check": check}

    return step


def nf4(spec: dict[str, Any]) -> Step:
    import numpy as np
    from shapes import Numbers, Shape

    from tinyllm.frozen.nf4 import dequantize_nf4, quantize_nf4

    side = Shape(**spec["shape"]).nf4_side
    w = Numbers(spec.get("seed", 0)).weight("nf4", (side, side))

    def step() -> dict[str, float]:
        times = [time.perf_counter()]
        indices, scales = quantize_nf4(w)
        times.append(time.perf_counter())
        back = dequantize_nf4(indices, scales, w.shape)
        times.append(time.perf_counter())
        check = zlib.crc32(indices.tobytes() + scales.tobytes() + np.ascontiguousarray(back).tobytes())
        return {"quantise": times[1] - times[0], "dequantise": times[2] - times[1], "check": check}

    return step


def overhead(spec: dict[str, Any]) -> Step:
    """A chain of additions of arrays of one element: what is not NumPy's own addition is the engine's work."""
    import numpy as np
    from shapes import Shape

    import tinyllm

    n = Shape(**spec["shape"]).chain
    first, one = tinyllm.Parameter(np.zeros(1, np.float32)), tinyllm.Tensor(np.ones(1, np.float32))

    def step() -> dict[str, float]:
        first.grad = None
        began = time.perf_counter()
        x = first
        for _ in range(n):
            x = x + one
        x.sum().backward()
        return {"per operation": (time.perf_counter() - began) / n, "check": x.item()}

    return step


MATMULS = ("matmul(", "einsum(", ".dot(")


def instructions(code: CodeType) -> dict[int, tuple[str, str]]:
    """Offset to operation and argument, both as `dis` names them."""
    return {i.offset: (i.opname, i.argrepr) for i in dis.get_instructions(code)}


def in_matmul(frame: FrameType, known: dict[CodeType, dict]) -> bool:
    """Whether the instruction a frame stands at multiplies matrices."""
    while "numpy" in frame.f_code.co_filename and frame.f_back is not None:  # einsum is partly Python
        frame = frame.f_back
    code = frame.f_code
    if code not in known:
        known[code] = instructions(code)
    name, argument = known[code].get(frame.f_lasti, ("", ""))
    if name.startswith("BINARY_OP"):
        return argument in ("@", "@=")
    if name.startswith("CALL"):
        return any(word in linecache.getline(code.co_filename, frame.f_lineno) for word in MATMULS)
    return name.endswith("MATRIX_MULTIPLY")  # Python 3.10


def multiplying(main: int, known: dict[CodeType, dict]) -> bool:
    """Whether the thread `main` multiplies matrices, or waits for another that does its part of an operation."""
    from tinyllm.backend.cpu.threads import share

    frames = sys._current_frames()
    if frames[main].f_code.co_filename != share.__code__.co_filename:
        return in_matmul(frames[main], known)
    helpers = [thread.ident for thread in threading.enumerate() if thread.name.startswith("tinyllm-")]
    return any(in_matmul(frames[helper], known) for helper in helpers if helper in frames)


def matmul_share(spec: dict[str, Any]) -> Step:
    """A second thread looks a thousand times a second at which instruction the step stands.

    NumPy lets it look during matmuls and other work on large arrays, so the share is of time, to about one per cent.
    """
    inner = train(spec)
    main, known = threading.get_ident(), {}
    sys.setswitchinterval(1e-4)

    def step() -> dict[str, float]:
        seen = [0, 0]
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.001):
                seen[multiplying(main, known)] += 1

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            measured = inner()
        finally:
            done.set()
            watcher.join()
        return {"share": seen[1] / max(1, sum(seen)), "check": measured["check"]}

    return step


TASKS = {"train": train, "decode": decode, "nf4": nf4, "overhead": overhead, "matmul-share": matmul_share}

if __name__ == "__main__":
    serve(load, lambda spec: TASKS[spec["task"]](spec))
