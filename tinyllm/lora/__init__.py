"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

`layer.py` has the formula, `verbs.py` what one does with it. PEFT's files are in `peft/`.
"""

from tinyllm.lora.adapted import adapted_layers, adapter_configs, lora_layers
from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.dora import DoRA
from tinyllm.lora.heads import untie_head
from tinyllm.lora.layer import Adapter, LoRALinear
from tinyllm.lora.merge import merge_lora, unmerge_lora
from tinyllm.lora.saved import SavedModule
from tinyllm.lora.targets import linear_names
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
    "Adapter",
    "DoRA",
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
