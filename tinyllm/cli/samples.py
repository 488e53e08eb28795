"""A text that the model continues before and after it is fine-tuned, so that one sees what it has learned."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from tinyllm.cli.generate import ENTRY, asked, with_lines
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.generate import generate
from tinyllm.models import DecoderModel


def prompt_of(prompt: str | None, data: str | None) -> str | None:
    """What the samples continue: ``--prompt``, or what suits the embedded data, or nothing."""
    if prompt is None:
        return ENTRY if data is None else None
    if not prompt:
        raise ValueError("--prompt is empty; give it a text to continue, or leave it out")
    return with_lines(prompt)


def sample(
    model: DecoderModel, tokenizer: Tokenizer, prompt: str | None, chat: bool, tokens: int, seed: int
) -> str | None:
    """What the model makes of the prompt: how the text goes on, or in a chat what it answers."""
    if prompt is None or tokens < 1:
        return None
    prompt_ids, stop = asked(tokenizer, prompt, prompt if chat else None)
    ids = generate(model, prompt_ids, tokens, temperature=0.5, top_p=0.9, stop=stop, seed=seed)
    return tokenizer.decode(ids) if chat else tokenizer.decode_after(prompt_ids, ids)


def show_samples(console: Console, prompt: str | None, before: str | None, after: str | None) -> None:
    """The two continuations, one below the other; nothing where there is none."""
    if prompt is None or before is None or after is None:
        return
    for title, continuation in (("before", before), ("after", after)):
        console.rule(f"sample {title}", align="left")
        console.print(escape(prompt + continuation))
    console.rule()
