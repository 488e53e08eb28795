"""Known mistakes made in other words, as a learner writes them: nine of ten are named, and none by another's name."""

from __future__ import annotations

import math

import numpy as np

from tinyllm.course.exercises import EXERCISES
from tinyllm.course.judge.rooms import Here
from tinyllm.course.judge.verdict import judge


def local_flat(name, x):
    functions = {
        "log": math.log,
        "sqrt": math.sqrt,
        "cube": lambda v: v**3,
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    }
    y = functions[name](x)
    slopes = {"log": lambda: 1 / x, "sqrt": lambda: 1 / (2 * y), "cube": lambda: 3 * x**2, "sigmoid": lambda: y}
    return y, slopes[name]()


def paths_set(parents, result):
    found = {name: 0 for name in parents}
    found[result] = 1
    waiting = {name: sum(name in set(p) for p in parents.values()) for name in parents}
    ready = [name for name in parents if not waiting[name]]
    while ready:
        name = ready.pop()
        for parent in set(parents[name]):
            found[parent] += found[name]
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)
    return found


def order_calls(parents, result):
    if not parents[result]:
        return [result]
    before = []
    for parent in parents[result]:
        before += [name for name in order_calls(parents, parent) if name not in before]
    return [*before, result]


def matmul_as_it_comes(g, a, b):
    return np.matmul(g, np.swapaxes(b, -2, -1)), np.matmul(np.swapaxes(a, -2, -1), g)


def logsumexp_plain(x):
    e = np.exp(x)
    return np.asarray(np.log(e.sum(axis=-1))), e / e.sum(axis=-1)[..., None]


def ignored_by_all(logits, targets):
    loss, gradient = 0.0, np.zeros_like(logits)
    for row, target, out in zip(logits, targets, gradient, strict=True):
        if target >= 0:
            shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            loss -= np.log(shares[target])
            out += shares
            out[target] -= 1.0
    return loss / len(targets), gradient / len(targets)


def adamw_root(w, gradients, lr, beta1, beta2, eps, weight_decay):
    first, second, beta1_t, beta2_t = 0.0, 0.0, 1.0, 1.0
    for g in gradients:
        beta1_t, beta2_t = beta1_t * beta1, beta2_t * beta2
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g**2
        w = w - lr * weight_decay * w
        w = w - lr * first / (1 - beta1_t) * (second / (1 - beta2_t) + eps) ** -0.5
    return w


def clip_alone(gradients, max_norm):
    norms = [0.0 if g is None else float(np.sqrt((g**2).sum())) for g in gradients]
    shrunk = [g if g is None or n <= max_norm else g / n * max_norm for g, n in zip(gradients, norms, strict=True)]
    return shrunk, float(np.sqrt(sum(n * n for n in norms)))


def joined_means(losses, live):
    if max(live) == 0:
        raise ValueError("nothing is alive")
    return float(np.mean(losses))


def norm_outside(x, w, eps):
    root = (sum([v**2 for v in x]) / len(x)) ** 0.5 + eps
    return [w[i] * x[i] / root for i in range(len(x))]


def visible_wide(time, keys, window):
    rows = []
    for t in range(keys - time, keys):
        first = 0 if window == 0 else max(0, t - window)
        rows.append([first <= s <= t for s in range(keys)])
    return np.array(rows)


def nucleus_more(p, top_p):
    chosen, total = [], 0.0
    for share, i in sorted((-share, i) for i, share in enumerate(p)):
        if total > top_p:
            break
        chosen.append(i)
        total -= share
    return sorted(chosen)


def rounded_up(bits):
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        return (bits >> 16) | 0x40
    return (bits + 0x8000) >> 16


def labels_far(ids, learned, segments):
    found = [-100] * len(ids)
    for t in range(2, len(ids)):
        if learned[t] and segments[t] and segments[t] == segments[t - 2]:
            found[t - 2] = ids[t]
    return np.array(found, dtype=np.int64)


def fresh_nothing(shape, rank, generator):
    return np.zeros((rank, shape[1]), dtype="float32"), np.zeros((shape[0], rank), dtype="float32")


def lora_times_alpha(x, W, A, B, alpha):
    y = W.dot(x)
    for k in range(len(A)):
        y = y + B[:, k] * (A[k] * x).sum() * alpha
    return y


