# %% [markdown]
# # Lesson 2: How do we do that for whole arrays?
#
# Lesson 1 found the derivatives of a calculation with single numbers. A language model has millions of them, and no
# program that makes an object for each is fast. So the numbers stand in arrays, and one operation works on a whole
# array. Its gradient does, too. Here you find the rules for the operations that models are made of, learn to test
# each without knowing any calculus, and meet the two ways in which computer numbers spoil a correct formula.
#
# - **Needs**: lesson 1
# - **Minutes**: 60
# - **Replaces in lesson 0**: lines of `cross_entropy` and `linear` by the real ones
# - **Afterwards you can**: derive the gradient of a broadcast and of a matrix product from shapes alone, write a
#   softmax that does not overflow, and choose the step for checking a gradient

# %%
import numpy as np
import tinyllm
from tinyllm import functional
from tinyllm.course import check, kit
from tinyllm.tensor import op
kit.begin(2, needs="0.2")

# %% [markdown]
# ## 1. Not a table but a rule
#
# In lesson 1 each number knew its local derivative by each parent. Between arrays these would be tables: one row for
# every number of the result, one column for every number of the input. Such a table is called the **Jacobian**.

# %% [markdown]
# **Predict.** The small model's hidden state for 4 texts of 64 tokens is an array of shape (4, 64, 160). How many
# bytes has the table for $y = e^x$ on it, in float32?

# %% tags=["hide-output"]
numbers = 4 * 64 * 160
table = 4 * numbers**2
kit.say(
    f"The array has {numbers:,} numbers, so the table has {numbers**2:,}: {table / 1e9:.1f} GB. All of them but the "
    f"diagonal, {numbers:,} numbers, are zero."
)

# %% [markdown]
# Nobody builds that table. The walk needs only one thing of it: the gradient $g$ of the result, times the table. For
# the exponential that is $g \cdot y$, number by number. So an operation is written as its value and a **rule**, a
# function from the gradient of the result to the gradient of the input. This is the engine's own way, whole:

# %%
def square(a):
    x = a.data
    return op(x * x, (a, lambda g: g * 2 * x))


a = tinyllm.Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
square(a).sum().backward()
assert (a.grad == [2.0, 4.0, 6.0]).all()
print(a.grad)

# %% [markdown]
# ### A test that needs no calculus
#
# Many operations only move, copy or add numbers: reshape, slice, sum, broadcast, multiply by a fixed matrix. They are
# **linear**, and the rule of a linear $f$ is its **transpose** $f^T$. It is the only function with
#
# $$\langle g, f(v) \rangle = \langle f^T(g), v \rangle \quad\text{for all } g \text{ and } v,$$
#
# where $\langle \cdot, \cdot \rangle$ multiplies number by number and adds up. Why: both sides count, for each path
# from a number of $v$ to a number of $f(v)$, the two ends and the factor on the path; they only start from different
# ends. So one draws two random arrays and compares two numbers. We call it the **dot-product rule**.

# %%
generator = np.random.default_rng(0)


def dot_error(f, back, shape):
    """How far <g, f(v)> and <back(g), v> are apart, relatively, for random v of a shape and random g."""
    v = generator.standard_normal(shape)
    y = f(v)
    g = generator.standard_normal(y.shape)
    left, right = (g * y).sum(), (back(g) * v).sum()
    return abs(left - right) / np.sqrt((g**2).sum() * (y**2).sum())


# %% [markdown]
# ## 2. Broadcasting
#
# Add a column of shape (3, 1) to a table of shape (3, 4), and NumPy **broadcasts** it: as if the column were copied
# four times. The same happens to a bias of shape (4,), which is added to every row. In the graph each copy is a path
# from the one number that was copied. And what comes by different paths is added up. So: *what is copied on the way
# forward is summed on the way back*.
#
# Which axes? NumPy lines shapes up at their right end, sets missing axes in front, and stretches axes of length 1.

# %%
def my_unbroadcast(g, shape):
    """The gradient `g` of a broadcast array, summed to the `shape` that the array had."""
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    for axis, n in enumerate(shape):
        if n == 1:
            g = g.sum(axis=axis, keepdims=True)
    return g


# %% [markdown]
# **Predict.** The gradient of a sum has shape (5, 3, 4). Over which axes is it summed for an input of shape (3, 1),
# and which shape must come out?

