# %% [markdown]
# # Lesson 1: How does a program know which way to turn a number?
#
# A language model is a long calculation with a million numbers in it that nobody has chosen. Learning means to turn
# each of them a little, up or down, so that the result, the **loss**, gets smaller. Which way, and how much it helps,
# is the derivative of the loss by that number. Here you build the program that finds all of these derivatives in one
# go, put your own pieces of it into the real engine, and see why a piece that is wrong is so hard to notice.
#
# - **Needs**: nothing but some NumPy
# - **Minutes**: 60
# - **Replaces in lesson 0**: lines of `Tensor`, `inputs_first` and `softmax` by the real ones
# - **Afterwards you can**: follow a gradient through a graph by hand, say why the order of the walk and the `+=`
#   matter, and check a gradient so that a wrong one cannot pass

# %%
import numpy as np
import tinyllm
from tinyllm.autograd import Node
from tinyllm.course import check, kit
kit.begin(1, needs="0.2")

# %% [markdown]
# ## 1. Turn it and look
#
# Take a calculation with two numbers that we may turn, $y = a \cdot b + a$, at $a = 2$ and $b = -3$. The simplest way
# to find a derivative is to turn a number by a little and look what $y$ does.

# %%
def f(a, b):
    return a * b + a


tiny = 1e-6
by_a = (f(2.0 + tiny, -3.0) - f(2.0, -3.0)) / tiny
by_b = (f(2.0, -3.0 + tiny) - f(2.0, -3.0)) / tiny
kit.say(f"y is {f(2.0, -3.0):.0f}. Turned by a little, a changes it at the rate {by_a:.3f}, b at the rate {by_b:.3f}.")

# %% [markdown]
# So to make $y$ smaller one turns $a$ up and $b$ down. This needs one more calculation for every number.

# %% [markdown]
# **Predict.** The small model that comes with this course computes the loss of a short text in some thousandths of a
# second. How long would it take to turn each of its numbers once?

# %% tags=["hide-output"]
model = kit.base()
batch = next(kit.batches(size=1, time=32))


def loss_of(model):
    return model.loss(batch)


def loss_and_gradient():
    loss_of(model).backward()


def loss_alone():
    with tinyllm.no_grad():
        loss_of(model)


seconds = kit.in_turns({"loss": loss_alone, "loss and gradient": loss_and_gradient}, rounds=5)
turning = seconds["loss"] * model.num_parameters() / 3600
ratio = seconds["loss and gradient"] / seconds["loss"]
assert turning > 0.5 and ratio < 20
kit.say(
    f"One loss takes {seconds['loss'] * 1000:.1f} ms and the model has {model.num_parameters():,} numbers: together "
    f"{turning:.1f} hours, for one step of learning. Loss and *all* derivatives together, in the way that this lesson "
    f"builds, take {seconds['loss and gradient'] * 1000:.1f} ms, {ratio:.1f} times one loss."
)

# %% [markdown]
# ## 2. A number that remembers
#
# The trick is to write down, while calculating, where each result came from. A `Number` holds its value and its
# **parents**: the numbers it was computed from, each with the **local derivative**, how fast this result changes when
# that parent does. A local derivative is school mathematics about one operation, and knows nothing of the rest:
#
# | operation | by the first | by the second |
# | --- | --- | --- |
# | $a + b$ | 1 | 1 |
# | $a \cdot b$ | $b$ | $a$ |
# | $a / b$ | $1 / b$ | $-a / b^2$ |
# | $e^a$ | $e^a$ | |
# | $\tanh a$ | $1 - \tanh^2 a$ | |

# %%
class Number:
    """A value, and the numbers that it was computed from."""

    def __init__(self, value, *parents):
        self.value = value
        self.parents = parents  # pairs: a number this one came from, the derivative of this one by it
        self.grad = 0.0

    def __add__(self, other):
        return Number(self.value + other.value, (self, 1.0), (other, 1.0))

    def __sub__(self, other):
        return Number(self.value - other.value, (self, 1.0), (other, -1.0))

    def __mul__(self, other):
        return Number(self.value * other.value, (self, other.value), (other, self.value))

    def __truediv__(self, other):
        y = self.value / other.value
        return Number(y, (self, 1 / other.value), (other, -y / other.value))

    def exp(self):
        y = np.exp(self.value)
        return Number(y, (self, y))

    def tanh(self):
        y = np.tanh(self.value)
        return Number(y, (self, 1 - y * y))


