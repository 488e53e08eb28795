# %% [markdown]
# # Lesson 9: Does an adapter cost anything to use?
#
# After lesson 8 you have a base model and, beside it, an adapter of half a megabyte. Each answer now multiplies by A
# and by B as well. Must it? Here you fold the adapter into the weights, measure what that saves, take it out again
# without a trace (and see how one cannot), switch between several adapters, and look into the file that one hands out.
#
# - **Needs**: lessons 1, 2, 8
# - **Minutes**: 50
# - **Afterwards you can**: say when to merge and when not, why unmerging must not subtract, and what an adapter's
#   file holds

# %%
import numpy as np
import tinyllm
from tinyllm.backend.half import from_bfloat16, to_bfloat16
from tinyllm.course import check, kit
from tinyllm.lora import apply_lora, disable_lora, enable_lora, merge_lora, set_adapter, unmerge_lora
kit.begin(9, needs="0.2")

# %% [markdown]
# ## 1. One matrix in place of three
#
# The layer of lesson 8 is $y = W x + \frac{\alpha}{r} B (A x)$. Nothing in it bends: both terms are linear in $x$. So
# they are one matrix,
#
# $$ y = \Big(W + \frac{\alpha}{r} B A\Big)\, x , $$
#
# and that matrix can be computed once. To do so is to **merge** the adapter. This is the part that you write:

# %%
def my_lora_fold(w, A, B, scale):
    """W + scale * B A, of arrays; w (rows, in), A (r, in), B (rows, r)."""
    return w + scale * (B @ A)


# %% [markdown]
# First a trained adapter, on every linear layer of the base.

# %%
def adapted(steps=15, text="jargon"):
    """The base with an adapter that learned a little."""
    tinyllm.manual_seed(0)
    model = apply_lora(kit.base(), target_modules="all-linear", verbose=False)
    kit.fine_tune(model, steps=steps, lr=1e-2, text=text)
    return model.eval()


def logits(model, ids):
    with tinyllm.no_grad():
        return model(ids).data


prompt = np.array([kit.tokenizer().encode("hacker: one who enjoys ")])
model = adapted()
before = logits(model, prompt)

# %% [markdown]
# **Predict.** Merge it with your fold. Are the logits the same to the last bit, nearly the same, or different?

# %% tags=["hide-output"]
with tinyllm.use(lora_fold=my_lora_fold):
    merge_lora(model)
    merged = logits(model, prompt)
unmerge_lora(model)
merge_lora(model)
assert (merged == logits(model, prompt)).all()  # the engine's own fold gives the same bits
gap, size = np.abs(merged - before).max(), np.abs(before).max()
assert 0 < gap < 1e-5 * size
kit.say(f"Nearly: the largest logit is {size:.1f}, the largest difference {gap:.1e}.")

# %% [markdown]
# **Why.** As mathematics the two are equal. As float32 they add the same numbers up in another order, and each addition
# rounds to seven digits or so. The same happens whenever a product is computed on another processor.
#
# ## 2. What it saves
#
# Four ways to answer: the base alone; the adapter beside it; merged, with the base's weights kept; merged **for good**,
# where only the sum is left. They are called in turns, so that whatever else this machine does meets all of them alike,
# and it is processor time that counts.
#
# **Predict.** The adapter has 7 % of the base's parameters. How much longer does one token take with it: 7 %, more, or
# less? And a prompt of 64 tokens?

# %% tags=["hide-output"]
for_good = merge_lora(adapted(), keep_base=False)
ways = {"base": kit.base().eval(), "beside": adapted(), "merged": model, "for good": for_good}
times = {}
for tokens in (1, 64):
    ids = np.arange(100, 100 + tokens)[None]
    found = kit.in_turns({name: lambda m=m, ids=ids: logits(m, ids) for name, m in ways.items()}, rounds=9)
    times[tokens] = {name: seconds / found["base"] for name, seconds in found.items()}


