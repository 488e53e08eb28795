"""The families of checkpoints: what Hugging Face calls a model's weights and fields, and what they are called here.

One dict, by ``model_type``. A new family is a file like `llama.py` and a line in `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyllm.formats.fields import Fields
from tinyllm.models.config import DecoderConfig
from tinyllm.models.families import gpt2, llama, mistral, qwen

# These change nothing about what any model computes, whatever stands there.
INERT = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "initializer_range",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "transformers.js_config", "id2label", "label2id",
    "return_dict", "chunk_size_feed_forward", "problem_type", "quantization_config", "unsloth_version",
    "unsloth_fixed", "_attn_implementation_autoset", "attention_dropout", "task_specific_params", "output_past",
}  # fmt: skip

# These are about the files that a model was read from, and nothing about the next ones.
OF_THE_FILE = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "n_ctx",
    "quantization_config", "transformers.js_config", "_attn_implementation_autoset",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One family's names and configuration, see `FAMILIES`."""

    model_type: str
    architecture: str  # the class of transformers
    names: Mapping[str, str]  # our paths and theirs
    shape: Mapping[str, Any]  # the fields of DecoderConfig that all its models share
    read_fields: Callable[[Fields], dict[str, Any]]
    write_fields: Callable[[DecoderConfig], dict[str, Any]]
    inert: tuple[str, ...] = ()  # fields that change nothing in this family
    conv1d: tuple[str, ...] = ()  # layers whose float weights it keeps as (in, out)
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)  # endings of what old files hold beside weights
    more_differences: Callable[[DecoderConfig], list[str]] = lambda config: []  # what `shape` cannot say

    def hf_name(self, name: str) -> str:
        """Their name of our weight or module: ``layers.0.mlp.up_proj`` is ``transformer.h.0.mlp.c_fc`` in GPT-2."""
        for ours, theirs in self.names.items():
            found = re.match(re.escape(ours).replace(r"\*", r"(\d+)") + r"(?=\.|$)", name)
            if found:
                return theirs.replace("*", found[1] if found.groups() else "") + name[found.end() :]
        return name

    def transposed(self, name: str) -> bool:
        """Whether they keep the float weight of this path of ours as (in, out). Packed 4-bit ones are never so kept."""
        parts = name.split(".")
        return parts[-1] == "weight" and len(parts) > 1 and parts[-2] in self.conv1d

    def read(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `DecoderModel` for a ``config.json``.

        Raises
        ------
        ValueError
            If it lacks a field, or has one that would change the model and is not understood.
        """
        taken = Fields(fields)
        config = self.read_fields(taken)
        taken.finish({*INERT, *self.inert})
        return {**config, "model_type": self.model_type}

    def inert_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a ``config.json`` that `read` passes over and that stay true of the model when it changes."""
        taken = Fields(fields)
        self.read_fields(taken)
        return {name: value for name, value in taken.rest.items() if name not in OF_THE_FILE}

    def write(self, config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
        """The fields of ``config.json``."""
        named = {"architectures": [self.architecture], "model_type": self.model_type}
        return {**named, **self.write_fields(config), "torch_dtype": dtype}

    def differences(self, config: DecoderConfig) -> list[str]:
        """The fields in which a configuration is not of this family."""
        other = [f"{n}={getattr(config, n)!r}" for n, value in self.shape.items() if getattr(config, n) != value]
        return other + self.more_differences(config)


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="gpt2",
            architecture="GPT2LMHeadModel",
            names=gpt2.NAMES,
            shape=gpt2.SHAPE,
            read_fields=gpt2.read_fields,
            write_fields=gpt2.write_fields,
            inert=gpt2.INERT,
            conv1d=gpt2.CONV1D,
            buffers=gpt2.BUFFERS,
            more_differences=gpt2.differences,
        ),
        Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            names=llama.NAMES,
            shape=llama.SHAPE,
            read_fields=llama.read_fields,
            write_fields=llama.write_fields,
            inert=llama.INERT,
        ),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            names=llama.NAMES,
            shape=mistral.SHAPE,
            read_fields=mistral.read_fields,
            write_fields=mistral.write_fields,
        ),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            names=llama.NAMES,
            shape=qwen.QWEN2,
            read_fields=qwen.read_qwen2,
            write_fields=qwen.write_qwen2,
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            names=llama.NAMES,
            shape=qwen.QWEN3,
            read_fields=qwen.read_qwen3,
            write_fields=qwen.write_qwen3,
        ),
    )
}


def family_of(config: Any) -> Family | None:
    """The family a configuration is written as: its ``model_type`` if that fits, else the first that does, or None."""
    if not isinstance(config, DecoderConfig):
        return None
    named = FAMILIES.get(config.model_type)
    for family in ([named] if named else []) + list(FAMILIES.values()):
        if not family.differences(config):
            return family
    return None