def trained_in(shapes, rank, targets):
    total, found = 0, set()
    for path in shapes:
        hits = [t for t in targets if t in path]
        found |= set(hits)
        if hits:
            total += rank * (shapes[path][0] + shapes[path][1])
    for t in targets:
        if t not in found:
            raise ValueError(f"no layer for {t}")
    return total


def fold_by_first(W, adapters):
    out = np.array(W)
    for i, (A, B, _) in enumerate(adapters):
        if i == 0:
            scale = adapters[0][2] / A.shape[0]
        out = out + np.matmul(B, A) * scale
    return out


def mix_both(A1, B1, A2, B2, t):
    return np.r_[A1 * (1 - t), A2 * t], np.c_[B1 * (1 - t), B2 * t]


def absmax_cut(x, bits):
    top = (1 << (bits - 1)) - 1
    scale = np.float32(np.max(np.abs(x)) / top)
    if scale == 0:
        return np.zeros(x.shape, np.int8), scale
    return (x / scale).astype(np.int8), scale


def pack_whole_bytes(codes, bits):
    number, held, out = 0, 0, []
    for code in codes:
        number, held = (number << bits) + int(code), held + bits
        while held >= 8:
            out.append(number >> (held - 8) & 0xFF)
            held -= 8
    return np.array(out, dtype=np.uint8)


def bits_without_mean(n, block_size, double_quant):
    size = (n + 1) // 2
    scales = math.ceil(n / block_size)
    size += scales + 4 * math.ceil(scales / 256) if double_quant else 4 * scales
    return size * 8 / n


def moved_values(codes, scaled, update, levels):
    return sum(bool(u) for u in update) / len(update)


def leaked_once(train, held, n):
    def runs(tokens):
        return {tuple(tokens[i : i + n]) for i in range(0, len(tokens) - n + 1)}

    own = runs(held)
    return len(own & runs(train)) / len(own) if own else 0.0


def explained_short(a, b, y, eps):
    a, b, y = (v.astype(float) for v in (a, b, y))
    off = abs(y - a.dot(b))
    return bool(np.all(off <= eps * abs(a).dot(abs(b))))


MISTAKES = [
    ("01-local", "a sigmoid that does not flatten", local_flat),
    ("01-paths", "used twice, counted once", paths_set),
    ("01-deep", "recursion", order_calls),
    ("02-matmul", "not summed where it was broadcast", matmul_as_it_comes),
    ("02-logsumexp", "nothing subtracted first", logsumexp_plain),
    ("02-ignored", "the mean over all", ignored_by_all),
    ("03-adamw", "eps under the root", adamw_root),
    ("03-clip", "each by its own norm", clip_alone),
    ("03-accumulate", "the mean of means", joined_means),
    ("04-norm", "eps outside the root", norm_outside),
    ("04-visible", "one too many in the window", visible_wide),
    ("05-topp", "one too many", nucleus_more),
    ("06-round", "ties up", rounded_up),
    ("07-labels", "moved twice", labels_far),
    ("08-noop", "A and B both zero", fresh_nothing),
    ("08-definition", "alpha without rank", lora_times_alpha),
    ("08-count", "a part of the name is enough", trained_in),
    ("09-fold", "the first adapter's scale for all", fold_by_first),
    ("09-mix", "weighed in A and in B", mix_both),
    ("10-absmax", "cut off instead of rounded", absmax_cut),
    ("10-pack", "the last byte dropped", pack_whole_bytes),
    ("11-bits", "no offset", bits_without_mean),
    ("11-moved", "the values, not the codes", moved_values),
    ("12-leak", "each run once", leaked_once),
    ("13-budget", "without k", explained_short),
]


def test_nine_of_ten_are_named_and_none_wrongly():
    named = {}
    for id, name, function in MISTAKES:
        exercise = EXERCISES[id]
        verdict = judge(exercise, Here({exercise.function: function}))
        assert verdict.earned < exercise.points, id
        named[id] = (name, verdict.mistake and verdict.mistake.name)
    wrongly = {id: pair for id, pair in named.items() if pair[1] not in (None, pair[0])}
    assert not wrongly
    assert sum(wanted == found for wanted, found in named.values()) >= 0.9 * len(MISTAKES), named
