# %% [markdown]
# # Lesson 4: What does a transformer block do?
#
# A language model is a stack of equal blocks. Each takes a vector for every position of the text and gives back another
# one, in which more of what stands around it has come in. Inside are four parts that nothing in lessons 1 and 2 hinted
# at: a norm, a rotation, attention, and a gate. Each is a few lines, and each will run the real model.
#
# - **Needs**: lessons 1, 2
# - **Minutes**: 70
# - **Replaces in lesson 0**: lines of `rms_norm`, `silu_mul`, `rope`, `attention` and `predict` by the real ones
# - **Afterwards you can**: read a decoder's code, say what each part is for, and test a part by what must be true of it

# %%
import numpy as np
import tinyllm
from tinyllm.course import check, kit
kit.begin(4, needs="0.2")

# %% [markdown]
# The small base has five blocks, and vectors of 160 numbers. This is one block, printed by itself:

# %%
base = kit.base().eval()
print("\n".join(base.get("layers.0").tree()))
batch = next(kit.batches(text="plays"))


def loss_of(model):
    """The loss of the batch, without gradients."""
    with tinyllm.no_grad():
        return model.loss(batch).item()


usual = loss_of(base)
kit.say(f"On four pieces of the plays the model's loss is {usual:.4f}; we shall look for this number again and again.")

# %% [markdown]
# In a formula, with $x$ the vectors of all positions:
#
# $$ x \leftarrow x + \text{attention}(\text{norm}(x)) \qquad x \leftarrow x + \text{MLP}(\text{norm}(x)) $$
#
# What is computed is *added* to $x$, so that by default a vector passes through unchanged, and gradients flow back past
# each block undiminished.
#
# ## 1. A norm
#
# Vectors that are added to again and again grow. The layers after them want numbers of one size. **RMSNorm** divides a
# vector by its root mean square, and multiplies each place by a learned number $w$ (Zhang and Sennrich 2019):
#
# $$ y = \frac{x}{\sqrt{\text{mean}(x^2) + \epsilon}} \, w $$
#
# The engine's part also returns $1/\sqrt{\ldots}$, since the gradient rule needs it. So does yours:

# %%
def my_rms_norm(xp, x, w, eps):
    """x (..., n) over its root mean square, times w (n,); and one over that root, (..., 1)."""
    inverse = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return (x * inverse * w).astype(x.dtype), inverse.astype(x.dtype)


# %% [markdown]
# **Predict.** A vector is multiplied by 1,000. What happens to its norm's output? And one of numbers around 0.0001,
# with $\epsilon = 0.00001$?

# %% tags=["hide-output"]
ones, x = np.ones(4, np.float32), np.array([1.0, -2.0, 3.0, 0.5], np.float32)
plain, large, small = (my_rms_norm(np, k * x, ones, 1e-5)[0] for k in (1.0, 1000.0, 1e-4))
assert np.allclose(plain, large, atol=1e-5) and np.abs(small).max() < 0.2
kit.say(
    f"Nothing: {np.round(plain, 3)} both times. The small one becomes {np.round(small, 3)}: its mean square is far "
    "below epsilon, which then is all that it is divided by."
)

# %%
with tinyllm.use(rms_norm=my_rms_norm):
    mine = loss_of(base)
assert abs(mine - usual) < 1e-5
kit.say(f"The real model over your norm: {mine:.4f}.")

# %% [markdown]
# ## Exercise 04-norm: a norm that survives
#
# *10 minutes, importance 3 of 5.*
#
# Write `norm(x, w, eps)`: RMSNorm of one vector, as a list of floats, from plain loops. It must be right for vectors
# whose numbers are around 1, 0.001 and 0.000001, and for a vector of zeros. (People put epsilon outside the root, or
# divide by the sum and not by the mean.)

# %%
def norm(x, w, eps):
    raise NotImplementedError("your turn")


check("04-norm", norm)

