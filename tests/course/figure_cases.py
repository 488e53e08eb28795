"""Each figure one can touch, from small inputs: for the tests of its numbers, and for those in a browser."""

from __future__ import annotations

import functools

import numpy as np

import tinyllm
from tinyllm.course import figures, kit
from tinyllm.course.cuda_on_cpu.library import compiler
from tinyllm.course.figures import Figure
from tinyllm.lora import lora_layers
from tinyllm.models import DecoderConfig
from tinyllm.qlora import apply_qlora


def weights(n: int = 500) -> np.ndarray:
    return np.random.default_rng(1).normal(size=n).astype("f")


def nf4() -> Figure:
    return figures.nf4_microscope(weights(), np.linspace(-1, 1, 8))


@functools.cache
def chaffs() -> Figure:
    own = {
        "cut off": lambda bits: bits >> 16,
        "a name that is longer than a phone is wide, so that it is cut": lambda b: b,
    }
    return figures.mistakes_against_properties("06-round", own, examples=30)


CHANGES = {f"layers.{i}.mlp.up_proj": weights(7 * (i + 9)).reshape(7, -1) for i in range(2)}
LOSSES = {0: 4.0, 1: 3.5, 4: 3.25, 7: 3.0}


def xray() -> Figure:
    return figures.xray(CHANGES, LOSSES)


MODELS = {"a": DecoderConfig(300, 64, 2), "b": DecoderConfig(3000, 128, 3)}


def ledger() -> Figure:
    return figures.ledger(MODELS, batch_size=2, seq_len=16)


UP = "layers.2.mlp.up_proj"


@functools.cache
def tuned() -> tinyllm.models.DecoderModel:
    """A four-bit base whose adapters are not zero."""
    tinyllm.manual_seed(0)
    model = apply_qlora(kit.base(), target_modules="all-linear", verbose=False)
    for _, layer in lora_layers(model):
        for B in layer.lora_B.values():
            B.data += np.float32(0.01) * weights(B.size).reshape(B.shape)
    return model


def mean_of(model: tinyllm.models.DecoderModel) -> float:
    with tinyllm.no_grad():
        return float(model(np.arange(4)[None]).data.mean())


def merges() -> Figure:
    return figures.merge_lab(
        tuned(), kit.base().state_dict(), UP, mean_of, lambda model: f"mean <{mean_of(model):.3f}>"
    )


def broadcast_and_used_twice() -> tuple[tinyllm.Tensor, dict[str, tinyllm.Tensor]]:
    """mean(tanh(w * x) * w + b), whose b has one number for each of x's three columns, and x one for both rows."""
    rng = np.random.default_rng(3)
    w, x, b = (tinyllm.Parameter(rng.standard_normal(shape)) for shape in ((2, 3), (1, 3), (3,)))
    product = w * x
    return (product.tanh() * w + b).mean(), {"w": w, "x": x, "b": b, "product": product}


def backward() -> Figure:
    return figures.backward_steps(*broadcast_and_used_twice())


SUM = """
extern "C" __global__ void sum(const float* x, float* y) {
    __shared__ float part[8];
    int t = threadIdx.x;
    part[t] = x[t];
    __syncthreads();
    for (int half = 4; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) y[0] = part[0];
}
"""
SUMS = {"with the barrier": SUM, "without": SUM.replace("        __syncthreads();\n", "")}


@functools.cache
def barriers() -> Figure:
    return figures.threads_between_barriers(SUMS, "sum", 8, (np.arange(8, dtype="f"), np.zeros(1, "f")))


FIGURES = {
    "backward": backward,
    "chaffs": chaffs,
    "ledger": ledger,
    "merges": merges,
    "nf4": nf4,
    "xray": xray,
}
if compiler() is not None:
    FIGURES["barriers"] = barriers