# %% tags=["hide-output"]
reduced = my_unbroadcast(np.ones((5, 3, 4)), (3, 1))
assert reduced.shape == (3, 1) and (reduced == 20).all()
kit.say(
    f"Over the first, which was set in front, and the last, which was stretched: {reduced.shape}, and each number is a "
    f"sum of {reduced[0, 0]:.0f}."
)

# %% [markdown]
# Now the test, on all pairs of shapes with up to three axes of length 1, 2 or 3. Two wrong ones beside it: one takes
# the mean in place of the sum, the other forgets the axes of length 1.

# %%
def mean(g, shape):
    return my_unbroadcast(g, shape) * (np.prod(shape) / g.size)


def front_only(g, shape):
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    return g if g.shape == shape else g[tuple(slice(0, n) for n in shape)]


def shapes(most=3):
    """All shapes of up to three axes, each of length 1 to 3."""
    found = [()]
    for shape in found:
        if len(shape) < most:
            found += [(*shape, n) for n in (1, 2, 3)]
    return found


def broadcasts(small, large):
    return len(small) <= len(large) and all(m in (1, n) for m, n in zip(small[::-1], large[::-1], strict=False))


pairs = [(small, large) for small in shapes() for large in shapes() if broadcasts(small, large)]


def failures(candidate):
    """For how many pairs of shapes the candidate is no transpose of broadcasting."""
    wrong = 0
    for small, large in pairs:
        copied = lambda v, shape=large: np.broadcast_to(v, shape)
        summed = lambda g, shape=small: candidate(g, shape)
        wrong += bool(dot_error(copied, summed, small) > 1e-12)
    return wrong


failed = {candidate.__name__: failures(candidate) for candidate in (my_unbroadcast, mean, front_only)}
assert failed["my_unbroadcast"] == 0 and failed["mean"] > 0 and failed["front_only"] > 0
kit.say(f"Of {len(pairs)} pairs of shapes fail: " + ", ".join(f"`{name}` {n}" for name, n in failed.items()) + ".")

# %%
def figure_broadcast():
    """A column copied forward, and its gradient summed backward; returns the arrays."""
    column = np.array([[1.0], [2.0], [3.0]])
    g = np.array([[1.0, 0, 2, 1], [0, 3, 0, 1], [2, 2, 2, 2]])
    copied, summed = np.broadcast_to(column, g.shape), my_unbroadcast(g, column.shape)
    panels = {"column\n(3, 1)": column, "copied\n(3, 4)": copied, "gradient\n(3, 4)": g, "summed\n(3, 1)": summed}
    widths = [array.shape[1] for array in panels.values()]
    figure, every = kit.plt.subplots(1, 4, figsize=(7, 2.8), width_ratios=widths, layout="constrained")
    for axes, (title, array) in zip(every, panels.items(), strict=True):
        axes.imshow(array, cmap="Blues", vmin=0, vmax=16)
        for (i, j), value in np.ndenumerate(array):
            axes.text(j, i, f"{value:g}", ha="center", va="center")
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
    kit.show(
        figure,
        f"Four tables. The column {column[:, 0].tolist()} is copied to four equal columns. The gradient of the copies "
        f"has the rows {g.tolist()}; its row sums {summed[:, 0].tolist()} are the gradient of the column.",
    )
    return {"column": column.tolist(), "gradient": g.tolist(), "summed": summed.tolist()}


drawn = figure_broadcast()
assert drawn["summed"] == [[4.0], [4.0], [8.0]]
sums = [row[0] for row in drawn["summed"]]
kit.say(f"The rows of the gradient add up to {sums}: one number for each that was copied.")

# %% [markdown]
# ## 3. The matrix product
#
# $C = A B$ with $A$ of shape $(m, k)$ and $B$ of shape $(k, n)$. Take one number, $A_{ik}$. It is used in the row
# $C_{i1} \ldots C_{in}$, each time multiplied by a number of $B$: $n$ paths, with the factors $B_{k1} \ldots B_{kn}$.
# So its gradient is $\sum_j G_{ij} B_{kj}$, and that is a matrix product again. In the same way for $B$:
#
# $$G^A = G\, B^T, \qquad G^B = A^T G.$$
#
# No need to memorise it: the shapes leave no other way to put $G$ $(m, n)$ and $B$ $(k, n)$ together to $(m, k)$.

# %%
A = np.array([[1.0, 2.0]])  # (1, 2)
B = np.array([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])  # (2, 3)
G = np.array([[1.0, 0.0, -1.0]])  # (1, 3), as C = A @ B
print("gradient of A", G @ B.T)
print("gradient of B", (A.T @ G).tolist())
assert ((G @ B.T) == [[3 - 5, 6 - 8]]).all()