# %% [markdown]
# ## 2. Attention
#
# So far each position is alone. **Attention** lets it look at others. Each position makes three vectors of its own: a
# **query** (what am I looking for?), a **key** (what am I?), and a **value** (what do I say?). A query is compared with
# every key by their dot product; softmax makes shares of these scores, and the values are averaged with them:
#
# $$ y_t = \sum_{s \le t} p_{ts}\, v_s \qquad p_{t\cdot} = \text{softmax}_s (q_t \cdot k_s / \sqrt n) $$
#
# Three remarks. $s \le t$: a position sees itself and what came before, never what comes after, for that is what it
# shall predict; this is called **causal**. $\sqrt n$: the dot product of two random vectors of $n$ numbers is of size
# $\sqrt n$, and softmax wants numbers of size 1. And there are several **heads**, each with vectors of its own and
# shares of its own; the base has 4 heads of queries, but only 2 of keys and values, so that two query heads share one
# (**grouped-query attention**; it makes the cache of lesson 5 smaller).
#
# The plainest way to write it: repeat the shared heads, and forbid what must not be seen by a score of minus infinity.
# `starts`, if given, says for each query the first key it may see (texts that lie in one row do not see each other).

# %%
def my_shares(xp, q, k, scale, starts=None):
    """What each query gives to each key: q (batch, heads, time, n), k (batch, fewer heads, keys, n)."""
    k = xp.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = q @ k.swapaxes(-1, -2) * scale  # (batch, heads, time, keys)
    time, keys = scores.shape[-2:]
    key, query = xp.arange(keys), xp.arange(keys - time, keys)[:, None]
    hidden = key > query  # (time, keys): what comes after
    if starts is not None:
        hidden = hidden | (key < starts[:, None, :, None])  # what belongs to another text
    scores = xp.where(hidden, -xp.inf, scores)
    e = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def my_attention(xp, q, k, v, scale, starts):
    """Causal attention; q (batch, heads, time, n), k and v (batch, fewer heads, keys, n), starts (batch, time)."""
    v = xp.repeat(v, q.shape[1] // v.shape[1], axis=1)
    return (my_shares(xp, q, k, scale, starts) @ v).astype(q.dtype)


# %%
with tinyllm.use(attention=my_attention):
    mine = loss_of(base)
assert abs(mine - usual) < 1e-5
kit.say(f"The real model over your attention: {mine:.4f}.")

# %% [markdown]
# **Predict.** One token in the middle of a text is replaced by another one. Which positions' outputs change, in a model
# of five blocks: the ones after it, the ones before it, or all?

# %% tags=["hide-output"]
ids = batch.ids[:1].copy()
before = base(ids).data
ids[0, 30] = (ids[0, 30] + 1) % 1024
after = base(ids).data
changed = np.abs(after - before).max(axis=(0, 2)) > 0
assert not changed[:30].any() and changed[30:].all()
kit.say(f"Positions 30 to {len(changed) - 1}, all of them; those before are equal to the last bit.")

# %% [markdown]
# **Why.** No block lets anything from the right in, so five of them do not either. This is a strong test: *bit for bit*
# equal, with no tolerance. Any peeking shows.
#
# What do heads look at? The engine never keeps the shares, but your own function can. Each block calls `attention`
# once:

# %%
words = "First Citizen: Before we proceed any further, hear me speak."
tokens = kit.tokenizer().encode(words)
seen = []


def watching(xp, q, k, v, scale, starts):
    seen.append(my_shares(xp, q, k, scale)[0])  # (heads, time, keys)
    return my_attention(xp, q, k, v, scale, starts)


with tinyllm.no_grad(), tinyllm.use(attention=watching):
    base(np.array([tokens]))
seen = np.array(seen)  # (blocks, heads, time, keys)


def figure_heads(seen):
    """The shares of two heads: the one that looks most at the token before, and the one that looks widest."""
    back = seen[:, :, np.arange(1, len(tokens)), np.arange(len(tokens) - 1)].mean(axis=-1)  # at the token before
    wide = -(seen * np.log(seen + 1e-9)).sum(axis=-1).mean(axis=-1)  # entropy
    chosen = [np.unravel_index(score.argmax(), score.shape) for score in (back, wide)]
    figure, axes = kit.plt.subplots(1, 2, figsize=(7.5, 4), layout="constrained")
    labels = [kit.tokenizer().decode([t]).strip() or "_" for t in tokens]
    for ax, (layer, head), what in zip(axes, chosen, ("looks at the one before", "looks widest"), strict=True):
        ax.imshow(seen[layer, head], cmap="viridis", vmin=0, vmax=1)
        ax.set_title(f"block {layer}, head {head}: {what}", fontsize=8)
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
        ax.set_yticks(range(len(labels)), labels, fontsize=6)
    kit.show(
        figure,
        f"Two maps of shares, queries down, keys across; above the diagonal all is zero. Block {chosen[0][0]}, head "
        f"{chosen[0][1]} gives {back.max():.0%} to the token before, on average. Block {chosen[1][0]}, head "
        f"{chosen[1][1]} spreads its shares over many tokens.",
    )
    return {"before": float(back.max()), "chosen": chosen}


drawn = figure_heads(seen)
assert drawn["before"] > 0.3 and np.allclose(seen.sum(axis=-1), 1, atol=1e-5)
kit.say(f"Nobody told a head to look at the token before; one of the twenty gives it {drawn['before']:.0%}.")

# %% [markdown]
# ## Exercise 04-visible: who sees whom
#
# *10 minutes, importance 4 of 5.*
#
# Write `visible(time, keys, window)`: a boolean array (time, keys), true where query t may see key s. The queries are
# the *last* `time` of the `keys` positions (the others are in a cache). `window`, if not 0, is how many keys a query
# sees at most, itself included. Every query sees itself.

# %%
def visible(time, keys, window):
    raise NotImplementedError("your turn")


check("04-visible", visible)

# %% [markdown]
# ## 3. A rotation
#
# Attention as it stands does not know *where* a key is: shuffle the positions before it, and the average is the same.
# So queries and keys are turned by an angle that grows with their position, and a dot product of two turned vectors
# depends on the *difference* of the angles only. This is **RoPE** (Su et al. 2021).
#
# The $n$ numbers of a head are $n/2$ pairs, each a point in a plane. Pair $i$ turns by $\theta_i$ a position, the first
# pair fast, the last one hardly: $\theta_i = 10000^{-2i/n}$. Which numbers form a pair is a convention: here $i$ and
# $i + n/2$, the halves.

# %%
def my_rope(xp, x, cos, sin):
    """Each pair (i, i + n/2) turned; x (batch, heads, time, n), cos and sin (batch or 1, 1, time, n/2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return xp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def angles(positions, n=40, base=10000.0):
    """cos and sin for these positions, (1, 1, time, n/2)."""
    turn = np.asarray(positions)[:, None] * base ** (-np.arange(0, n, 2) / n)
    return np.cos(turn)[None, None], np.sin(turn)[None, None]


with tinyllm.use(rope=my_rope):
    mine = loss_of(base)
assert abs(mine - usual) < 1e-5
kit.say(f"The real model over your rotation: {mine:.4f}.")

# %% [markdown]
# **Predict.** A query at position 7 and a key at position 3 have some score. What is the score of the same two vectors
# at 107 and 103? At 7 and 4?

# %% tags=["hide-output"]
generator = np.random.default_rng(0)
q, k = generator.standard_normal((2, 1, 1, 1, 40))


def score(at_q, at_k):
    turned_q, turned_k = (my_rope(np, x, *angles([at])) for x, at in ((q, at_q), (k, at_k)))
    return (turned_q * turned_k).sum()


near, far, other = score(7, 3), score(107, 103), score(7, 4)
assert abs(near - far) < 1e-10 < 1e-2 < abs(near - other)
kit.say(f"{near:.6f} and {far:.6f}: the distance is the same. At 7 and 4 it is {other:.6f}.")

# %% [markdown]
# Now the convention. Many files and programs pair *neighbours*: 0 with 1, 2 with 3. As mathematics that is as good. But
# the weights that make queries and keys were trained with one of the two.
#
# **Predict.** The base was trained with halves. Run it with neighbours. Does it fail, become a little worse, or much
# worse? Would you notice?

# %% tags=["hide-output"]
def neighbours(xp, x, cos, sin):
    """Each pair (2i, 2i + 1) turned."""
    a, b = x[..., 0::2], x[..., 1::2]
    return xp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)


with tinyllm.use(rope=neighbours):
    wrong = loss_of(base)
assert usual + 0.1 < wrong < np.log(1024)
kit.say(
    f"No error, and a loss of {wrong:.2f} in place of {usual:.2f}. Guessing gives {np.log(1024):.2f}. The model still "
    "writes something, so one may well not notice."
)

# %% [markdown]
# **Why.** Rotations keep lengths, and tokens nearby still get similar angles, so much of attention survives. This
# mistake is made again and again when weights are moved from one program to another; the remedy is to reorder the rows
# of the weights, and the test is one number, the loss on a known text.
#
# ## Exercise 04-reorder: from one pairing to the other
#
# *20 minutes, importance 4 of 5.*
#
# Write `to_halves(W, heads)`: W (heads * n, in) makes queries for a program that pairs neighbours. Return the weight,
# rows reordered, that makes the same scores in a program that pairs halves. (The same must be done for the keys, with
# their own number of heads.)

# %%
def to_halves(W, heads):
    raise NotImplementedError("your turn")


check("04-reorder", to_halves)

# %% [markdown]
# ## 4. A gate
#
# The second half of a block treats each position by itself: up to a longer vector (448 numbers here), something that is
# not linear, and down again. In **SwiGLU** (Shazeer 2020) two layers go up. One of them is the *gate*: it goes through
# $\text{silu}(z) = z \cdot \text{sigmoid}(z)$, and is multiplied with the other, number by number.

# %%
def my_silu_mul(xp, gate, up):
    """silu(gate) * up, of equal shapes."""
    return (gate / (1 + xp.exp(-gate)) * up).astype(gate.dtype)


# %% [markdown]
# **Predict.** Without anything that is not linear: what would five blocks of linear layers, one after the other, be
# able to compute that one cannot?

# %% tags=["hide-output"]
first, second = generator.standard_normal((2, 6, 6))
x = generator.standard_normal(6)
assert np.allclose(second @ (first @ x), (second @ first) @ x)
kit.say("Nothing: a product of matrices is a matrix. (Attention is not linear, though: it multiplies x with x.)")

# %% [markdown]
# All four at once. What is left of the engine is products, sums, and the order of things:

# %%
with tinyllm.use(rms_norm=my_rms_norm, rope=my_rope, attention=my_attention, silu_mul=my_silu_mul):
    mine = loss_of(base)
    losses = kit.fine_tune(kit.base(), steps=3)
theirs = kit.fine_tune(kit.base(), steps=3)
assert abs(mine - usual) < 1e-5 and np.abs(np.array(losses) - theirs).max() < 1e-3
three = ", ".join(f"{loss:.4f}" for loss in losses)
kit.say(f"{mine:.4f}, and three steps of training give {three}, as with the engine's.")

# %% [markdown]
# ## Three questions
#
# **1.** "Attention looks at all tokens, so the model knows their order." True?
#
# <details><summary>Answer</summary>
#
# Not by itself. Without RoPE, or something else that marks positions, a query sees a bag of keys: in any order the
# average is the same. (Being causal gives a little away: a position knows how many there are before it.)
#
# </details>
#
# **2.** Why is the last position's output enough to write the next token, when we train on all positions?
#
# <details><summary>Answer</summary>
#
# Each position predicts its own next token from what stands before it, and none sees what comes after. So a text of 64
# tokens is 64 tasks at once; to go on writing, only the last of them is of interest.
#
# </details>
#
# **3.** With 2 key heads for 4 query heads: are two of the query heads doing the same?
#
# <details><summary>Answer</summary>
#
# No. They compare with the same keys and average the same values, but with queries of their own, so with other shares.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * How the parts were found, or that they are the best ones. Other models have LayerNorm, GELU, learned positions.
# * What heads *mean*. A map of shares is suggestive; what a model would do without that head is another question.
# * Speed. Your attention holds all scores at once, which grows with the square of the length; the engine's goes by
#   tiles.

# %% [markdown]
# ## Now read
#
# - `tinyllm.backend.primitives.rms_norm`: yours, and its rule below it
# - `tinyllm.backend.primitives.rope`: the rotation; its rule is itself, backwards
# - `tinyllm.backend.primitives.attention`: by tiles of 32 queries
# - `tinyllm.models.decoder.DecoderModel`: the stack
# - `tinyllm.models.positions`: angles, and where each text starts
