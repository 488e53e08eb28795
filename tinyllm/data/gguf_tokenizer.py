"""A tokenizer out of a GGUF file, which keeps the vocabulary, the merges and a name for how text is cut first.

What a name stands for is written in llama.cpp's source (``llama-vocab.cpp``), and here as the steps that the models'
own tokenizer.json have. Only names that are understood pass: with another cut a text gets other tokens, and the model
answers a little worse without a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.formats.fields import Fields
from tinyllm.formats.gguf_file import read_header

# Kinds of tokens; the other four are normal, unknown, unused and byte.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
PREFIX = "tokenizer.ggml."
# The special tokens' names in tokenizer_config.json and here, and their numbers in SentencePiece if a file has none.
SPECIAL = (
    ("bos_token", "bos_token_id", 1),
    ("eos_token", "eos_token_id", 2),
    ("unk_token", "unknown_token_id", 0),
    ("pad_token", "padding_token_id", None),
)
NONE = 0xFFFFFFFF  # of a special token: there is none
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
    fields = Fields(metadata, path, PREFIX, equals=" = ", lacking="; get it again, or another conversion of the model")
    model = fields.take("model", None)
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"{path} has a tokenizer of kind {model!r}; understood are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE): put the model's tokenizer.json into a folder and name that"
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("reading a tokenizer needs the `tokenizers` package: pip install tokenizers") from error
    vocabulary, pre = _Vocabulary(fields), fields.take("pre", None)
    config = _config(fields, vocabulary, model == "llama", pre)
    template = metadata.get("tokenizer.chat_template")
    config["chat_template"] = template if isinstance(template, str) else None
    if model == "gpt2":
        inner = _byte_level(fields, vocabulary, pre)
    else:
        inner = _sentencepiece(fields, vocabulary, config["unk_token"])
    for kind in (CONTROL, USER_DEFINED):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, its in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
            if its == kind
        ]
        (inner.add_special_tokens if kind == CONTROL else inner.add_tokens)(added)
    if config["add_bos_token"]:
        bos = config["bos_token"]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary.tokens.index(bos))]
        )
    return inner, config


class _Vocabulary:
    """The tokens, the kind of each, and the number of each.

    What else a file says about its tokenizer is not refused: programs put much there that changes no token.
    """

    def __init__(self, fields: Fields):
        self.tokens = fields.listed("tokens", list)
        if len(set(self.tokens)) != len(self.tokens) or "" in self.tokens:
            raise ValueError(
                f"{fields.where} has a vocabulary with an empty token or the same token twice; get it again"
            )
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        kinds = fields.take("token_type", np.ones(len(self.tokens), int))
        if not isinstance(kinds, np.ndarray) or len(kinds) != len(self.tokens):
            raise ValueError(f"{fields.where} has no one {PREFIX}token_type for each token; get it again")
        self.kinds = kinds.tolist()


def _config(fields: Fields, vocabulary: _Vocabulary, sentencepiece: bool, pre: Any) -> dict[str, Any]:
    """What tokenizer_config.json would say, but for the template."""
    add_bos = fields.take("add_bos_token", sentencepiece or pre in ADD_BOS)
    config: dict[str, Any] = {}
    for name, key, usual in SPECIAL:
        id = fields.take(key, usual if sentencepiece else None)
        if id is not None and id != NONE and (type(id) is not int or not 0 <= id < len(vocabulary.tokens)):
            raise ValueError(f"{fields.has(key, id)}, which is not in its vocabulary")
        config[name] = None if id is None or id == NONE else vocabulary.tokens[id]
    if fields.take("add_eos_token", False):
        raise ValueError(
            f"{fields.where} asks for add_eos_token, which is not understood; name a tokenizer.json instead"
        )
    return {**config, "add_bos_token": bool(add_bos) and config["bos_token"] is not None}


def _byte_level(fields: Fields, vocabulary: _Vocabulary, cut: Any) -> Any:
    """GPT-2's kind: bytes written as printable characters, cut by `CUTS`, merged by rank."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if cut not in CUTS:
        what = f"cuts text as {cut!r}" if cut else f"does not say how it cuts text ({PREFIX}pre)"
        raise ValueError(
            f"{fields.where} {what}; understood are {', '.join(CUTS)}: put the model's tokenizer.json into a folder "
            "and name that"
        )
    merges = [tuple(merge.split(" ")) for merge in fields.listed("merges", list)]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{fields.where} has merges that are not pairs; get it again")
    try:
        inner = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=cut in WHOLE_WORDS))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{fields.where} has merges that do not fit its vocabulary ({error}); get it again") from error
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


def _sentencepiece(fields: Fields, vocabulary: _Vocabulary, unknown: str | None) -> Any:
    """Llama 2's kind: ▁ for a space, pieces joined by score, bytes where a character has no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    ids, scores = vocabulary.ids, fields.listed("scores", np.ndarray).tolist()
    if len(scores) != len(ids) or not np.isfinite(scores).all():
        raise ValueError(f"{fields.where} has no one finite {PREFIX}scores for each token; get it again")
    if fields.take("precompiled_charsmap", None) is not None:
        raise ValueError(f"{fields.where} has a tokenizer with a precompiled_charsmap, which is not understood")
    merges = merges_of(ids, scores, vocabulary.kinds)
    bytes_too = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    inner = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too))
    prefix = fields.take("add_space_prefix", True)
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
