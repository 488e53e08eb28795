# %% [markdown]
# # Lesson 8: What is LoRA, and how does one choose its rank, alpha, targets and dropout?
#
# To fine-tune a model means to change its weights a little. LoRA leaves the weights alone and writes the change down
# beside them, as the product of two thin matrices, and trains only those. A tenth of the numbers, or a hundredth, is
# then all that the optimiser has to look after and all that one hands out afterwards. Here you write the layer, see
# what it saves and what it does not, and measure three of its four settings, and what dropout costs. (The optimiser,
# AdamW, is lesson 3, and the layers' names, q, k, v, gate, up and down, are lesson 4; here they are names.)
#
# - **Needs**: lessons 1, 2
# - **Minutes**: 70
# - **Replaces in lesson 0**: lines of `build` and `project` by the real ones
# - **Afterwards you can**: say what A, B, alpha, rank and dropout do to a layer's output and to what training keeps,
#   and find settings by measuring instead of by hearsay

# %%
import numpy as np
import tinyllm
from tinyllm import functional as F
from tinyllm.course import check, kit
from tinyllm.lora import Adapter, LoRALinear, apply_lora
kit.begin(8, needs="0.2")

# %% [markdown]
# ## 1. A change of low rank
#
# A linear layer computes $y = W x$; its weight $W$ has a row for each output and a column for each input. Training
# adds some $\Delta W$ to it, a matrix of the same size. LoRA bets that a $\Delta W$ with little in it will do: one
# that is a product $B A$, where $A$ has only $r$ rows and $B$ only $r$ columns. $r$ is the **rank**.
#
# With 4 inputs, 3 outputs and rank 1, so small that one can check it with a pencil:

# %%
A = np.array([[1.0, 0.0, -1.0, 2.0]])  # (rank, in)
B = np.array([[0.5], [0.0], [-1.0]])  # (out, rank)
print(B @ A)

# %% [markdown]
# Every row of $B A$ is the same row of four numbers, times a number of its own. Twelve numbers, written with seven. The
# layer never needs the product: $(B A) x = B (A x)$, and the right-hand side is cheaper. $A x$ *reads* one number out
# of the input (how much of the direction (1, 0, -1, 2) is in it), and $B$ *writes* it into the outputs.
#
# For the small base model's largest matrices:

# %%
base = kit.base()
shape = base.get("layers.0.mlp.up_proj").weight.shape
rank, whole = 8, shape[0] * shape[1]
thin = rank * (shape[0] + shape[1])
assert thin < whole / 10
kit.say(
    f"`up_proj` is {shape[0]} x {shape[1]}: {whole:,} numbers. A and B of rank {rank} are {thin:,}, "
    f"{thin / whole:.1%} of that."
)

# %% [markdown]
# The update is multiplied by one more number, the **scale**. By custom it is written $\alpha / r$, and $\alpha$
# (alpha) is what one sets. So the whole layer is
#
# $$ y = W x + \frac{\alpha}{r} \, B (A x). $$
#
# At the beginning $A$ is random and $B$ is zero. This is the part that you write; `F.linear(x, w)` is $w x$ for every
# position, with the gradient rules of lesson 2.

# %%
def my_lora_update(x, A, B, scale):
    """scale * B A x; x (..., in), A (r, in), B (out, r): (..., out)."""
    h = F.linear(x, A)  # (..., r): what A reads
    return F.linear(h * scale, B)


# %% [markdown]
# And this is the whole layer, in a dozen lines. `Module` collects the parameters in it.

# %%
class MyLoRA(tinyllm.nn.Module):
    """A frozen linear layer with an update of rank r beside it."""

    def __init__(self, layer, rank=8, alpha=16.0):
        self.base_layer, self.scale = layer, alpha / rank
        bound = layer.in_features**-0.5
        a = np.random.default_rng(0).uniform(-bound, bound, (rank, layer.in_features))
        self.A = tinyllm.Parameter(a.astype(np.float32))
        self.B = tinyllm.Parameter(np.zeros((layer.out_features, rank), np.float32))
        layer.requires_grad_(False)

    def forward(self, x):
        return self.base_layer(x) + my_lora_update(x, self.A, self.B, self.scale)


# %% [markdown]
# **Predict.** A layer of the base is replaced by `MyLoRA` around it. By how much do the model's logits change, before
# any training?