a, b = (tinyllm.Tensor(x, requires_grad=True) for x in (A, B))
(a @ b).backward(G)
assert (a.grad == G @ B.T).all() and (b.grad == A.T @ G).all()

# %% [markdown]
# In a model the left side has more axes: a batch of texts, each with some tokens, $(8, 64, k)$, times one weight $(k,
# n)$ for all of them. NumPy's `@` broadcasts the axes in front.

# %% [markdown]
# **Predict.** The rule for the weight is $A^T G$ for each text. What shape is that, and what has to happen to it?

# %% tags=["hide-output"]
x, weight = generator.standard_normal((8, 64, 10)), generator.standard_normal((10, 6))
g = generator.standard_normal((8, 64, 6))
each = x.swapaxes(-1, -2) @ g
a, b = tinyllm.Tensor(x), tinyllm.Tensor(weight, requires_grad=True)
with tinyllm.use(unbroadcast=my_unbroadcast):
    (a @ b).backward(g)
apart = np.abs(b.grad - each.sum(axis=0)).max()
flat = np.abs(b.grad - x.reshape(-1, 10).T @ g.reshape(-1, 6)).max()
assert each.shape == (8, 10, 6) and apart < 1e-12 and flat < 1e-12
kit.say(
    f"{each.shape}, a gradient for each text. The weight was shared by the texts, so they are summed, by your "
    "`my_unbroadcast`, which the engine has just used. To write all tokens of all texts below each other, and multiply "
    f"once, gives the same but for rounding ({flat:.0e}) and saves that sum; so `tinyllm.functional.linear` does it."
)

# %% [markdown]
# ## 4. Scores, shares and the largest float
#
# The model's last product gives a score, or **logit**, for every token that may come next. Softmax makes shares of
# them, $p_i = e^{x_i} / \sum_j e^{x_j}$, and the loss is $-\log p_t$ for the token $t$ that did come: zero if it had
# all of the share, large if it had almost none. This is the **cross-entropy**.

# %% [markdown]
# **Predict.** What does this formula, typed as it stands, give for the scores 0 and 10,000? And for 0 and 100, in
# float32?

# %% tags=["hide-output"]
def typed(x):
    with np.errstate(all="ignore"):
        return np.log(np.exp(x) / np.exp(x).sum())


for scores in ([0.0, 10.0], [0.0, 100.0], [0.0, 1e4]):
    x = np.array(scores, np.float32)
    right = functional.log_softmax(tinyllm.Tensor(x)).numpy()
    print(f"{str(scores):16} as typed {str(typed(x)):24} as it should be {right}")
largest = float(np.log(np.finfo(np.float32).max))
assert np.isnan(typed(np.array([0.0, 1e4], np.float32))).any()
kit.say(f"Above {largest:.1f} the exponential is infinite in float32, and infinite by infinite is no number.")

# %% [markdown]
# **Why.** Softmax has a freedom that helps: add the same number to all scores, and the shares stay as they are, since
# $e^c$ cancels. So take the largest score off first. Then the largest exponential is $e^0 = 1$, and nothing
# overflows. What underflows to zero was too small to count beside that 1. And do not take the logarithm of a share,
# which may have become 0; take it of the sum:
#
# $$\log p_i = (x_i - m) - \log \sum_j e^{x_j - m}, \qquad m = \max_j x_j.$$

