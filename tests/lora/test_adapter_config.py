"""``adapter_config.json``: every field that is wrong has its sentence, and what changes nothing passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.lora.peft.config import refuse


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("peft_type", None, "peft_type None; only 'LORA' is understood"),
        ("init_lora_weights", "PiSSA", "init_lora_weights='PiSSA', which changes the base .* convert it with PEFT's"),
        ("init_lora_weights", "gaussian", None),
        ("lora_bias", True, "lora_bias=True, which is not understood; LoRA, rsLoRA and DoRA on linear layers are"),
        ("lora_bias", False, None),
        ("bias", None, "bias=None; it must be one of none, all, lora_only"),
        ("use_rslora", 1, "use_rslora=1; true or false is needed"),
        ("use_rslora", None, None),
        ("use_dora", "no", "use_dora='no'; true or false is needed"),
        ("rank_pattern", {"x": 2.0}, "rank_pattern={'x': 2.0}; an object of numbers above 0 is needed"),
        ("rank_pattern", {"x": True}, ".*; an object of numbers above 0 is needed"),
        ("rank_pattern", {"(": 2}, "the rank_pattern in .* cannot be used: .* no regular expression"),
        ("rank_pattern", None, None),
        ("alpha_pattern", {"x": 2.5}, None),
        ("alpha_pattern", {"x": 0}, "alpha_pattern={'x': 0}; an object of numbers above 0 is needed"),
        ("alpha_pattern", ["x"], ".*; an object of numbers above 0 is needed"),
        ("r", None, "r=None; a number above 0 is needed"),
        ("r", 0, "r=0; a number above 0 is needed"),
        ("lora_alpha", float("inf"), "lora_alpha=inf; a number above 0 is needed"),
        ("modules_to_save", "norm", "modules_to_save='norm'; a list of strings is needed"),
        ("exclude_modules", "norm", None),
        ("exclude_modules", [1], r"exclude_modules=\[1\]; a list of strings is needed"),
    ],
)
def test_each_field_of_a_config_has_its_sentence(field, value, sentence):
    fields = {"peft_type": "LORA", "r": 4, field: value}
    if sentence is None:
        refuse(fields, Path("a.json"))
        return
    with pytest.raises(ValueError, match=sentence if sentence.startswith("the ") else f"a.json has {sentence}"):
        refuse(fields, Path("a.json"))
