# %% [markdown]
# # Lesson 0: Can one read a language model, all of it, in one file?
#
# People who use language models are often told that nobody can look inside. But the whole way is short: from a text to
# numbers, from numbers to the next word, from a mistake to a better model. Here it stands in one file of at most 200
# lines that uses nothing but NumPy. It reads a small trained model, packs it into four bits a weight, fine-tunes it on
# a text that it has never seen, and lets it write. It is no toy version of that: at the end you compare it with the
# real engine, number by number. You need not understand every line today. Each later lesson takes some of them, asks
# why they are so, and replaces them by better ones.
#
# - **Needs**: nothing but some NumPy
# - **Minutes**: 60
# - **Afterwards you can**: say what each part of a language model is for, tell learning by counts from learning by
#   gradients, and point at the lines where LoRA and four-bit weights come in

# %%
import difflib
import inspect
from importlib import import_module
import numpy as np
from tinyllm.course import check, kit
kit.begin(0)

# %% [markdown]
# The file is `all_of_it.py`, beside this lesson. Open it in a second window, or print it: it has four pages. Beside it
# lies a folder `stages` with five earlier states of the same file, from a table of counts on. We shall walk through
# them: 200 lines at once are too many for anybody, but what is new from one stage to the next is one idea each time.

# %%
from threadpoolctl import threadpool_limits

STAGES = ["1_counts", "2_one_layer", "3_autograd", "4_attention", "5_lora"]
try:
    stages = [import_module(name) for name in [*(f"stages.{stage}" for stage in STAGES), "all_of_it"]]
except ImportError as lost:
    raise ImportError("lesson 0 reads all_of_it.py and stages/, which lie beside it: run it where they are") from lost
all_of_it = stages[-1]
threadpool_limits(1)  # matrices as small as these: a second processor costs more than it gives
lines = [line for line in inspect.getsource(all_of_it).splitlines() if line.strip()]
assert len(lines) <= 200
kit.say(f"`all_of_it.py` has {len(lines)} lines that are not blank.")

# %% [markdown]
# ## 1. What a language model is
#
# A language model does one thing. It is given the beginning of a text, and says for everything that may come next how
# likely it is. That is all. A program that writes calls it again and again, and puts down one of the likely things each
# time.
#
# "Everything that may come next" must be a list. Letters would do, but a text of letters is long. Words would do, but
# there is always one more. So one takes **tokens**, pieces of text in between. The model that comes with this course
# has 1,024 of them: single letters, and joined to them the pieces that stood side by side most often in its texts. A
# text becomes a list of token ids, whole numbers, and back:

# %%
ids = all_of_it.encode("The hacker hacked the mainframe.\n")
for id in ids:
    print(f"{id:5} {all_of_it.decode([id])!r}")
assert all_of_it.decode(ids) == "The hacker hacked the mainframe.\n"

# %% [markdown]
# A common word is one token, together with the space before it. A rare one is several.
#
# The text to learn from is the *Jargon File*, a dictionary of hackers' slang. Each entry is a word between colons and
# then what it means. Nine tenths of it are there to learn from. The last tenth is **held out**: a model is judged by
# text that it did not learn, because what one has seen can be learned by heart.

# %%
learned, held_out = all_of_it.LEARNED, all_of_it.HELD_OUT
kit.say(f"The text has {len(learned) + len(held_out):,} tokens. This is its beginning:")
print(all_of_it.decode(learned[:100].tolist()))

# %% [markdown]
# How good is a model? Go through the text. At every place, the token that really came next had been given some share of
# the model's belief, between 0 and 1. The **loss** is $-\ln$ of that share, averaged over all places. A model that is
# certain and right has the loss 0. Half of its belief on the right token makes $\ln 2$, about 0.69.

# %% [markdown]
# **Predict.** A model knows nothing and gives all 1,024 tokens the same share. What is its loss?

# %% tags=["hide-output"]
knows_nothing = float(np.log(1024))
assert np.isclose(stages[0].held_out_loss(stages[0].build()), knows_nothing)
kit.say(f"Each share is 1/1024, and minus its logarithm is {knows_nothing:.2f}. What has learned something is below.")

