# %% [markdown]
# # Lesson 9: Does an adapter cost anything to use?
#
# After lesson 8 you have a base model and, beside it, a small adapter. Each answer now multiplies by A and by B as
# well. Must it? Here you fold the adapter into the weights, measure what that saves, take it out again
# without a trace (and see how one cannot), switch between several adapters, and look into the file that one hands out.
#
# - **Needs**: lessons 1, 2, 8
# - **Minutes**: 50
# - **Afterwards you can**: say when to merge and when not, why unmerging must not subtract, and what a file holds

# %%
import numpy as np
import tinyllm
from tinyllm import generate
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
from tinyllm.lora.adapted import lora_layers


def adapted(steps=15, text="jargon"):
    """The base with an adapter that learned a little."""
    tinyllm.manual_seed(0)
    model = apply_lora(kit.base(), target_modules="all-linear", verbose=False)
    kit.fine_tune(model, steps=steps, lr=1e-2, text=text)
    return model.eval()


def logits(model, ids):
    with tinyllm.no_grad():
        return model(ids).data


def written(model):
    """The twenty tokens that the model thinks most likely after the prompt."""
    return kit.tokenizer().decode(generate.generate(model, list(prompt[0]), 20, temperature=0))


prompt = np.array([kit.tokenizer().encode("hacker: one who enjoys ")])
model = adapted()
before, text = logits(model, prompt), written(model)
share = sum(p.size for p in model.parameters() if p.requires_grad) / kit.base().num_parameters()
kit.say(f"The adapter has {share:.1%} as many numbers as the base.")

# %% [markdown]
# **Predict.** Merge it with your fold. Are the logits the same to the last bit, nearly the same, or different?

# %% tags=["hide-output"]
with tinyllm.use(lora_fold=my_lora_fold):
    merge_lora(model)  # here your function is called, once for each layer; the sum is kept
merged, weights = logits(model, prompt), [layer.folded()[0].data for _, layer in lora_layers(model)]
assert written(model) == text
unmerge_lora(model)
merge_lora(model)  # and once more, with the engine's own
assert all((w == layer.folded()[0].data).all() for w, (_, layer) in zip(weights, lora_layers(model), strict=True))
gap, size = np.abs(merged - before).max(), np.abs(before).max()
assert 0 < gap < 1e-5 * size
kit.say(
    f"Nearly: the largest logit is {size:.1f}, the largest difference {gap:.1e}. The text it writes is the same, and "
    "your merged weights are the engine's to the bit."
)

# %% [markdown]
# **Why.** As mathematics the two are equal. As float32 they add the same numbers up in another order, and each addition
# rounds to seven digits or so. (The same may happen when one product is computed on two kinds of processor.) So merging
# is exact mathematics, but not exact arithmetic; nobody would see it in the text.
#
# ## 2. What it saves
#
# Four ways to answer: the base alone; the adapter beside it; merged, with the base's weights kept; merged **for good**,
# where only the sum is left. They are called in turns, so that whatever else this machine does meets all of them alike,
# and it is processor time that counts.
#
# **Predict.** You have just seen how many numbers the adapter has beside the base's. Is the time for one token longer
# by that share, by more, or by less? And for a prompt of 64 tokens?

# %% tags=["hide-output"]
for_good = merge_lora(adapted(), keep_base=False)
ways = {"base": kit.base().eval(), "beside": adapted(), "merged": model, "for good": for_good}
times = {}
for tokens in (1, 64):
    ids = np.arange(100, 100 + tokens)[None]
    found = kit.in_turns({name: lambda m=m, ids=ids: logits(m, ids) for name, m in ways.items()}, rounds=15)
    times[tokens] = {name: seconds / found["base"] for name, seconds in found.items()}


def figure_times(times):
    """Time of the four ways over the base's, for one token and for many."""
    figure, axes = kit.plt.subplots(1, len(times), figsize=(7, 2.8), sharey=True, layout="constrained")
    for ax, (tokens, found) in zip(axes, times.items(), strict=True):
        bars = ax.bar(list(found), list(found.values()), color=["#999999", "#d55e00", "#0072b2", "#009e73"])
        ax.bar_label(bars, fmt="%.2f", fontsize=8, padding=4)
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
assert one["beside"] > 1.3 > one["for good"] and one["beside"] > many["beside"] > 1 + share
assert one["merged"] < (1 + one["beside"]) / 2
kit.say(
    f"Beside the base an adapter costs much more than its share of parameters: {one['beside'] - 1:.0%} more time for "
    f"one token, {many['beside'] - 1:.0%} for 64. Merged with the base kept it takes {one['merged']:.2f} times as long "
    f"as the base, merged for good {one['for good']:.2f} times. That last model has the base's layers and nothing "
    "else, so what is not 1 there is the noise of the measurement."
)

