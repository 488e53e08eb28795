"""Continue a prompt with a model, with or without an adapter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinyllm.cli.options import add_base_storage, add_model, add_template, choose_model, load_base, model_folder
from tinyllm.data.notes import beginning_twice, begins_twice
from tinyllm.data.text import refuse_ids_beyond, untemplated
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.generate import stream
from tinyllm.lora.merge import merge_lora
from tinyllm.lora.peft.adapter import load_adapter
from tinyllm.models.checkpoints.generation import recommended

ENTRY = ":hacker:\n"  # as an entry of the embedded jargon file begins


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None)
    parser.add_argument("--adapter", metavar="FOLDER", help="an adapter in PEFT's format")
    add_base_storage(parser)
    parser.add_argument("--prompt", help=r"text to continue; \n is a new line (default: :hacker:\n)")
    parser.add_argument("--chat", metavar="MESSAGE", help="a message to answer, written in the model's chat template")
    add_template(parser)
    parser.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=float,
        help="0 is greedy (default: what the model's generation_config.json recommends, top-k and top-p too, else 0)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, help="only the k likeliest tokens; 0: all")
    parser.add_argument("--top-p", type=float, help="of these only the likeliest up to this share")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    if args.chat is not None and args.prompt is not None:
        raise ValueError("--prompt is a text to continue and --chat a message to answer; give one of them")
    if args.chat is None and "template" in args.given:
        raise ValueError("--template is for --chat, since a prompt is continued as it stands; leave it out")
    name, warning = choose_model(args.model, args.adapter)
    given = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p") if getattr(args, name) is not None}
    settings, notes = sampling(model_folder(name), given)
    refuse_greedy(settings["temperature"], args.given)
    model, tokenizer, base = load_base(name, args.adapter, args.base_storage, args.device, args.dtype)
    if args.adapter:
        load_adapter(model, args.adapter)
        merge_lora(model)
    prompt = ENTRY if args.prompt is None else with_lines(args.prompt)
    if args.template == "none":
        tokenizer = untemplated(tokenizer)
    prompt_ids, stop = asked(tokenizer, prompt, args.chat)
    refuse_ids_beyond(prompt_ids, tokenizer, model.config.vocab_size)
    stop = tuple(dict.fromkeys([*stop, *settings.pop("stop", ())]))
    tokens = stream(  # bad input is refused here, before anything is written
        model, prompt_ids, args.max_new_tokens, stop=stop, seed=args.seed, **settings
    )
    if args.chat is None and begins_twice(prompt_ids, tokenizer):
        notes.append(beginning_twice(tokenizer))
    for line in [*notes, *([base + warning] if args.adapter else [])]:
        print(line, file=sys.stderr)
    if args.chat is None:
        sys.stdout.write(prompt)
    count = write(tokens, tokenizer, prompt_ids if args.chat is None else [])
    if len(prompt_ids) + count == model.config.max_seq_len and count < args.max_new_tokens:
        print(f"the model's context of {model.config.max_seq_len} tokens ended the text", file=sys.stderr)


def refuse_greedy(temperature: float, given: frozenset[str]) -> None:
    """Raise ValueError for an option of drawing where the likeliest token is taken each time."""
    for name in ("top_k", "top_p", "seed"):
        if temperature == 0 and name in given:
            raise ValueError(
                f"--{name.replace('_', '-')} is for text that is drawn, and the likeliest token is taken each time; "
                "give a --temperature above 0 as well, such as 1"
            )


def with_lines(prompt: str) -> str:
    r"""A prompt of the command line, in which \n is a new line."""
    return prompt.replace("\\n", "\n")


def asked(tokenizer: Tokenizer, prompt: str, chat: str | None) -> tuple[list[int], tuple[int, ...]]:
    """What to go on from, and the tokens that end what is written: of a plain text, or of a conversation."""
    if chat is None:
        return tokenizer.encode_prompt(prompt), () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return tokenizer.encode_chat([{"role": "user", "content": chat}]), tokenizer.stop_ids


def write(tokens: Iterable[int], tokenizer: Tokenizer, prompt: list[int]) -> int:
    """Write the text as its tokens come, which go on from those of the prompt; returns how many they were."""
    ids: list[int] = []
    text = shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode_after(prompt, ids)
        if not text.endswith("\ufffd"):  # half a character waits for its other bytes
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write(text[len(shown) :] + "\n")
    return len(ids)


def sampling(model: Path, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of `stream`: the options before what the model's folder recommends, and lines that say so."""
    settings, ignored = recommended(model)
    taken = [f"{name} {value}" for name, value in settings.items() if name != "stop" and name not in given]
    notes = [f"sampling as generation_config.json recommends: {', '.join(taken)}"] if taken and not given else []
    if ignored:
        notes.append(f"generation_config.json asks for {', '.join(ignored)}, which is not done here")
    settings = {"temperature": 0.0, **settings, **given}
    if settings["temperature"] == 0:  # what the folder recommends for drawing is not asked for
        settings = {name: value for name, value in settings.items() if name in given or name not in ("top_k", "top_p")}
    return settings, notes