# %% [markdown]
# ## 2. Six stages
#
# All six stages do the same task: learn from the same thirty handfuls of text, **batches** of 4 times 64 tokens, then
# be judged on the same held-out text, then go on with a text that begins with `:hacker:`. All six have functions of the
# same names. `build` makes a model, `predict` gives a score for every possible next token, `train` learns, `write`
# writes.
#
# Three helpers: one runs a stage, one shows what is different in the next (lines that begin with `-` are gone, lines
# with `+` are new), and one tells how it went.

# %%
def run(stage):
    """Build, judge, train, judge: all that we want to know of a stage."""
    model = stage.build()
    table = not isinstance(model, dict)  # the first two models are one table
    trained = model.size if table else sum(w.data.size for w in model.values() if w.wants_grad)
    before = stage.held_out_loss(model)
    losses = stage.train(model)
    return {"model": model, "trained": trained, "before": before, "after": stage.held_out_loss(model), "losses": losses}


def difference(old, new):
    """The lines that changed from one stage to the next, without those around them."""
    a, b = (inspect.getsource(stage).splitlines() for stage in (old, new))
    changed = [line for line in difflib.unified_diff(a, b, n=0, lineterm="") if line[1:].strip()]
    return [line for line in changed[2:] if not line.startswith("@@")]


def report(number):
    """Run a stage, print what it writes, and say how it did."""
    result = run(stages[number - 1])
    print(stages[number - 1].write(result["model"], ":hacker:\n"), "\n")
    kit.say(
        f"Stage {number}: {result['trained']:,} numbers learned from {len(result['losses']) * 4 * 64:,} tokens. The "
        f"held-out loss went from {result['before']:.3f} to {result['after']:.3f}."
    )
    return result

# %% [markdown]
# ### Stage 1: counts
#
# The simplest model that is one: a table with a row and a column for every token, in which we **count** how often the
# one was followed by the other. To predict, look up the row of the last token. Every field begins at 1, or else what
# was not seen would be impossible, its share 0 and its loss infinite.
#
# This is the model of the first stage, all of it. (Its scores are logarithms of counts, and `softmax` makes shares of
# them: it raises $e$ to each score and divides by the sum. The reason for the detour comes with the next stage.)

# %%
for function in (stages[0].build, stages[0].predict, stages[0].train):
    print(inspect.getsource(function))
counts = report(1)
assert counts["after"] < knows_nothing

# %% [markdown]
# What it writes is rubbish, but not quite noise: here and there two tokens stand side by side that belong together. It
# cannot do much better. A model that remembers one token has forgotten how a word began when it writes its end.
#
# ### Stage 2: one layer, and a gradient by hand
#
# One cannot build upon counts. If a prediction came from two tables, which of them should count? There is a way to
# learn that does not care what the model looks like. Ask of each number in the model: if I turned it up a little, would
# the loss rise or fall, and how fast? That is the derivative of the loss by this number, and all of them together are
# the **gradient**. Turn each number a little *against* its derivative, and the loss falls. Do it again.
#
# The table stays, but now its numbers are free scores, called **logits**. The field calls such a model one *linear
# layer*. Its gradient can be found with a pencil. With $p$ the shares that softmax makes of the scores $x$, and $t$ the
# right token, the loss is
#
# $$-\ln p_t = -x_t + \ln \sum_j e^{x_j}, \qquad \text{so} \qquad
# \frac{\partial\, \text{loss}}{\partial x_j} = p_j - [j = t].$$
#
# In words: *what the model believed, minus what was so*. Suppose there are three tokens, the shares are 0.5, 0.3 and
# 0.2, and the second token was right. The gradient is 0.5, -0.7, 0.2. Against it, the second score goes up and the
# others go down.

# %%
print("\n".join(difference(stages[0], stages[1])))
layer = report(2)
assert layer["after"] < knows_nothing

# %% [markdown]
# **Why.** A handful of lines is different, and yet everything is: the model is no statistic of the text any more, it is
# a calculation that is *turned* until it fits. What follows changes the calculation. The way to learn stays the same.
#
# ### Stage 3: autograd
#
# The pencil is the next thing to go. Real models are hundreds of operations deep. But each operation is simple, and the
# chain rule says how to put simple derivatives together. So let every result remember which arrays it came from, its
# **parents**, and for each parent a rule: given the gradient of the result, what is the gradient of the parent? Then
# `backward` walks from the loss back to all numbers, once, whatever the model looks like. This is **automatic
# differentiation**, autograd for short, and every framework is built around it. Ours is `Tensor`.
#
# Its first model takes the table apart into two thin ones: 64 numbers for each token, its **embedding**, and 64 for
# each possible next token. A score is the product of the two, number by number and added up.

