# %% [markdown]
# # Lesson 3: How do gradients become learning?
#
# A gradient says, for each number of a model, which way the loss goes up. It does not say how far to walk down. Between
# the gradients of lessons 1 and 2 and a model that has learned something stand an optimiser, a limit, a schedule, and
# some care in adding things up. Each is a few lines. You write them, and train the real base with them.
#
# - **Needs**: lessons 1, 2
# - **Minutes**: 60
# - **Replaces in lesson 0**: lines of `batches`, `adamw`, `train` and `held_out_loss` by the real ones
# - **Afterwards you can**: write AdamW from memory, read a training loop line by line, and say what a clipped gradient,
#   a warm-up and an accumulated step are for

# %%
import numpy as np
import tinyllm
from tinyllm.course import check, kit
from tinyllm.optim import AdamW, lr_factor
kit.begin(3, needs="0.2")

# %% [markdown]
# ## 1. Downhill
#
# Take a loss of just two numbers, $L(a, b) = \frac12 (a^2 + 50\, b^2)$: a valley, steep across and flat along. Its
# gradient is $(a, 50\, b)$. The plainest rule is **gradient descent**: subtract the gradient times a small number, the
# **learning rate**.

# %%
def slope(w):
    """The gradient of (a**2 + 50 b**2) / 2."""
    return w * np.array([1.0, 50.0])


def descend(lr, steps=30, start=(8.0, 1.0)):
    """The places that plain gradient descent comes through."""
    w = np.array(start)
    path = [w.copy()]
    for _ in range(steps):
        w -= lr * slope(w)
        path.append(w.copy())
    return np.array(path)


# %% [markdown]
# **Predict.** With learning rate 0.03: does it reach (0, 0) within thirty steps? And with 0.05?

# %% tags=["hide-output"]
slow, fast = descend(0.03), descend(0.05)
assert abs(slow[-1, 1]) < 1e-6 < 1 < slow[-1, 0] and abs(fast[-1, 1]) > 1
kit.say(
    f"With 0.03 b is at {slow[-1, 1]:.0e}, but a still at {slow[-1, 0]:.1f}. With 0.05 b jumps from side to side and "
    f"grows: {fast[-1, 1]:.0f} in the end."
)

# %% [markdown]
# **Why.** Each step multiplies $b$ by $1 - 50 \cdot lr$. With 0.05 that is -1.5, and the valley throws us out. So the
# steepest direction sets the limit, and all flat ones crawl. A model has millions of directions.
#
# ## 2. A step for each number
#
# What if each number had its own rate, smaller where its gradients are large? **Adam** keeps two running means for each
# number: $m$ of its gradients, $v$ of their squares. It steps by $m / \sqrt v$: by about *the learning rate itself*,
# whatever the gradient's size, and less where the gradient keeps changing its sign, for then $m$ is small and $v$ is
# not. (Kingma and Ba 2015.)
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 \qquad
# w \leftarrow w - lr\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} $$
#
# Two details. Both means begin at zero, so they are too small at first; dividing by $1 - \beta^t$, with $t$ counted
# from 1, makes that good. And $\epsilon$, here 0.00000001, keeps a number that never had a gradient from being divided
# by zero; it stands *outside* the root.
#
# **AdamW** adds **weight decay**: every weight shrinks by a small share, $w \leftarrow (1 - lr \cdot \lambda)\, w$, so
# that what nothing pulls at goes back to zero. This is done to the weight, not added to the gradient, where Adam would
# divide it by the gradient's size again (Loshchilov and Hutter 2019). The whole, in place in w, m and v:

