"""Conversations as a checkpoint's chat template writes them, and which part of that the assistant writes.

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

from tinyllm.data.messages import Segments

THINKING = ("reasoning_content", "thinking", "reasoning")  # one thing under three names, as transformers has it
SENTINEL = "tinyllmanswer"  # letters alone: survives trimming and JSON
NEVER_ENDS = (
    "the chat template writes no token that ends an answer, so the model does not learn to stop (end of text is put "
    "only after an answer that ends its conversation): have it write eos_token after each answer"
)


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
                f'({error}): pip install "tinyllm-engine[chat]", or leave the template out: tokenizer.chat_template = '
                "None, --template none"
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

    def segments(
        self, messages: Sequence[Mapping[str, Any]], learned: Sequence[bool], add_generation_prompt: bool = False
    ) -> Segments:
        """The rendered conversation in pieces, and whether each is learned; joined they are what `render` returns.

        With a generation prompt, all of it is a prompt and nothing is learned; otherwise what the assistant writes in
        the messages that are to be `learned`.
        """
        text, spans = self.render(messages, add_generation_prompt)
        if add_generation_prompt:
            return [(text, False)]
        if spans:
            spans = _chosen(spans, [on for message, on in zip(messages, learned, strict=True) if _is_answer(message)])
            self._note_unended(text, spans)
        elif any(learned):
            spans = self._spans(messages, learned, text)
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

    @functools.cached_property
    def markers(self) -> tuple[str, ...]:
        """The unsplittable texts that the template writes around a question."""
        try:
            text, _ = self.render([{"role": "user", "content": SENTINEL}], add_generation_prompt=True)
        except ValueError:
            return ()
        return tuple(unit for unit in self._units if unit in text)

    def _spans(
        self, messages: Sequence[Mapping[str, Any]], learned: Sequence[bool], text: str
    ) -> list[tuple[int, int]]:
        spans, rewritten, turns = [], 0, 0
        for i, wanted in enumerate(learned):
            if not wanted:
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
            if sum(map(_is_answer, messages)) > 1:  # its keys leave the others unlearned
                return []
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
        if unit is None and not tail.strip():
            self._note(NEVER_ENDS)
        elif unit is None:
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
        for start, end in spans:
            if any(text[start:end].rstrip().endswith(unit) for unit in self._units):
                continue
            if marker and text[end:].lstrip().startswith(marker):
                self._note(
                    f"the template's {{% generation %}} ends before the end marker {marker}, so the model does not "
                    "learn to stop: move {% endgeneration %} behind it"
                )
            else:
                self._note(NEVER_ENDS)

    def _note(self, note: str) -> None:
        if not any(note.split("(")[0] == other.split("(")[0] for other in self.notes):
            self.notes.append(note)


def _is_answer(message: Mapping[str, Any]) -> bool:
    return bool(message["role"] == "assistant")


def _chosen(spans: list[tuple[int, int]], learned: Sequence[bool]) -> list[tuple[int, int]]:
    """Of the spans inside ``{% generation %}``, one an answer, those of answers that are to be learned."""
    if all(learned):
        return spans
    if len(spans) != len(learned):
        raise ValueError(
            f"the chat template has {len(spans)} {{% generation %}} blocks for {len(learned)} answers, so which of "
            "them is not to be learned cannot be told: remove that answer, or its key"
        )
    return [span for span, wanted in zip(spans, learned, strict=True) if wanted]


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
