"""Small tokenizers of the kinds that well-known checkpoints have, with what their tokenizer_config.json says."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers
from chat_templates import BYTES, byte_level, sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

END = {"eos_token": "</s>"}
BEGIN = {"bos_token": "<s>", **END}


def train_bpe(special: Sequence[str | AddedToken], corpus: Sequence[str]) -> tokenizers.Tokenizer:
    """GPT-2's kind, with merges that are learned from a corpus."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(corpus, trainer)
    return inner


def llama2() -> tokenizers.Tokenizer:
    """▁ before everything, put by a normaliser; as in SentencePiece, no piece has it after a letter."""
    parts = json.loads(sentencepiece(("<s>", "</s>")).to_str())
    model = parts["model"]
    model["merges"] = [pair for pair in model["merges"] if "▁" not in "".join(pair).lstrip("▁")]
    return tokenizers.Tokenizer.from_str(json.dumps(parts))


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    """Llama 2's as it is saved today: the cut puts ▁ instead of the normaliser, before the first word or each part."""
    parts = json.loads(llama2().to_str())
    parts["normalizer"] = None
    parts["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return tokenizers.Tokenizer.from_str(json.dumps(parts))


def unigram() -> tokenizers.Tokenizer:
    """Scores instead of merges, characters composed and taken apart first (NFKC), and unknown ones as bytes."""
    words = ["▁the", "▁cat", "▁", "the", "cat", "re", ":", "?", "\n", "1", "2", *"acehtsoQnmd"]
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((word, -len(words) / len(word)) for word in words)]
    vocabulary += [(f"<0x{i:02X}>", -20.0) for i in range(256)]
    inner = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])  # fmt: skip
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner


def llama3() -> tokenizers.Tokenizer:
    """Bytes cut by an expression of its own, and the beginning of text put by the last of two post-processors."""
    inner = byte_level(("<s>", "</s>"))
    words = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+|."), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    begin = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return inner


def two_at_the_start() -> tokenizers.Tokenizer:
    """GLM's: a text begins with two tokens, and no configuration names either."""
    inner = byte_level(("[gMASK]", "<sop>", "</s>"))
    special = [("[gMASK]", 0), ("<sop>", 1)]
    inner.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=special)
    return inner


def only_named() -> tokenizers.Tokenizer:
    """The special tokens stand in the vocabulary, and nothing in tokenizer.json says that they are special."""
    words = ["<unk>", "<s>", "</s>", *BYTES]
    inner = tokenizers.Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def greedy_end() -> tokenizers.Tokenizer:
    """Phi 3's: the end of text takes the white space after it along."""
    inner = byte_level(("<s>",))
    inner.add_special_tokens([AddedToken("</s>", special=True, normalized=False, rstrip=True)])
    return inner


KINDS = {
    "gpt-2": (lambda: byte_level(("</s>",)), END),
    "byte-level with add_bos_token": (lambda: byte_level(("<s>", "</s>")), {**BEGIN, "add_bos_token": True}),
    "byte-level without": (lambda: byte_level(("<s>", "</s>")), BEGIN),
    "llama 3": (llama3, BEGIN),
    "llama 2": (llama2, BEGIN),
    "llama 2, no beginning": (llama2, {**BEGIN, "add_bos_token": False}),
    "metaspace, first": (lambda: metaspace("first"), BEGIN),
    "metaspace, always": (lambda: metaspace("always"), BEGIN),
    "metaspace, never": (lambda: metaspace("never"), BEGIN),
    "unigram": (unigram, BEGIN),
    "two at the start": (two_at_the_start, END),
    "only named": (only_named, {**BEGIN, "unk_token": "<unk>"}),
    "greedy end": (greedy_end, BEGIN),
}
TEXTS = ["the cat sat", "Q: the cat?", " the  cat", "the cat ", "User: Hello\nAssistant:", "\nthe", "a</s>b",
         "a </s> b", "<s>the cat", "12 你好 é", "", " "]  # fmt: skip
PAIRS = [("Q: the cat?", " sat"), ("Q: the cat? ", "sat"), ("Q:\n", "the cat"), ("the", "re"), ("", "the cat"),
         ("the cat", ""), ("the 你", "好 cat"), ("the cat</s>", " sat"), ("  ", "  the"), ("a", " dog</s>"),
         ("\n\n", "\n the")]  # fmt: skip
