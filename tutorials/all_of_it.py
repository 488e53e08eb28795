"""All of it: a language model is put into four bits, fine-tuned with LoRA and made to write, in NumPy alone.

Shapes: batch (rows of text), time (tokens of a row), channel (numbers of a token), heads, n (channels of a head).
"""

import json
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

ASSETS = Path(find_spec("tinyllm").origin).parent / "assets"  # its files are read; nothing of tinyllm is imported
CONFIG = json.loads((ASSETS / "base/config.json").read_text("utf-8"))

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

    def __add__(self, other):
        return Tensor(self.data + other.data, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, number):
        return Tensor(self.data * number, (self, lambda g: g * number))

    def reshape(self, *shape):
        return Tensor(self.data.reshape(shape), (self, lambda g: g.reshape(self.data.shape)))

    def swapaxes(self, i, j):
        return Tensor(self.data.swapaxes(i, j), (self, lambda g: g.swapaxes(i, j)))

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


def linear(x, w):
    """Each token times a matrix: x (batch, time, in), w (out, in) -> (batch, time, out)."""
    to_w = lambda g: g.reshape(-1, g.shape[-1]).T @ x.data.reshape(-1, x.data.shape[-1])
    return Tensor(x.data @ w.data.T, (x, lambda g: g @ w.data), (w, to_w))


def rms_norm(x, gain):
    """The channels of each token brought to a mean square of 1, times a gain for each channel."""
    inverse = (np.mean(x.data**2, axis=-1, keepdims=True) + CONFIG["rms_norm_eps"]) ** -0.5
    y, weight = x.data * inverse, gain.data
    to_x = lambda g: inverse * (g * weight - y * np.mean(g * weight * y, axis=-1, keepdims=True))
    return Tensor(y * weight, (x, to_x), (gain, lambda g: (g * y).sum(axis=(0, 1))))


def silu_mul(gate, up):
    """gate * sigmoid(gate) * up: one half says how much of the other half gets through."""
    s = 1 / (1 + np.exp(-gate.data))
    silu = gate.data * s
    return Tensor(silu * up.data, (gate, lambda g: g * up.data * (s + silu * (1 - s))), (up, lambda g: g * silu))


