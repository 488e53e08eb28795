"""PyTorch, transformers, PEFT and bitsandbytes, as their documentation uses them."""

from __future__ import annotations

import importlib.metadata
import time
import zlib
from collections.abc import Callable
from typing import Any

from protocol import serve

Step = Callable[[], dict]


def load(spec: dict[str, Any]) -> dict[str, str]:
    import torch

    torch.set_num_threads(spec["threads"])
    names = ["torch"]
    if spec["task"] in ("train", "decode"):
        import transformers

        transformers.logging.set_verbosity_error()
        names.append("transformers")
    if spec.get("method") == "lora":
        import peft  # noqa: F401

        names.append("peft")
    if spec.get("base") == "nf4" or spec["task"] == "nf4":
        import bitsandbytes  # noqa: F401

        names.append("bitsandbytes")
    return {name: importlib.metadata.version(name) for name in names}


def build(shape: Any, base: str, dtype: Any, numbers: Any, quantised: bool = False) -> Any:
    """A LlamaForCausalLM, weight by weight; with ``base="nf4"`` every linear layer but the head in 4 bits.

    `quantised` packs the weights with tinyllm, whose bytes are bitsandbytes', because bitsandbytes' own CPU quantiser
    takes minutes for a 7B model.
    """
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tie_embeddings,
        max_position_embeddings=max(2048, shape.time),
        dtype=dtype,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    for path, module in list(model.named_modules()):
        name = path.removeprefix("model.")
        for part, p in list(module.named_parameters(recurse=False)):
            if path == "lm_head" and shape.tie_embeddings:
                continue
            w = torch.from_numpy(numbers.weight(f"{name}.{part}", tuple(p.shape)))
            if base == "nf4" and isinstance(module, torch.nn.Linear) and path != "lm_head":
                model.set_submodule(path, four_bit(w, dtype, quantised))
            else:
                setattr(module, part, torch.nn.Parameter(w.to(dtype)))
    model.tie_weights()
    model.is_loaded_in_4bit = base == "nf4"  # PEFT asks for it
    return model


def four_bit(w: Any, dtype: Any, quantised: bool) -> Any:
    """A Linear4bit over a float32 matrix."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = w.shape
    layer = Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    if quantised:
        from tinyllm.formats.state import pack
        from tinyllm.frozen.nf4 import NF4Weight

        arrays, _ = pack({"w": NF4Weight.quantize(w.numpy())})
        parts = {key.removeprefix("w."): torch.from_numpy(array.copy()) for key, array in arrays.items() if key != "w"}
        packed = torch.from_numpy(arrays["w"])
        layer.weight = Params4bit.from_prequantized(packed, parts, device="cpu", module=layer)
    else:
        layer.weight = Params4bit(w, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)
        layer.to("cpu")  # this quantises
    return layer


def train(spec: dict[str, Any]) -> Step:
    import torch
    from shapes import LEARNING_RATE, TARGETS, Numbers, Shape

    shape, numbers = Shape(**spec["shape"]), Numbers(spec.get("seed", 0))
    dtype = getattr(torch, spec["dtype"])
    model = build(shape, spec["base"], dtype, numbers, spec.get("quantised", False))
    if spec["method"] == "lora":
        import peft

        config = peft.LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=list(TARGETS), lora_dropout=0.0)
        model = peft.get_peft_model(model, config)
        for name, p in model.named_parameters():
            if ".lora_A." in name:
                layer = name.removeprefix("base_model.model.model.").partition(".lora_A")[0]
                p.data.copy_(torch.from_numpy(numbers.lora_a(layer, tuple(p.shape))))
    # Never eval(): there bitsandbytes' CPU layers compute in bfloat16, whatever they were told.
    model.train()
    if spec.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    ids, targets = (torch.from_numpy(array) for array in numbers.tokens(shape))
    forward = torch.compile(model) if spec.get("compile") else model

    def step() -> dict[str, float]:
        began = time.perf_counter()
        logits = forward(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        del logits
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"seconds": time.perf_counter() - began, "check": loss.item()}

    return step


def decode(spec: dict[str, Any]) -> Step:
    import torch
    from shapes import Numbers, Shape

    shape, numbers = Shape(**spec["shape"]), Numbers(spec.get("seed", 0))
    model = build(shape, "float32", torch.float32, numbers).eval()
    prompt = torch.from_numpy(numbers.prompt(shape))
    with torch.no_grad():
        logits = model(input_ids=prompt[:, :-1]).logits
        check = torch.nn.functional.cross_entropy(logits.flatten(0, 1), prompt[:, 1:].flatten()).item()
    mask = torch.ones_like(prompt)

    def step() -> dict[str, float]:
        times = [time.perf_counter()]
        for new in (1, shape.new_tokens):
            y = model.generate(prompt, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
            assert y.shape[1] == shape.prompt + new
            times.append(time.perf_counter())
        prefill, whole = times[1] - times[0], times[2] - times[1]
        return {"prefill": prefill, "decode": (whole - prefill) / (shape.new_tokens - 1), "check": check}

    return step


def nf4(spec: dict[str, Any]) -> Step:
    import bitsandbytes.functional as F
    import torch
    from shapes import Numbers, Shape

    side = Shape(**spec["shape"]).nf4_side
    w = torch.from_numpy(Numbers(spec.get("seed", 0)).weight("nf4", (side, side)))

    def step() -> dict[str, float]:
        times = [time.perf_counter()]
        packed, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4")
        times.append(time.perf_counter())
        back = F.dequantize_4bit(packed, state)
        times.append(time.perf_counter())
        check = zlib.crc32(packed.numpy().tobytes() + state.absmax.numpy().tobytes() + back.numpy().tobytes())
        return {"quantise": times[1] - times[0], "dequantise": times[2] - times[1], "check": check}

    return step


def overhead(spec: dict[str, Any]) -> Step:
    import torch
    from shapes import Shape

    n = Shape(**spec["shape"]).chain
    first, one = torch.zeros(1, requires_grad=True), torch.ones(1)

    def step() -> dict[str, float]:
        first.grad = None
        began = time.perf_counter()
        x = first
        for _ in range(n):
            x = x + one
        x.sum().backward()
        return {"per operation": (time.perf_counter() - began) / n, "check": x.item()}

    return step


TASKS = {"train": train, "decode": decode, "nf4": nf4, "overhead": overhead}

if __name__ == "__main__":
    serve(load, lambda spec: TASKS[spec["task"]](spec))