# %% [markdown]
# **Predict.** The model of this stage has an eighth of the numbers, and both its tables begin as noise. After the same
# thirty steps, will it be better than the table of stage 2?

# %% tags=["hide-output"]
print("\n".join(difference(stages[1], stages[2])))
autograd = report(3)
assert autograd["trained"] == layer["trained"] / 8 and layer["after"] < autograd["after"] < knows_nothing
kit.say(
    f"It ends at {autograd['after']:.2f}, the table of stage 2 at {layer['after']:.2f}, the counts at "
    f"{counts['after']:.2f}: nothing is won yet. Two tables that begin as noise need time to agree on what the 64 "
    "numbers shall mean. What we have won is freedom: from here on, whoever can write `predict` can train it."
)

# %% [markdown]
# Read `cross_entropy` once more, in the difference. The pencil's formula is still there, `p - right`: it has become the
# rule of one operation.
#
# ### Stage 4: attention
#
# Now the real thing, a **decoder**, built like Llama and most models that you have heard of. The numbers of each token
# go through five layers, and every layer adds something to them, twice:
#
# - **Attention** lets a token gather from the tokens before it. Each puts a question (`q`), and each offers a label
#   (`k`) and a content (`v`). Where question and label fit, the content is taken. This is the only place at which
#   tokens meet. `rope` turns questions and labels by their position, so that distance counts.
# - The **MLP** (`gate`, `up`, `down`) works on what was gathered, for each token alone. `silu_mul` is what makes it
#   more than one big matrix: one half decides how much of the other gets through.
#
# `rms_norm`, before both, keeps the numbers at one size.
#
# Thirty steps are by far not enough to train that from noise. So the weights come from a file: this model was trained
# before, on Shakespeare's plays. It has never seen a dictionary of slang.

# %%
print("\n".join(difference(stages[2], stages[3])))
decoder = report(4)
assert decoder["after"] < min(counts["after"], layer["after"], autograd["after"])

# %% [markdown]
# For the first time there are sentences, or what would like to be some. What was learned from the plays helps with the
# slang: words, and how a sentence is built, need not be learned again. To go on with a trained model on a little text
# of one's own is called **fine-tuning**, and it is what this course is about.
#
# **Why.** What is attention for? Take the beginning of a sentence, exchange one of its tokens, and look how much of the
# belief about the next token moves.

# %%
def moved(stage, model, ids):
    """How much of the belief about the next token moves when one of the tokens `ids`, (time,), is another one."""
    shares = lambda ids: stage.softmax(stage.predict(model, ids[None]).data[0, -1])
    others = np.where(np.eye(len(ids), dtype=bool), all_of_it.encode(" sea")[0], ids)  # one exchanged in each row
    return np.array([np.abs(shares(other) - shares(ids)).sum() / 2 for other in others])


def figure_memory(beginning="There's a hacker and a mainframe, and the hacker said to the"):
    """How far back a model without attention looks, and one with it."""
    ids = np.array(all_of_it.encode(beginning))
    table, attention = moved(stages[2], autograd["model"], ids), moved(stages[3], decoder["model"], ids)
    figure, axes = kit.plt.subplots(figsize=(7, 3.4), layout="constrained")
    places = np.arange(len(ids))
    axes.bar(places - 0.2, table, width=0.4, color="#e69f00", label="stage 3, two tables")
    axes.bar(places + 0.2, attention, width=0.4, color="#0072b2", label="stage 4, attention")
    axes.set_xticks(places, [all_of_it.decode([int(id)]).replace(" ", "_") for id in ids], rotation=60)
    axes.set(xlabel="token that is exchanged", ylabel="share of belief that moves", title="Who has a say?")
    axes.set(yscale="log", ylim=(0.005, 1.5))  # a bar of zero is not drawn
    axes.legend(loc="upper left")
    kit.show(
        figure,
        f"Bars for {len(ids)} tokens. Without attention only the last one counts, by {table[-1]:.2f}. With attention "
        f"exchanging the last one moves {attention[-1]:.2f} of the belief, and the {len(ids) - 1} before it move "
        f"{attention[:-1].min():.3f} to {attention[:-1].max():.3f}.",
    )
    return {"table": table, "attention": attention}