# %% tags=["hide-output"]
batch = next(kit.batches())
model = kit.base().eval()
model.requires_grad_(False)
before = model(batch.ids).data
mine = MyLoRA(model.get("layers.2.mlp.up_proj"))
model.replace("layers.2.mlp.up_proj", mine)
assert (model(batch.ids).data == before).all()
kit.say("By nothing: B is zero, so the update is zero, to the last bit.")

# %% [markdown]
# **Why.** The model shall start as the base and learn from there. But both cannot be zero, and here is the reason.
#
# **Predict.** After the first backward pass: is A's gradient zero, B's, both, or neither?

# %% tags=["hide-output"]
model.loss(batch).backward()
assert (mine.A.grad == 0).all() and np.abs(mine.B.grad).max() > 0
kit.say(f"A's is zero, B's is not: its largest number is {np.abs(mine.B.grad).max():.4f}.")

# %% [markdown]
# **Why.** The rules of lesson 2: $B$'s gradient is made of what comes back and of $A x$, and $A x$ is not zero. $A$'s
# passes through $B$ on its way, and $B$ is. So the first step moves $B$ alone, and from the second on both move. With
# both at zero neither would ever move.
#
# Now the engine's layer beside yours, with the same numbers in it: outputs and gradients.

# %%
theirs = LoRALinear(kit.base().get("layers.2.mlp.up_proj"))
theirs.adapters["default"], theirs.active = Adapter(theirs.base_layer, rank=8, scale=2.0), ("default",)
theirs.requires_grad_(False)
generator = np.random.default_rng(1)
x = generator.standard_normal((4, 64, shape[1])).astype(np.float32)
g = generator.standard_normal((4, 64, shape[0])).astype(np.float32)
mine.B.data = generator.standard_normal(mine.B.shape).astype(np.float32)
theirs.adapters["default"].lora_A = tinyllm.Parameter(mine.A.data.copy())
theirs.adapters["default"].lora_B = tinyllm.Parameter(mine.B.data.copy())
mine.A.grad = mine.B.grad = None
results = {}
for name, layer, A, B in (("mine", mine, mine.A, mine.B), ("theirs", theirs, theirs.lora_A, theirs.lora_B)):
    y = layer(tinyllm.Tensor(x))
    y.backward(g)
    A, B = (A["default"], B["default"]) if name == "theirs" else (A, B)
    results[name] = (y.data, A.grad, B.grad)
for a, b in zip(results["mine"], results["theirs"], strict=True):
    assert (a == b).all()
kit.say("Output, gradient of A and gradient of B: equal, bit for bit.")

# %% [markdown]
# `apply_lora` does to a whole model what `model.replace` did to one layer: it freezes everything and puts adapters
# beside the layers that are its **targets**. Your `my_lora_update` goes into all of them with `tinyllm.use`, and the
# engine's own loop trains over it.

# %%
def adapted(**options):
    """The base with fresh adapters, the same ones each time."""
    tinyllm.manual_seed(0)
    return apply_lora(kit.base(), verbose=False, **options)


usual = kit.fine_tune(adapted(), steps=5)
with tinyllm.use(lora_update=my_lora_update):
    own = kit.fine_tune(adapted(), steps=5)
assert usual == own
kit.say(
    f"The losses of five steps, {own[0]:.4f} to {own[-1]:.4f}, are the same to the last digit with your lines. (Each "
    "is that of another batch, before its step: so few say nothing about learning.)"
)

# %% [markdown]
# ## Exercise 08-noop: does a fresh adapter change nothing?
#
# *10 minutes, importance 4 of 5.*
#
# Write `fresh(shape, rank, generator)`: A and B for a weight of shape (out, in), float32, as LoRA begins: A uniform
# between $-1/\sqrt{\text{in}}$ and $1/\sqrt{\text{in}}$, drawn from the NumPy generator that is given, B zero. Whatever
# x and alpha are, the update must be exactly 0, and neither shape may be the wrong way round.
#
# <details><summary>Hint</summary>
#
# A reads from the inputs, so each of its `rank` rows is as long as the input. `generator.uniform` takes both ends.
#
# </details>

# %%
def fresh(shape, rank, generator):
    raise NotImplementedError("your turn")


check("08-noop", fresh)

