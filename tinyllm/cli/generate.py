"""Continue a prompt with a model, with or without an adapter."""

from __future__ import annotations

import argparse
import sys

from tinyllm.adapters import load_adapter
from tinyllm.cli.options import add_base_storage, add_model, load_base
from tinyllm.generate import stream
from tinyllm.lora import merge_lora


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None)
    parser.add_argument("--adapter", metavar="FOLDER", help="an adapter in PEFT's format")
    add_base_storage(parser)
    parser.add_argument("--prompt", default=":hacker:\n", help=r"text to continue; \n is a new line")
    parser.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, help="only the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="only the likeliest tokens up to this probability")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, base = load_base(args)
    if args.adapter:
        load_adapter(model, args.adapter)
        merge_lora(model)
    prompt = args.prompt.replace("\\n", "\n")
    prompt_ids = tokenizer.encode(prompt)
    stop = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    tokens = stream(  # bad input is refused here, before anything is written
        model, prompt_ids, args.max_new_tokens, temperature=args.temperature, top_k=args.top_k,
        top_p=args.top_p, stop=stop, seed=args.seed,
    )  # fmt: skip
    if args.adapter:
        print(base, file=sys.stderr)
    sys.stdout.write(prompt)
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # half a character waits for its other bytes
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write("\n")
    if len(prompt_ids) + len(ids) == model.config.max_seq_len and len(ids) < args.max_new_tokens:
        print(f"the model's context of {model.config.max_seq_len} tokens ended the text", file=sys.stderr)