memory = figure_memory()
assert (memory["table"][:-1] == 0).all() and (memory["attention"] > 0).all()
kit.say(
    "Without attention every token but the last is forgotten: its bar is zero, exactly. With attention each of them "
    f"has a say, and the strongest of the earlier ones moves {memory['attention'][:-1].max():.2f} of the belief."
)

# %% [markdown]
# ### Stage 5: LoRA
#
# Stage 4 turned every number of the model. For ours that is nothing. For a model of seven billion numbers it means
# seven billion derivatives, and a second copy of the model for each text that somebody wants it to know. **LoRA**,
# low-rank adaptation, leaves the model as it is, **frozen**, and puts two thin matrices beside each of its matrices
# $W$. $A$ squeezes the numbers of a token into eight, and $B$ makes as many of them again as $W$ does.
#
# $$y = W x + \text{scale} \cdot B A x$$
#
# Only $A$ and $B$ learn. $B$ begins as zeros, so that at first nothing is different: the loss before training must be
# exactly that of stage 4.
#
# Look how freezing is done. `trains=True` is gone from the base's tensors, and a tensor keeps only those parents that
# want a gradient. So the walk never comes to a frozen one. Nobody asks for the gradient of the embedding any more, and
# its rule goes.

# %%
print("\n".join(difference(stages[3], stages[4])))
lora = report(5)
assert lora["before"] == decoder["before"] and decoder["after"] < lora["after"] < lora["before"]
assert lora["trained"] < decoder["trained"] / 10
assert lora["before"] - lora["after"] > (decoder["before"] - decoder["after"]) / 2
kit.say(
    f"{lora['trained'] / decoder['trained']:.1%} of the numbers learn, and bring the loss down "
    f"{(lora['before'] - lora['after']) / (decoder['before'] - decoder['after']):.0%} as far as all of them did."
)

# %% [markdown]
# ### Stage 6: four bits, and a better step
#
# The frozen weights will never change again. Do they need 32 bits each? **NF4** knows sixteen values, `LEVELS`, and
# writes for each weight which of them is nearest: that takes four bits. To make them fit, every 64 weights are divided
# by the largest magnitude among them, their **scale**, which is kept. LoRA over such a base is **QLoRA**.
#
# When `linear` asks for `w.data`, the floats are made at this moment and thrown away afterwards: once for the
# prediction, and again for the rule of the gradient. Neither knows that there is anything special about this weight.
#
# The other change is the step. Until now every number moved by its derivative times one learning rate for all.
# **AdamW** divides by the derivative's usual size, so that numbers with small derivatives learn as well.

# %%
print("\n".join(difference(stages[4], stages[5])))
everything = report(6)
assert abs(everything["before"] - lora["before"]) < 0.05 and everything["after"] < lora["after"]
packed = [w for w in everything["model"].values() if isinstance(w, all_of_it.NF4)]
bytes_now, bytes_before = sum(w.packed.nbytes + w.scales.nbytes for w in packed), sum(w.data.nbytes for w in packed)
kit.say(
    f"{len(packed)} matrices took {bytes_before / 1e6:.2f} MB and take {bytes_now / 1e6:.2f} MB, "
    f"{32 * bytes_now / bytes_before:.1f} bits a weight. The loss before any training is {everything['before']:.3f}; "
    f"with all bits it was {lora['before']:.3f}."
)

# %% [markdown]
# This is the whole file. All six stages in one picture:

# %%
def figure_stages(results):
    """The held-out loss of each stage, before and after."""
    names = ["1 counts", "2 one layer", "3 autograd", "4 attention", "5 LoRA", "6 NF4 and AdamW"]
    before, after = ([result[when] for result in results] for when in ("before", "after"))
    figure, axes = kit.plt.subplots(figsize=(7, 3.8), layout="constrained")
    places = np.arange(len(names))[::-1]
    axes.hlines(places, after, before, color="#999999")
    axes.plot(before, places, "o", color="#e69f00", label="before")
    axes.plot(after, places, "s", color="#0072b2", label="after thirty steps")
    axes.axvline(np.log(1024), color="black", linestyle="--", linewidth=1, label="knows nothing")
    learn = [f"{name}\n{result['trained']:,} learn" for name, result in zip(names, results, strict=True)]
    axes.set_yticks(places, learn)
    axes.set(xlabel="held-out loss (nats a token)", title="Six stages, the same text")
    axes.legend(loc="upper left")
    said = ", ".join(f"{name[2:]} {loss:.2f}" for name, loss in zip(names, after, strict=True))
    kit.show(figure, f"Held-out loss of the six stages before and after thirty steps. Afterwards: {said}.")
    return {"before": before, "after": after}