a, b = Number(2.0), Number(-3.0)
product = a * b
y = product + a
for name, number in {"a": a, "b": b, "product": product, "y": y}.items():
    print(f"{name:8} {number.value:5.1f}   local derivatives {[derivative for _, derivative in number.parents]}")

# %% [markdown]
# Numbers and their parents form a **graph**. The loss stands at one end, the numbers that were given stand at the
# other. Those without parents are its **leaves**; here they are `a` and `b`.

# %% [markdown]
# ## 3. Along every path
#
# How fast does $y$ change with $a$? There are two **paths** from $y$ down to $a$: one straight, one through the
# product. Along a path the rates multiply: if $y$ moves 1 for each 1 of the product, and the product $-3$ for each 1
# of $a$, then $y$ moves $1 \cdot -3$ for each 1 of $a$. And what comes by different paths adds up: $-3 + 1 = -2$.
# This is the chain rule, all of it:
#
# > the derivative is the sum over all paths of the product of the local derivatives on the path.
#
# As a program: a number that receives a share of the gradient adds it to its `grad`, and hands it on to its parents,
# times the local derivative.

# %%
def hand_on(number, share=1.0):
    """Add a share of the gradient here, and pass it on along every path; returns how many numbers were visited."""
    number.grad += share
    return 1 + sum(hand_on(parent, share * derivative) for parent, derivative in number.parents)


hand_on(y)
assert (a.grad, b.grad) == (-2.0, 2.0)
kit.say(f"a has the gradient {a.grad:.0f}, b the gradient {b.grad:.0f}: what turning them has shown.")

# %%
def figure_graph(placed, title):
    """Draw numbers at their places, an arrow from each to what was computed from it; returns values and gradients."""
    figure, axes = kit.plt.subplots(figsize=(7, 3.4))
    names = {id(number): name for name, (number, _) in placed.items()}
    for name, (number, (right, up)) in placed.items():
        text = f"{name}\nvalue {number.value:g}\ngradient {number.grad:g}"
        leaf = not number.parents
        box = {"boxstyle": "round,pad=0.5", "facecolor": "#dbeafe" if leaf else "white", "edgecolor": "#57606a"}
        axes.text(right, up, text, ha="center", va="center", fontsize=10, bbox=box, zorder=3)
        for parent, derivative in number.parents:
            left, low = placed[names[id(parent)]][1]
            arrow = {"arrowstyle": "->", "color": "#57606a", "shrinkA": 42, "shrinkB": 46}
            axes.annotate("", (right, up), (left, low), arrowprops=arrow)
            middle = ((left + right) / 2, (low + up) / 2)
            axes.text(*middle, f"× {derivative:g}", color="#b45309", ha="center", va="center", backgroundcolor="white")
    axes.set(xlim=(-0.6, 4.6), ylim=(-0.4, 1.4), title=title)
    axes.axis("off")
    figure.tight_layout()
    facts = {name: (float(number.value), float(number.grad)) for name, (number, _) in placed.items()}
    said = ", ".join(f"{name} has value {value:g} and gradient {grad:g}" for name, (value, grad) in facts.items())
    kit.show(figure, f"A graph of {len(facts)} numbers, leaves at the left and the result at the right: {said}.")
    return facts


places = {"a": (a, (0, 1)), "b": (b, (0, 0)), "a · b": (product, (2, 0)), "y": (y, (4, 1))}
drawn = figure_graph(places, "values go right along the arrows, gradients go left and are multiplied")

# %% [markdown]
# With additions alone every local derivative is 1, so each path contributes 1 and **the gradient is the number of
# paths**. That makes a fine test. It also shows what is wrong with `hand_on`.

# %% [markdown]
# **Predict.** Double a number by adding it to itself, and do that sixteen times in a row. The graph has 17 numbers.
# How large is the gradient at the start, and how many visits does `hand_on` make?

# %% tags=["hide-output"]
def doubled(number, times):
    for _ in range(times):
        number = number + number
    return number