# %% [markdown]
# ## Exercise 08-definition: the update, number by number
#
# *15 minutes, importance 5 of 5.*
#
# Write `lora_row(x, W, A, B, alpha)`: the output of the layer for *one* position, x (in,), in plain NumPy, from the
# definition. The scale is not given: it follows from alpha and the shape of A.
#
# <details><summary>Hint</summary>
#
# W x, and beside it B (A x) times alpha over the rank. Which side of A is the rank?
#
# </details>

# %%
def lora_row(x, W, A, B, alpha):
    raise NotImplementedError("your turn")


check("08-definition", lora_row)

# %% [markdown]
# ## 2. What it saves, and what it does not
#
# Training holds three kinds of numbers for its parameters: the weights themselves, a gradient for each that trains, and
# for the optimiser (AdamW) two more for each that trains. Frozen weights have only the first. And besides, the forward
# pass **keeps** arrays that the gradient rules will need; `tinyllm.kept` lists them.
#
# **Predict.** Compare: all weights train; one matrix in layer 0 (the first) trains; the same matrix in layer 4 (the
# last); LoRA of rank 8 on `q_proj` and `v_proj` of all layers. Which keeps most, which least? Does LoRA keep much less
# than training everything?

# %% tags=["hide-output"]
def everything():
    model = kit.base()
    return model.requires_grad_(True) or model


def only(path):
    model = kit.base()
    model.requires_grad_(False)
    model.get(path).requires_grad_(True)
    return model


def costs(model):
    """Megabytes: kept for backward, and gradients with AdamW's two moments."""
    trains = sum(p.size for p in model.parameters() if p.requires_grad)
    return tinyllm.kept(model.train().loss(batch), model).total / 1e6, 3 * 4 * trains / 1e6


ALL = "all-linear"
cases = {
    "all weights": everything(),
    "one matrix, layer 0": only("layers.0.mlp.up_proj"),
    "one matrix, layer 4": only("layers.4.mlp.up_proj"),
    "LoRA r=8, q and v": adapted(target_modules=["q_proj", "v_proj"]),
    "LoRA r=8, all linear": adapted(target_modules=ALL),
    "LoRA r=64, all linear": adapted(target_modules=ALL, rank=64, alpha=128),
    "LoRA r=8, dropout 0.1": adapted(target_modules=ALL, dropout=0.1),
}
table = {name: costs(model) for name, model in cases.items()}
kit.say(
    "| | kept for backward (MB) | gradients and moments (MB) |\n|---|---:|---:|\n"
    + "\n".join(f"| {name} | {kept:.2f} | {state:.2f} |" for name, (kept, state) in table.items())
)

# %% [markdown]
# **Why.** Two things decide the first column.
#
# *How far back the walk must go.* A gradient for layer 0 travels through all layers above it, and each of them keeps
# what its rules name. A gradient for layer 4 is there at once, and the layers below keep nothing. LoRA on all layers
# has to travel all the way, like full training.
#
# *What the rules name.* A trained weight's rule needs the layer's input. A frozen weight has no rule, so that input is
# not kept for it; but the adapter's $A$ has a rule that needs the very same input, which is one array for both. So LoRA
# on a layer does not save that input. With adapters on q and v alone it saves the inputs of the other layers; with
# adapters everywhere little is left to save: mostly the gradient of the embedding, which the head's chunked loss makes
# on the way forward and keeps.
#
# And *the second column is LoRA's real gain*: gradients and moments only for A and B.

# %%
def figure_memory(table):
    """Both columns as bars."""
    figure, ax = kit.plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = list(table)[::-1]
    kept, state = (np.array([table[name][i] for name in names]) for i in (0, 1))
    ax.barh(names, kept, color="#0072b2", label="kept for backward")
    ax.barh(names, state, left=kept, color="#e69f00", label="gradients and moments")
    ax.set(xlabel="megabytes, beside the weights themselves")
    ax.legend(frameon=False, fontsize=8)
    kit.show(
        figure,
        f"Bars of memory beside the weights. All weights: {table['all weights'][0]:.1f} MB kept and "
        f"{table['all weights'][1]:.1f} MB of gradients and moments. LoRA of rank 8 on all linear layers: "
        f"{table['LoRA r=8, all linear'][0]:.1f} and {table['LoRA r=8, all linear'][1]:.1f} MB. One matrix in layer 4: "
        f"{table['one matrix, layer 4'][0]:.1f} and {table['one matrix, layer 4'][1]:.1f} MB.",
    )
    return table