def figure_times(times):
    """Time of the four ways over the base's, for one token and for many."""
    figure, axes = kit.plt.subplots(1, len(times), figsize=(7, 2.8), sharey=True, layout="constrained")
    for ax, (tokens, found) in zip(axes, times.items(), strict=True):
        bars = ax.bar(list(found), list(found.values()), color=["#999999", "#d55e00", "#0072b2", "#009e73"])
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
        ax.axhline(1, color="#444444", linewidth=0.8)
        ax.set_title(f"{tokens} token{'s' * (tokens > 1)}", fontsize=9)
    axes[0].set(ylabel="time / the base's time", ylim=(0, 2.4))
    one, many = times.values()
    kit.show(
        figure,
        f"Bars of time over the base's time. One token: beside {one['beside']:.2f}, merged {one['merged']:.2f}, "
        f"for good {one['for good']:.2f}. 64 tokens: {many['beside']:.2f}, {many['merged']:.2f}, "
        f"{many['for good']:.2f}.",
    )
    return times


one, many = figure_times(times).values()
assert one["beside"] > 1.3 > one["for good"] and one["beside"] > many["beside"] > 1.1
kit.say(
    f"Beside the base an adapter costs much more than its share of parameters: {one['beside'] - 1:.0%} more time for "
    f"one token, {many['beside'] - 1:.0%} for 64. Merged for good it costs nothing that this measurement can see."
)

# %% [markdown]
# **Why.** One token is a vector, and with vectors of 160 numbers most of the time goes into *calling* products, not
# into computing them. The layer alone is one call; with A, B and the sum it is four. With many tokens there is more to
# compute in each call, and in a large model more still: there the share falls towards that of the parameters. But one
# token after the other is how a model writes.
#
# Merged with the base kept costs almost nothing either, only a look at every layer whether the adapter is still what
# was folded. What it costs is memory: both matrices are there.
#
# ## Exercise 09-fold: several at once
#
# *10 minutes, importance 4 of 5.*
#
# Write `fold_all(W, adapters)`: the weight with all updates in. `adapters` is a list of (A, B, alpha); the scale of
# each is its alpha over its own rank. W must be left as it is. With an empty list a copy of W comes back.

# %%
def fold_all(W, adapters):
    raise NotImplementedError("your turn")


check("09-fold", fold_all)

# %% [markdown]
# ## 3. Back again
#
# Some want the base back: to switch to another adapter, or to train on. There are two ways. One subtracts the update
# again, and needs no second matrix. The other keeps the base's weights.
#
# **Predict.** In float32: $w$ is added to and $d$ subtracted again. Is $(w + d) - d$ equal to $w$? In which cases not?

# %% tags=["hide-output"]
layer = adapted().get("layers.2.mlp.up_proj")
W, A, B = layer.base_layer.weight.data, layer.lora_A["default"].data, layer.lora_B["default"].data
update = my_lora_fold(np.zeros_like(W), A, B, 2.0)
back = (W + update) - update
changed = (back != W).mean()
assert 0 < changed < 0.5
kit.say(
    f"Not always: {changed:.0%} of this layer's weights come back as another number. Where the update is larger "
    "than the weight, the sum has fewer digits left for the weight's own."
)

# %% [markdown]
# In float32 the errors are of the size of 0.00000001. Models are often kept in **bfloat16**, which has 8 bits of
# precision in place of 24: between 1 and 2 there are 128 numbers. (`to_bfloat16` rounds, `from_bfloat16` makes floats
# of it again.) And some training loops merge at every step to write something, unmerge, and train on; so each time the
# update is another one. Let us do that a few hundred times, to the same layer, with an adapter that moves a little each
# time as if it were trained.

# %%
def rounded(array):
    """The nearest bfloat16 of each number, as float32."""
    return from_bfloat16(to_bfloat16(array))


def drift(store, cycles, seed=0):
    """How far a weight is from where it began, relatively, after each cycle of adding and subtracting."""
    generator, moving = np.random.default_rng(seed), B.copy()
    weight = start = store(W)
    found = []
    for _ in range(cycles):
        update = 2.0 * (moving @ A)
        weight = store(store(weight + update) - update)
        moving = moving + (0.03 * B.std() * generator.standard_normal(B.shape)).astype(np.float32)
        found.append(np.linalg.norm(weight - start) / np.linalg.norm(start))
    return np.array(found)


from threadpoolctl import threadpool_limits

with threadpool_limits(1):  # matrices as small as these: a second processor costs more than it gives
    drifts = {"float32": drift(lambda w: w, 300), "bfloat16": drift(rounded, 300)}


