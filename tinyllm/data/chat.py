"""Conversations as text: the plain form, a checkpoint's chat template, and which part of it the assistant writes.

Only what a model must write itself is learned: an answer, with the marker that ends the turn; never the header before
it. There are three ways to find that part. *Sentinels* in place of the answers are found in every text, but say nothing
of what the model must write around an answer (an empty ``<think></think>``, the end marker), and take another path
through templates that look into it. *Prefixes* (the prompt for turn i against the text with turn i) say exactly what
comes after the prompt that the model will really see, but fail for templates that rewrite earlier turns later on.
``{% generation %}`` in the template says it all, but few templates have it. So: the tag where there is one; otherwise
prefixes, with a sentinel only to tell the end marker from the answer. A turn that stands in the conversation otherwise
than the model would write it is left unlearned, and said so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["ROLES", "ChatTemplate", "check_messages", "plain_chat"]

ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
THINKING = ("reasoning_content", "thinking", "reasoning")  # one thing under three names, as transformers has it
SENTINEL = "tinyllmanswer"  # letters alone: survives trimming and JSON
Segments = list[tuple[str, bool]]


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain dictionaries with a string as their content.

    Raises
    ------
    ValueError
        If there are none, or one has no or an unknown role, calls a tool, or has content other than text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError('"messages" must be a list of {"role", "content"} objects with at least one in it')
    checked = []
    for number, message in enumerate(messages, 1):
        if isinstance(message, Mapping) and (message.get("tool_calls") or message.get("role") == "tool"):
            raise ValueError(
                f'message {number} is a tool call, which is not supported: write the conversation as {{"prompt", '
                '"completion"} with the markers spelled out'
            )
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f'message {number} must be an object with "role" and "content"')
        if not isinstance(message["role"], str) or message["role"] not in ROLES:
            raise ValueError(f"message {number} has the unknown role {message['role']!r}: use {', '.join(ROLES)}")
        content = message["content"]
        if isinstance(content, list) and all(isinstance(part, Mapping) for part in content) and content:
            texts = [part.get("text") for part in content if part.get("type") == "text"]
            if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f'"content" of message {number} has parts other than text: leave those out')
            content = "".join(map(str, texts))
        if not isinstance(content, str):
            kind = type(content).__name__
            raise ValueError(f'"content" of message {number} must be a string, not {kind}: write it as plain text')
        others = {str(key): value for key, value in message.items() if isinstance(value, (str, bool, int, float))}
        checked.append({**others, "content": content})
    return checked


def plain_chat(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> Segments:
    """The form for tokenizers without a template; see `Tokenizer.apply_chat`."""
    segments: Segments = []
    context = ""
    for message in messages:
        context += ROLES[message["role"]] + ":"
        if message["role"] == "assistant":
            segments += [(context, False), (" " + message["content"], True)]
            context = "\n"
        else:
            context += f" {message['content']}\n"
    if add_generation_prompt:
        context += ROLES["assistant"] + ":"
    if context.strip():
        segments.append((context, False))
    return segments


class ChatTemplate:
    """A chat template, compiled.

    Parameters
    ----------
    source : str
        Jinja, in the dialect of transformers' `apply_chat_template`.
    tokens : mapping of str to str
        The special tokens that the template may name: `bos_token`, `eos_token`, ...
    units : iterable of str
        Texts that the tokenizer never splits (its added tokens): among them the end marker is looked for.

    Attributes
    ----------
    notes : list of str
        What the user should know about the segments made so far, one sentence each, without repetition.

    Raises
    ------
    ImportError
        If jinja2 is not installed, or too old to be safe.
    ValueError
        If the template is too long or not valid.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], units: Iterable[str]) -> None:
        try:
            from tinyllm.data import sandbox
        except ImportError as error:
            raise ImportError(
                "this tokenizer has a chat template, which takes jinja2 3.1.6 or later to render "
                f'({error}): pip install "tinyllm-engine[chat]", or set tokenizer.chat_template = None for the plain '
                "User:/Assistant: form"
            ) from error
        if len(source) > sandbox.SOURCE:
            raise ValueError(f"the chat template has {len(source):,} characters, more than {sandbox.SOURCE:,}")
        self._sandbox = sandbox.Sandbox()
        self._tokens = dict(tokens)
        self._units = sorted((unit for unit in units if unit.strip()), key=len, reverse=True)
        self.notes: list[str] = []
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:
            raise ValueError(_said(error)) from error
        self._render = functools.partial(sandbox.render, self._sandbox, self._template)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the spans of it inside ``{% generation %}``.

        Raises
        ------
        ValueError
            If the template refuses the conversation, fails, or does what its sandbox forbids.
        """
        chat = [_with_thinking(message) for message in messages]
        values = {
            "messages": chat, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt,
            **self._tokens,
        }  # fmt: skip
        try:
            return self._render(values)
        except Exception as error:  # a template can raise anything
            raise ValueError(_said(error)) from error

    def segments(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> Segments:
        """The rendered conversation in pieces, and whether each is learned; joined they are what `render` returns.

        With a generation prompt, all of it is a prompt and nothing is learned.
        """
        text, spans = self.render(messages, add_generation_prompt)
        if add_generation_prompt:
            return [(text, False)]
        if spans:
            self._note_unended(text, spans)
        elif any(message["role"] == "assistant" for message in messages):
            spans = self._answers(messages, text)
        segments: Segments = []
        done = 0
        for start, end in spans:
            segments += [(text[done:start], False), (text[start:end], True)]
            done = end
        return [(piece, learned) for piece, learned in [*segments, (text[done:], False)] if piece]

    @functools.cached_property
    def end_marker(self) -> str | None:
        """The token that the template writes after an answer (``<|im_end|>``), if it writes one."""
        try:
            text, _ = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": SENTINEL}])
        except ValueError:
            return None
        found = self._unit(text.rpartition(SENTINEL)[2])
        return found[1] if found else None

    def _answers(self, messages: Sequence[Mapping[str, Any]], text: str) -> list[tuple[int, int]]:
        spans, rewritten, turns = [], 0, 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            turns += 1
            if i == 0:
                self._note("an answer that begins a conversation is context and not learned: nothing asks for it")
                continue
            prompt, answer = self._answer(messages, i)
            if text.startswith(prompt + answer):
                spans.append((len(prompt), len(prompt) + len(answer)))
            else:
                rewritten += 1
        if turns == 1 and not rewritten and not spans:
            raise ValueError("the only answer begins the conversation, and nothing asks for it: put a question first")
        if not spans:
            raise ValueError(
                "the chat template rewrites every answer of this conversation once more follows, so that none stands "
                "as the model would write it: end the conversation with an answer, or mark the answers in the template "
                "with {% generation %}"
            )
        if rewritten:
            self._note(
                f"the chat template rewrites earlier turns (in one conversation {rewritten} of {turns} answers), as "
                "those that drop earlier thinking do; such answers are context and not learned: to learn them too, "
                "write for each a conversation that ends with it"
            )
        return spans

    def _answer(self, messages: Sequence[Mapping[str, Any]], i: int) -> tuple[str, str]:
        """The prompt that the model sees before answer `i`, and what it must write then, its end marker included."""
        before = list(messages[:i])
        try:
            prompt, _ = self.render(before, add_generation_prompt=True)
        except ValueError as error:
            raise ValueError(f"message {i + 1} has no prompt to answer: {error}") from error
        whole, _ = self.render(messages[: i + 1])
        # Its other fields (thinking) go: the sentinel is to show the frame around an answer and nothing else.
        probe, _ = self.render([*before, {"role": "assistant", "content": SENTINEL}])
        lead, _, _ = probe.partition(SENTINEL)
        _, found, tail = probe.rpartition(SENTINEL)
        if not found:
            raise ValueError("the chat template does not write the assistant's answers as they are")
        if not whole.startswith(prompt):
            raise ValueError(
                f"the chat template prompts for an answer with text that the answer's turn does not have "
                f"({_short(prompt[_common(prompt, whole) :])}), so what the model must write cannot be told: mark it "
                'in the template with {% generation %}, or write {"prompt", "completion"} with the markers spelled out'
            )
        bare, _ = self.render(before)
        header = lead[len(bare) :] if lead.startswith(bare) else ""
        if prompt == bare and header.strip():
            raise ValueError(
                f"the chat template writes {_short(header)} before an answer, but not as a prompt for one: add "
                "{% if add_generation_prompt %} to it, or mark the answer with {% generation %}"
            )
        answer = whole[len(prompt) :]
        unit = self._unit(tail)
        if unit is None and tail.strip():
            self._note(
                f"the chat template ends an answer with {_short(tail)}, no token of this vocabulary: the model "
                "learns to write it piece by piece, but generation cannot stop at it; use the tokenizer that belongs "
                "to the template"
            )
        if unit is None or not answer.endswith(tail):
            return prompt, answer
        start, marker = unit
        return prompt, answer[: len(answer) - len(tail) + start + len(marker)]

    def _unit(self, text: str) -> tuple[int, str] | None:
        """Where the first unsplittable text is, and which."""
        found = [(text.index(unit), unit) for unit in self._units if unit in text]
        return min(found, key=lambda one: (one[0], -len(one[1]))) if found else None

    def _note_unended(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        marker = self.end_marker
        if marker and any(text[end:].startswith(marker) for _, end in spans):
            self._note(
                f"the template's {{% generation %}} ends before the end marker {marker}, so the model does not learn "
                "to stop: move {% endgeneration %} behind it"
            )

    def _note(self, note: str) -> None:
        if not any(note.split("(")[0] == other.split("(")[0] for other in self.notes):
            self.notes.append(note)


def _with_thinking(message: Mapping[str, Any]) -> dict[str, Any]:
    thought = next((message[key] for key in THINKING if message.get(key) is not None), None)
    if thought is None:
        return dict(message)
    return {"thinking": thought, **message, "reasoning_content": thought}


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _said(error: BaseException) -> str:
    """One sentence for what went wrong in a template; `error` may carry any text of the template's."""
    from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else said[:297] + "..."
    if isinstance(error, TemplateSyntaxError):
        return f"the chat template has an error in line {error.lineno}: {said}"
    if isinstance(error, SecurityError):
        return f"the chat template does what its sandbox forbids: {said}"
    if isinstance(error, RecursionError):
        return "the chat template is nested too deeply, or calls itself without end"
    if isinstance(error, UndefinedError):
        return f"the chat template fails on this conversation: {said}"
    if type(error).__name__ == "TemplateError":  # raise_exception
        return f"the chat template refuses this conversation: {said}"
    return f"the chat template fails on this conversation ({type(error).__name__}): {said}"