kept = {name: numbers[0] for name, numbers in figure_memory(table).items()}
state = {name: numbers[1] for name, numbers in table.items()}
assert kept["one matrix, layer 4"] < kept["one matrix, layer 0"] / 3
assert kept["LoRA r=8, all linear"] > 0.8 * kept["all weights"]
assert state["LoRA r=8, all linear"] < state["all weights"] / 10
part, state_part = (column["LoRA r=8, all linear"] / column["all weights"] for column in (kept, state))
kit.say(
    f"LoRA on all linear layers keeps {part:.0%} of what full training keeps, but its gradients and moments are "
    f"{state_part:.0%}. One matrix in the last layer keeps {kept['one matrix, layer 4']:.1f} MB, the same in the first "
    f"{kept['one matrix, layer 0']:.1f}."
)

# %% [markdown]
# Which arrays are these? One layer with its adapter, on rows that need a gradient themselves, as they do inside of a
# model. Weights stand in the list because the gradient passes through them on its way down; they are in memory
# anyway, so `kept(loss, model)` and the table above leave them out.

# %%
one_layer = adapted(target_modules=ALL).get("layers.2.mlp.up_proj")
rows = tinyllm.Parameter(np.ones((batch.ids.size, 160), np.float32))
print(tinyllm.kept(one_layer(rows)))

# %% [markdown]
# From above: the frozen W; then A with its input, the number alpha / r, and B with *its* input, which has only 8
# numbers a token. W's own input is not among them, since nothing about W is learned.
#
# **Dropout** sets a random tenth of the update's input to zero at every step, so that the update cannot lean on single
# inputs, and divides the rest by 0.9, so that the update stays what it was on average. It is applied to what goes into
# $A$, not to the base's input.
#
# **Predict.** With dropout on every adapter, does the model keep more, less or the same?

# %% tags=["hide-output"]
more = kept["LoRA r=8, dropout 0.1"] - kept["LoRA r=8, all linear"]
assert more > 1
inputs = more * 1e6 / (4 * batch.ids.size * 160)
assert round(inputs, 6) == 24
kit.say(f"More: {more:.1f} MB here, {inputs:.0f} arrays of 160 numbers a token. There are 35 adapters.")

# %% [markdown]
# **Why.** $A$'s rule needs $A$'s input, and that is now another array than the layer's own input: the dropped one, with
# a mask of its own. `q_proj`, `k_proj` and `v_proj` had shared the norm's output, which the norm keeps for itself
# anyway; now they keep three arrays beside it, and `gate_proj` and `up_proj` two. `out_proj` and `down_proj` shared
# with nobody, and keep the dropped input *in place* of the other: no more than before. Five for each of five layers
# would be 25; in the first layer nothing below the norm learns, so it keeps nothing for itself, and that is one less.
# The mask is not kept: it is drawn again on the way back. In evaluation nothing is dropped.
#
# All of it in one table; the cell below measures what it says.
#
# | | the layer's output | kept for backward, each token and adapter | gradients and moments |
# |---|---|---|---|
# | $A$ | reads `rank` numbers out of the input | its input, often a neighbour's as well | rank x in, three times |
# | $B$ | writes them into the outputs; nothing at first | its input: `rank` numbers | out x rank, three times |
# | alpha | multiplies the update, by alpha / rank | one number for a whole adapter | nothing |
# | rank | how many directions the update has | one number more for each | grows with it |
# | dropout | in training the update flickers; none in evaluation | an input of $A$'s own, if it was shared | nothing |

# %%
alpha_64, rank_9 = (costs(adapted(target_modules=ALL, **option)) for option in ({"alpha": 64.0}, {"rank": 9}))
adapters = [layer for _, layer in cases["LoRA r=8, all linear"].named_modules() if isinstance(layer, LoRALinear)]
rows = tinyllm.kept(adapted(target_modules=ALL).train().loss(batch))
of_B = [row for row in rows if row.shape == (batch.ids.size, 8)]
scales = sum(row.bytes for row in rows if row.shape == ())
one_more = 1e6 * (rank_9[0] - table["LoRA r=8, all linear"][0])
thin = sum(8 * sum(layer.base_layer.weight.shape) for layer in adapters)
assert len(of_B) == len(adapters) and scales == 4 * len(adapters)
assert alpha_64 == table["LoRA r=8, all linear"] and round(one_more) == 4 * batch.ids.size * len(adapters)
assert round(1e6 * state["LoRA r=8, all linear"]) == 3 * 4 * thin
kit.say(
    f"B's inputs: {len(of_B)} arrays {of_B[0].shape}. The scales: {scales} bytes for {len(adapters)} adapters; with "
    f"alpha of 64 the same. Rank 9: {one_more:,.0f} bytes more are kept, which is a float for each of "
    f"{batch.ids.size} tokens and {len(adapters)} adapters."
)

