# %% [markdown]
# # Lesson 13: What changes on a GPU?
#
# The same lines run on a graphics card: arrays are CuPy's in place of NumPy's, and the names are the same. What changes
# is what costs time, and the last digits. Both can be understood without a card, by counting and by adding up in other
# orders; that is what happens here, and where there is a card the lesson looks at it at the end.
#
# - **Needs**: lessons 2, 3, 8
# - **Minutes**: 60
# - **Afterwards you can**: say why a small model gains nothing from a card, what a fused kernel saves, and which
#   differences between two machines are rounding and which are bugs

# %%
import numpy as np
import tinyllm
from tinyllm.backend.random import Generator, raw_words
from tinyllm.course import check, kit
kit.begin(13, needs="0.2")

# %% [markdown]
# ## 1. One text for both
#
# The parts that you have written since lesson 1 have a first parameter, `xp`. It is the array module: `numpy`, or
# `cupy` with arrays in the card's memory. `xp.exp(x)` is the same line for both. So a part is written once, if it keeps
# two rules: it never says `numpy` where it means *the arrays' own module*, and it never looks at a single number, for
# that number is on the card and somebody has to wait for it.
#
# ## 2. A launch a line
#
# A card does nothing by itself. For each array operation Python submits one **kernel**, a small program for all numbers
# at once; to submit it takes some microseconds of Python, whatever the array's size. Then the card reads the arrays
# from its memory and writes the result. So an operation costs two things: a *launch*, and its *bytes*.
#
# Let us count both. An array that keeps a tally:

# %%
class Counting(np.ndarray):
    """An array of which every operation is counted: how many, and bytes read and written."""

    launches = moved = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **settings):
        plain = [np.asarray(x) if isinstance(x, Counting) else x for x in inputs]
        given = None if out is None else tuple(np.asarray(x) for x in out)
        y = getattr(ufunc, method)(*plain, out=given, **settings)
        Counting.launches += 1
        Counting.moved += sum(x.nbytes for x in plain if isinstance(x, np.ndarray)) + y.nbytes
        return out[0] if out is not None else np.asarray(y).view(Counting)


def counted(function, *arrays):
    """Launches and bytes of a call."""
    Counting.launches = Counting.moved = 0
    function(*(array.view(Counting) for array in arrays))
    return Counting.launches, Counting.moved


# %% [markdown]
# AdamW's step, as you wrote it in lesson 3, for `w`, `g`, `m` and `v` of a million numbers each:

# %%
def adamw(w, g, m, v):
    w *= 1 - 1e-3 * 0.01
    m += (1 - 0.9) * (g - m)
    v += (1 - 0.999) * (g * g - v)
    mean = m / (1 - 0.9)
    size = np.sqrt(v / (1 - 0.999))
    w -= 1e-3 * mean / (size + 1e-8)


n = 1_000_000
w, g, m, v = (np.ones(n, np.float32) for _ in range(4))
launches, moved = counted(adamw, w, g, m, v)

# %% [markdown]
# **Predict.** One kernel written for just this (a **fused** one) reads w, g, m and v and writes w, m and v: 7 numbers
# of 4 bytes for each of the million. How many times as much do the lines above move?

# %% tags=["hide-output"]
fused = 7 * 4 * n
assert launches > 10 and moved > 4 * fused
kit.say(
    f"{launches} launches move {moved / 1e6:.0f} MB, {moved / fused:.1f} times as much as the {fused / 1e6:.0f} MB of "
    "one kernel."
)

# %% [markdown]
# **Why.** Every line reads what the line before has just written, and in between it lies in memory. In a fused kernel
# it never leaves the thread that made it. On a processor the engine works in pieces that stay in the cache, for the
# same reason.
#
# Now put prices on it. On one H100 a plain copy moves 3.0 TB a second, and a step of a small model took the host about
# 37 microseconds a launch. With these two numbers:

# %%
COPY, LAUNCH = 3.0e12, 37e-6  # bytes a second; seconds a launch


def predicted(size, launches, bytes_each):
    """Seconds for an array of this size: whichever is longer, Python's submitting or the card's memory."""
    return np.maximum(launches * LAUNCH, size * bytes_each / COPY)


def figure_crossing():
    """Computed times of an AdamW step against the size, as array operations and fused."""
    sizes = np.logspace(3, 10, 60)
    figure, ax = kit.plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    both = {"array operations": (launches, moved / n), "one kernel": (1, 28)}
    crossing = {}
    for (name, (count, each)), colour in zip(both.items(), ("#d55e00", "#0072b2"), strict=True):
        ax.loglog(sizes, 1e3 * predicted(sizes, count, each), color=colour, label=name)
        crossing[name] = count * LAUNCH * COPY / each
        ax.axvline(crossing[name], color=colour, linestyle=":", linewidth=1)
    ax.set(xlabel="numbers in the array", ylabel="ms, computed")
    ax.legend(frameon=False, fontsize=8)
    kit.show(
        figure,
        "Computed time of a step against the size, both axes logarithmic: flat while Python's launches take longer, "
        f"then rising with the bytes. The bend is at {crossing['array operations']:.0e} numbers for array operations and "
        f"at {crossing['one kernel']:.0e} for one kernel.",
    )
    return crossing


