# %% [markdown]
# # Lesson 11: What else is in QLoRA, and what becomes of an adapter over four bits?
#
# Lesson 10 wrote the weights in four bits and trained an adapter over them. Two questions stayed open. The scales of
# the blocks are still floats: can they be made smaller, too? And when training is over: what is the adapter merged
# *into*? There are three answers, and one of them can throw away everything that was learned.
#
# - **Needs**: lessons 8, 9, 10
# - **Minutes**: 60
# - **Afterwards you can**: count the bits of a weight to the third digit, say what QLoRA saves and what it cannot save,
#   and choose what to merge an adapter into

# %%
import numpy as np
import tinyllm
from tinyllm.course import check, kit
from tinyllm.lora import apply_lora, merge_lora
from tinyllm.qlora import apply_qlora, dequantize_nf4, quantize_nf4
kit.begin(11, needs="0.2")

# %% [markdown]
# ## 1. The scales are numbers, too
#
# NF4 spends 4 bits on each weight, and for each block of 64 weights one scale, `absmax`, as a float of 32 bits. That is
# half a bit more a weight: 4.5. For seven billion weights half a bit is 0.4 GB. Look at the scales of one matrix:

# %%
W = kit.base().get("layers.2.mlp.up_proj").weight.data
packed, absmax = quantize_nf4(W)
kit.say(
    f"{absmax.size:,} scales, from {absmax.min():.3f} to {absmax.max():.3f}; their mean is {absmax.mean():.3f}. They "
    "are much alike: a float32, which can tell 0.00000001 from 100,000,000, is more than they need."
)

# %% [markdown]
# So they are quantised as well, in 8 bits, and the way is the one of lesson 10 once more:
#
# 1. Their mean is taken away, the **offset**, because all of them are positive and alike.
# 2. What is left is cut into blocks of 256, each with its own largest magnitude.
# 3. Each number becomes the code of the nearest of 256 levels.
#
# The levels are not even. `dynamic_map()` is a table like a tiny floating-point format: dense at zero, sparse at one.

# %%
from tinyllm.backend.double_quant import dynamic_map, quantize_absmax

table = dynamic_map()
print("around zero:", table[124:131])
print("at the end: ", table[-4:])

# %% [markdown]
# This is **double quantisation**, and this is the part that you write. It gets the scales, and returns the codes, the
# second-level scales and the offset.