# %% [markdown]
# ## Exercise 08-count: how many numbers does it train?
#
# *10 minutes, importance 3 of 5.*
#
# Write `trained(shapes, rank, targets)`: how many numbers LoRA trains. `shapes` is a dict from a layer's path
# (`"layers.0.self_attn.q_proj"`) to its weight's shape (out, in); `targets` is a list of last names (`["q_proj"]`).
# A name that matches no layer is a `ValueError` with that name in it: an adapter that lands nowhere would train, and
# change nothing, and nobody would know why.
#
# <details><summary>Hint</summary>
#
# A has rank rows of length in, B has out rows of length rank. A layer is meant if its path's last part *is* the name.
#
# </details>

# %%
def trained(shapes, rank, targets):
    raise NotImplementedError("your turn")


check("08-count", trained)

# %% [markdown]
# ## 3. Rank, and alpha over rank
#
# First, what alpha does. It multiplies the update, so one would think that alpha = 32 learns twice as much as 16. But
# AdamW divides each gradient by its own size, so the steps of A and B are as long with one alpha as with another; what
# they do to the output is multiplied by the scale.
#
# **Predict.** Run 1: scale 2, learning rate 0.004. Run 2: scale 8, learning rate 0.001. And a third with scale 2 and
# rate 0.001. Which two will be alike?

# %% tags=["hide-output"]
def tuned(steps=9, lr=3e-3, **options):
    """The held-out loss on the jargon after some steps."""
    model = adapted(target_modules=ALL, **options)
    kit.fine_tune(model, steps=steps, lr=lr, size=2)
    return kit.held_out(model, 1)["jargon"]


runs = {(scale, lr): tuned(rank=8, alpha=8 * scale, lr=lr) for scale, lr in ((2, 0.004), (8, 0.001), (2, 0.001))}
for (scale, lr), loss in runs.items():
    print(f"scale {scale}, learning rate {lr}: held-out loss {loss:.3f}")
first, second, third = runs.values()
assert abs(first - second) < abs(first - third) / 2
kit.say("The first two, whose scale times learning rate is the same.")

# %% [markdown]
# **Why.** Not to the last digit, since A begins at the same size in each, but much closer than either to the third. It
# is the first thing to know about alpha: *with AdamW it is mostly another learning rate*. Whoever changes the rank and
# keeps alpha has changed the learning rate as well, because the scale is alpha / r. So the custom is to keep alpha / r,
# often at 2. Others find that large ranks then learn too fast or too slowly, and divide by $\sqrt r$ in place of r
# (**rsLoRA**; `use_rslora=True`).
#
# So much for losses. What do the settings do to the *output* of a trained model? Its update of one matrix, and how far
# its scores move away from the base's:

# %%
def moved(**options):
    """After 9 steps: the size of B, of the update, its rank; how far scores move; what dropout makes of them."""
    model = adapted(target_modules=ALL, **options)
    kit.fine_tune(model, steps=9, lr=3e-3, size=2)
    layer = model.get("layers.2.mlp.up_proj")
    (B,) = layer.lora_B.values()
    update = layer.folded()[0].data - layer.base_layer.weight.data
    with tinyllm.no_grad():
        away = np.abs(model.eval()(batch.ids).data - kit.base().eval()(batch.ids).data).mean()
        flicker = np.abs(model.train()(batch.ids).data - model(batch.ids).data).mean()
    return np.linalg.norm(B.data), np.linalg.norm(update), np.linalg.matrix_rank(update), away, flicker