results = [counts, layer, autograd, decoder, lora, everything]
drawn = figure_stages(results)
best = int(np.argmin(drawn["after"])) + 1
assert best == 4
kit.say(
    f"Stage {best}, in which all numbers of the trained decoder learn, ends lowest, at {min(drawn['after']):.2f}. The "
    f"last stage comes to {drawn['after'][-1]:.2f} with {results[-1]['trained']:,} numbers and four bits a weight."
)

# %% [markdown]
# ## 3. Is it the real thing?
#
# tinyllm, the engine of this course, has thousands of lines where we have 200. They check what they are given, save
# memory, use graphics cards and read files of many kinds. Do they *calculate* anything else? Give the engine the same
# base and the same $A$ and $B$, and look.
#
# First the four bits: the codes and scales of all matrices must be the same bytes.

# %%
from tinyllm.generate import generate
from tinyllm.optim import AdamW
from tinyllm.qlora import apply_qlora


def in_the_engine(model):
    """The engine's QLoRA of the same base, with A and B taken from our model; its layers by the names of ours."""
    engine = apply_qlora(kit.base(), rank=8, alpha=16, target_modules="all-linear", double_quant=False, verbose=False)
    names = [name for name, w in model.items() if isinstance(w, all_of_it.NF4)]
    layers = {name: engine.get(name.replace("o_proj", "out_proj")) for name in names}
    for name, layer in layers.items():
        layer.adapters["default"].lora_A.data[:] = model[f"{name}.A"].data
        layer.adapters["default"].lora_B.data[:] = model[f"{name}.B"].data
    return engine, layers


model = all_of_it.build()
engine, layers = in_the_engine(model)
for name, adapted in layers.items():
    there = adapted.base_layer.weight
    assert there.packed.tobytes() == model[name].packed.tobytes()
    assert there.absmax.tobytes() == model[name].scales.tobytes()
assert len(layers) == len(packed)
kit.say(f"All {len(layers)} matrices: the same codes and the same scales, to the last bit.")

# %% [markdown]
# **Predict.** Now both are fine-tuned on the same thirty batches. Two programs that add up millions of rounded products
# in different orders cannot agree in every digit. By how much will their losses differ after ten steps, or after
# thirty?

