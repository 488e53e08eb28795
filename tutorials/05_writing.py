# %% [markdown]
# # Lesson 5: How does a model write?
#
# A model gives a number to every possible next token. Between that and a text stand three things: what a token is, how
# the next one is chosen, and why the thousandth token does not take a thousand times as long as the first.
#
# - **Needs**: lessons 1, 2, 4
# - **Minutes**: 60
# - **Replaces in lesson 0**: lines of `encode`, `decode` and `write` by the real ones
# - **Afterwards you can**: train a tokenizer by hand, say what temperature and top-p do to a distribution, and test a
#   cache

# %%
import json
import numpy as np
import tinyllm
from tinyllm import assets, generate
from tinyllm.course import check, kit
kit.begin(5, needs="0.2")

# %% [markdown]
# ## 1. What a token is
#
# Letters are many to a text, words are too many different ones. **Byte-pair encoding** (BPE) lies between: begin with
# single bytes, find the pair that stands side by side most often, make it one token; and again, as often as one likes
# (Sennrich et al. 2016). Frequent words end up whole, rare ones in pieces, and nothing is ever unknown, because every
# byte is a token.
#
# By hand, with a text of nine letters:

# %%
from collections import Counter
from itertools import pairwise


def join(pieces, pair):
    """The pieces, wherever this pair stands made one."""
    joined = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


pieces, merges = list("ababcabab"), []
for _ in range(3):
    pair, count = max(Counter(pairwise(pieces)).items(), key=lambda found: found[1])
    pieces = join(pieces, pair)
    merges.append(pair)
    print(f"joined {pair}, which stood there {count} times: {pieces}")

# %% [markdown]
# The list of joined pairs, in their order, *is* the tokenizer. To encode a new text, the pairs are joined in that same
# order.
#
# **Predict.** With these three merges: how many tokens has "abab", how many "baba"?

# %% tags=["hide-output"]
def encode_word(letters, ranks):
    """The pieces of a word: of all pairs in it that may be joined, the one of the best rank first."""
    pieces = list(letters)
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in ranks]
        if not pairs:
            return pieces
        pieces = join(pieces, min(pairs, key=ranks.get))


ranks = {pair: rank for rank, pair in enumerate(merges)}
first, second = (encode_word(word, ranks) for word in ("abab", "baba"))
assert len(first) == 1 and len(second) == 3
kit.say(f"One, {first}, and three, {second}.")

# %% [markdown]
# The base's tokenizer is such a list, of 766 merges, in its `tokenizer.json`. Two things are added in practice. A text
# is first cut into words with the space before them, so that no token reaches over a word's end; the cut here is a
# regular expression for plain English letters. And bytes that cannot be printed are written as letters that can: a
# space as Ġ.

# %%
import re

about = json.loads((assets.path("base") / "tokenizer.json").read_text(encoding="utf-8"))["model"]
real_ranks = {tuple(pair): rank for rank, pair in enumerate(about["merges"])}
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


def encode(text):
    """The ids of an ASCII text."""
    ids = []
    for word in WORDS.findall(text):
        letters = [chr(ord(c) + 256) if c <= " " else c for c in word]
        ids += [about["vocab"][piece] for piece in encode_word(letters, real_ranks)]
    return ids


text = assets.jargon()[20_000:24_000]
assert encode(text) == kit.tokenizer().encode(text)
sample = "The hacker's favourite algorithm is quicksort."
shown = "|".join(kit.tokenizer().decode([id]) for id in encode(sample))
kit.say(
    f"{len(text):,} letters of the Jargon File are {len(encode(text)):,} tokens, the same as the engine's. `{shown}` "
    "shows where they end: the words of the plays are whole, those that Shakespeare did not use are in pieces."
)

# %% [markdown]
# ## Exercise 05-bpe: train a tokenizer
#
# *20 minutes, importance 4 of 5.*
#
# Write `train_bpe(words, count)`: `words` is a dict from a word to how often it occurs; return the list of the first
# `count` merges. Pairs are counted over all words, each as often as its word occurs; of pairs that are equally
# frequent the one that is first in alphabetical order is taken. Stop early if nothing is left to join.

# %%
def train_bpe(words, count):
    raise NotImplementedError("your turn")


check("05-bpe", train_bpe)

# %% [markdown]
# ## Exercise 05-roundtrip: nothing gets lost
#
# *10 minutes, importance 4 of 5.*
#
# Write `to_letters(data)` for `bytes` of any kind: 256 different printable letters, one for each byte, as GPT-2's
# tokenizer has them. Bytes 33 to 126, 161 to 172 and 174 to 255 are the letters with that number; the others get 256,
# 257, 258 ... in their order. So a space, byte 32, is `chr(288)`, Ġ.

# %%
def to_letters(data):
    raise NotImplementedError("your turn")


check("05-roundtrip", to_letters)

# %% [markdown]
# ## 2. Which one is next
#
# The last position's logits are 1,024 numbers here. Softmax makes a distribution of them. One may take the likeliest
# token each time (**greedy**), or draw one.