settings = {
    "rank 8, alpha 16": {},
    "rank 8, alpha 64": {"alpha": 64},
    "rank 64, alpha 16": {"rank": 64},
    "rank 64, alpha 128": {"rank": 64, "alpha": 128},
    "rank 8, alpha 16, dropout 0.5": {"dropout": 0.5},
}
after = {name: moved(**options) for name, options in settings.items()}
kit.say(
    "| | size of B | size of the update | its rank | scores move by | two passes in training differ by |\n"
    "|---|---:|---:|---:|---:|---:|\n"
    + "\n".join(f"| {n} | {b:.2f} | {u:.2f} | {r} | {a:.2f} | {f:.3f} |" for n, (b, u, r, a, f) in after.items())
)
usual, alpha_64, many, kept_scale, dropped = after.values()
assert abs(alpha_64[0] / usual[0] - 1) < 0.15 and 3 < alpha_64[1] / usual[1] < 4
assert [found[2] for found in after.values()] == [8, 8, 64, 64, 8]
assert abs(many[3] / usual[3] - 1) < 0.15 and min(alpha_64[3], kept_scale[3]) > 2 * usual[3]
assert usual[4] == 0 < dropped[4]

# %% [markdown]
# Four times alpha leaves B nearly as large, and makes the update nearly four times as large. A higher rank with the
# same alpha moves the scores about as far, in more directions; with alpha / r kept it moves them further. Dropout is
# seen only in training: there the same text gives other scores each time.
#
# A grid shows what is best for a model and a text:

# %%
RANKS, SCALES = (1, 8, 64), (0.5, 2, 8)
grid = np.array([[tuned(rank=r, alpha=r * scale) for scale in SCALES] for r in RANKS])


def figure_grid(grid):
    """Held-out loss against the rank, a line for each scale."""
    figure, ax = kit.plt.subplots(figsize=(6, 3.2), layout="constrained")
    for column, scale, colour, marker in zip(grid.T, SCALES, ("#999999", "#0072b2", "#d55e00"), "os^", strict=True):
        ax.plot(RANKS, column, marker=marker, color=colour, label=f"alpha / r = {scale}")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="rank", ylabel="held-out loss (nats a token)", xticks=RANKS, xticklabels=RANKS)
    ax.legend(frameon=False, fontsize=8)
    row, column = np.unravel_index(grid.argmin(), grid.shape)
    kit.show(
        figure,
        f"Held-out loss after 9 steps against the rank. With alpha / r = {SCALES[0]} it falls from {grid[0, 0]:.2f} "
        f"at rank {RANKS[0]} to {grid[-1, 0]:.2f} at rank {RANKS[-1]}, with {SCALES[-1]} from {grid[0, -1]:.2f} to "
        f"{grid[-1, -1]:.2f}. The lowest is {grid.min():.2f}, at rank {RANKS[row]} with {SCALES[column]}.",
    )
    return {"grid": grid, "best": (RANKS[row], SCALES[column])}


drawn = figure_grid(grid)
gain = grid[0] - grid[-1]
assert (np.diff(grid[:, 0]) < 0).all() and gain[0] > 0.3 and gain[-1] < gain[0]
kit.say(
    f"At a small scale a larger rank helps much: {gain[0]:.2f} from rank 1 to rank 64. At a large one it helps less or "
    f"harms: {gain[-1]:.2f}. With 9 steps much of what looks like the rank's merit is speed: more directions, all of "
    "which move at once, change the output more at each step."
)

# %% [markdown]
# So "rank 8 is the sweet spot" and "rank 256 is best" may both be true, for a scale and a learning rate. What follows:
# fix alpha / r, try a few learning rates for each rank, and compare the *best* of each.
#
# ## 4. The learning rate
#
# **Predict.** Full training moves every weight by about the learning rate at each step. LoRA moves A and B by it. Which
# of them wants the larger rate?

# %% tags=["hide-output"]
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def curve(make):
    found = []
    for lr in RATES:
        model = make()
        kit.fine_tune(model, steps=9, lr=lr, size=2)
        found.append(kit.held_out(model, 1)["jargon"])
    return np.array(found)


curves = {"full": curve(everything), "LoRA r=8": curve(lambda: adapted(target_modules=ALL))}