def figure_drift(drifts):
    """The relative distance from the base against the cycles."""
    figure, ax = kit.plt.subplots(figsize=(6, 3), layout="constrained")
    for (name, found), colour in zip(drifts.items(), ("#0072b2", "#d55e00"), strict=True):
        ax.plot(np.arange(1, len(found) + 1), 100 * found, color=colour, label=f"subtracted in {name}")
    ax.set(xscale="log", yscale="log", xlabel="times merged and unmerged", ylabel="distance from the base (%)")
    ax.legend(frameon=False, fontsize=8)
    kit.show(
        figure,
        f"Distance of the weight from the base against the number of cycles, both axes logarithmic. In bfloat16 "
        f"{100 * drifts['bfloat16'][0]:.2f} % after one cycle and {100 * drifts['bfloat16'][-1]:.1f} % after "
        f"{len(drifts['bfloat16'])}; in float32 {100 * drifts['float32'][-1]:.6f} %.",
    )
    return {name: (found[0], found[-1]) for name, found in drifts.items()}


ends = figure_drift(drifts)
assert ends["bfloat16"][1] > 5 * ends["bfloat16"][0] and ends["float32"][1] < 1e-6
kit.say(
    f"In bfloat16 the weight has moved by {ends['bfloat16'][1]:.1%} of its size, and nobody trained it. The errors "
    "do not cancel, because each rounding goes its own way."
)

# %% [markdown]
# **Why.** That is a frozen base that is no longer frozen, a bug without a message, and it has been found in well-known
# libraries. The engine therefore never subtracts: the folded weight is *another* matrix, and the base's own is never
# written to. So after any number of merges the base is there to the bit:

# %%
model = adapted()
first = logits(model, prompt)
for _ in range(3):
    merge_lora(model)
    unmerge_lora(model)
assert (logits(model, prompt) == first).all()
disable_lora(model)
assert (logits(model, prompt) == logits(kit.base().eval(), prompt)).all()
enable_lora(model)
assert (logits(model, prompt) == first).all()
kit.say("Merged and unmerged, disabled and enabled: the adapted model's bits, the base's bits, and the first again.")

# %% [markdown]
# ## Exercise 09-state: a layer that cannot get lost
#
# *20 minutes, importance 4 of 5.*
#
# Write `outputs(calls)`: `calls` is a list of the words "merge", "unmerge", "enable" and "disable", in any order and as
# often as one likes, called one after the other on a model with one adapter that begins enabled and not merged. Return
# what the model answers as in the end, "base" or "adapted". (The trap: is a disabled model that is merged "adapted"?)

# %%
def outputs(calls):
    raise NotImplementedError("your turn")


check("09-state", outputs)

# %% [markdown]
# ## 4. Several adapters
#
# The base does not know its adapters. So there may be many of them beside one base, and which of them count is one
# word. Here one learns the jargon, and a second one goes on with the plays.

# %%
model = adapted()
tinyllm.manual_seed(1)
apply_lora(model, target_modules="all-linear", adapter_name="plays", verbose=False)  # fresh; it alone trains now
kit.fine_tune(model, steps=15, lr=3e-3, text="plays")
model.eval()
scores = {}
for name, active in {"default": "default", "plays": "plays", "both": ["default", "plays"]}.items():
    set_adapter(model, active)
    scores[name] = kit.held_out(model, 1)
disable_lora(model)
scores["none"] = kit.held_out(model, 1)
enable_lora(model)
kit.say(
    "| active | loss on the jargon | loss on the plays |\n|---|---:|---:|\n"
    + "\n".join(f"| {name} | {loss['jargon']:.3f} | {loss['plays']:.3f} |" for name, loss in scores.items())
)
jargon, plays = ({name: loss[text] for name, loss in scores.items()} for text in ("jargon", "plays"))
assert jargon["default"] < jargon["none"] - 0.5 and plays["default"] > plays["none"] + 0.3
assert abs(plays["plays"] - plays["none"]) < 0.1

# %% [markdown]
# The first made the model better at the jargon and worse at the plays. The second learned almost nothing, because the
# plays are what the base was made of: there was nothing left to learn.
#
# **Predict.** Both are active: $y = W x + \text{update}_1 + \text{update}_2$. Does the second bring the plays back?

# %% tags=["hide-output"]
assert abs(plays["both"] - plays["default"]) < 0.1 < plays["default"] - plays["plays"]
kit.say(
    f"No: with both the loss on the plays is {plays['both']:.2f}, with the first alone {plays['default']:.2f}. The "
    "second was trained beside the base, and does not know what the first one spoiled. Updates are added up; what "
    "they are good for is not."
)