def rope(x):
    """Turn each pair of channels (i, i + n/2) by an angle that grows with the position; x (batch, heads, time, n)."""
    time, n = x.data.shape[-2:]
    angle = np.arange(time)[:, None] * CONFIG["rope_theta"] ** (-np.arange(0, n, 2) / n)  # (time, n/2)
    cos, sin = np.cos(angle).astype(x.data.dtype), np.sin(angle).astype(x.data.dtype)
    def turn(a, sin):
        left, right = np.split(a, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return Tensor(turn(x.data, sin), (x, lambda g: turn(g, -sin)))


def attention(q, k, v):
    """softmax(q k^T / sqrt(n)) v: what a token gathers from those before it; each (batch, heads, time, n)."""
    batch, heads, time, n = q.data.shape
    group, scale = heads // k.data.shape[1], n**-0.5  # a head of k and v serves a group of heads of q
    keys, values = k.data.repeat(group, axis=1), v.data.repeat(group, axis=1)
    p = softmax(np.where(np.tri(time), q.data @ keys.mT * scale, -np.inf))  # (batch, heads, time, time), none later
    def to_scores(g):
        gp = g @ values.mT
        return p * (gp - (gp * p).sum(axis=-1, keepdims=True)) * scale
    summed = lambda g: g.reshape(batch, -1, group, time, n).sum(axis=2)
    to_k, to_v = lambda g: summed(to_scores(g).mT @ q.data), lambda g: summed(p.mT @ g)
    return Tensor(p @ values, (q, lambda g: to_scores(g) @ keys), (k, to_k), (v, to_v))


# ------------------------------------------------------------------------------------ NF4: a frozen weight in four bits
LEVELS = np.array([
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803,
    0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32)


class NF4:
    """A weight as codes, two a byte, and a scale for every 64 of them; its floats are made anew when asked for."""

    wants_grad = False

    def __init__(self, w):
        blocks = w.reshape(-1, 64)
        self.scales = np.abs(blocks).max(axis=1, keepdims=True)
        scaled = blocks * (np.float32(1) / self.scales)  # from -1 to 1
        codes = np.searchsorted((LEVELS[:-1] + LEVELS[1:]) / 2, scaled.reshape(-1)).astype(np.uint8)  # nearest level
        self.packed, self.shape = codes[0::2] << 4 | codes[1::2], w.shape

    @property
    def data(self):
        codes = np.stack([self.packed >> 4, self.packed & 15], axis=1).reshape(-1, 64)
        return (LEVELS[codes] * self.scales).reshape(self.shape)


# --------------------------------------------------------------------------------- the decoder, its weights, and LoRA's
def read_weights():
    """The arrays of a safetensors file by name: it holds the length of a header, the header, and all arrays' bytes."""
    file = (ASSETS / "base/model.safetensors").read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    header, weights = json.loads(file[8:start]), {}
    for name, about in list(header.items())[1:]:  # the first says what wrote the file
        array = np.frombuffer(file[start:][slice(*about["data_offsets"])], np.float32).reshape(about["shape"])
        weights[name.removeprefix("model.").removesuffix(".weight")] = array
    return weights


def build(rank=8):
    """All tensors by name: the base, frozen, its matrices in NF4, and beside each of them an A and a B that train."""
    model, rng = {}, np.random.default_rng(0)
    for name, w in read_weights().items():
        model[name] = NF4(w) if name.endswith("_proj") else Tensor(w)
        if name.endswith("_proj"):
            a = rng.uniform(-1, 1, (rank, w.shape[1])) * w.shape[1] ** -0.5
            model[f"{name}.A"] = Tensor(a.astype(np.float32), trains=True)
            model[f"{name}.B"] = Tensor(np.zeros((w.shape[0], rank), np.float32), trains=True)
    return model


def project(model, name, x, scale=2.0):
    """W x + scale * B A x."""
    return linear(x, model[name]) + linear(linear(x, model[f"{name}.A"]), model[f"{name}.B"]) * scale


def predict(model, ids):
    """The logits, a score for every possible next token: ids (batch, time) -> (batch, time, vocabulary)."""
    (batch, time), n = ids.shape, CONFIG["head_dim"]
    x = Tensor(model["embed_tokens"].data[ids])  # (batch, time, channel)
    for i in range(CONFIG["num_hidden_layers"]):
        h = rms_norm(x, model[f"layers.{i}.input_layernorm"])
        qkv = (project(model, f"layers.{i}.self_attn.{part}_proj", h) for part in "qkv")
        q, k, v = (part.reshape(batch, time, -1, n).swapaxes(1, 2) for part in qkv)  # (batch, heads, time, n)
        h = attention(rope(q), rope(k), v).swapaxes(1, 2).reshape(batch, time, -1)
        x = x + project(model, f"layers.{i}.self_attn.o_proj", h)
        h = rms_norm(x, model[f"layers.{i}.post_attention_layernorm"])
        gate, up = (project(model, f"layers.{i}.mlp.{part}_proj", h) for part in ("gate", "up"))
        x = x + project(model, f"layers.{i}.mlp.down_proj", silu_mul(gate, up))
    return linear(rms_norm(x, model["norm"]), model["embed_tokens"])


# ------------------------------------------------------------------------------------------------- training and writing
def adamw(parameters, moments, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    """Move each number by its mean gradient, divided by the gradient's usual size; `step` counts from 1."""
    for p, (m, v) in zip(parameters, moments, strict=True):
        m += (1 - beta1) * (p.grad - m)
        v += (1 - beta2) * (p.grad**2 - v)
        mean, size = m / (1 - beta1**step), np.sqrt(v / (1 - beta2**step))
        p.data = p.data * (1 - lr * weight_decay) - lr * mean / (size + eps)
        p.grad = None


def train(model, steps=30, lr=5e-3):
    """Fine-tune what trains; the loss of each step."""
    parameters, losses = [p for p in model.values() if p.wants_grad], []
    moments = [(np.zeros_like(p.data), np.zeros_like(p.data)) for p in parameters]
    for step, (ids, targets) in enumerate(batches(LEARNED, steps), 1):
        loss = cross_entropy(predict(model, ids), targets)
        loss.backward()
        adamw(parameters, moments, step, lr)
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