# %% tags=["hide-output"]
ours = all_of_it.train(model)
optimizer = AdamW([p for p in engine.parameters() if p.requires_grad], lr=5e-3)
theirs = []
for ids, targets in all_of_it.batches(all_of_it.LEARNED, len(ours)):
    loss = engine.loss(ids, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    theirs.append(loss.item())

apart = np.abs(np.subtract(ours, theirs))
assert apart[:10].max() < 1e-5 and apart.max() < 1e-4
kit.say(f"The first ten losses differ by at most {apart[:10].max():.1e}, all thirty by at most {apart.max():.1e}.")

# %% [markdown]
# The numbers of both programs, float32, have about seven digits, so this is as near as they can be. Do not judge it by
# two curves, though. Curves look alike long before they are. It is the difference that says something, and it needs an
# axis of its own.

# %%
def figure_beside_the_engine(ours, theirs):
    """The losses of both, and below how far they are apart."""
    figure, (above, below) = kit.plt.subplots(2, 1, figsize=(7, 4.4), sharex=True, layout="constrained")
    steps = np.arange(1, len(ours) + 1)
    above.plot(steps, theirs, color="#e69f00", linewidth=5, label="the engine")
    above.plot(steps, ours, color="#0072b2", linewidth=1.5, label="all_of_it.py")
    above.set(ylabel="loss (nats a token)", title="Two programs, one calculation")
    above.legend()
    apart = np.abs(np.subtract(ours, theirs))
    below.semilogy(steps, np.maximum(apart, 1e-8), "o", color="#0072b2")
    below.axhline(1e-5, color="black", linestyle="--", linewidth=1)
    below.set(xlabel="step", ylabel="difference (nats)", ylim=(5e-9, 1e-3))
    kit.show(
        figure,
        f"Above, two loss curves that cover each other, from {ours[0]:.2f} to {ours[-1]:.2f} in {len(ours)} steps. "
        f"Below, their difference, at most {apart.max():.1e}; where it is exactly zero the dot stands at 1e-8.",
    )
    return {"ours": ours, "theirs": theirs, "apart": apart.tolist()}


beside = figure_beside_the_engine(ours, theirs)
kit.say(f"In {sum(a == 0 for a in beside['apart'])} of {len(ours)} steps there is no difference at all.")

# %% [markdown]
# And the text. At temperature 0 no token is drawn by lot: the likeliest is taken each time.

# %%
prompt = ":hacker:\n"
written = all_of_it.write(model, prompt, count=60, temperature=0)
ids = all_of_it.encode(prompt)
assert all_of_it.decode(ids + generate(engine, ids, 60)) == written
kit.say("The engine and the file write the same text, token by token:")
print(written)

# %% [markdown]
# **Why.** Is it worth the trouble, if both do the same? Yes, since "the same" is the best check there is. Every lesson
# from here on takes a part of this file, and what you build for it runs in the real engine and is compared with it.
#
# ## 4. A map of the lines
#
# Where do the lines go, and which lesson is about which? A program reads the file and finds where its parts begin and
# end; the two columns on the right say who takes each over.

# %%
import ast

# each function or class of the file: the lesson that replaces it, and what does its work in the engine
MAP = {
    "encode": (5, "tinyllm.data.tokenizer.Tokenizer"),
    "decode": (5, "tinyllm.data.tokenizer.Tokenizer"),
    "batches": (3, "tinyllm.data.batches.Loader"),
    "Tensor": (1, "tinyllm.tensor.Tensor"),
    "inputs_first": (1, "tinyllm.autograd.topological"),
    "softmax": (1, "tinyllm.functional.softmax"),
    "cross_entropy": (2, "tinyllm.functional.cross_entropy"),
    "linear": (2, "tinyllm.functional.linear"),
    "rms_norm": (4, "tinyllm.functional.rms_norm"),
    "silu_mul": (4, "tinyllm.functional.silu_mul"),
    "rope": (4, "tinyllm.functional.rope"),
    "attention": (4, "tinyllm.functional.attention"),
    "NF4": (10, "tinyllm.frozen.nf4.NF4Weight"),
    "read_weights": (6, "tinyllm.formats.safetensors_file.read"),
    "build": (8, "tinyllm.qlora.apply_qlora"),
    "project": (8, "tinyllm.lora.layer.LoRALinear"),
    "predict": (4, "tinyllm.models.decoder.DecoderModel"),
    "adamw": (3, "tinyllm.optim.AdamW"),
    "train": (3, "tinyllm.train.loop.fit"),
    "held_out_loss": (3, "tinyllm.train.loop.evaluate"),
    "write": (5, "tinyllm.generate.generate"),
}


def line_map(source):
    """The first and the last line of each function and class of a file."""
    parts = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: (node.lineno, node.end_lineno) for node in parts}


places = line_map(inspect.getsource(all_of_it))
assert places.keys() == MAP.keys()
rows = [f"| `{name}` | {a} to {b} | {MAP[name][0]} | `{MAP[name][1]}` |" for name, (a, b) in places.items()]
kit.say("| part | lines | lesson | in the engine |\n| --- | --- | --- | --- |\n" + "\n".join(rows))


# %%
def figure_lines(source):
    """How many lines that are not blank each chapter of the file has."""
    chapters, name = {}, "beginning"
    for line in filter(str.strip, source.splitlines()):
        if line.startswith("# ---"):
            name = line.strip("# -").partition(":")[0].partition(",")[0]
        chapters[name] = chapters.get(name, 0) + 1
    figure, axes = kit.plt.subplots(figsize=(7, 3), layout="constrained")
    axes.barh([*chapters][::-1], [*chapters.values()][::-1], color="#009e73")
    axes.set(xlabel="lines that are not blank", title="Where the lines go")
    said = "; ".join(f"{name} {count}" for name, count in chapters.items())
    kit.show(figure, f"Lines of all_of_it.py by chapter: {said}.")
    return chapters


chapters = figure_lines(inspect.getsource(all_of_it))
assert sum(chapters.values()) == len(lines)
assert max(chapters, key=chapters.get) == "operations" and chapters["NF4"] < chapters["operations"] / 2
kit.say(
    f"The operations and their rules are the largest chapter, with {chapters['operations']} lines. What made "
    f"fine-tuning affordable is short: {chapters['NF4']} lines for four bits; LoRA is `project` and some of `build`."
)

