"""QLoRA: the frozen base in four bits, adapters in float beside it (Dettmers et al. 2023, arXiv 2305.14314).

Everything LoRA can do (merge, unmerge, enable, disable, several adapters) serves here too: see `lora/verbs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyllm.backend.names import in_our_words
from tinyllm.frozen.finite import refuse_non_finite
from tinyllm.frozen.nf4 import NF4Weight, check_block_size, dequantize_nf4, quantize_nf4
from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.targets import linear_names
from tinyllm.lora.verbs import apply_lora, check_adapter, get_lora_parameters, place_adapter
from tinyllm.nn import Module
from tinyllm.tensor import Parameter

__all__ = ["apply_qlora", "get_qlora_parameters", "quantize_nf4", "dequantize_nf4", "quantize_base"]


def quantize_base(model: Module, block_size: int = 64, double_quant: bool = True, skip: Sequence[str] = ()) -> None:
    """Turn the weight of every decoder linear layer (not the head, not those under `skip`) into NF4, one by one.

    Raises
    ------
    ValueError
        If a weight holds non-finite numbers (it is named), is stored in half precision, or is in NF4 already with
        another block size or other scales. Nothing is changed then.
    """
    check_block_size(block_size)
    layers = {}
    for path in linear_names(model):
        layer = model.get(path).inner()
        if layer.is_head or any(path == s or path.startswith(f"{s}.") for s in skip):
            continue
        if isinstance(layer.weight, NF4Weight):
            if (layer.weight.block_size, layer.weight.double_quant) != (block_size, double_quant):
                raise ValueError(
                    f"{path} is in NF4 already, with block_size={layer.weight.block_size} and "
                    f"double_quant={layer.weight.double_quant}; pass these, or begin with a model in float32"
                )
            continue
        if not isinstance(layer.weight, Parameter):
            raise ValueError(
                f"{path} is stored as {layer.weight.storage}; build the model with storage='nf4' or 'float32'"
            )
        refuse_non_finite(layer.weight.data, f"{path}.weight")
        layers[f"{path}.weight"] = layer
    for name, layer in layers.items():
        layer.weight = NF4Weight.quantize(layer.weight.data, block_size, double_quant, name)


@in_our_words(apply_lora)
def apply_qlora(
    model: Module,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    block_size: int = 64,
    target_modules: Any = None,
    double_quant: bool = True,
    **options: Any,
) -> Module:
    """Quantise the base to NF4, freeze it and add adapters.

    Parameters
    ----------
    model : Module
        Changed in place.
    rank, alpha, dropout, target_modules
        As in `apply_lora`; `target_modules` only places adapters, all decoder linears are quantised.
    block_size : int
        Weights that share a scale: 32, 64, ... 4096.
    double_quant : bool
        Quantise the scales too: 4.127 bits a weight instead of 4.5.
    **options
        The other options of `apply_lora`, such as ``use_dora=True``: its lengths are those of the quantised rows.

    Returns
    -------
    Module
        The same model.
    """
    name, verbose = options.pop("adapter_name", "default"), options.pop("verbose", True)
    config = LoRAConfig(rank=rank, alpha=alpha, dropout=dropout, target_modules=target_modules, **options)
    targets, saved = check_adapter(model, config, name)  # before anything is quantised
    quantize_base(model, block_size, double_quant, skip=saved)
    return place_adapter(model, config, name, targets, saved, verbose)


def get_qlora_parameters(model: Module) -> list[Parameter]:
    """What trains; the same as `tinyllm.lora.verbs.get_lora_parameters`."""
    return get_lora_parameters(model)
