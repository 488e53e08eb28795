"""tinyllm: a small engine for fine-tuning language models, with its own autograd, LoRA and QLoRA.

Read in this order: `tensor.py`, `ops.py`, `functional.py`, `nn.py`, `models/decoder.py`, `lora.py`, `qlora.py`,
`optim.py`, `train.py`.
"""

from tinyllm import functional, nn, ops, optim
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

__version__ = "0.1.0"

__all__ = [
    "Parameter",
    "Tensor",
    "__version__",
    "checkpoint",
    "enable_grad",
    "functional",
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
