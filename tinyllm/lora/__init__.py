"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

`layer.py` has the formula, `verbs.py` what one does with it. PEFT's files are in `peft/`.
"""

from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.layer import LoRALinear
from tinyllm.lora.merge import merge_lora, unmerge_lora, untie_head
from tinyllm.lora.saved import SavedModule
from tinyllm.lora.targets import adapted_layers, adapter_configs, linear_names, lora_layers
from tinyllm.lora.verbs import (
    add_adapter,
    apply_lora,
    check_adapter,
    disable_lora,
    enable_lora,
    get_lora_parameters,
    set_adapter,
    trainable_summary,
)

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "SavedModule",
    "adapted_layers",
    "adapter_configs",
    "add_adapter",
    "apply_lora",
    "check_adapter",
    "disable_lora",
    "enable_lora",
    "get_lora_parameters",
    "linear_names",
    "lora_layers",
    "merge_lora",
    "set_adapter",
    "trainable_summary",
    "unmerge_lora",
    "untie_head",
]
