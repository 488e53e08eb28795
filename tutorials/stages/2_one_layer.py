"""Stage 2: one layer. The table is learned by following a gradient, worked out with a pencil.

Shapes: batch (rows of text), time (tokens of a row).
"""

import json
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

ASSETS = Path(find_spec("tinyllm").origin).parent / "assets"  # its files are read; nothing of tinyllm is imported

# ---------------------------------------------------------------------------------------------- tokens: text as numbers
BPE = json.loads((ASSETS / "base/tokenizer.json").read_text("utf-8"))["model"]
IDS = BPE["vocab"]  # the id of each piece of text, 0 to 1,023
PIECES = {id: piece for piece, id in IDS.items()}
RANKS = {tuple(pair): rank for rank, pair in enumerate(BPE["merges"])}  # pieces to join, the commonest pair first
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")  # of ASCII text


def encode(text):
    """Byte-pair encoding: in each word, from single letters on, join the two pieces of the best rank, and so on."""
    ids = []
    for word in WORDS.findall(text):
        pieces = [chr(ord(c) + 256) if c <= " " else c for c in word]  # a space is written Ġ, a new line Ċ
        while pairs := [(RANKS[two], at) for at, two in enumerate(pairwise(pieces)) if two in RANKS]:
            rank, at = min(pairs)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        ids += [IDS[piece] for piece in pieces]
    return ids


def decode(ids):
    return "".join(chr(ord(c) - 256) if ord(c) >= 256 else c for id in ids for c in PIECES[id])


TEXT = np.array(encode((ASSETS / "jargon.txt").read_text("ascii")))
LEARNED, HELD_OUT = np.split(TEXT, [len(TEXT) * 9 // 10])


def batches(tokens, count, size=4, time=64):
    """Windows from anywhere in a text: ids and targets, both (size, time); the target is the token that comes next."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        starts = rng.integers(len(tokens) - time, size=(size, 1))
        windows = tokens[starts + np.arange(time + 1)]
        yield windows[:, :-1], windows[:, 1:]


# ------------------------------------------------------------------------------------------------------------ the model
def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(logits, targets):
    """The loss: minus the logarithm of the share that the right token was given, on average over all tokens."""
    p = softmax(logits)  # (batch, time, vocabulary)
    right = np.eye(p.shape[-1], dtype=p.dtype)[targets]  # 1 at the target, 0 elsewhere
    return -np.log((p * right).sum(axis=-1)).mean()


def build(vocabulary=1024):
    """The logits of each next token (column) after each token (row)."""
    return np.zeros((vocabulary, vocabulary), np.float32)


def predict(model, ids):
    """The logits, a score for every possible next token: ids (batch, time) -> (batch, time, vocabulary)."""
    return model[ids]


# ------------------------------------------------------------------------------------------------- training and writing
def train(model, steps=30, lr=400.0):
    """Learn; the loss of each step."""
    losses = []
    for ids, targets in batches(LEARNED, steps):
        logits = predict(model, ids)
        gradient = (softmax(logits) - np.eye(len(model), dtype=np.float32)[targets]) / targets.size
        np.add.at(model, ids, -lr * gradient)  # a token that stands there twice moves its row twice
        losses.append(float(cross_entropy(logits, targets)))
    return losses


def held_out_loss(model):
    return float(np.mean([cross_entropy(predict(model, ids), right) for ids, right in batches(HELD_OUT, 8)]))


def write(model, prompt, count=60, temperature=0.7):
    """Continue a text: draw the next token by its share, again and again; at temperature 0 take the likeliest."""
    ids, rng = encode(prompt), np.random.default_rng(0)
    for _ in range(count):
        logits = predict(model, np.array([ids]))[0, -1].astype(np.float64)
        p = softmax(logits / (temperature or 1))
        ids.append(int(rng.choice(len(p), p=p) if temperature else p.argmax()))
    return decode(ids)


if __name__ == "__main__":
    model = build()
    print(f"loss before {held_out_loss(model):.3f}")
    train(model)
    print(f"loss after  {held_out_loss(model):.3f}", write(model, ":hacker:\n"), sep="\n\n")