start = Number(1.0)
visits = hand_on(doubled(start, 16))
assert start.grad == 2.0**16 and visits == 2**17 - 1
kit.say(
    f"The gradient is {start.grad:,.0f} = 2^16, and `hand_on` made {visits:,} visits in a graph of 17 numbers. Each "
    "further doubling doubles both; at a few million visits a second, fifty of them would take decades."
)

# %% [markdown]
# ## 4. One visit each, in the right order
#
# A number may be used many times, but its parents need not hear about each time. It is enough that they hear once, of
# the *sum*. So visit each number once, when all that was computed from it has added its share. Such an order, each
# number behind all that it came from, is called **topological**; the walk goes through it backwards.

# %%
def inputs_first(number, order=None, seen=None):
    """Every number behind this one, each after all that it came from."""
    order, seen = [] if order is None else order, set() if seen is None else seen
    if number not in seen:
        seen.add(number)
        for parent, _ in number.parents:
            inputs_first(parent, order, seen)
        order.append(number)
    return order


def backward(result):
    """Add d(result)/d(number) to the `grad` of every number behind the result."""
    result.grad = 1.0
    for number in reversed(inputs_first(result)):
        for parent, derivative in number.parents:
            parent.grad += derivative * number.grad


start = Number(1.0)
fifty = doubled(start, 50)
backward(fifty)
assert start.grad == 2.0**50 and len(inputs_first(fifty)) == 51
kit.say(f"Fifty doublings: {len(inputs_first(fifty))} visits, and the gradient is {start.grad:,.0f}.")

# %% [markdown]
# The function is a line longer than `hand_on`, and three things in it are easy to get wrong. Let us get them wrong,
# on $y = a^2 + a^2 \cdot a$ at $a = 3$, whose derivative $2a + 3a^2$ is 33.

# %% [markdown]
# **Predict.** Which of these is still right: (1) every number once, but as one comes across it from the result on;
# (2) `=` in place of `+=`; (3) everything right, but called a second time for the same graph?

# %% tags=["hide-output"]
def graph():
    a = Number(3.0)
    square = a * a
    return a, square + square * a


def as_met(result):
    """Each number once, in the order in which one comes across it."""
    order = [result]
    for number in order:
        for parent, _ in number.parents:
            if parent not in order:
                order.append(parent)
    return order


def walk(result, order, add=True):
    result.grad = 1.0
    for number in order:
        for parent, derivative in number.parents:
            parent.grad = (parent.grad if add else 0.0) + derivative * number.grad


found = {}
a, y = graph()
walk(y, reversed(inputs_first(y)))
found["right"] = a.grad
walk(y, reversed(inputs_first(y)))
found["called twice"] = a.grad
a, y = graph()
walk(y, as_met(y))
found["as met"] = a.grad
a, y = graph()
walk(y, reversed(inputs_first(y)), add=False)
found["= for +="] = a.grad
assert found["right"] == 33 and all(found[wrong] != 33 for wrong in ("called twice", "as met", "= for +="))
assert found["called twice"] != 2 * 33
kit.say("; ".join(f"{name}: {grad:.0f}" for name, grad in found.items()) + ".")

# %% [markdown]
# **Why.** (1) The square is met early, and hands on before the product has added its share: what comes later is never
# passed on. (2) A number that is used twice keeps the last share alone. (3) The old shares still lie in the inner
# numbers and are handed on again, together with the new ones: it is not even twice the right answer. tinyllm keeps
# inner gradients only during the walk, so there a second call on a fresh graph adds exactly once more. In the leaves
# it adds on purpose (lesson 3 uses it), and this is why a training loop calls `optimizer.zero_grad()`.

# %%
def figure_visits(most=14):
    """Visits of both walks against the number of doublings; returns them."""
    counts = {"along every path": [], "in topological order": []}
    doublings = list(range(1, most + 1))
    for times in doublings:
        result = doubled(Number(1.0), times)
        counts["along every path"].append(hand_on(result))
        counts["in topological order"].append(len(inputs_first(result)))
    figure, axes = kit.plt.subplots(figsize=(7, 3.6))
    for (name, visits), colour, marker in zip(counts.items(), ("#d55e00", "#0072b2"), "os", strict=True):
        axes.semilogy(doublings, visits, marker=marker, color=colour, label=name)
    axes.set(xlabel="doublings x = x + x in a row", ylabel="visits (logarithmic)")
    axes.legend()
    figure.tight_layout()
    kit.show(
        figure,
        f"Visits against doublings on a logarithmic axis. Along every path they double each time and reach "
        f"{counts['along every path'][-1]:,} at {most}; in topological order they grow by one and reach "
        f"{counts['in topological order'][-1]}.",
    )
    return {"doublings": doublings, **counts}