# %%
def log_shares(x):
    """The logarithm of softmax over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


x = np.array([[0.0, 1e4], [-1e4, 1e4], [2.0, 2.0], [88.0, 89.0]], np.float32)
theirs = functional.log_softmax(tinyllm.Tensor(x)).numpy()
assert (log_shares(x) == theirs).all() and np.isfinite(theirs).all()
print(log_shares(x))

# %% [markdown]
# ### The gradient of cross-entropy
#
# The loss is $-x_t + \log \sum_j e^{x_j}$. By $x_i$ the second part has the derivative $e^{x_i} / \sum_j e^{x_j} =
# p_i$, the first $-1$ at the right token and 0 elsewhere. Together, with $y$ for the **one-hot** array that is 1 at
# the right token and 0 elsewhere:
#
# $$\frac{\partial\, \text{loss}}{\partial x} = p - y.$$
#
# What the model believes, minus what was true. With shares 0.5, 0.25, 0.25 and the first token right: -0.5, 0.25,
# 0.25. It adds up to 0, since shifting all scores does nothing, and no number in it is larger than 1, however wrong
# the model is.

# %%
def belief_minus_truth(logits, targets):
    """d(mean cross-entropy)/d(logits); logits (rows, classes), targets (rows,)."""
    g = np.exp(log_shares(logits))
    g[np.arange(len(targets)), targets] -= 1
    return g / len(targets)


by_hand = belief_minus_truth(np.log(np.array([[0.5, 0.25, 0.25]])), np.array([0]))
assert np.allclose(by_hand, [[-0.5, 0.25, 0.25]], rtol=0, atol=1e-15)

logits, targets = generator.standard_normal((6, 11)) * 3, generator.integers(0, 11, 6)
tensor = tinyllm.Tensor(logits, requires_grad=True)
functional.cross_entropy(tensor, targets).backward()
apart = np.abs(belief_minus_truth(logits, targets) - tensor.grad).max()
assert apart < 1e-14
kit.say(
    f"Six rows of eleven scores: yours and the engine's gradient differ by at most {apart:.0e}; its rows add up to at "
    f"most {np.abs(tensor.grad.sum(axis=-1)).max():.0e}."
)

# %% [markdown]
# ## 5. A model out of these parts
#
# Enough for a small language model. It looks at one token only: a row of a table for it, times a weight, plus a bias,
# gives the scores for the next token. The bias is broadcast over all positions, so its gradient goes through your
# function.

# %%
def parameters(vocabulary=1024, width=32, dtype=np.float32):
    draw = np.random.default_rng(0).standard_normal
    arrays = draw((vocabulary, width)), draw((width, vocabulary)) / width, np.zeros(vocabulary)
    return [tinyllm.Parameter(array.astype(dtype)) for array in arrays]


def loss_of(table, weight, bias, batch):
    hidden = functional.embedding(table, batch.ids)
    return functional.cross_entropy(hidden @ weight + bias, batch.labels)


calls = []


def counted(g, shape):
    calls.append((g.shape, shape))
    return my_unbroadcast(g, shape)


stream = kit.batches(size=8, time=64)
model, losses = parameters(), []
with tinyllm.use(unbroadcast=counted):
    for _, batch in zip(range(60), stream, strict=False):
        loss = loss_of(*model, batch)
        loss.backward()
        for p in model:
            p.data -= 10 * p.grad  # down the slope; lesson 3 does this better
            p.grad = None
        losses.append(loss.item())
assert losses[-1] < losses[0] - 1
kit.say(
    f"The loss falls from {losses[0]:.2f} to {losses[-1]:.2f}. The same share for each of the 1,024 tokens would give "
    f"log 1024 = {np.log(1024):.2f}. `my_unbroadcast` was called {len(calls)} times, first "
    f"to sum {calls[0][0]} to {calls[0][1]}."
)

# %% [markdown]
# ## 6. How exact is a check?
#
# A derivative along a direction $v$ by differences, $(f(x + h v) - f(x - h v)) / 2h$, has two errors. The formula's
# own gets smaller with the step, like $h^2$. Rounding gets worse: the two values agree in most of their digits, which
# cancel, and what is left of the last digits is divided by $h$. float32 has 24 bits, about 7 digits; float64 has 53,
# about 16.

# %%
def slopes(dtype, steps, batch):
    """The derivative of the loss along one direction: by backward, and by differences for each step."""
    model = parameters(dtype=dtype)
    draw = np.random.default_rng(1).standard_normal
    directions = [draw(p.shape).astype(dtype) for p in model]
    loss_of(*model, batch).backward()
    slope = float(sum((p.grad.astype(np.float64) * v).sum() for p, v in zip(model, directions, strict=True)))

    def at(h):
        moved = [tinyllm.Tensor(p.data + dtype(h) * v) for p, v in zip(model, directions, strict=True)]
        return float(loss_of(*moved, batch).item())

    return slope, np.array([(at(h) - at(-h)) / (2 * h) for h in steps])


def figure_steps(batch):
    """The error of differences against the step, in float64 and float32; returns the errors."""
    steps = 10.0 ** np.arange(-11, 0.1, 0.5)
    exact, double = slopes(np.float64, steps, batch)
    backward, single = slopes(np.float32, steps, batch)
    errors = {"float64": np.abs(double / exact - 1), "float32": np.abs(single / exact - 1)}
    own = abs(backward / exact - 1)
    figure, axes = kit.plt.subplots(figsize=(7, 4))
    for (name, error), colour, marker in zip(errors.items(), ("#0072b2", "#d55e00"), "os", strict=True):
        axes.loglog(steps, error, marker=marker, color=colour, label=f"differences in {name}")
    axes.axhline(own, color="#d55e00", linestyle="--", label="backward in float32")
    axes.set(xlabel="step h", ylabel="relative error of the derivative")
    axes.legend(fontsize=9)
    figure.tight_layout()
    best = {name: (float(steps[error.argmin()]), float(error.min())) for name, error in errors.items()}
    kit.show(
        figure,
        "Error of the differences against the step, both logarithmic: two curves shaped like a V. "
        + " ".join(f"{name} is best at h = {h:.0e} with an error of {error:.0e}." for name, (h, error) in best.items())
        + f" A dashed line at {own:.0e} is the error of backward in float32.",
    )
    return {"steps": steps.tolist(), "best": best, "backward": own} | {k: e.tolist() for k, e in errors.items()}


# %% [markdown]
# **Predict.** Which $h$ is best in float64, and which in float32? How many digits of the derivative are right there?

# %% tags=["hide-output"]
batch = next(kit.batches(size=2, time=32))
drawn = figure_steps(batch)
(h64, best64), (h32, best32) = drawn["best"]["float64"], drawn["best"]["float32"]
poor32 = max(error for h, error in zip(drawn["steps"], drawn["float32"], strict=True) if 1e-6 < h < 1e-4)
assert best64 < 1e-8 and best32 > 1000 * best64 and h32 > h64 and drawn["backward"] < 1e-5 and poor32 > 1e-3
kit.say(
    f"In float64 the best step is about {h64:.0e}, where {best64:.0e} of the derivative is wrong; in float32 about "
    f"{h32:.0e}, and {best32:.0e} is wrong. The gradient of backward itself is off by {drawn['backward']:.0e} in "
    "float32: there is no small difference of two large values in it."
)

# %% [markdown]
# **Why it matters.** A check in float32 needs a tolerance so wide that real mistakes fit into it. Training in float32
# is fine, checking is done in float64. `tinyllm.gradcheck` refuses anything else.

# %%
double = parameters(vocabulary=50, width=6, dtype=np.float64)
ids, labels = generator.integers(0, 50, (2, 2, 9))


def small_loss(table, weight, bias):
    return functional.cross_entropy(functional.embedding(table, ids) @ weight + bias, labels)


with tinyllm.use(unbroadcast=my_unbroadcast):
    worst = tinyllm.gradcheck(small_loss, *double)
assert worst < 1e-8
kit.say(f"All three gradients of the model pass, off by at most {worst:.0e}.")

# %% [markdown]
# ## 7. What stays in memory
#
# A rule is called after the whole forward pass, so whatever array it *names* must stay until then. This is where the
# memory of training goes, and you can read it off the rules. `tinyllm.kept` lists it.

# %% [markdown]
# **Predict.** Which of these keep an array: `a + b`, `a * b`, `a.exp()`, `a.sum()`? How many do they keep?

# %% tags=["hide-output"]
a, b = (tinyllm.Parameter(np.ones((100, 100), np.float32)) for _ in range(2))
kept = {"a + b": a + b, "a * b": a * b, "a.exp()": a.exp(), "a.sum()": a.sum()}
bytes_kept = {name: tinyllm.kept(result).total for name, result in kept.items()}
assert list(bytes_kept.values()) == [0, 80_000, 40_000, 0]
said = "; ".join(f"`{name}` keeps {size:,} bytes" for name, size in bytes_kept.items())
kit.say(f"{said}. One array has {a.data.nbytes:,}.")

# %% [markdown]
# **Why.** The rules of a sum name no array: gradients are handed on or spread out. A product's rules name the *other*
# factor, so two; if one factor needs no gradient, only that one itself is kept. The exponential's rule names its
# result. Now the small model of section 5:

# %%
print(tinyllm.kept(loss_of(*model, batch)))

# %% [markdown]
# The hidden rows are kept for the weight, the weight for the hidden rows, and the scores for the cross-entropy. The
# bias appears nowhere. Remember this table: LoRA and QLoRA, in lessons 8 to 11, are about its lines.

# %% [markdown]
# ## Exercise 02-matmul: both rules, with any axes in front
#
# *20 minutes, importance 5 of 5.*
#
# Write `matmul_backward(g, a, b)`: the gradients of `a` and `b`, as a pair, for `a @ b` whose gradient is `g`. `a` is
# (..., m, k), `b` (..., k, n), and the axes in front broadcast. Each gradient has the shape of its array. Test it by
# the dot-product rule: with `b` fixed, `a @ b` is linear in `a`.
#
# <details><summary>Hint</summary>
#
# First the rules of section 3 with the last two axes swapped, then sum what was broadcast.
#
# </details>

# %%
def matmul_backward(g, a, b):
    raise NotImplementedError("your turn")


check("02-matmul", matmul_backward)

# %% [markdown]
# ## Exercise 02-logsumexp: safe at both ends
#
# *15 minutes, importance 4 of 5.*
#
# Write `logsumexp(x)`: the value $\log \sum_j e^{x_j}$ over the last axis of an array (..., n), and its gradient,
# shape (..., n), for a gradient of 1. Both must be finite for scores of 1e4 and of -1e4, keep float32 as float32, and
# `x` must stay unchanged.
#
# <details><summary>Hint</summary>
#
# Section 4 has used its derivative already. It has a name.
#
# </details>

# %%
def logsumexp(x):
    raise NotImplementedError("your turn")


check("02-logsumexp", logsumexp)

# %% [markdown]
# ## Exercise 02-ignored: positions that shall not count
#
# *20 minutes, importance 4 of 5.*
#
# Some positions have no right answer: padding, or a question that the model shall not learn to ask. Their target is
# -100. Write `masked_cross_entropy(logits, targets)`: the mean loss over the positions that count, and the gradient.
# logits (rows, classes), targets (rows,). The gradient's row is 0 where the target is -100, and the mean is over
# those that count, not over all.
#
# <details><summary>Hint</summary>
#
# -100 is a valid index in NumPy if there are at least 100 classes, and a silent mistake. Look up a harmless class
# there, and multiply by 0 afterwards.
#
# </details>

# %%
def masked_cross_entropy(logits, targets):
    raise NotImplementedError("your turn")


check("02-ignored", masked_cross_entropy)

# %% [markdown]
# ## Exercise 02-transposed: write the test
#
# *20 minutes, importance 5 of 5.*
#
# Write `is_transposed(f, back, shape)`, which says `True` if `back` is the transpose of the linear function `f` of
# arrays of that shape, and `False` if not. It will be given right pairs, which it must accept, and wrong ones: zeros,
# the mean for the sum, a result of the wrong shape, axes in the wrong order, one that is wrong at a single place.
#
# <details><summary>Hint</summary>
#
# Arrays of ones, as in `.sum()`, let several of these through. What shape must `back(g)` have? NumPy would broadcast
# a wrong one without a word.
#
# </details>

# %%
def is_transposed(f, back, shape):
    raise NotImplementedError("your turn")


check("02-transposed", is_transposed)

# %% [markdown]
# ## Three questions
#
# **1. A bias is added to every one of 512 positions. Is its gradient the mean over them?**
#
# <details><summary>Answer</summary>
#
# The sum. If the loss is a mean, its gradient has been divided by the number of positions already, in the loss's own
# rule. To divide again makes the bias learn 512 times too slowly, and nothing crashes.
#
# </details>
#
# **2. Taking the maximum off the scores: is that an approximation?**
#
# <details><summary>Answer</summary>
#
# No. Shares do not change when the same number is taken off all scores; the formula is equal, and only its rounding
# is better. Nor does the maximum need a gradient of its own: since the result does not depend on what was taken off,
# that gradient is zero.
#
# </details>
#
# **3. My gradient check fails with an error of 1e-3 in float32. Is my gradient wrong?**
#
# <details><summary>Answer</summary>
#
# One cannot tell: section 6 shows that differences in float32 can be that far off by themselves. Do not widen the
# tolerance. Check in float64, where a right gradient agrees to eight digits or more and a wrong one does not.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# The test by random arrays finds a wrong linear rule almost surely, for the shapes it was tried on. The table of kept
# arrays is what backward needs; the most that is in memory at once is more, since gradients come on top (lesson 7).
# And half precision, with 8 or 11 bits, has troubles of its own that float32 does not have.

# %% [markdown]
# ## Now read
#
# - `tinyllm.tensor.op`: a value and its rules
# - `tinyllm.autograd.unbroadcast`: yours, in two sums
# - `tinyllm.ops.products.matmul`: both rules, and vectors
# - `tinyllm.functional.log_softmax`: the rule reads the result, not the scores
# - `tinyllm.functional.cross_entropy`: what it keeps is the scores
# - `tinyllm.inspect.kept.kept`: how what a rule names is found
