"""A tokenizer out of a GGUF file, which keeps the vocabulary, the merges and a name for how text is cut first.

What a name stands for is written in llama.cpp's source (``llama-vocab.cpp``), and here as the steps that the models'
own tokenizer.json have. Only names that are understood pass: with another cut a text gets other tokens, and the model
answers a little worse without a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.formats.gguf_file import read_header

# Kinds of tokens; the other four are normal, unknown, unused and byte.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS = r"\p{N}"  # each digit by itself
# How a text is cut before any merge: one expression after the other, each within the pieces of the one before.
CUTS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2,),
    "smollm": (DIGITS, GPT2),
    "llama-bpe": (LLAMA3,), "llama3": (LLAMA3,), "llama-v3": (LLAMA3,), "smaug-bpe": (LLAMA3,), "falcon3": (LLAMA3,),
    "qwen2": (QWEN2,), "deepseek-r1-qwen": (QWEN2,),
    "tekken": (TEKKEN,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}  # fmt: skip
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")  # take a word of the vocabulary as it is
ADD_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")  # where the file does not say
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # compose characters (NFC) first, as their tokenizer.json does


def rebuild(path: Any) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a GGUF file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    inner : tokenizers.Tokenizer
    config : dict
        What tokenizer_config.json would say: special tokens, `add_bos_token`, `chat_template`.

    Raises
    ------
    FileNotFoundError, ImportError
        If there is no such file, or the `tokenizers` package is not installed.
    ValueError
        If the file is damaged, or its kind of tokenizer is not understood.
    """
    metadata = read_header(path).metadata
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"{path} has a tokenizer of kind {model!r}; understood are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE): put the model's tokenizer.json into a folder and name that"
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("reading a tokenizer needs the `tokenizers` package: pip install tokenizers") from error
    said = _Vocabulary(path, metadata)
    config = said.config()
    inner = _byte_level(said) if model == "gpt2" else _sentencepiece(said)
    for kind in (CONTROL, USER_DEFINED):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, its in zip(said.tokens, said.kinds, strict=True)
            if its == kind
        ]
        (inner.add_special_tokens if kind == CONTROL else inner.add_tokens)(added)
    if config["add_bos_token"]:
        bos = config["bos_token"]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, said.tokens.index(bos))]
        )
    return inner, config


class _Vocabulary:
    """The tokenizer's part of the metadata, checked."""

    def __init__(self, path: Any, metadata: dict[str, Any]):
        self.path, self.metadata = path, metadata
        self.tokens = self.listed("tokens", list)
        if len(set(self.tokens)) != len(self.tokens) or "" in self.tokens:
            raise ValueError(f"{path} has a vocabulary with an empty token or the same token twice; get it again")
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        kinds = self.take("token_type", np.ones(len(self.tokens), int))
        if not isinstance(kinds, np.ndarray) or len(kinds) != len(self.tokens):
            raise ValueError(f"{path} has no one tokenizer.ggml.token_type for each token; get it again")
        self.kinds = kinds.tolist()

    def take(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def listed(self, key: str, kind: type) -> Any:
        value = self.take(key)
        if not isinstance(value, kind):
            raise ValueError(
                f"{self.path} lacks tokenizer.ggml.{key}; get it again, or another conversion of the model"
            )
        return value

    def special(self, key: str, default: int | None = None) -> str | None:
        id = self.take(key, default)
        if id is None or id == 0xFFFFFFFF:
            return None
        if type(id) is not int or not 0 <= id < len(self.tokens):
            raise ValueError(f"{self.path} has tokenizer.ggml.{key} = {id!r}, which is not in its vocabulary")
        return self.tokens[id]

    def config(self) -> dict[str, Any]:
        spm = self.take("model") == "llama"
        add_bos = self.take("add_bos_token", spm or self.take("pre") in ADD_BOS)
        config = {
            "bos_token": self.special("bos_token_id", 1 if spm else None),
            "eos_token": self.special("eos_token_id", 2 if spm else None),
            "unk_token": self.special("unknown_token_id", 0 if spm else None),
            "pad_token": self.special("padding_token_id"),
        }
        if self.take("add_eos_token", False):
            raise ValueError(
                f"{self.path} asks for add_eos_token, which is not understood; name a tokenizer.json instead"
            )
        template = self.metadata.get("tokenizer.chat_template")
        return {
            **config,
            "add_bos_token": bool(add_bos) and config["bos_token"] is not None,
            "chat_template": template if isinstance(template, str) else None,
        }


def _byte_level(said: _Vocabulary) -> Any:
    """GPT-2's kind: bytes written as printable characters, cut by `CUTS`, merged by rank."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = said.take("pre")
    if cut not in CUTS:
        what = f"cuts text as {cut!r}" if cut else "does not say how it cuts text (tokenizer.ggml.pre)"
        raise ValueError(
            f"{said.path} {what}; understood are {', '.join(CUTS)}: put the model's tokenizer.json into a folder and "
            "name that"
        )
    merges = [tuple(merge.split(" ")) for merge in said.listed("merges", list)]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{said.path} has merges that are not pairs; get it again")
    try:
        inner = Tokenizer(models.BPE(said.ids, merges, ignore_merges=cut in WHOLE_WORDS))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{said.path} has merges that do not fit its vocabulary ({error}); get it again") from error
    if cut in COMPOSED:
        inner.normalizer = normalizers.NFC()
    steps: list[Any] = [
        # The step of SmolLM2's own tokenizer.json, which knows a newer Unicode than the expressions do.
        pre_tokenizers.Digits(individual_digits=True) if expression == DIGITS
        else pre_tokenizers.Split(Regex(expression), "isolated")
        for expression in CUTS[cut]
    ]  # fmt: skip
    inner.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(said: _Vocabulary) -> Any:
    """Llama 2's kind: ▁ for a space, pieces joined by score, bytes where a character has no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = said.listed("scores", np.ndarray).tolist()
    if len(scores) != len(said.tokens) or not np.isfinite(scores).all():
        raise ValueError(f"{said.path} has no one finite tokenizer.ggml.scores for each token; get it again")
    if "tokenizer.ggml.precompiled_charsmap" in said.metadata:
        raise ValueError(f"{said.path} has a tokenizer with a precompiled_charsmap, which is not understood")
    bytes_too = all(f"<0x{byte:02X}>" in said.ids for byte in range(256))
    unknown = said.special("unknown_token_id", 0)
    inner = Tokenizer(
        models.BPE(
            said.ids,
            merges_of(said.ids, scores, said.kinds),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=bytes_too,
        )
    )
    prefix = said.take("add_space_prefix", True)
    start = [normalizers.Prepend("▁")] if prefix else []
    inner.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
    end = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    return inner


def merges_of(ids: dict[str, int], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """The merges that do what SentencePiece does with scores: join the pair whose whole has the highest.

    A whole that can be joined from several pairs has a merge for each, the longest beginning first, as in the
    tokenizer.json that Hugging Face made of these vocabularies.
    """
    found = []
    for whole, id in ids.items():
        if kinds[id] != NORMAL:
            continue
        for at in range(1, len(whole)):
            left, right = whole[:at], whole[at:]
            if left in ids and right in ids and kinds[ids[left]] == kinds[ids[right]] == NORMAL:
                found.append((-scores[id], -len(left), left, right))
    return [(left, right) for _, _, left, right in sorted(found, key=lambda one: one[:2])]