drawn = figure_visits()
kit.say(
    f"At {drawn['doublings'][-1]} doublings the walk along every path makes {drawn['along every path'][-1]:,} visits, "
    f"the ordered one {drawn['in topological order'][-1]}."
)

# %% [markdown]
# ## 5. The same walk in the engine
#
# tinyllm does what you have just built. Three words differ: a `Node` is a place in the graph, a **tensor** an array
# that remembers its node, and in place of a local derivative there is a **rule**: a function that takes the gradient
# of the result and returns the gradient of the input. For an array of a million numbers that is cheaper than a table
# of all derivatives. A node's `edges` are pairs: the nodes of the inputs (`None` for an input that needs no
# gradient), and the rule.
#
# So the order is found in the same way. `tinyllm.use` puts your function into the engine for as long as the block
# lasts.

# %%
def my_topological(root: Node) -> list[Node]:
    """Every node behind `root`, each after all that it was computed from."""
    order, seen = [], set()

    def visit(node):
        if node is not None and node not in seen:
            seen.add(node)
            for sources, _ in node.edges:
                for source in sources:
                    visit(source)
            order.append(node)

    visit(root)
    return order


def gradients():
    for parameter in model.parameters():
        parameter.grad = None
    loss_of(model).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


theirs = gradients()
with tinyllm.use(topological=my_topological):
    mine = gradients()
assert all((mine[name] == theirs[name]).all() for name in theirs)
nodes = len(my_topological(loss_of(model).node))
kit.say(
    f"The loss of the small model has {nodes} nodes behind it. Walked in your order, the gradients of all "
    f"{len(mine)} parameters are the engine's, bit for bit."
)

# %% [markdown]
# Here is that walk in your order, for a small graph in which every number is used twice. Who adds what to whom, and
# who has to wait?

# %%
from tinyllm.course.figures import backward_steps

a, b = tinyllm.Parameter(2.0), tinyllm.Parameter(-3.0)
c = a * b
with tinyllm.use(topological=my_topological):
    backward_steps(c * c * a + b, {"a": a, "b": b, "c": c}).show()

# %% [markdown]
# ## 6. A rule of your own: softmax
#
# Somewhere in every language model stands the **softmax**. It makes shares of arbitrary scores, positive numbers that
# add up to 1: $y_i = e^{x_i} / \sum_j e^{x_j}$. In attention it says how much each earlier word counts.
#
# Its rule has to send the gradient $g$ of the shares back to the scores. Turn one score $x_j$ up: its own share
# grows, all others shrink, because the sum must stay 1. As local derivatives:
#
# $$\frac{\partial y_i}{\partial x_j} = y_i (1 - y_j) \text{ if } i = j, \qquad -y_i y_j \text{ if not.}$$
#
# Score $x_j$ has a path through *every* share. Added up, $\sum_i g_i \, \partial y_i / \partial x_j$, most of it
# collapses:
#
# $$g^x_j = y_j \Big(g_j - \sum_i g_i y_i\Big).$$
#
# In words: a score counts by how far its share's gradient lies above the average one. With shares 0.5, 0.25, 0.25 and
# the gradient 4, 0, 0 the average is 2, so the scores get 0.5 · 2 = 1, and 0.25 · -2 = -0.5 twice.

# %%
def my_softmax_backward(xp, g, y):
    """The softmax's gradient from its result y, each (..., n)."""
    average = (g * y).sum(axis=-1, keepdims=True)
    return y * (g - average)


by_hand = my_softmax_backward(np, np.array([4.0, 0.0, 0.0]), np.array([0.5, 0.25, 0.25]))
assert (by_hand == [1.0, -0.5, -0.5]).all()

# %% [markdown]
# (`xp` is the array module, NumPy here and CuPy on a graphics card. All of the engine's array functions take it
# first.)
#
# Two wrong rules beside it. One keeps only the **diagonal**, the path from each score to its own share. The other
# returns zeros: attention then hands no gradient on to its scores, and the weights that make the scores get none
# either.