crossing = figure_crossing()
largest = max(w.size for _, w in kit.base().named_weights())
assert min(crossing.values()) > largest
kit.say(
    f"Below {min(crossing.values()):,.0f} numbers the card waits for Python. The largest matrix of our base "
    f"has {largest:,}: for this model a card is a slow way to wait."
)

# %% [markdown]
# **Why.** That is what was measured as well: for a model of 135 million parameters six sevenths of a step on the H100
# were Python submitting kernels, and PyTorch, whose submitting is quicker, was ahead. At seven billion parameters and
# many tokens the kernels alone took all the time.
#
# So what helps small models is fewer launches: fused kernels, or recording a whole step once and replaying it. What
# helps large ones is fewer bytes: half precision, four bits, fused kernels again.
#
# ## Exercise 13-launches: what limits it?
#
# *10 minutes, importance 4 of 5.*
#
# Write `limited_by(launches, moved, flops, launch, bandwidth, speed)`: "launches", "memory" or "arithmetic", whichever
# takes longest: `launches` of `launch` seconds each, `moved` bytes at `bandwidth` bytes a second, `flops` operations at
# `speed` a second. Of equal ones the first in that order.

# %%
def limited_by(launches, moved, flops, launch, bandwidth, speed):
    raise NotImplementedError("your turn")


check("13-launches", limited_by)

# %% [markdown]
# ## 3. Waiting
#
# Submitting does not wait: Python goes on while the card works. It must wait when it wants to *see* a number:
# `print(loss)`, `if norm > 1:`, `float(x)`. Then everything that was submitted has to be finished first, and meanwhile
# nothing new is.
#
# **Predict.** In a training loop: which lines have to see a number? The forward pass, backward, clipping, AdamW?

# %% tags=["hide-output"]
kit.say(
    "Only clipping, and whoever checks that the loss is finite. The engine reads the losses and all squared norms "
    "together, once a step: one wait. A loop that prints the loss and then computes the norm waits twice."
)

# %% [markdown]
# ## 4. The last digits
#
# $(a + b) + c$ and $a + (b + c)$ differ in floating point. A card adds up in other orders than a processor, so results
# differ; the question is by how much they *may*. A sum of products $\sum a_i b_i$ of $k$ terms, each rounded to a
# relative $\epsilon$ (0.00000006 in float32), is off by at most about $k\, \epsilon \sum |a_i b_i|$, and typically by
# $\sqrt k\, \epsilon \sum |a_i b_i|$ or less. That is an **error budget**: it knows the size of what is added up, which
# a tolerance like 0.01 does not.

# %%
generator = np.random.default_rng(0)


def in_units(k, narrow=lambda a: a, rows=64):
    """The largest error of float32 products of length k, in units of eps * sum |a b|, against float64."""
    a, b = generator.standard_normal((2, rows, k)).astype(np.float32)
    exact = (a.astype(np.float64) * b).sum(axis=1)
    budget = np.abs(a.astype(np.float64) * b).sum(axis=1) * 2.0**-24
    a, b = narrow(a), narrow(b)
    one_by_one = np.cumsum(a * b, axis=1, dtype=np.float32)[:, -1]  # as a simple loop adds
    by_pairs = (a * b).sum(axis=1, dtype=np.float32)  # NumPy adds halves of halves
    return [float((np.abs(y - exact) / budget).max()) for y in (one_by_one, by_pairs)]


lengths = (16, 64, 256, 1024, 4096)
units = np.array([in_units(k) for k in lengths])


def figure_errors(units):
    """Errors of two orders of adding, in units of what one rounding explains."""
    figure, ax = kit.plt.subplots(figsize=(6, 3), layout="constrained")
    ax.loglog(lengths, units[:, 0], "s-", color="#d55e00", label="one by one")
    ax.loglog(lengths, units[:, 1], "o-", color="#0072b2", label="halves of halves")
    ax.loglog(lengths, np.sqrt(lengths), ":", color="#444444", label="square root of the length")
    ax.set(xlabel="terms of the sum", ylabel="error / (eps · sum of |a b|)")
    ax.legend(frameon=False, fontsize=8)
    kit.show(
        figure,
        f"Error of a sum against its length, in units of one rounding. One by one it grows to {units[-1, 0]:.1f} at "
        f"{lengths[-1]} terms, by halves of halves it stays at {units[-1, 1]:.1f}.",
    )
    return units


drawn = figure_errors(units)
assert drawn[-1, 0] > 2 * drawn[-1, 1] and (drawn[:, 0] < lengths).all()
kit.say("Both are right. They differ in the last digits, because they add up in another order.")

# %% [markdown]
# Cards can also be faster by being less exact: **TF32** rounds the factors to 11 binary digits before it multiplies,
# and bfloat16 to 8.
#
# **Predict.** By which factor does the error grow when the factors are bfloat16?