# %%
base = kit.base().eval()
prompt = kit.tokenizer().encode("ROMEO:\n")
with tinyllm.no_grad():
    logits = base(np.array([prompt])).data[0, -1].astype(np.float64)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


order = np.argsort(-logits)
for id in order[:5]:
    print(f"{kit.tokenizer().decode([id])!r:10} {softmax(logits)[id]:.1%}")

# %% [markdown]
# **Temperature**: divide the logits by a number before softmax. Below 1 the distribution gets sharper, above 1 flatter.
# **Top-k**: only the k likeliest may be drawn. **Top-p**: only the fewest likeliest that together have at least p of
# the whole (Holtzman et al. 2019); few where the model is sure, many where it is not.

# %%
def my_next_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution that the next token is drawn from; logits (vocabulary,)."""
    x = np.asarray(logits, np.float64) / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")[: top_k or len(p)]
    if top_p is not None:
        reached = np.cumsum(p[order]) / p[order].sum()
        order = order[: 1 + int((reached[:-1] < top_p).sum())]  # one stays if those before it have not reached top_p
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


# %% [markdown]
# **Predict.** Shares of 0.5, 0.25, 0.15 and 0.1. Which tokens stay with top-p 0.7? With 0.8? With 0.1?

# %% tags=["hide-output"]
shares = np.log([0.5, 0.25, 0.15, 0.1])
left = {p: np.flatnonzero(my_next_probabilities(shares, top_p=p)).tolist() for p in (0.7, 0.8, 0.1)}
assert left == {0.7: [0, 1], 0.8: [0, 1, 2], 0.1: [0]}
kit.say(", ".join(f"top-p {p}: {tokens}" for p, tokens in left.items()) + ". At least one is always left.")

# %%
def figure_temperatures(logits, temperatures=(0.5, 1.0, 1.5)):
    """The shares of the twelve likeliest tokens at some temperatures."""
    figure, ax = kit.plt.subplots(figsize=(7, 2.8), layout="constrained")
    shown = np.argsort(-logits)[:12]
    found = {t: my_next_probabilities(logits, t) for t in temperatures}
    for i, (t, colour) in enumerate(zip(temperatures, ("#0072b2", "#999999", "#d55e00"), strict=True)):
        ax.bar(np.arange(12) + 0.27 * (i - 1), 100 * found[t][shown], 0.27, color=colour, label=f"temperature {t}")
    ax.set_xticks(range(12), [repr(kit.tokenizer().decode([id])) for id in shown], fontsize=8)
    ax.set(ylabel="share (%)")
    ax.legend(frameon=False, fontsize=8)
    entropy = {t: float(-(p * np.log2(p + 1e-30)).sum()) for t, p in found.items()}
    kit.show(
        figure,
        "Shares of the twelve likeliest next tokens. The likeliest has "
        + ", ".join(f"{found[t].max():.0%} at temperature {t}" for t in temperatures)
        + ".",
    )
    return entropy


entropy = figure_temperatures(logits)
assert entropy[0.5] < entropy[1.0] < entropy[1.5]
kit.say(
    "How unsure the choice is, in bits: "
    + ", ".join(f"{bits:.1f} at {t}" for t, bits in entropy.items())
    + ". (Ten bits would be all of the 1,024 alike.)"
)

# %% [markdown]
# Into the engine, which draws the same text with yours:

# %%
def written(**settings):
    ids = generate.generate(base, prompt, 40, seed=1, **settings)
    return kit.tokenizer().decode(ids)


usual = written(temperature=0.8, top_p=0.9)
with tinyllm.use(next_probabilities=my_next_probabilities):
    own = written(temperature=0.8, top_p=0.9)
assert own == usual
print(own)

# %% [markdown]
# **Predict.** And greedy, always the likeliest: will the text be better, or worse, and in which way?

# %% tags=["hide-output"]
greedy, wild = written(temperature=0), written(temperature=1.8)


def repeated(text):
    """The share of three-word groups that have been there before."""
    words = text.split()
    groups = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1 - len(set(groups)) / max(1, len(groups))


print("greedy:", greedy, "", "temperature 1.8:", wild, sep="\n")

# %% [markdown]
# **Why.** The likeliest next token is not the next token of the likeliest text, and models are surest where they repeat
# what stands there already. So greedy texts are smooth and tend to go round in circles; hot ones lose the thread.
# Between them lies a matter of taste, usually a temperature of 0.7 to 1 and top-p of 0.9 or so.
#
# ## Exercise 05-topp: the smallest set
#
# *15 minutes, importance 4 of 5.*
#
# Write `nucleus(p, top_p)`: the sorted indices that top-p leaves, from a list of shares, by plain loops. It must never
# be empty, must be the *fewest* that reach `top_p`, and of equal shares the first one is taken.

# %%
def nucleus(p, top_p):
    raise NotImplementedError("your turn")


check("05-topp", nucleus)

# %% [markdown]
# ## 3. Not computing everything again
#
# To write token 100, attention needs the keys and values of the 99 before it. They were computed when those were
# written, and since no position sees what comes after it (lesson 4), they *cannot have changed*. So they are kept: the
# **KV cache**. Each step then computes one position.
#
# What must be true: the text in any number of pieces, one after the other, gives the logits of the text in one.

# %%
from tinyllm.models.cache import KVCache

ids = np.array([encode(assets.plays()[5_000:5_400])[:96]])


def in_pieces(cuts):
    """The logits of all positions, computed piece by piece with a cache."""
    cache, found = KVCache(), []
    with tinyllm.no_grad():
        for start, stop in pairwise([0, *cuts, ids.shape[1]]):
            found.append(base(ids[:, start:stop], cache=cache).data)
    return np.concatenate(found, axis=1)


at_once = in_pieces([])
for cuts in ([1], [50], [10, 11, 90], list(range(1, 96))):
    gap = np.abs(in_pieces(cuts) - at_once).max()
    assert gap < 1e-4
    print(f"{len(cuts) + 1:2} pieces: largest difference of a logit {gap:.0e}")

# %% [markdown]
# **Predict.** How long does the next token take with a cache and without one, after 16 tokens, and after 192? Which of
# the four times differs much from the others?

# %% tags=["hide-output"]
long = np.array([encode(assets.plays()[5_000:6_500])[:193]])


def one_more(past):
    """Two functions that compute position `past`: with what is cached, and with the whole text again."""
    cache = KVCache()
    with tinyllm.no_grad():
        base(long[:, :past], cache=cache)

    def cached():
        cache.length = past  # as if it had not been called before
        with tinyllm.no_grad():
            base(long[:, past : past + 1], cache=cache)

    def anew():
        with tinyllm.no_grad():
            base(long[:, : past + 1])

    return cached, anew


pasts = (16, 64, 128, 192)
times = {}
for past in pasts:
    cached, anew = one_more(past)
    found = kit.in_turns({"cached": cached, "anew": anew}, rounds=9)
    times[past] = (1e3 * found["cached"], 1e3 * found["anew"])


def figure_cache(times):
    """Milliseconds for one more token, with a cache and without."""
    figure, ax = kit.plt.subplots(figsize=(6, 2.8), layout="constrained")
    for i, (name, colour, marker) in enumerate((("with a cache", "#0072b2", "o"), ("without", "#d55e00", "s"))):
        ax.plot(list(times), [pair[i] for pair in times.values()], color=colour, marker=marker, label=name)
    ax.set(xlabel="tokens before it", ylabel="ms for one token", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    first, last = times[pasts[0]], times[pasts[-1]]
    kit.show(
        figure,
        f"Processor time of one more token. With a cache {first[0]:.1f} ms after 16 tokens and {last[0]:.1f} after "
        f"192; without {first[1]:.1f} and {last[1]:.1f}.",
    )
    return times


drawn = figure_cache(times)
assert times[192][1] > 2 * times[192][0] and times[192][1] > 2 * times[16][1]
kit.say(
    f"After 192 tokens the next one takes {times[192][1] / times[192][0]:.0f} times as long without a cache. A text of "
    "n tokens takes about n steps with it, and about n · n / 2 positions without."
)

# %% [markdown]
# **Why.** It does not come for nothing: for each position a key and a value in each block are kept. Here these are
# 5 blocks · 2 · 80 numbers, 3,200 bytes a token; in Llama-2-7B half a megabyte a token. That is why key heads are
# shared.
#
# ## Three questions
#
# **1.** "With temperature 0 the model says what it believes." True?
#
# <details><summary>Answer</summary>
#
# It says the likeliest token, one after the other. It may be hardly likelier than the next one, and the text as a whole
# may be an unlikely one.
#
# </details>
#
# **2.** Somebody trains a model with a new tokenizer on the same weights, with as many tokens. What happens?
#
# <details><summary>Answer</summary>
#
# Ids mean other pieces now, so every embedding stands for the wrong one: the model knows nothing any more. Tokenizer
# and weights belong together.
#
# </details>
#
# **3.** Can the cache be used while training?
#
# <details><summary>Answer</summary>
#
# There is no use for it. Training knows the whole text beforehand and computes all positions at once; a cache helps
# where the next token is not there yet.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * Tokenizers for all languages. The cut into words above is for plain English; the real one knows all letters of
#   Unicode.
# * What a large model writes. This one has read only plays, and has 1.6 million numbers to remember them with.
# * Many texts at once, or drafts by a smaller model that the larger one checks: both make writing faster.

# %% [markdown]
# ## Now read
#
# - `tinyllm.generate.next_probabilities`: yours, with what is refused
# - `tinyllm.generate.stream`: one token after another
# - `tinyllm.models.cache.KVCache`: arrays that double
# - `tinyllm.data.tokenizer.Tokenizer`: around a fast library