# %%
def diagonal(xp, g, y):
    return g * y * (1 - y)


def zeros(xp, g, y):
    return xp.zeros_like(g)


def trained(rule):
    """Losses of thirty steps with this rule in the engine, and the loss on text held out."""
    model = kit.base()
    with tinyllm.use(softmax_backward=rule):
        losses = kit.fine_tune(model, steps=30)
    return losses, kit.held_out(model, batches=2)["jargon"]


# %% [markdown]
# Now each of the three rules fine-tunes the real model: it wrote Shakespeare's plays so far, and shall learn from the
# Jargon File, an old dictionary of hackers' slang. Same start, same text, thirty steps. The loss is the mean, over
# all tokens, of minus the logarithm of the probability that the model gave to the token that did come. Its unit is
# the **nat**. Whoever believes all 1,024 tokens of this model to be alike has a loss of $\log 1024 = 6.93$; to know
# everything gives 0.

# %% [markdown]
# **Predict.** By how much will the loss fall with the right rule? With the diagonal? With zeros?

# %% tags=["hide-output"]
rules = {"right": my_softmax_backward, "diagonal": diagonal, "zeros": zeros}
runs, ends = {}, {}
for name, rule in rules.items():
    runs[name], ends[name] = trained(rule)
fell = {name: losses[0] - float(np.mean(losses[-5:])) for name, losses in runs.items()}
with tinyllm.use(softmax_backward=zeros):
    lost = [name for name, g in gradients().items() if not g.any()]
assert all(fell[name] > 0.9 * fell["right"] for name in rules)
assert len(lost) == 10 and all("q_proj" in name or "k_proj" in name for name in lost)
kit.say(
    "From the first step to the mean of the last five the loss fell by "
    + ", ".join(f"{fall:.3f} ({name})" for name, fall in fell.items())
    + ". On text that none of them has learned they end at "
    + ", ".join(f"{end:.3f} ({name})" for name, end in ends.items())
    + f". And with zeros, {len(lost)} of the model's {len(mine)} parameters got no gradient: the two matrices of each "
    "layer that make the scores."
)

# %% [markdown]
# Three falling curves that lie almost on each other. So we do not draw them. We draw their **difference** from the
# right one, step by step: each step has the same text in all three runs, and what the text does cancels out.

# %%
def figure_differences(runs):
    """How far each wrong rule's loss lies above the right one's; returns the differences."""
    right = np.array(runs["right"])
    apart = {name: np.array(losses) - right for name, losses in runs.items() if name != "right"}
    figure, axes = kit.plt.subplots(figsize=(7, 3.6))
    axes.axhline(0, color="#57606a", linewidth=1)
    for (name, difference), colour, marker in zip(apart.items(), ("#d55e00", "#0072b2"), "os", strict=True):
        axes.plot(range(len(right)), difference, marker=marker, markersize=4, color=colour, label=name)
    axes.set(xlabel="step", ylabel="loss above the right rule's (nats a token)")
    axes.legend()
    figure.tight_layout()
    kit.show(
        figure,
        "Difference of the loss from the right rule's run over "
        f"{len(right)} steps: "
        + "; ".join(f"{name} between {d.min():+.3f} and {d.max():+.3f}" for name, d in apart.items())
        + f". The loss itself fell by {right[0] - right[-5:].mean():.2f}.",
    )
    return {name: difference.tolist() for name, difference in apart.items()}


apart = figure_differences(runs)
largest = max(abs(d) for difference in apart.values() for d in difference)
assert apart["zeros"][0] == 0 and largest < 0.3 * fell["right"]
kit.say(
    f"At step 0 nothing differs, since the rules only matter for the update after it. The largest distance ever is "
    f"{largest:.3f}, where the right run falls by {fell['right']:.3f}. The last five steps lie on average "
    + " and ".join(f"{np.mean(d[-5:]):+.3f} ({name})" for name, d in apart.items())
    + " from the right one."
)

# %% [markdown]
# **Why.** A model has many roads to a smaller loss. With a wrong rule in one place, all other weights still get
# useful gradients and learn around it. **A falling loss does not show that the gradients are right.** Nor does
# comparing curves help in real life: there you have no right run to subtract.