def figure_rates(curves):
    """Held-out loss against the learning rate."""
    figure, ax = kit.plt.subplots(figsize=(6, 3.2), layout="constrained")
    for (name, losses), colour, marker in zip(curves.items(), ("#d55e00", "#0072b2"), "so", strict=True):
        ax.plot(RATES, losses, marker=marker, color=colour, label=name)
    ax.set(xscale="log", xlabel="learning rate", ylabel="held-out loss (nats a token)")
    ax.legend(frameon=False, fontsize=8)
    best = {name: RATES[losses.argmin()] for name, losses in curves.items()}
    kit.show(
        figure,
        "Held-out loss after 9 steps against the learning rate, both on a valley. "
        + " ".join(f"{name}: lowest at {best[name]:g} with {losses.min():.2f}." for name, losses in curves.items()),
    )
    return best


best = figure_rates(curves)
assert best["LoRA r=8"] > best["full"]
kit.say(
    f"LoRA: its best rate of these is {best['LoRA r=8']:g}, that of full training {best['full']:g}. At their best they "
    f"reach {curves['LoRA r=8'].min():.2f} and {curves['full'].min():.2f}."
)

# %% [markdown]
# **Why.** An update is spread over a product of two matrices, one of which begins at zero; early on it moves the output
# less than the same step of all weights would. A thorough study (*LoRA Without Regret*, 2025) found LoRA's best rate
# about ten times that of full training, over many models. Whoever takes over a rate from full training and finds LoRA
# worse has measured the rate.
#
# ## 5. Targets
#
# Which layers get an adapter? The first paper adapted the query and value projections; later work found that all linear
# layers together do better, the MLP's among them. At the same rank these are not the same number of parameters, so the
# fair comparison gives q and v a larger rank.

# %%
choices = {
    "q, v": {"target_modules": ["q_proj", "v_proj"], "rank": 42},
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"], "rank": 21},
    "MLP": {"target_modules": ["gate_proj", "up_proj", "down_proj"], "rank": 13},
    "all": {"target_modules": ALL, "rank": 8},
}
found = {}
for name, options in choices.items():
    model = adapted(alpha=2 * options["rank"], **options)
    count = sum(p.size for p in model.parameters() if p.requires_grad)
    kit.fine_tune(model, steps=15, lr=1e-2)
    found[name] = (count, kit.held_out(model, 1)["jargon"])
    print(f"{name:10} rank {options['rank']:2}: {count:,} numbers train, held-out loss {found[name][1]:.3f}")
assert max(c for c, _ in found.values()) < 1.05 * min(c for c, _ in found.values())
assert found["q, v"][1] == max(loss for _, loss in found.values())
kit.say(
    f"With about the same number of trained numbers, q and v alone do worst: {found['q, v'][1]:.2f} against "
    f"{found['all'][1]:.2f} for all layers."
)

# %% [markdown]
# ## 6. Is the change of low rank at all?
#
# LoRA's bet can be looked at. Train everything, take $\Delta W$ of each matrix, and ask how much of it a product of
# rank r could hold. The **singular values** of a matrix answer this: the best product of rank r keeps the r largest,
# and the sum of their squares is its share of the whole (Eckart and Young).
#
# **Predict.** Rank 8 of at most 160. Which share of a full update do 8 directions hold: a tenth, a half, nearly all?

# %% tags=["hide-output"]
from threadpoolctl import threadpool_limits

model = everything()
start = {name: w.data.copy() for name, w in model.named_weights() if "proj" in name}
kit.fine_tune(model, steps=30, lr=1e-3)
full = {name: w.data - start[name] for name, w in model.named_weights() if name in start}
with threadpool_limits(1):  # matrices as small as these: a second processor costs more than it gives
    parts = {name: np.linalg.svd(change, full_matrices=False) for name, change in full.items()}


def figure_spectrum(parts, ranks=(1, 2, 4, 8, 16, 32, 64)):
    """The share of the full update that r directions hold, for each matrix, and the mean."""
    figure, ax = kit.plt.subplots(figsize=(6, 3.2), layout="constrained")
    shares = np.array([[(s[:r] ** 2).sum() / (s**2).sum() for r in ranks] for _, s, _ in parts.values()])
    ax.plot(ranks, 100 * shares.T, color="#bbbbbb", linewidth=0.7)
    ax.plot(ranks, 100 * shares.mean(axis=0), color="#0072b2", marker="o", label="mean of all matrices")
    ax.axvline(8, color="#d55e00", linestyle="--", label="rank 8")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="rank", ylabel="share of the update (% of its square)", ylim=(0, 102))
    ax.set(xticks=ranks, xticklabels=ranks)
    ax.legend(frameon=False, fontsize=8)
    at = shares[:, ranks.index(8)]
    kit.show(
        figure,
        f"Share of the full update held by its r largest directions. At rank 8 it is {at.mean():.0%} on average, from "
        f"{at.min():.0%} to {at.max():.0%} for single matrices; at rank 64 {shares[:, -1].mean():.0%}.",
    )
    return {"at 8": at, "mean": shares.mean(axis=0)}