# %% tags=["hide-output"]
from tinyllm.backend.half import from_bfloat16, to_bfloat16

coarse = in_units(1024, lambda a: from_bfloat16(to_bfloat16(a)))[1]
fine = units[lengths.index(1024), 1]
assert coarse > 1000 * fine
kit.say(
    f"From {fine:.1f} to {coarse:,.0f} units. Each factor is off by up to 1/512 in place of 1/33,000,000. A test for "
    "float32 that passes with bfloat16 factors would pass with anything."
)

# %% [markdown]
# ## Exercise 13-budget: rounding or bug?
#
# *15 minutes, importance 5 of 5.*
#
# Write `explained(a, b, y, eps)`: whether `y` can be the product `a @ b`, matrices of floats, computed with relative
# rounding `eps` in any order: every number within $k \epsilon (|a|\, |b|)$ of the exact one, with k the length of the
# sums. Compute "exact" in float64. NaN is never explained.

# %%
def explained(a, b, y, eps):
    raise NotImplementedError("your turn")


check("13-budget", explained)

# %% [markdown]
# ## 5. The same dice
#
# Dropout needs random numbers. If the card drew its own, a run on a card and one on a processor could never be
# compared. So the engine's come from a **counter**: word number $i$ of seed $s$ is a function of $s$ and $i$ alone
# (Philox, Salmon et al. 2011). Every thread computes its own words, in any order, and no one has to wait for the word
# before.

# %%
first = Generator(7).words(12)
later = raw_words((7, 2), 4)  # the third block of four, words 8 to 11, without those before
assert (first[8:] == later).all()
kit.say("Words 8 to 11 are the same, whether or not somebody drew those before.")

# %% [markdown]
# **Predict.** A sum of many numbers whose threads add into one place, each when it comes by: is it the same in every
# run?

# %% tags=["hide-output"]
numbers = generator.standard_normal(10_000).astype(np.float32)
sums = {float(np.cumsum(generator.permutation(numbers), dtype=np.float32)[-1]) for _ in range(20)}
assert len(sums) > 10
kit.say(f"No: twenty orders gave {len(sums)} different sums, from {min(sums):.5f} to {max(sums):.5f}.")

# %% [markdown]
# **Why.** Who comes first differs from run to run on a card. So the engine's gradient of the embedding, where many
# positions add into one row, sorts them first and adds in a fixed order: the same run gives the same bits.
#
# ## Exercise 13-order: the same on every run
#
# *15 minutes, importance 3 of 5.*
#
# Write `added(rows, gradients, count)`: an array (count, n) where row r is the sum of those of `gradients` (m, n) whose
# entry of `rows` (m,) is r, *added in the order in which they stand*, in their own dtype, whatever order the result is
# computed in. Rows without any are zero.

# %%
def added(rows, gradients, count):
    raise NotImplementedError("your turn")


check("13-order", added)

# %% [markdown]
# ## 6. If there is a card
#
# `tinyllm.set_device("cuda")` before the model is made, and everything above runs on it.

# %%
from tinyllm.backend.device import probe

reason = probe()
if reason is not None:
    kit.say(f"Not here: {reason} What was measured on a card stands on the page on performance.")
else:
    here = kit.fine_tune(kit.base(), steps=5)
    tinyllm.set_device("cuda")
    there = kit.fine_tune(kit.base(), steps=5)
    tinyllm.set_device("cpu")
    gap = np.abs(np.array(here) / there - 1).max()
    assert gap < 1e-5
    kit.say(f"Five losses on the card and on the processor: at most {gap:.0e} apart.")

# %% [markdown]
# ## Three questions
#
# **1.** "The card is 20 times as fast as the processor, so training takes a twentieth." True?
#
# <details><summary>Answer</summary>
#
# Only if the card is busy. With small arrays it waits for Python, and the same training may even take longer.
#
# </details>
#
# **2.** Two runs of the same program on the same card differ in the fifth digit after a thousand steps. A bug?
#
# <details><summary>Answer</summary>
#
# It may be rounding: some sum is added up in an order that changes, and training makes small differences larger.
# Whoever wants to know runs one step twice and looks for the first array that differs (lesson 6).
#
# </details>
#
# **3.** Why not simply compare with a tolerance of 0.01?
#
# <details><summary>Answer</summary>
#
# For numbers around 1,000 that is too strict, for numbers around 0.001 it accepts anything. A budget goes with the size
# of what was added up.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * Times on your card. The prices above are of one H100 and one host; the page on performance has what was measured.
# * Products of matrices, where a card is strongest: there arithmetic counts, and not bytes.
# * Several cards.

# %% [markdown]
# ## Now read
#
# - `tinyllm.backend.device.set_device`: how a device is chosen
# - `tinyllm.backend.primitives.adamw_step`: AdamW with one temporary array
# - `tinyllm.backend.random.Generator`: the same dice everywhere
# - `tinyllm.train.loop.accumulate`: the one wait of a step
