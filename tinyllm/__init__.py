"""tinyllm: a small engine for fine-tuning language models, with its own autograd, LoRA and QLoRA.

The book, to be read in this order (a test holds that every file of it stands here once):

 0  backend     backend/names.py, backend/table.py, backend/random.py, backend/half.py, backend/nf4.py,
                backend/primitives.py, backend/device.py, backend/torch_sum.py, backend/double_quant.py
 1  autograd    autograd.py, tensor.py
 2  operations  ops/checks.py, ops/arithmetic.py, ops/shapes.py, ops/reductions.py, ops/products.py
 3  frozen      frozen/weight.py, frozen/dense.py, frozen/finite.py, frozen/half.py, frozen/nf4.py
 4  functions   functional.py
 5  layers      nn/tree.py, nn/module.py, nn/layers.py
 6  decoder     models/config.py, models/cache.py, models/positions.py, models/head.py, models/build.py,
                models/decoder.py
 7  LoRA        lora/config.py, lora/layer.py, lora/dora.py, lora/saved.py, lora/adapted.py, lora/targets.py,
                lora/heads.py, lora/biases.py, lora/verbs.py, lora/merge.py
 8  QLoRA       qlora.py
 9  AdamW       optim.py
10  training    data/examples.py, data/batches.py, train/loss_scale.py, train/loop.py
11  writing     generate.py

The wings: backend's cpu, cuda and ghost, formats, the rest of data, models' checkpoints and families, lora/peft,
inspect, course, cli, assets, a run's files in train.
"""

from tinyllm import functional, generate, nn, ops, optim
from tinyllm.backend import use
from tinyllm.backend.cpu.threads import get_num_threads, set_num_threads
from tinyllm.backend.device import set_device
from tinyllm.backend.random import manual_seed
from tinyllm.formats.state import load, save
from tinyllm.inspect.gradcheck import gradcheck
from tinyllm.inspect.graph import graph_svg
from tinyllm.inspect.kept import kept
from tinyllm.lora.peft.adapter import load_adapter, save_adapter
from tinyllm.tensor import Parameter, Tensor, checkpoint, enable_grad, no_grad

__version__ = "0.2.0"

__all__ = [
    "Parameter",
    "Tensor",
    "__version__",
    "checkpoint",
    "enable_grad",
    "functional",
    "generate",
    "get_num_threads",
    "gradcheck",
    "graph_svg",
    "kept",
    "load",
    "load_adapter",
    "manual_seed",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "save",
    "save_adapter",
    "set_device",
    "set_num_threads",
    "use",
]