share = figure_spectrum(parts)["at 8"]
assert share.mean() < 0.75
kit.say(f"{share.mean():.0%} on average. The change that full training made here is *not* of low rank.")

# %% [markdown]
# Does that matter? Cut the full update down to r directions, put that into the base, and look at the loss. The other
# weights (norms and embedding) get their full change in each case.

# %%
def cut(r):
    """The loss with only r directions of every matrix's update."""
    other = kit.base()
    trained_weights = dict(model.named_weights())
    for name, w in other.named_weights():
        if name in parts:
            u, s, v = parts[name]
            w.data = start[name] + (u[:, :r] * s[:r]) @ v[:r]
        else:
            w.data = trained_weights[name].data.copy()
    return kit.held_out(other, 1)["jargon"]


untouched, whole_update = kit.held_out(kit.base(), 1)["jargon"], kit.held_out(model, 1)["jargon"]
with threadpool_limits(1):
    after = {r: cut(r) for r in (0, 1, 8)}
lost = {r: (loss - whole_update) / (untouched - whole_update) for r, loss in after.items()}
assert lost[8] < 0.15 and lost[8] < 1 - share.mean()
kit.say(
    f"The base's loss is {untouched:.2f}, after full training {whole_update:.2f}. With no direction of any matrix it "
    f"is {after[0]:.2f}, since norms and embedding keep their change. With 8 of each it is {after[8]:.2f}: "
    f"{1 - share.mean():.0%} of the update is gone, but {lost[8]:.0%} of what was learned."
)

# %% [markdown]
# The same matrix by matrix. Which of them changed in few directions? And where does the loss stop to care?

# %%
from tinyllm.course.figures import xray

with threadpool_limits(1):
    xray(full, after | {r: cut(r) for r in (2, 4, 16, 32)}).show()

# %% [markdown]
# **Why.** Much of what full training moves does not matter for the loss. So two things are true at once: the full
# update is not of low rank, and an update of low rank learns the task nearly as well. LoRA need not *imitate* full
# training. It looks for a good update among those of low rank, and there are some.
#
# ## Three questions
#
# **1.** "LoRA trains 1 % of the parameters, so training needs 1 % of the memory." What is wrong?
#
# <details><summary>Answer</summary>
#
# Only gradients and the optimiser's moments shrink so. The frozen weights are still there, and most of what the forward
# pass keeps is still kept, because gradients have to travel through all layers to reach the first adapter.
#
# </details>
#
# **2.** Somebody doubles the rank from 8 to 16, leaves alpha at 16, and finds that the larger rank learns more slowly.
# Is the larger rank worse?
#
# <details><summary>Answer</summary>
#
# It cannot be told. The scale alpha / r fell from 2 to 1 as well, and with AdamW that is much like half the learning
# rate.
#
# </details>
#
# **3.** Why not begin with both A and B random, and small?
#
# <details><summary>Answer</summary>
#
# Then the model would not begin as the base: every adapted layer would add noise, in the direction of nothing. With
# both zero it would begin as the base and stay there, for neither would have a gradient.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * That LoRA equals full training in the long run. These are 9 to 30 steps of a model of 1.6 million parameters. Where
#   there is much to learn, an update of low rank runs full at some time.
# * Which rank, targets or rate your model wants. The grids here take seconds; make one for yours.
# * That dropout helps. In so few steps there is nothing to overfit.

# %% [markdown]
# ## Now read
#
# - `tinyllm.lora.layer.lora_update`: yours
# - `tinyllm.lora.layer.LoRALinear`: the layer, with several adapters and a merged weight
# - `tinyllm.lora.verbs.apply_lora`: freezing, targets, and what is refused
# - `tinyllm.lora.targets.linear_names`: which layers can be targets
# - `tinyllm.inspect.kept.kept`: what the rules name