# %% [markdown]
# ## 7. So gradients are checked
#
# What a gradient promises can be tested by itself. Along any direction $v$, the function must change at the rate
# $\langle g, v \rangle = \sum_i g_i v_i$. So draw a random direction, take a small step both ways, and compare. A
# number for each direction is enough: a wrong gradient agrees along a random one only by a miracle.
#
# A single number has one direction, and there is even an exact trick. Put $x + ih$ into the function, with the
# imaginary $h$ of 1e-30; then the imaginary part of the result, divided by $h$, is the derivative. Nothing is
# subtracted, so nothing cancels. It is called the **complex step**.

# %%
def curve(x):
    return np.tanh(x * np.exp(x)) / x  # of a float, of a complex number and of a Number


x = Number(0.7)
backward(curve(x))
exact = curve(0.7 + 1e-30j).imag / 1e-30
middle = (curve(0.7 + 1e-5) - curve(0.7 - 1e-5)) / 2e-5
off = {"complex step": abs(x.grad - exact) / abs(exact), "differences": abs(x.grad - middle) / abs(exact)}
assert off["complex step"] < 1e-14 < off["differences"] < 1e-6
kit.say(
    f"Backward gives {x.grad:.12f}. The complex step agrees to the last digits. Differences, "
    f"(f(x + h) - f(x - h)) / 2h, are {off['differences']:.0e} away, relatively: that is their own error."
)

# %% [markdown]
# A classic slip is to believe that the derivative of $e^x$ is $x$. One line finds it.

# %%
class Slip(Number):
    def exp(self):
        return Number(np.exp(self.value), (self, self.value))


x = Slip(0.7)
backward(curve(x))
assert abs(x.grad - exact) > 0.01 * abs(exact)
kit.say(f"With the slip backward gives {x.grad:.4f} where the complex step says {exact:.4f}.")

# %% [markdown]
# Now the softmax. It has many results, and a gradient belongs to one. The tempting way out is to add the results up
# and check the gradient of $\sum_i y_i$. Some courses' graders do just this.

# %% [markdown]
# **Predict.** Which of the three rules pass a check of `softmax(x).sum()`? And which pass if the sum has random
# weights, $\sum_i u_i y_i$?

# %% tags=["hide-output"]
def error_along(weights, rule, seed=0):
    """How far a rule's derivative along a random direction is from that of differences."""
    x, v = np.random.default_rng(seed).standard_normal((2, 6))
    with tinyllm.use(softmax_backward=rule):
        tensor = tinyllm.Tensor(x, requires_grad=True)
        (tinyllm.functional.softmax(tensor) * weights).sum().backward()

    def value(x):
        return float((tinyllm.functional.softmax(tinyllm.Tensor(x)).numpy() * weights).sum())

    h = 1e-5
    return abs(float(tensor.grad @ v) - (value(x + h * v) - value(x - h * v)) / (2 * h))


u = np.random.default_rng(1).standard_normal(6)
plain = {name: error_along(np.ones(6), rule) for name, rule in rules.items()}
weighted = {name: error_along(u, rule) for name, rule in rules.items()}
assert plain["right"] < 1e-9 and plain["zeros"] < 1e-9 and plain["diagonal"] > 1e-3
assert weighted["right"] < 1e-9 and min(weighted["zeros"], weighted["diagonal"]) > 1e-3
rows = "\n".join(f"| {name} | {plain[name]:.0e} | {weighted[name]:.0e} |" for name in rules)
kit.say(f"| rule | error, plain sum | error, random weights |\n| --- | --- | --- |\n{rows}")

# %% [markdown]
# **Why.** The shares always add up to 1, whatever the scores. The plain sum is constant, its true gradient is zero,
# and a rule that returns zeros is *right* for it. Random weights make the sum depend on every share in its own way.
#
# The library's `gradcheck` does all of this: float64, random weights, random directions, for every input. It takes
# milliseconds, where the runs above took seconds and showed nothing.

# %%
def verdict(rule):
    """What gradcheck says with this rule in the engine."""
    scores = np.random.default_rng(2).standard_normal((3, 5))
    with tinyllm.use(softmax_backward=rule):
        try:
            return f"passes, off by {tinyllm.gradcheck(tinyllm.functional.softmax, scores):.0e}"
        except AssertionError as error:
            return f"refused: {error}"


