"""The same training step in torch + transformers + PEFT (+ bitsandbytes), on the same card. Called by `gpu.py`.

One JSON line on the last line of the output; a process of its own, so that neither side's memory counts for the other.
"""

from __future__ import annotations

import argparse
import json
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", help="JSON: the fields of gpu.py's Shape")
    parser.add_argument("--method", choices=["lora", "qlora"], required=True)
    parser.add_argument("--device", default="cuda")
    shape = json.loads((args := parser.parse_args()).shape)
    try:
        import peft
        import torch
        import transformers

        if args.method == "qlora":
            import bitsandbytes as bnb
    except ImportError as error:
        print(json.dumps({"not_run": f"{error.name} is not installed"}))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"not_run": "torch sees no GPU"}))
        return
    dtype = torch.bfloat16
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], intermediate_size=shape["inner"],
        max_position_embeddings=max(shape["time"], 64), tie_word_embeddings=shape["tied"],
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    quantised = 0
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and args.method == "qlora" and "lm_head" not in name:
            weight = torch.empty(module.weight.shape, dtype=dtype, device=args.device).normal_(0, 0.02)
            four = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
            four.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, four.to(args.device))
            quantised += 1
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            parent, _, leaf = name.rpartition(".")
            made = torch.empty(parameter.shape, dtype=dtype, device=args.device)
            made = made.fill_(1.0) if "norm" in name else made.normal_(0, 0.02)
            setattr(model.get_submodule(parent), leaf, torch.nn.Parameter(made, requires_grad=False))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(args.device)
    if shape["checkpointing"]:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, shape["vocab"], (shape["batch"], shape["time"]), device=args.device)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(args.device, dtype):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    losses = [step() for _ in range(shape["warm"])]
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    losses += [step() for _ in range(shape["steps"])]
    taken = (time.perf_counter() - began) / shape["steps"]
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
    result = {"seconds_a_step": taken, "tokens_a_second": ids.numel() / taken, "peak_bytes": peak, "losses": losses}
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    print(json.dumps(result | {"quantised_layers": quantised, "versions": versions}))


if __name__ == "__main__":
    main()