# %% [markdown]
# ## Exercise 00-bigrams: count
#
# *10 minutes, importance 4 of 5.*
#
# Write `bigrams(tokens, vocabulary)`: `tokens` is an array of ids, (n,), and `vocabulary` how many ids there are.
# Return the integer matrix (vocabulary, vocabulary) whose row $i$, column $j$ says how often $j$ came directly after
# $i$. For the tokens 0, 1, 0, 1 and a vocabulary of 2 it is `[[0, 2], [1, 0]]`.
#
# <details><summary>Hint</summary>
#
# `table[i, j] += 1` with arrays `i` and `j` counts a pair once, however often it is in them. Go through the pairs one
# by one, or look how stage 1 avoids that.
#
# </details>

# %%
def bigrams(tokens, vocabulary):
    raise NotImplementedError("your turn")


check("00-bigrams", bigrams)

# %% [markdown]
# ## Exercise 00-perplexity: between how many tokens does it hesitate?
#
# *10 minutes, importance 3 of 5.*
#
# A loss in logarithms is hard to imagine. Its exponential, the **perplexity**, is a number of tokens: a model that
# hesitates between 20 equally likely ones has the loss $\ln 20$ and the perplexity 20. Write `perplexity(shares)`:
# `shares`, (n,), are the shares that the right tokens were given. For 0.5, 0.5 it is 2, and for 1, 0.25 as well. If one
# of them is 0, it is infinite.

# %%
def perplexity(shares):
    raise NotImplementedError("your turn")


check("00-perplexity", perplexity)

# %% [markdown]
# ## Exercise 00-thin: how many numbers does LoRA train?
#
# *10 minutes, importance 4 of 5.*
#
# Write `thin(shapes, rank)`: `shapes` is a list of pairs (out, in), one for each matrix of a model. Return how many
# numbers their $A$ and $B$ have, all together. Then try it on the shapes below, which are those of one layer of a model
# of seven billion weights, and divide by the numbers of the matrices themselves. What becomes of this share when a
# model gets wider?
#
# <details><summary>Hint</summary>
#
# $A$ has the shape (rank, in), $B$ has (out, rank). One matrix (6, 4) at rank 2 makes 20.
#
# </details>

# %%
wide = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]


def thin(shapes, rank):
    raise NotImplementedError("your turn")


check("00-thin", thin)

# %% [markdown]
# ## Three questions
#
# **1. Does a language model look up what it has read?**
#
# <details><summary>Answer</summary>
#
# The first stage does: its table is a list of what followed what. The others have no list. The text turned their
# numbers a little and was put aside. Sentences may come out that stood in the text, if they were seen often enough, but
# nothing in `predict` looks anything up.
#
# </details>
#
# **2. Does the model decide what it writes?**
#
# <details><summary>Answer</summary>
#
# It gives shares, and `write` draws. With another seed the same model writes another text. At temperature 0 it is
# always the same text, and soon a tedious one. How to draw is up to the program around the model.
#
# </details>
#
# **3. LoRA trained fewer numbers, and the loss came out higher than with all of them. So is LoRA worse?**
#
# <details><summary>Answer</summary>
#
# This run cannot say so. The learning rates are different, there was a single run, and thirty steps are not the end.
# Stage 6 has the same $A$ and $B$ and ends lower than stage 5, since another optimiser moves them. What the run does
# show is that less than a tenth of the numbers can learn most of what all of them learned. Lesson 8 is about this.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# The model is tiny, and what it writes is not good: it has learned how an entry looks, and not what any word means. The
# six losses compare six programs on one small text with one seed and with learning rates that were tried out a little.
# They are no race between methods. The file is also as slow as it is short: to write a token it calculates everything
# before it once more. It takes ASCII alone, and it answers a mistake with whatever NumPy says. And of QLoRA it lacks
# one thing, the second quantisation, of the scales: lesson 11.

# %% [markdown]
# ## Now read
#
# - `tinyllm.models.decoder.DecoderModel`: the decoder, layer by layer, as in `predict`
# - `tinyllm.tensor.Tensor`: the array that remembers, grown up
# - `tinyllm.frozen.nf4.NF4Weight`: four bits, and how to multiply by them
# - `tinyllm.lora.layer.LoRALinear`: a layer with adapters beside it
# - `tinyllm.train.loop.fit`: `train`, with all that a long run needs
