"""Stage 3: autograd. Every operation brings its rule, and the gradient of any model follows by itself.

Shapes: batch (rows of text), time (tokens of a row), channel (numbers of a token).
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


# -------------------------------------------------------------------------------- gradients: which way to turn a number
class Tensor:
    """An array that remembers what it was computed from: its parents, each with the rule for the parent's gradient."""

    def __init__(self, data, *parents, trains=False):
        self.data, self.grad = data, None
        self.parents = [(parent, rule) for parent, rule in parents if parent.wants_grad]
        self.wants_grad = trains or bool(self.parents)

    def backward(self):
        """Hand the gradient on, from this one number to all that it came from; shares by several paths add up."""
        self.grad = np.ones_like(self.data)
        for node in reversed(inputs_first(self, [])):
            for parent, rule in node.parents:
                share = rule(node.grad)
                parent.grad = share if parent.grad is None else parent.grad + share


def inputs_first(node, order):
    """Every tensor behind this one, each after all that it was computed from."""
    if node not in order:
        for parent, _ in node.parents:
            inputs_first(parent, order)
        order.append(node)
    return order


# ------------------------------------------------------------------ operations: a result, and the rules of its gradient
def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(logits, targets):
    """The loss: minus the logarithm of the share that the right token was given, on average over all tokens."""
    p = softmax(logits.data)  # (batch, time, vocabulary)
    right = np.eye(p.shape[-1], dtype=p.dtype)[targets]  # 1 at the target, 0 elsewhere
    return Tensor(-np.log((p * right).sum(axis=-1)).mean(), (logits, lambda g: g * (p - right) / targets.size))


def embedding(table, ids):
    """The row of the table for each token: table (vocabulary, channel), ids (batch, time) -> (batch, time, channel)."""
    def to_table(g):
        grad = np.zeros_like(table.data)
        np.add.at(grad, ids, g)  # a token that stands there twice gets the sum
        return grad
    return Tensor(table.data[ids], (table, to_table))


def linear(x, w):
    """Each token times a matrix: x (batch, time, in), w (out, in) -> (batch, time, out)."""
    to_w = lambda g: g.reshape(-1, g.shape[-1]).T @ x.data.reshape(-1, x.data.shape[-1])
    return Tensor(x.data @ w.data.T, (x, lambda g: g @ w.data), (w, to_w))


# ------------------------------------------------------------------------------------------------------------ the model
def build(vocabulary=1024, channels=64):
    """All tensors by name: each token in some numbers, and each possible next token in as many."""
    rng = np.random.default_rng(0)
    make = lambda: Tensor(rng.normal(0, 0.1, (vocabulary, channels)).astype(np.float32), trains=True)
    return {"embed_tokens": make(), "head": make()}


def predict(model, ids):
    """The logits, a score for every possible next token: ids (batch, time) -> (batch, time, vocabulary)."""
    return linear(embedding(model["embed_tokens"], ids), model["head"])


# ------------------------------------------------------------------------------------------------- training and writing
def descend(parameters, lr):
    """Move each number a little against its gradient."""
    for p in parameters:
        p.data = p.data - lr * p.grad
        p.grad = None


def train(model, steps=30, lr=30.0):
    """Learn; the loss of each step."""
    parameters, losses = [p for p in model.values() if p.wants_grad], []
    for ids, targets in batches(LEARNED, steps):
        loss = cross_entropy(predict(model, ids), targets)
        loss.backward()
        descend(parameters, lr)
        losses.append(float(loss.data))
    return losses


def held_out_loss(model):
    return float(np.mean([cross_entropy(predict(model, ids), right).data for ids, right in batches(HELD_OUT, 8)]))


def write(model, prompt, count=60, temperature=0.7):
    """Continue a text: draw the next token by its share, again and again; at temperature 0 take the likeliest."""
    ids, rng = encode(prompt), np.random.default_rng(0)
    for _ in range(count):
        logits = predict(model, np.array([ids])).data[0, -1].astype(np.float64)
        p = softmax(logits / (temperature or 1))
        ids.append(int(rng.choice(len(p), p=p) if temperature else p.argmax()))
    return decode(ids)


if __name__ == "__main__":
    model = build()
    print(f"loss before {held_out_loss(model):.3f}")
    train(model)
    print(f"loss after  {held_out_loss(model):.3f}", write(model, ":hacker:\n"), sep="\n\n")