verdicts = {name: verdict(rule) for name, rule in rules.items()}
assert [name for name, said in verdicts.items() if said.startswith("passes")] == ["right"]
kit.say("\n".join(f"- {name}: {said}" for name, said in verdicts.items()))

# %% [markdown]
# > **Tip.** Whenever you write a rule, write its check in the same minute. A gradient that was never compared with
# > anything is a guess.

# %% [markdown]
# ## Exercise 01-local: the derivative of one operation
#
# *10 minutes, importance 5 of 5.*
#
# Write `local(name, x)`: the value of an operation at the number `x`, and its derivative there, as a pair. The names
# are `"log"`, `"sqrt"`, `"sigmoid"` (that is $1 / (1 + e^{-x})$) and `"cube"`. Then check yours with a complex step.
#
# <details><summary>Hint</summary>
#
# Each derivative can be written with the value that you have computed already, or with `x`. The sigmoid's is $s (1 -
# s)$.
#
# </details>

# %%
def local(name, x):
    raise NotImplementedError("your turn")


check("01-local", local)

# %% [markdown]
# ## Exercise 01-paths: how many ways there are
#
# *15 minutes, importance 4 of 5.*
#
# Write `paths(parents, result)`. `parents` is a dict: for every name the list of names that it was added up from,
# `[]` for a leaf, a name twice if it was used twice. Return a dict: for every name the number of paths that lead from
# `result` to it, 0 where there are none. It must manage sixty doublings in a row at once, and `parents` may be in any
# order.
#
# <details><summary>Hint</summary>
#
# The number of paths to a name is the sum of the numbers of paths to all that used it: so those must be known before.
#
# </details>

# %%
def paths(parents, result):
    raise NotImplementedError("your turn")


check("01-paths", paths)

# %% [markdown]
# ## Exercise 01-deep: an order without recursion
#
# *20 minutes, importance 3 of 5.*
#
# `inputs_first` calls itself, and Python refuses at a depth of about a thousand. Write `order(parents, result)`, with
# `parents` as above: the list of all names behind `result`, each once and after all that it came from, `result` last.
# It must manage a chain of 100,000 names.
#
# <details><summary>Hint</summary>
#
# Keep a list of what you are in the middle of, each with how many of its parents you have looked at. When all parents
# of the last one are done, it goes into the order.
#
# </details>

# %%
def order(parents, result):
    raise NotImplementedError("your turn")


check("01-deep", order)

# %% [markdown]
# ## Three questions
#
# **1. My network's loss falls nicely. Are my gradients right?**
#
# <details><summary>Answer</summary>
#
# Nobody can tell from that. Above, a rule of zeros and one without most of its paths brought the loss down almost as
# far as the right one. Compare the gradient with differences along random directions, in float64.
#
# </details>
#
# **2. A number is used in two places. Do I get two gradients for it, and must I choose or average?**
#
# <details><summary>Answer</summary>
#
# One gradient: the sum of both shares. If turning the number changes the loss by two roads, both changes happen. The
# mean would be half of it, the last one alone is the `=` bug.
#
# </details>
#
# **3. Is a gradient found by backward an approximation, like one found by differences?**
#
# <details><summary>Answer</summary>
#
# No. It uses exact local derivatives, and is exact but for rounding: the complex step above agreed to the last
# digits. Differences are the approximation, with an error from the step and one from rounding. They are good for
# checking because they know nothing of your rules.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# The three rules were compared on one small model, for thirty steps. Longer runs, or models that depend more on
# attention, may tell them apart; that the loss *can* hide such a mistake is all that was shown. And a check looks at
# the inputs you give it: it says nothing of a rule that is wrong only for an empty array or at 1e4.

# %% [markdown]
# ## Now read
#
# - `tinyllm.autograd.Node`: a place in the graph
# - `tinyllm.autograd.walk`: the walk, which frees each node when it has been used
# - `tinyllm.autograd.topological`: the order, without recursion
# - `tinyllm.tensor.op`: how an operation and its rules get into the graph
# - `tinyllm.functional.softmax`: three lines
# - `tinyllm.inspect.gradcheck.gradcheck`: the check, with a better formula for the differences