# %% [markdown]
# ## 5. The file
#
# What one hands out is the adapter alone: A and B of each layer, under names that say where they belong, and a small
# file of settings. The names and both files are those of **PEFT**, the library that most people use for this, so they
# are read there as well.

# %%
import json
import tempfile
from pathlib import Path
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

folder = Path(tempfile.mkdtemp())
trained = adapted()
tinyllm.save_adapter(trained, folder)
arrays = tinyllm.load(folder / "adapter_model.safetensors")
settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
sizes = {"adapter": (folder / "adapter_model.safetensors").stat().st_size, "base": 4 * kit.base().num_parameters()}
for name in list(arrays)[:2]:
    print(name, arrays[name].shape)
print({key: settings[key] for key in ("r", "lora_alpha", "lora_dropout", "peft_type")})
kit.say(f"{len(arrays)} arrays, {sizes['adapter'] / 1e6:.2f} MB; the base in float32 has {sizes['base'] / 1e6:.2f} MB.")

# %% [markdown]
# **Predict.** Two things can go wrong when it is read: it is put on a model of another shape, or on a base with the
# same shape and other weights. Which of the two can be noticed from the arrays?

# %% tags=["hide-output"]
again = tinyllm.load_adapter(kit.base(), folder).eval()
assert (logits(again, prompt) == logits(trained, prompt)).all()
refused = False
try:
    small = llama_shape(vocab_size=1024, hidden_size=96, num_layers=2, num_heads=4)
    tinyllm.load_adapter(DecoderModel(**small), folder)
except ValueError as error:
    refused = "nothing was changed" in str(error)
assert refused
kit.say("The first: another shape is refused. Over the right base it answers bit for bit as before.")

# %% [markdown]
# **Why.** Shapes can be compared, weights cannot: the file does not hold the base's. An adapter on another base of the
# same shape answers, and answers badly. That is why the settings name the base, and why one should not throw that away.
#
# ## Exercise 09-bytes: how large is an adapter?
#
# *10 minutes, importance 3 of 5.*
#
# Write `adapter_bytes(shapes, rank, itemsize)`: the bytes of all A and B, for layers of these shapes (a list of
# (out, in)) and numbers of `itemsize` bytes. Then, for yourself: Llama-2-7B has 32 layers with q, k, v and o of
# 4096 x 4096. How large is an adapter of rank 8 on all four, in two bytes a number?

# %%
def adapter_bytes(shapes, rank, itemsize):
    raise NotImplementedError("your turn")


check("09-bytes", adapter_bytes)

# %% [markdown]
# ## Three questions
#
# **1.** "After merging, the model is larger by the adapter." True?
#
# <details><summary>Answer</summary>
#
# Merged for good it is exactly as large as the base: the sum of two matrices of one shape has that shape. Merged with
# the base kept, a second matrix is held beside each adapted one.
#
# </details>
#
# **2.** A service answers for a hundred customers, each with an adapter. Should it merge?
#
# <details><summary>Answer</summary>
#
# No. Merged, it would need a hundred models. Beside one base it needs a hundred small files, and what each costs in
# time is the price. Merge where there is one adapter.
#
# </details>
#
# **3.** Somebody merges, trains on, merges again, and the model answers nonsense. What may have happened?
#
# <details><summary>Answer</summary>
#
# If the first merge wrote into the weights and the adapter was still added beside them, its update counts twice; and
# with a second merge three times. Merging must either remove the adapter or remember that it is in.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * How much merging saves in a large model, or on a graphics card. The times here are of a small model on one
#   processor.
# * How to merge into weights of four bits. There the sum has to be rounded, and that is another story: lesson 11.
# * That mixtures of adapters are useful. Sometimes they are; here nothing was tried but a sum.

# %% [markdown]
# ## Now read
#
# - `tinyllm.lora.layer.lora_fold`: yours
# - `tinyllm.lora.layer.LoRALinear.merged_weight`: when a fold is made again
# - `tinyllm.lora.merge.merge_lora`: beside the base, or for good
# - `tinyllm.lora.verbs.set_adapter`: which adapters count, and train
# - `tinyllm.lora.peft.adapter.save_adapter`: the file