# %% [markdown]
# **Why.** One token is a vector, and with vectors of 160 numbers most of the time goes into *calling* products, not
# into computing them. The layer alone is one call. With A, with B, with the scale and with the sum there are four more.
# With many tokens there is more to compute in each call, and the share falls; in a large model it falls further,
# towards that of the parameters. But one token after the other is how a model writes.
#
# Merged with the base kept is cheap as well: all that is left is a look, at every layer, whether the adapter is still
# the one that was folded. What it costs is memory, because both matrices are there.
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
# **Predict.** In float32 an update $d$ is added to $w$ and subtracted again. Is $(w + d) - d$ equal to $w$? In which
# cases not?

# %% tags=["hide-output"]
layer = adapted().get("layers.2.mlp.up_proj")
W, A, B = layer.base_layer.weight.data, layer.lora_A["default"].data, layer.lora_B["default"].data
update = my_lora_fold(np.zeros_like(W), A, B, 2.0)
back = (W + update) - update
changed = (back != W).mean()
large = np.abs(update) > np.abs(W)
often, seldom = (back != W)[large].mean(), (back != W)[~large].mean()
assert 0 < changed < 0.5 and often > 2 * seldom
kit.say(
    f"Not always: {changed:.0%} of this layer's weights come back as another number. Where the update is larger "
    f"than the weight it is {often:.0%} of them, elsewhere {seldom:.0%}: a large sum has fewer digits left for the "
    f"weight's own. The largest error is {np.abs(back - W).max():.0e}."
)

# %% [markdown]
# In float32 nobody would notice that. But models are often kept in **bfloat16**, which has 8 bits of precision in
# place of 24: between 1 and 2 there are 128 numbers. (`to_bfloat16` rounds, `from_bfloat16` makes floats
# of it again.) And some training loops merge at every step to write something, unmerge, and train on; so each time the
# update is another one. Let us do that a few hundred times, to the same layer, with an adapter that moves a little each
# time as if it were trained.

# %%
from tinyllm.backend.half import from_bfloat16, to_bfloat16


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
grown = ends["bfloat16"][1] / ends["bfloat16"][0]
assert 0.5 < grown / np.sqrt(300) < 2 and ends["float32"][1] < 1e-6
kit.say(
    f"In bfloat16 the weight has moved by {ends['bfloat16'][1]:.1%} of its size, and nobody trained it. That is "
    f"{grown:.0f} times what one cycle does; the square root of 300 is {np.sqrt(300):.0f}. So does a walk whose every "
    "step goes in a direction of its own: slower than 300 steps in one direction, but it does not stop."
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
# There is something that does help. An update has a strength, its scale, and that is one number which can be turned
# *after* training, with nothing trained again: $y = W x + t \cdot \frac{\alpha}{r} B A x$, from the base at $t = 0$ to
# the adapter at $t = 1$.
#
# **Predict.** At $t = 0.5$: is half of the jargon learned, and half of the plays forgotten?

# %% tags=["hide-output"]
set_adapter(model, "default")
layers = [layer.adapters["default"] for _, layer in lora_layers(model)]
full = layers[0].scale
mixed = {}
for t in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25):
    for adapter in layers:
        adapter.scale = t * full
    mixed[t] = kit.held_out(model, 1)


def figure_strength(mixed):
    """The losses on both texts against the strength of the adapter."""
    figure, ax = kit.plt.subplots(figsize=(6, 3), layout="constrained")
    for text, colour, mark in (("jargon", "#0072b2", "o"), ("plays", "#d55e00", "s")):
        losses = [found[text] - mixed[0.0][text] for found in mixed.values()]
        ax.plot(list(mixed), losses, color=colour, marker=mark, label=f"on the {text}")
    ax.axhline(0, color="#444444", linewidth=0.8)
    ax.set(xlabel="strength t of the adapter", ylabel="loss minus the base's")
    ax.legend(frameon=False, fontsize=8)
    half, whole = ({text: mixed[t][text] - mixed[0.0][text] for text in ("jargon", "plays")} for t in (0.5, 1.0))
    kit.show(
        figure,
        f"How much the losses differ from the base's, against the adapter's strength. At one half the jargon's is "
        f"{half['jargon']:+.2f} and the plays' {half['plays']:+.2f}; at one {whole['jargon']:+.2f} and "
        f"{whole['plays']:+.2f}.",
    )
    return {"half": half, "whole": whole}


strength = figure_strength(mixed)
for adapter in layers:
    adapter.scale = full