# %%
def my_quantize_absmax(absmax):
    """Scales in 8 bits: codes (uint8), a scale for each 256 of them (float32), and the mean (float32)."""
    offset = absmax.mean(dtype=np.float32)
    filled = np.zeros(-(-absmax.size // 256) * 256, np.float32)
    filled[: absmax.size] = absmax - offset
    blocks = filled.reshape(-1, 256)
    absmax2 = np.abs(blocks).max(axis=1)
    scaled = blocks / np.maximum(absmax2, np.float32(1e-38))[:, None]
    levels = dynamic_map()
    codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, scaled.reshape(-1))
    return codes[: absmax.size].astype(np.uint8), absmax2, offset


# %% [markdown]
# And back:

# %%
def my_dequantize_absmax(codes, absmax2, offset):
    """The scales that the codes stand for, float32."""
    scale = np.repeat(absmax2, 256)[: codes.size]
    return dynamic_map()[codes] * scale + np.float32(offset)


# %% [markdown]
# **Predict.** With scales in 8 bits, each off by up to a percent or so, the weights come back worse. By how much does
# the weights' error grow: from 9 % to 10 %, to 9.1 %, or to less?

# %% tags=["hide-output"]
def error(back):
    return np.linalg.norm(back - W) / np.linalg.norm(W)


codes, absmax2, offset = my_quantize_absmax(absmax)
rough = my_dequantize_absmax(codes, absmax2, offset)
single, double = (error(dequantize_nf4(packed, scales, W.shape)) for scales in (absmax, rough))
assert single < double < 1.01 * single
kit.say(f"From {single:.3%} to {double:.3%}. The scales themselves are off by {np.abs(rough / absmax - 1).mean():.2%}.")

# %% [markdown]
# **Why.** Errors that have nothing to do with each other do not add up; their *squares* do. Beside 9 % a third of a
# percent is nothing: $\sqrt{9^2 + 0.3^2}$ is 9.005.
#
# Now count. A large weight of $n$ numbers takes 4 bits for each, 8 for each 64 of them, and 32 for each 64 · 256:
#
# $$ 4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127 . $$

# %%
def figure_bits(n=4096 * 4096):
    """Bits a weight: floats, NF4, and NF4 with double quantisation, in their parts."""
    blocks = -(-n // 64)
    kinds = {
        "float32": (32.0, 0.0),
        "bfloat16": (16.0, 0.0),
        "NF4": (4.0, 32 * blocks / n),
        "NF4, double": (4.0, (8 * blocks + 32 * -(-blocks // 256) + 32) / n),
    }
    figure, (left, right) = kit.plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for ax, names in ((left, list(kinds)), (right, list(kinds)[2:])):
        weights, scales = ([kinds[name][i] for name in names] for i in (0, 1))
        ax.bar(names, weights, color="#0072b2", label="codes or floats")
        bars = ax.bar(names, scales, bottom=weights, color="#e69f00", label="scales")
        ax.bar_label(bars, [f"{sum(kinds[name]):.3f}" for name in names], fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
    left.set(ylabel="bits a weight", ylim=(0, 36))
    right.set(ylim=(3.9, 4.6))
    right.legend(frameon=False, fontsize=8)
    total = {name: sum(bits) for name, bits in kinds.items()}
    kit.show(
        figure,
        f"Bits a weight, for a matrix of 4096 by 4096: float32 32, bfloat16 16, NF4 {total['NF4']:.3f}, with double "
        f"quantisation {total['NF4, double']:.3f}. On the right the last two from 3.9 on: the scales shrink from 0.5 "
        f"to {total['NF4, double'] - 4:.3f} bits.",
    )
    return total


bits = figure_bits()
stored = codes.nbytes + absmax2.nbytes + offset.nbytes + packed.nbytes
assert abs(bits["NF4, double"] - 4.127) < 5e-4
kit.say(
    f"{bits['NF4, double']:.3f} for a large matrix. The one above is small, {W.size:,} numbers: {stored:,} bytes, "
    f"{8 * stored / W.size:.3f} bits each."
)

# %% [markdown]
# Into the engine with it: QLoRA over your scales.

# %%
def quantised(**options):
    """The base in four bits with fresh adapters, the same ones each time."""
    tinyllm.manual_seed(0)
    return apply_qlora(kit.base(), target_modules="all-linear", verbose=False, **options)


usual = kit.fine_tune(quantised(), steps=5)
with tinyllm.use(quantize_absmax=my_quantize_absmax, dequantize_absmax=my_dequantize_absmax):
    own = kit.fine_tune(quantised(), steps=5)
theirs, _, _ = quantize_absmax(absmax)
apart = np.abs(np.array(own) - usual).max()
assert apart < 1e-3
kit.say(
    f"The losses differ by {apart:.5f} at most, because {(theirs != codes).sum()} of {codes.size:,} codes are others: "
    "the format that everybody reads does not search for the nearest level, but looks it up in 65,536 bins, which is "
    "quicker, and near a border takes the neighbour. Whoever wants the same *bytes* must copy that as well."
)

# %% [markdown]
# ## Exercise 11-bits: how many bits?
#
# *10 minutes, importance 4 of 5.*
#
# Write `bits_of(n, block_size, double_quant)`: the bits a weight of n numbers takes, for each number, everything
# counted: codes (whole bytes: two to a byte), scales, and with double quantisation the codes of the scales, a float for
# each 256 of them, and the offset. For small n this is far from 4.127.

# %%
def bits_of(n, block_size, double_quant):
    raise NotImplementedError("your turn")


check("11-bits", bits_of)

# %% [markdown]
# ## Exercise 11-groups: more than one group
#
# *15 minutes, importance 4 of 5.*
#
# A library's way back from double quantisation was right for one group of 256 scales, and failed for more: its scales
# met the wrong codes. Write `scales_back(codes, absmax2, offset, levels)`: the scales again, from plain loops or
# without them, right for any number of groups, and with a last group that is not full. `codes` are uint8 (n,),
# `absmax2` one number for each 256 of them, `offset` one number, `levels` the 256 numbers that codes stand for.

# %%
def scales_back(codes, absmax2, offset, levels):
    raise NotImplementedError("your turn")


check("11-groups", scales_back)

# %% [markdown]
# ## 2. What is saved, and what is not
#
# `tinyllm.kept` lists what backward will need, and by `owned_total` how much of the model's own weights is named there.
#
# **Predict.** LoRA and QLoRA of the same shape, the same batch. How much less does QLoRA keep for backward?

# %% tags=["hide-output"]
def plain():
    tinyllm.manual_seed(0)
    return apply_lora(kit.base(), target_modules="all-linear", verbose=False)


batch = next(kit.batches())
kept = {name: tinyllm.kept(m.train().loss(batch), m) for name, m in (("LoRA", plain()), ("QLoRA", quantised()))}
assert kept["LoRA"].total == kept["QLoRA"].total and kept["QLoRA"].owned_total < kept["LoRA"].owned_total / 4
kit.say(
    f"Nothing less: {kept['QLoRA'].total / 1e6:.2f} MB both. What falls is what belongs to the model: "
    f"{kept['LoRA'].owned_total / 1e6:.2f} MB become {kept['QLoRA'].owned_total / 1e6:.2f}."
)

# %% [markdown]
# **Why.** The arrays between the layers are floats either way, and the adapters' rules name the same ones. But the rule
# of $y = W x$ for the input is $g W$: it names the weight. In LoRA that is a float matrix, in QLoRA the four-bit one.
# So the gradient goes *through* a frozen weight, and none goes *to* it:

# %%
weight = quantised().get("layers.2.mlp.up_proj").base_layer.weight
generator = np.random.default_rng(0)
x = tinyllm.Tensor(generator.standard_normal((64, W.shape[1])).astype(np.float32), requires_grad=True)
g = generator.standard_normal((64, W.shape[0])).astype(np.float32)
y = tinyllm.functional.linear(x, weight)
y.backward(g)
unpacked = weight.dense()
assert np.abs(y.data - x.data @ unpacked.T).max() < 1e-4 and np.abs(x.grad - g @ unpacked).max() < 1e-4
tiles = [part.nbytes for _, part in weight.tiles()]
kit.say(
    f"Forward is x times the unpacked weight, backward g times the same. It is unpacked in pieces: {len(tiles)} of at "
    f"most {max(tiles):,} bytes, of {unpacked.nbytes:,}; the piece's memory is used again for the next one."
)

# %% [markdown]
# So a model's weights are never all unpacked, not even a layer's. The price is time: they are unpacked anew in every
# forward and every backward pass.
#
# What does it do to learning? Three runs over the same batches: everything trains, LoRA, QLoRA.

# %%
def everything():
    model = kit.base()
    return model.requires_grad_(True) or model


runs, ends = {}, {}
for name, make, lr in (("full", everything, 3e-3), ("LoRA", plain, 1e-2), ("QLoRA", quantised, 1e-2)):
    model = make()
    runs[name] = np.array(kit.fine_tune(model, steps=25, lr=lr))
    ends[name] = kit.held_out(model, 1)["jargon"]


def figure_curves(runs):
    """Losses of three runs, and how far QLoRA's are from LoRA's."""
    figure, (left, right) = kit.plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    styles = (("#009e73", "-"), ("#0072b2", "-"), ("#d55e00", "--"))
    for (name, losses), (colour, style) in zip(runs.items(), styles, strict=True):
        left.plot(range(1, len(losses) + 1), losses, style, color=colour, label=name)
    gap = runs["QLoRA"] - runs["LoRA"]
    right.plot(range(1, len(gap) + 1), gap, color="#d55e00", marker=".")
    right.axhline(0, color="#444444", linewidth=0.8)
    left.set(xlabel="step", ylabel="loss of the batch (nats a token)")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="step", title="QLoRA - LoRA")
    right.title.set_fontsize(9)
    kit.show(
        figure,
        f"Left: losses of 25 steps; full ends at {runs['full'][-1]:.2f}, LoRA at {runs['LoRA'][-1]:.2f}, QLoRA at "
        f"{runs['QLoRA'][-1]:.2f}. Right: QLoRA's loss minus LoRA's, between {gap.min():.3f} and {gap.max():.3f}.",
    )
    return {"gap": gap}


gap = figure_curves(runs)["gap"]
assert np.abs(gap).max() < 0.1
kit.say(
    "Held-out losses: " + ", ".join(f"{name} {loss:.2f}" for name, loss in ends.items()) + ". The last two curves lie "
    "on each other, and only their difference shows anything: the adapter learns to live with the rounding errors "
    "below it."
)

# %% [markdown]
# ## 3. Merged into what?
#
# The adapter was trained over the four-bit base. When it is merged, there are three candidates:
#
# * **dequantized**: the four-bit base, unpacked to floats, plus the update. Large again, but exactly what was trained.
# * **original**: the floats from before the quantisation, plus the update. A better base, but another one than the
#   adapter knew.
# * **requantized**: dequantized, plus the update, and then rounded to four bits again. As small as before.
#
# First a *light* fine-tune: ten steps at a low rate, so that the update is about a hundredth of the weight's size. Then
# a longer one.

# %%
def three_ways(steps, lr):
    """The held-out loss of the four-bit base, as trained, and merged in three ways; and the update's relative size."""
    trained = quantised()
    kit.fine_tune(trained, steps=steps, lr=lr)
    learned = {name: p.data for name, p in trained.named_parameters() if "lora" in name}
    original = kit.base().state_dict()
    found = {"four-bit base": kit.held_out(quantised(), 1)["jargon"], "as trained": kit.held_out(trained, 1)["jargon"]}
    for name, base in {"dequantized": "dequantized", "original": original, "requantized": "requantized"}.items():
        model = quantised()
        for path, p in model.named_parameters():
            if path in learned:
                p.data = learned[path].copy()
        found[name] = kit.held_out(merge_lora(model, keep_base=False, base=base), 1)["jargon"]
    layer = trained.get("layers.2.mlp.up_proj")
    update = layer.fold(layer.base_layer.weight) - layer.base_layer.weight.dense()
    return found, np.linalg.norm(update) / np.linalg.norm(W)


# %% [markdown]
# **Predict.** Rounding to four bits moves a weight by 9 % of its size. The light update moved it by about 1 %. What is
# left of the update after requantising?

# %% tags=["hide-output"]
light, light_size = three_ways(steps=10, lr=1e-3)
longer, longer_size = three_ways(steps=30, lr=3e-3)


def left_over(found):
    """The share of what was learned that requantising left."""
    return (found["four-bit base"] - found["requantized"]) / (found["four-bit base"] - found["as trained"])


def figure_merges(light, longer):
    """Held-out losses of the three ways, for both updates."""
    figure, axes = kit.plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    colours = ["#999999", "#000000", "#009e73", "#0072b2", "#d55e00"]
    for ax, (name, found) in zip(axes, {"light": light, "longer": longer}.items(), strict=True):
        bars = ax.barh(list(found)[::-1], list(found.values())[::-1], color=colours[::-1])
        ax.bar_label(bars, fmt=" %.2f", fontsize=8)
        ax.set(title=f"{name} fine-tune", xlabel="held-out loss", xlim=(5, 6.8))
        ax.title.set_fontsize(9)
    axes[1].set_yticklabels([])
    kit.show(
        figure,
        "Held-out losses. Light fine-tune: "
        + ", ".join(f"{name} {loss:.2f}" for name, loss in light.items())
        + ". Longer: "
        + ", ".join(f"{name} {loss:.2f}" for name, loss in longer.items())
        + ".",
    )
    return {"light": left_over(light), "longer": left_over(longer)}


left = figure_merges(light, longer)
for found in (light, longer):
    assert abs(found["dequantized"] - found["as trained"]) < 1e-4
assert left["light"] < 0.1 and left["longer"] > 0.8
kit.say(
    f"The light update had {light_size:.1%} of the weight's size, and requantising left {left['light']:.0%} of what it "
    f"had learned: the fine-tune is gone. Of the longer one, {longer_size:.1%} of the weight's size, "
    f"{left['longer']:.0%} is left. Dequantized is as trained; the original floats are close to it."
)

# %% [markdown]
# Take the light update again, and look at single weights, and at what the model writes. Where does requantising put a
# weight that the update moved only a little?

# %%
from tinyllm.course.figures import merge_lab
from tinyllm.generate import generate


def jargon(model):
    return kit.held_out(model, 1)["jargon"]


def written(model):
    """What the model writes after a few words, taking the likeliest token each time."""
    prompt = kit.tokenizer().encode("To fix the bug, ")
    return kit.tokenizer().decode(generate(model.eval(), prompt, 30, temperature=0))


tuned = quantised()
kit.fine_tune(tuned, steps=10, lr=1e-3)
merge_lab(tuned, kit.base().state_dict(), "layers.2.mlp.up_proj", jargon, written).show()

# %% [markdown]
# **Why.** A weight lies on one of sixteen levels. If the update does not carry it past the middle to the next level,
# rounding puts it back where it was, exactly. With a light update nearly all weights go back. So: keep the adapter
# beside its four-bit base, or merge it into floats; and if it must be four bits in the end, *measure* the result
# (`tinyllm merge --base requantized --data FILE` does), and know that nothing in the file says that it failed.
#
# ## Exercise 11-moved: how many weights does an update move?
#
# *15 minutes, importance 5 of 5.*
#
# Write `moved(codes, scaled, update, levels)`: the share of weights whose code changes. `codes` are the present codes,
# `scaled` the values they stand for (levels, between -1 and 1), `update` what is added to them, in the same scale, and
# `levels` the sixteen levels (half-way between two, the lower one). Suppose that the block's scale stays as it is. With
# an update of zeros the answer is 0.

# %%
def moved(codes, scaled, update, levels):
    raise NotImplementedError("your turn")


check("11-moved", moved)

# %% [markdown]
# ## Three questions
#
# **1.** "QLoRA needs a quarter of LoRA's memory." True?
#
# <details><summary>Answer</summary>
#
# Of the frozen weights, yes, or an eighth against float32. Not of the rest: what is kept for backward, gradients and
# moments of the adapters are as they were. With long texts or large batches the rest is most of it.
#
# </details>
#
# **2.** Somebody quantises the merged floats again and finds the same bytes as before the fine-tune. A bug?
#
# <details><summary>Answer</summary>
#
# Not necessarily: it is what must happen if the update is small enough everywhere. (If all blocks' scales are the same
# as well: the largest weight of a block moves its scale with it, however little.)
#
# </details>
#
# **3.** Is "original" better than "dequantized", because the base is better?
#
# <details><summary>Answer</summary>
#
# It can be better or worse. The floats lack the rounding errors, but the adapter has learned to work against just these
# errors. Only a measurement tells; here the two were close.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * Speed. On a processor unpacking costs time in each step; on a graphics card too, though less.
# * Models that do not fit otherwise. That is what QLoRA is for, and 1.6 million parameters fit anywhere.
# * The paper's third idea, *paged* optimisers, which moves AdamW's moments out of the card's memory when it runs short.
#   With adapters they are small, and the engine does without.

# %% [markdown]
# ## Now read
#
# - `tinyllm.backend.double_quant.quantize_absmax`: yours, with the bins
# - `tinyllm.backend.double_quant.dynamic_map`: how the levels are made
# - `tinyllm.frozen.nf4.NF4Weight.tiles`: unpacked piece by piece
# - `tinyllm.frozen.nf4.bits_per_weight`: the count
# - `tinyllm.lora.merge.merge_lora`: three ways
