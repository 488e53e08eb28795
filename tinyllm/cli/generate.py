"""Continue a prompt with a model, with or without an adapter."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tinyllm.cli.options import add_base_storage, add_model, load_base, model_folder
from tinyllm.generate import stream
from tinyllm.lora.merge import merge_lora
from tinyllm.lora.peft.adapter import load_adapter
from tinyllm.models.checkpoints.generation import recommended


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None)
    parser.add_argument("--adapter", metavar="FOLDER", help="an adapter in PEFT's format")
    add_base_storage(parser)
    parser.add_argument("--prompt", default=":hacker:\n", help=r"text to continue; \n is a new line")
    parser.add_argument("--chat", metavar="MESSAGE", help="a message to answer, written in the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=float,
        help="0 is greedy (default: what the model's generation_config.json recommends, top-k and top-p too, else 0)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, help="only the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="only the likeliest tokens up to this probability")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, base = load_base(args)
    if args.adapter:
        load_adapter(model, args.adapter)
        merge_lora(model)
    prompt = args.prompt.replace("\\n", "\n")
    stop: tuple[int, ...] = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    if args.chat is not None:
        turn = {"role": "user", "content": args.chat}
        prompt = "".join(text for text, _ in tokenizer.apply_chat([turn], add_generation_prompt=True))
        stop = tokenizer.stop_ids
    settings, notes = sampling(args)
    stop = tuple(dict.fromkeys([*stop, *settings.pop("stop", ())]))
    prompt_ids = tokenizer.encode(prompt)
    tokens = stream(  # bad input is refused here, before anything is written
        model, prompt_ids, args.max_new_tokens, stop=stop, seed=args.seed, **settings
    )
    for note in notes:
        print(note, file=sys.stderr)
    if args.adapter:
        print(base, file=sys.stderr)
    if args.chat is None:
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


def sampling(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Settings of `stream`, what the options say before what the model's folder does, and lines that say so."""
    settings, ignored = recommended(model_folder(args.model))
    given = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p") if getattr(args, name) is not None}
    taken = [f"{n} {v}" for n, v in settings.items() if n != "stop" and n not in given]
    notes = [f"sampling as generation_config.json recommends: {', '.join(taken)}"] if taken and not given else []
    if ignored:
        notes.append(f"generation_config.json asks for {', '.join(ignored)}, which is not done here")
    return {"temperature": 0.0, **settings, **given}, notes