assert [found["plays"] for found in mixed.values()] == sorted(found["plays"] for found in mixed.values())
gained, lost = (strength["half"][text] / strength["whole"][text] for text in ("jargon", "plays"))
assert gained > 0.8 and lost < 0.7
kit.say(
    f"No: at half the strength {gained:.0%} of what was gained on the jargon is there, and {lost:.0%} of what was lost "
    "on the plays."
)

# %% [markdown]
# **Why.** Look at the two curves. The jargon's falls steeply and then lies flat: the first part of the way is worth
# most, and near the place to which training went it hardly matters where one stands. The plays' rises all the way,
# since nothing in the training asked about them. So a little less of the adapter costs little of the one and saves
# much of the other. That is a measurement and not a law: another adapter has other curves. The engine has no verb for
# this; `scale` is an attribute, and a merge follows it.
#
# ## Exercise 09-mix: one adapter out of two
#
# *15 minutes, importance 3 of 5.*
#
# Two adapters of one layer shall become *one*, so that a single file does what the mixture does. Write
# `mix(A1, B1, A2, B2, t)`: return A and B with $B A = (1 - t) B_1 A_1 + t B_2 A_2$, for A1 (r1, in), B1 (out, r1),
# A2 (r2, in), B2 (out, r2), where r1 and r2 may differ. Do not form any matrix of (out, in).
#
# <details><summary>Hint</summary>
#
# Which rank must the result have? Then read the product of two matrices cut in two: columns of B meet rows of A. And
# why is the mean of A1 and A2, times the mean of B1 and B2, something else?
#
# </details>

# %%
def mix(A1, B1, A2, B2, t):
    raise NotImplementedError("your turn")


check("09-mix", mix)

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

kept = tempfile.TemporaryDirectory()  # goes when the lesson ends
folder = Path(kept.name)
trained = adapted()
tinyllm.save_adapter(trained, folder)
arrays = tinyllm.load(folder / "adapter_model.safetensors")
settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
sizes = {"adapter": (folder / "adapter_model.safetensors").stat().st_size, "base": 4 * kit.base().num_parameters()}
for name in list(arrays)[:2]:
    print(name, arrays[name].shape)
print({key: settings[key] for key in ("r", "lora_alpha", "lora_dropout", "peft_type")})
assert settings["base_model_name_or_path"] and all(".lora_" in name for name in arrays)
kit.say(
    f"{len(arrays)} arrays, an A and a B for each of {len(arrays) // 2} layers, {sizes['adapter'] / 1e6:.2f} MB; the "
    f"base in float32 has {sizes['base'] / 1e6:.2f} MB. Nothing of the base is in it."
)

# %% [markdown]
# **Predict.** Two things can go wrong when it is read: it is put on a model of another shape, or on a base with the
# same shape and other weights; here, on a base that somebody has meanwhile trained whole, on the same jargon. Which of
# the two can be noticed from the arrays? And does the second base know the jargon twice as well?

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
other = kit.base()
kit.fine_tune(other, steps=10, lr=1e-3)
alone = kit.held_out(other.eval(), 1)
with_it = kit.held_out(tinyllm.load_adapter(other, folder).eval(), 1)
assert with_it["jargon"] > alone["jargon"] - 0.1 and with_it["plays"] > alone["plays"] + 0.3
kit.say(
    "The first: another shape is refused. Over the right base it answers bit for bit as before. Over the other base of "
    f"the same shape it is read without a word. That base had {alone['jargon']:.2f} on the jargon by itself and has "
    f"{with_it['jargon']:.2f} with the adapter: nothing gained; and on the plays it went from {alone['plays']:.2f} to "
    f"{with_it['plays']:.2f}."
)

# %% [markdown]
# **Why.** Shapes can be compared, weights cannot: the file does not hold the base's. An adapter is a *difference*, from
# the weights that it was trained beside; added to others it is what it is, and answers worse. That is why the settings
# name the base (`base_model_name_or_path`, a folder or a name on the hub), and why one should not throw that away.
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
# * That mixtures of adapters are useful. Sometimes they are; here nothing was tried but a sum and a strength, with
#   adapters that learned for a few seconds, judged by one batch of each text.

# %% [markdown]
# ## Now read
#
# - `tinyllm.lora.layer.lora_fold`: yours
# - `tinyllm.lora.layer.LoRALinear.folded`: when a fold is made again
# - `tinyllm.lora.merge.merge_lora`: beside the base, or for good
# - `tinyllm.lora.verbs.set_adapter`: which adapters count, and train
# - `tinyllm.lora.peft.adapter.save_adapter`: the file