# %%
def my_adamw_step(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW update, in place in w, m and v; `step` counts from 1."""
    w *= 1 - lr * weight_decay
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mean = m / (1 - beta1**step)
    size = xp.sqrt(v / (1 - beta2**step))
    w -= lr * mean / (size + eps)


# %% [markdown]
# **Predict.** A weight of 3 gets its first gradient: 0.002. Learning rate 0.1, no weight decay. Where does it go? And
# with a gradient of 2,000?

# %% tags=["hide-output"]
landed = []
for gradient in (0.002, 2000.0):
    w, m, v = np.array([3.0]), np.zeros(1), np.zeros(1)
    my_adamw_step(np, w, np.array([gradient]), m, v, 1, 0.1, 0.9, 0.999, 1e-8, 0.0)
    landed.append(w[0])
assert np.allclose(landed, 2.9, atol=1e-6)
kit.say(f"To {landed[0]:.6f}, and to {landed[1]:.6f}: by 0.1 in both cases.")

# %% [markdown]
# **Why.** In the first step the corrected means are $g$ and $g^2$, so the step is $lr \cdot g / |g|$. Only the sign
# counts. In the valley:

# %%
def adam_path(lr=0.5, steps=30, start=(8.0, 1.0)):
    w = np.array(start)
    m, v, path = np.zeros(2), np.zeros(2), [w.copy()]
    for step in range(1, steps + 1):
        my_adamw_step(np, w, slope(w), m, v, step, lr, 0.9, 0.999, 1e-8, 0.0)
        path.append(w.copy())
    return np.array(path)


def figure_valley(paths):
    """The paths over the valley's lines of equal height."""
    figure, ax = kit.plt.subplots(figsize=(7, 2.8), layout="constrained")
    a, b = np.meshgrid(np.linspace(-3, 9, 200), np.linspace(-1.6, 1.6, 200))
    ax.contour(a, b, (a**2 + 50 * b**2) / 2, levels=12, colors="#cccccc", linewidths=0.8)
    for (name, path), colour, marker in zip(paths.items(), ("#d55e00", "#0072b2"), "os", strict=True):
        ax.plot(*path.T, color=colour, marker=marker, markersize=3, linewidth=1, label=name)
    ax.set(xlabel="a, the flat direction", ylabel="b, the steep one", xlim=(-3, 9), ylim=(-1.6, 1.6))
    ax.legend(frameon=False, fontsize=8)
    ends = {name: np.linalg.norm(path[-1]) for name, path in paths.items()}
    kit.show(
        figure,
        "Two paths of thirty steps in a long valley, from (8, 1). "
        + " ".join(f"{name} ends {distance:.2f} from the bottom." for name, distance in ends.items()),
    )
    return ends


ends = figure_valley({"gradient descent": slow, "Adam": adam_path()})
assert ends["Adam"] < ends["gradient descent"]
kit.say(
    f"Gradient descent follows the steepest way and is {ends['gradient descent']:.1f} from the bottom after thirty "
    f"steps; Adam walks along both directions alike, runs a little past the bottom, and is {ends['Adam']:.1f} from it."
)

# %% [markdown]
# Now into the engine. `kit.fine_tune` runs its own loop on the small base, with your step for all of its 1.6 million
# numbers.

# %%
def fresh():
    model = kit.base()
    return model.requires_grad_(True) or model


usual = np.array(kit.fine_tune(fresh(), steps=6))
with tinyllm.use(adamw_step=my_adamw_step):
    own = np.array(kit.fine_tune(fresh(), steps=6))
assert np.abs(own - usual).max() < 1e-4
kit.say(
    f"Six losses, {own[0]:.4f} to {own[-1]:.4f}, and the two runs differ by {np.abs(own - usual).max():.0e} at most: "
    "the engine's lines take the same steps in another order, without arrays in between."
)

# %% [markdown]
# ## Exercise 03-adamw: some steps of one number
#
# *15 minutes, importance 5 of 5.*
#
# Write `adamw_numbers(w, gradients, lr, beta1, beta2, eps, weight_decay)`: one weight, a list of its gradients, one a
# step; return the weight after the last. Plain numbers, no arrays. (To be wrong in the ways people are: count steps
# from 0; put eps under the root; decay after the step; let the decay go through Adam.)

# %%
def adamw_numbers(w, gradients, lr, beta1, beta2, eps, weight_decay):
    raise NotImplementedError("your turn")


check("03-adamw", adamw_numbers)

# %% [markdown]
# ## 3. A limit
#
# Now and then a batch is strange, and its gradients are a hundred times as large as usual. Adam's step stays as long as
# ever, but its means are spoiled for many steps: $v$ remembers. So gradients are **clipped**: all of them together are
# one long vector, and if its length, the **norm**, is above a limit, all are multiplied by one factor that makes it
# just the limit.

# %%
def my_clip_factor(norm, max_norm):
    """What brings gradients of this joint norm down to `max_norm`: 1 if they are not above it."""
    return min(1.0, max_norm / norm) if norm > 0 else 1.0


# %% [markdown]
# **Predict.** Why one factor for all, and not each number cut off at a limit of its own?

# %% tags=["hide-output"]
g = np.array([3.0, 4.0])
scaled, cut = g * my_clip_factor(np.linalg.norm(g), 1.0), np.clip(g, -1, 1)
assert np.allclose(scaled, [0.6, 0.8]) and my_clip_factor(0.3, 1.0) == 1.0
kit.say(f"(3, 4) becomes ({scaled[0]:.1f}, {scaled[1]:.1f}), which points where it did. Cut off it is ({cut[0]:.0f}, "
        f"{cut[1]:.0f}), and points elsewhere.")  # fmt: skip

# %%
usual = kit.fine_tune(fresh(), steps=4, max_grad_norm=0.5)
with tinyllm.use(clip_factor=my_clip_factor):
    own = kit.fine_tune(fresh(), steps=4, max_grad_norm=0.5)
assert own == usual
kit.say("In the engine, with a limit of 0.5: the same losses to the last digit.")

# %% [markdown]
# ## Exercise 03-clip: many arrays, one norm
#
# *10 minutes, importance 4 of 5.*
#
# Write `clipped(gradients, max_norm)`: a list of arrays of any shapes, or None where there is no gradient; return the
# pair of a list of new arrays (and None where None was) whose joint norm is at most `max_norm`, and the norm before,
# which is 0 if there is no gradient at all. Nothing that is given may change.

# %%
def clipped(gradients, max_norm):
    raise NotImplementedError("your turn")


check("03-clip", clipped)

# %% [markdown]
# ## 4. A schedule
#
# The learning rate need not be the same all the way. In the first steps $v$ has seen only a few gradients and is a poor
# guess, so the rate rises from almost nothing: the **warm-up**. Towards the end small steps let the weights settle, so
# it falls, often along a half cosine.

# %%
def figure_schedules(steps=60, warmup=10):
    """The factor of the learning rate at each step."""
    figure, ax = kit.plt.subplots(figsize=(6, 2.6), layout="constrained")
    found = {}
    for name, colour, style in (("constant", "#999999", "-"), ("linear", "#0072b2", "--"), ("cosine", "#d55e00", "-")):
        found[name] = [lr_factor(name, step, steps, warmup) for step in range(steps)]
        ax.plot(range(1, steps + 1), found[name], style, color=colour, label=name)
    ax.set(xlabel="step", ylabel="factor of the learning rate", ylim=(0, 1.05))
    ax.legend(frameon=False, fontsize=8)
    kit.show(
        figure,
        f"The learning rate's factor over {steps} steps. All schedules rise to 1 within {warmup}. The constant one "
        f"stays; half-way down, at step {warmup + (steps - warmup) // 2}, the linear one is at "
        f"{found['linear'][warmup + (steps - warmup) // 2]:.2f}, the cosine at "
        f"{found['cosine'][warmup + (steps - warmup) // 2]:.2f}.",
    )
    return found


factors = figure_schedules()
assert factors["cosine"][0] == 0.1 and max(factors["cosine"]) == 1 and factors["cosine"][-1] < 0.01
kit.say(f"The first step has a tenth of the rate, the last one {factors['cosine'][-1]:.4f} of it.")

# %% [markdown]
# **Predict.** A rate that is rather high for this model, 0.01: which of the two learns better in 30 steps, with the
# warm-up and cosine, or constant from the first step on?

# %% tags=["hide-output"]
ends = {}
for name, settings in {"warm-up and cosine": {}, "constant": {"schedule": "constant", "warmup": 0}}.items():
    model = fresh()
    kit.fine_tune(model, steps=30, lr=0.01, **settings)
    ends[name] = kit.held_out(model, 2)["jargon"]
assert ends["warm-up and cosine"] < ends["constant"]
kit.say(", ".join(f"{name}: {loss:.2f}" for name, loss in ends.items()) + " (held-out loss).")

# %% [markdown]
# ## Exercise 03-schedule: the factor at a step
#
# *10 minutes, importance 3 of 5.*
#
# Write `factor(step, steps, warmup)`: the cosine schedule, `steps` larger than `warmup`. `step` counts from 0. During
# the warm-up it rises evenly and is 1 at the end of it; then it falls along half a cosine, to 0 if there were one more
# step than `steps`. With `warmup = 0` it begins at 1.

# %%
def factor(step, steps, warmup):
    raise NotImplementedError("your turn")


check("03-schedule", factor)

# %% [markdown]
# ## 5. A large batch in small pieces
#
# A large batch gives steadier gradients and needs more memory. But gradients add up: run the batch in pieces, the
# **micro-batches**, add their gradients, and step once. The loss is a *mean* over tokens, so what must be added up are
# the pieces' sums, divided by the number of *all* tokens.
#
# Not every position counts. A position whose label is -100 has nothing to learn: the question in a chat, or the filling
# at a row's end. Those with a label are **live**. Here are two pieces with very different numbers of them:

# %%
large = next(kit.batches(size=4))
labels = large.labels.copy()
labels[2:, 8:] = -100  # of the last two rows only the beginning counts
pieces = [(large.ids[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 4))]
live = [int((y != -100).sum()) for _, y in pieces]


def gradient(weights):
    """The gradient of one matrix from all pieces, each loss multiplied by its weight."""
    model = fresh()
    for (ids, y), weight in zip(pieces, weights, strict=True):
        (model.loss(ids, y) * weight).backward()  # backward adds to what is there
    return model.get("layers.2.mlp.up_proj").weight.grad


model = fresh()
model.loss(large.ids, labels).backward()
whole = model.get("layers.2.mlp.up_proj").weight.grad

# %% [markdown]
# **Predict.** Which weights give the gradient of the whole batch: 1/2 and 1/2 (the mean of the means), or each piece's
# share of the live tokens?

# %% tags=["hide-output"]
def apart(weights):
    return np.linalg.norm(gradient(weights) - whole) / np.linalg.norm(whole)


mean_of_means, by_tokens = apart([0.5, 0.5]), apart([n / sum(live) for n in live])
assert by_tokens < 1e-5 < 0.1 < mean_of_means
kit.say(
    f"The shares, {live[0]} and {live[1]} of {sum(live)} tokens: {by_tokens:.0e} apart, which is rounding. The mean "
    f"of the means is {mean_of_means:.0%} off."
)

# %% [markdown]
# **Why.** In the mean of means a token of the short piece counts ten times as much as one of the long piece. This
# mistake was in widely used training code for years (it was found in 2024), because a loss curve does not show it: the
# model learns all the same.
#
# ## Exercise 03-accumulate: the loss of a batch in pieces
#
# *10 minutes, importance 5 of 5.*
#
# Write `joined(losses, live)`: the loss of the whole from the mean losses of its pieces and their numbers of live
# tokens. A piece with none has the loss 0, and must not count. If there is no live token at all, raise a `ValueError`.

# %%
def joined(losses, live):
    raise NotImplementedError("your turn")


check("03-accumulate", joined)

# %% [markdown]
# ## 6. The loop
#
# Now nothing is missing. This is a training loop, and the engine's own (`tinyllm.train.loop.fit`) is not much longer:

# %%
model = fresh()
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
batches, steps, found = kit.batches(), 5, []
tinyllm.manual_seed(0)
model.train()
with tinyllm.use(adamw_step=my_adamw_step, clip_factor=my_clip_factor):
    for step in range(steps):
        optimizer.set_lr_factor(lr_factor("cosine", step, steps, warmup=10))
        optimizer.zero_grad()
        loss = model.loss(next(batches))
        loss.backward()
        tinyllm.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
engine = kit.fine_tune(fresh(), steps=steps, lr=1e-3)
assert np.abs(np.array(found) - engine).max() < 1e-3
kit.say(f"Its losses and the engine's differ by {np.abs(np.array(found) - engine).max():.0e} at most.")

# %% [markdown]
# A falling loss on what is being learned proves little: a model could learn it by heart. So a part of the text is
# **held out**, never trained on, and the loss there is what counts. `kit.held_out` gives it.
#
# ## Three questions
#
# **1.** "Adam's steps are as long as the gradient is large." True?
#
# <details><summary>Answer</summary>
#
# No. Multiply all gradients by 1,000 and the steps stay the same (but for eps). The learning rate alone sets their
# length.
#
# </details>
#
# **2.** Then why clip at all?
#
# <details><summary>Answer</summary>
#
# Scaling *all* gradients of a run alike does nothing to Adam. A single large one does: it stands in m for some ten
# steps, and in v for a thousand, where it makes all following steps too short.
#
# </details>
#
# **3.** Two steps with batches of 4, or one with the 8 together: is that the same?
#
# <details><summary>Answer</summary>
#
# No. The second gradient of two steps is taken at another place, and Adam steps twice as far. Micro-batches *without* a
# step between are the same as one batch.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * That AdamW is the best. It is what nearly everybody uses to fine-tune; newer ones win in some settings.
# * What weight decay does. In thirty steps, nothing that can be measured.
# * How to find a rate. Lesson 8 measures it, for full training and for LoRA.

# %% [markdown]
# ## Now read
#
# - `tinyllm.optim.AdamW`: the optimiser around the step, with groups and a state that can be saved
# - `tinyllm.optim.clip_factor`: yours
# - `tinyllm.optim.lr_factor`: the schedules
# - `tinyllm.train.loop.accumulate`: micro-batches by their tokens
# - `tinyllm.train.loop.fit`: the loop
