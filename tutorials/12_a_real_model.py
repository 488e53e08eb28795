# %% [markdown]
# # Lesson 12: Which method is for me, and how do I see that a run went wrong?
#
# All parts are there. In this lesson they come together: everything that you have built since lesson 1, at once, in
# one QLoRA run, on a model of 135 million parameters if its file is on this machine. Then come the two things that a
# practitioner needs and no formula gives: to look at a loss curve and know what is broken, and to choose.
#
# - **Needs**: lessons 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
# - **Minutes**: 60
# - **Afterwards you can**: run the whole recipe on a real checkpoint, name the bug behind a loss curve, know the bugs
#   that no curve shows, and say which method fits your memory

# %%
import numpy as np
import tinyllm
from tinyllm.course import check, kit
from tinyllm.lora import apply_lora, merge_lora
from tinyllm.qlora import apply_qlora
kit.begin(12, needs="0.2")

# %% [markdown]
# ## 1. All your parts at once
#
# The functions `my_...` of the lessons stand together in one file, `mine.py`, beside this lesson. If yours differ,
# put yours there: this lesson takes whatever it finds. What the engine has a part of the same name for goes into it,
# with a counter around it.

# %%
from collections import Counter
from functools import wraps

from tinyllm.backend.device import backend
from tinyllm.backend.replacement import REPLACEABLE
from tinyllm.generate import generate

try:
    import mine
except ImportError as lost:
    raise ImportError("lesson 12 reads mine.py, which lies beside it: run it where that is") from lost

calls = Counter()


def counted(name, function):
    """The same function, which notes that it was called."""

    @wraps(function)
    def noting(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return noting


engine = {*REPLACEABLE, *backend().table}
built = {name[3:]: function for name, function in vars(mine).items() if name.startswith("my_")}
parts = {name: counted(name, function) for name, function in built.items() if name in engine}
assert parts
kit.say(
    f"{len(built)} functions, {len(parts)} of them parts of the engine: {', '.join(parts)}. No part by itself: "
    f"{', '.join(built.keys() - parts.keys()) or 'none'}."
)

# %% [markdown]
# Now the whole recipe: read the base, quantise it, put adapters beside it, train, merge, write. Once with your parts,
# once with the engine's own.
#
# **Predict.** Every number passes through your functions, thousands of times. Will the losses be the same to the last
# bit, to four digits, or only roughly?

# %% tags=["hide-output"]
TARGETS = {"rank": 8, "alpha": 16.0, "target_modules": "all-linear", "verbose": False}


def recipe(steps=9):
    """Losses of a QLoRA run, and what the merged model writes."""
    tinyllm.manual_seed(0)
    model = apply_qlora(kit.base(), **TARGETS)
    losses = kit.fine_tune(model, steps=steps, lr=1e-2)
    merge_lora(model)
    text = generate(model, kit.tokenizer().encode(":hacker:"), 40, temperature=0.8, top_p=0.9)
    return np.array(losses), kit.tokenizer().decode(text)


with tinyllm.use(**parts):
    yours, written = recipe()
engines, _ = recipe()
gap = np.abs(yours - engines).max()
assert gap < 5e-3, f"a part in mine.py computes something else (losses differ by {gap:.2g}): take them out one by one"
kit.say(
    f"From {yours[0]:.4f} to {yours[-1]:.4f} with your parts, from {engines[0]:.4f} to {engines[-1]:.4f} with the "
    f"engine's; at no step are they further apart than {gap:.0e}."
)
print("\n".join(f"{name:20} called {calls[name]:5} times" for name in sorted(parts, key=lambda name: -calls[name])))
print("\nit writes:", written)

# %% [markdown]
# **Why.** The mathematics is the same and the order of additions is not. Sums of floats depend on their order in the
# last digit (lesson 2), and each step starts from numbers that differ a little already. Parts that were never called
# had nothing to do in this run: there is no bfloat16 in it, for instance.
#
# ## 2. A real model
#
# SmolLM2-135M is a model of the same kind, eighty times as large, trained on the web and on conversations. Its file
# of 93 MB comes with `tinyllm fetch smollm2-135m`, and reading it takes the package `gguf`. If both are here, the
# same run is done with it, in few steps. If not, the lesson goes on without, and nothing that follows depends on it.

# %%
from importlib.util import find_spec

from tinyllm import assets
from tinyllm.data import Loader, load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.named import place

file = place("smollm2-135m")
here = {"its file": file.is_file(), "the package gguf": find_spec("gguf") is not None}
missing = [what for what, there in here.items() if not there]
if missing:
    kit.say(
        f"Not run with the 135M model, for want of {' and '.join(missing)}. To have it, once: "
        "`pip install 'tinyllm-engine[gguf]'`, then `tinyllm fetch smollm2-135m`, and run this cell again. "
        "Meanwhile the base stands in: the run above did the same."
    )


# %%
def learn(model, batches, lr, held=None, every=1, labels=None):
    """A training loop; returns the losses, and those of the batch `held`, before and after every so many steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = tinyllm.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    losses, held_out = [], [loss_of(model, held)]
    for step, batch in enumerate(batches):
        model.train()
        optimizer.set_lr_factor(min(1.0, (step + 1) / 5))
        optimizer.zero_grad()
        loss = model.loss(batch.ids, batch.labels if labels is None else labels(batch.labels), batch.segment_ids)
        loss.backward()
        tinyllm.optim.clip_grad_norm(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % every == 0:
            held_out.append(loss_of(model, held))
    return np.array(losses), np.array(held_out)


def loss_of(model, batch):
    """The loss a token, with nothing dropped and nothing recorded."""
    model.eval()
    with tinyllm.no_grad():
        return model.loss(batch).item()


if not missing:
    tokens = Tokenizer.load(file)
    rows = Loader(load_text(assets.jargon()[:40_000], tokens), 1, 128)
    held = Loader(load_text(assets.jargon()[-1_500:], tokens), 1, 128).batch(0)
    tinyllm.manual_seed(0)
    with tinyllm.use(**parts):
        real = DecoderModel.from_pretrained(file, storage="nf4")
        apply_lora(real, **TARGETS)
        losses, (before, after) = learn(real, [rows.batch(i) for i in range(2)], lr=1e-2, held=held, every=2)
    assert after < before
    kit.say(
        f"{real.num_parameters():,} parameters, {real.num_parameters(trainable_only=True):,} of them in the adapters, "
        f"all through your parts. Two steps of 128 tokens: the held-out loss went from {before:.3f} to {after:.3f}."
    )
    del real

# %% [markdown]
# What would each method hold with such a model? The ledger of lesson 7 needs the shape alone, no file.

# %%
from tinyllm.inspect.plan import plan
from tinyllm.models import DecoderConfig
from tinyllm.models.config import llama_shape

shape = llama_shape(num_kv_heads=3, intermediate_size=1536, tie_embeddings=True)
smol = DecoderConfig(49152, 576, 30, 9, **shape)
ledgers = {
    method: plan(smol, method, target_modules=None if method == "full" else "all-linear", batch_size=4, seq_len=128)
    for method in ("full", "lora", "qlora")
}
held_bytes = {method: ledger.peak - ledger.library for method, ledger in ledgers.items()}
assert held_bytes["qlora"] < held_bytes["lora"] < held_bytes["full"]
kit.say(
    "| 135M, 4 texts of 128 tokens, in MB | base | adapters | gradients | moments | activations and head | together |\n"
    "|---|---:|---:|---:|---:|---:|---:|\n"
    + "\n".join(
        f"| {method} | "
        + " | ".join(f"{n / 1e6:,.0f}" for n in (p.base, p.adapters, p.gradients, p.optimizer, p.activations + p.head))
        + f" | {held_bytes[method] / 1e6:,.0f} |"
        for method, p in ledgers.items()
    )
)

# %% [markdown]
# (At the fullest moment, as in lesson 7: a gradient that is zero there comes later, when activations are gone. What
# is missing in a row's sum are pieces of four-bit weights that are unpacked just then.) With so small a model
# activations are most of it, and no method changes those. At seven billion it is the other way round.
#
# ## 3. Name the bug
#
# Nine runs on the base, with LoRA. One is right. In each of the others there is one mistake, of a kind that people
# have really made:
#
# 1. the learning rate is thirty times too high 2. labels are moved twice (lesson 7) 3. A and B both begin at zero
# (lesson 8) 4. B does not begin at zero 5. the step goes uphill: a sign is wrong 6. the loader gives the same batch
# every time 7. half of the training text is the held-out text 8. after training, the adapter is merged twice (lesson
# 9)

# %%
jargon_end = load_text(assets.jargon()[-38_590:], kit.tokenizer())  # the part that kit.batches leaves out
held = Loader(jargon_end, 4, 64).batch(0)
draws, STEPS = kit.batches(size=3), 12
batches = [next(draws) for _ in range(STEPS)]


def adapted(**options):
    tinyllm.manual_seed(0)
    return apply_lora(kit.base(), **(TARGETS | options))


def run(model=None, batches=batches, lr=1e-2, **options):
    return learn(model or adapted(), batches, lr, held, every=4, **options)


def with_factor(letter, make):
    """Adapters whose A or B is what `make` says, of the old array."""
    model = adapted()
    for name, parameter in model.named_parameters():
        if f"lora_{letter}" in name:
            parameter.data = make(parameter.data).astype(np.float32)
    return model


def moved(labels):
    return np.concatenate([labels[:, 1:], np.full((len(labels), 1), -100)], axis=1)


def uphill(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    backend().adamw_step(w, -g, m, v, step, lr, beta1, beta2, eps, weight_decay)


def merged_twice():
    """A right run; then its update is added to the weights twice."""
    model = adapted()
    losses, held_out = run(model)
    with tinyllm.use(lora_fold=lambda w, A, B, scale: w + 2 * scale * (B @ A)):
        merge_lora(model)
    return losses, np.append(held_out, loss_of(model, held))


dice = np.random.default_rng(0)
right = run()
bugs = {
    "learning rate thirty times too high": run(lr=0.3),
    "labels moved twice": run(labels=moved),
    "A and B both zero": run(with_factor("A", np.zeros_like)),
    "B not zero": run(with_factor("B", lambda B: dice.uniform(-1, 1, B.shape))),
    "the same batch every time": run(batches=batches[:1] * STEPS),
    "held-out text in the training text": run(batches=[b for batch in batches[: STEPS // 2] for b in (batch, held)]),
    "merged twice": merged_twice(),
}
with tinyllm.use(adamw_step=uphill):
    bugs["uphill"] = run()
order = list(np.random.default_rng(12).permutation(list(bugs)))
curves = {letter: bugs[name] for letter, name in zip("ABCDEFGH", order, strict=True)}


def figure_bugs(curves, right):
    """Eight panels: losses of the batches and on held-out text, the right run in grey."""
    figure, axes = kit.plt.subplots(2, 4, figsize=(8, 4.6), sharex=True, sharey=True, layout="constrained")
    for ax, (letter, (losses, held_out)) in zip(axes.flat, curves.items(), strict=True):
        ax.plot(range(len(right[0])), right[0], color="#bbbbbb", label="right: batch")
        ax.plot(range(0, STEPS + 1, 4), right[1], "s", color="#bbbbbb", markersize=3, label="right: held out")
        ax.plot(range(len(losses)), losses, color="#0072b2", label="batch")
        places = [*range(0, STEPS + 1, 4), STEPS + 2][: len(held_out)]  # the last one: after merging
        ax.plot(places, held_out, "o--", color="#d55e00", markersize=4, label="held out")
        ax.set_title(letter, loc="left", fontweight="bold")
        ax.set_ylim(0, 12)
    figure.supxlabel("step")
    figure.supylabel("loss (nats a token)")
    legend = {"loc": "outside upper center", "ncols": 4, "frameon": False, "fontsize": 8}
    figure.legend(*axes.flat[0].get_legend_handles_labels(), **legend)
    every = {"the right run": right, **curves}
    kit.show(
        figure,
        "Eight panels, each with the loss of the batches and on held-out text, from first to last. "
        + "; ".join(f"{x} {a[0]:.1f} to {a[-1]:.1f}, held out {h[0]:.1f} to {h[-1]:.1f}" for x, (a, h) in every.items())
        + ".",
    )
    return {letter: [losses.tolist(), held_out.tolist()] for letter, (losses, held_out) in curves.items()}


drawn = figure_bugs(curves, right)
print("      first batch   last batch   held out: first   lowest   last")
for letter, (losses, held_out) in curves.items():
    said = (losses[0], losses[-1], held_out[0], held_out.min(), held_out[-1])
    print("{:4} {:12.2f} {:12.2f} {:17.2f} {:8.2f} {:6.2f}".format(letter, *said))

# %% [markdown]
# **Predict.** Which letter is which bug? (All axes end at 12; a curve may leave the picture. The table has its
# numbers.)
#
# <details><summary>Four questions that help</summary>
#
# Is the first loss that of the base? Does anything move at all? Do the batches' loss and the held-out one go
# together? *When* does it go wrong?
#
# </details>

# %% tags=["hide-output"]
train, held_out = ({name: bug[i] for name, bug in bugs.items()} for i in (0, 1))
base_loss = right[1][0]
assert train["learning rate thirty times too high"].max() > right[0].max() + 1
assert train["labels moved twice"][0] > right[0][0] + 2 and held_out["labels moved twice"][0] == base_loss
assert (held_out["A and B both zero"] == base_loss).all()
assert held_out["B not zero"][0] > base_loss + 0.5
assert held_out["uphill"][-1] > base_loss + 1 and train["uphill"][0] == right[0][0]
assert train["the same batch every time"][-1] < 1.5 < 5 < held_out["the same batch every time"][-1]
assert held_out["held-out text in the training text"][-1] < right[1][-1] - 1
assert held_out["merged twice"][-1] > held_out["merged twice"][-2] + 0.1
SIGNS = {
    "learning rate thirty times too high": "begins right, leaps up in the first steps, and settles high",
    "labels moved twice": "the batches begin far too high, the held-out loss (with right labels) as the base's",
    "A and B both zero": "the held-out loss is one number, to the last digit; the batches' differ as their texts do",
    "B not zero": "both begin too high, since it is another model from the start, and then it learns",
    "uphill": "begins right and rises",
    "the same batch every time": "the batches' loss falls as no text allows, the held-out one turns and rises",
    "held-out text in the training text": "every second batch falls steeply, and the held-out loss is far too good",
    "merged twice": "all is right until the last point",
}
kit.say("\n".join(f"- **{letter}**, {name}: {SIGNS[name]}." for letter, name in zip("ABCDEFGH", order, strict=True)))

# %% [markdown]
# ## 4. What no curve shows
#
# **Predict.** Four more mistakes: nothing is clipped; the scale is alpha alone, not alpha over rank, so eight times
# too large; the gradient of A is zero; dropout (0.1) stays on while the held-out loss is measured. Which of these
# curves would catch your eye?

# %% tags=["hide-output"]
def only_B():
    model = adapted()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad = False
    return model


dropping = adapted(dropout=0.1)
_, correct = run(dropping)
dropping.train()
with tinyllm.no_grad():
    left_on = dropping.loss(held).item()
with tinyllm.use(clip_factor=lambda norm, max_norm: 1.0):
    unclipped = run()
ends = {
    "right": right[1][-1],
    "nothing clipped": unclipped[1][-1],
    "alpha without rank": run(adapted(alpha=128.0))[1][-1],
    "A never moves": run(only_B())[1][-1],
    "dropout left on": left_on,
    "dropout, rightly off": correct[-1],
}
mistakes = ("nothing clipped", "alpha without rank", "A never moves", "dropout left on")
above = {name: ends[name] - ends["right"] for name in mistakes}
hidden = [name for name in mistakes if abs(above[name]) < 0.2]
print("\n".join(f"{name:22} held out, at the end: {loss:.3f}" for name, loss in ends.items()))
assert hidden and above["alpha without rank"] > 0.5 and above["A never moves"] > 0
kit.say(
    f"Within 0.2 of the right run: {', '.join(hidden)}. A that never moves is {above['A never moves']:.2f} above it, "
    f"and without the right run beside it nobody would know. Alpha alone is {above['alpha without rank']:.2f} above."
)

# %% [markdown]
# ## Three cases
#
# In life there is no row of curves beside the right one: somebody tells you what was noticed. Three such runs, each
# with one mistake in it, done while you wait. Whom do you suspect, and what would you look at to be sure? `accuse`
# tells whether you are right.

# %%
from tinyllm.course.detective import accuse, case

case(1)

# %%
case(2)

# %%
case(3)

# %% [markdown]
# Write your suspect in place of the first one, and run it for each case.

# %%
accuse(1, "a learning rate of zero")

# %% [markdown]
# **Why.** A model has many ways to get better, and finds one around most bugs (lesson 1: even a wrong gradient
# learns). The one that shows names itself wrongly: a scale that is too large looks just like a learning rate that is
# too high, since it acts like one (lesson 8). So a good curve proves little, and a bad one has several causes. What
# finds such mistakes is cheap and comes *before* the run: a gradient check, a fresh adapter that changes nothing, the
# same loss twice in evaluation. Each was an exercise.
#
# ## Exercise 12-symptom: a first look by machine
#
# *15 minutes, importance 4 of 5.*
#
# Write `symptom(train, held, base)`. `train` are a run's losses, `held` its held-out losses, the first before the
# first step, `base` what the untouched base has on the held-out text. Return the first of these that is true:
# `"another model"` if `held[0]` is over `base + 0.1`; `"dead"` if all of `held` are equal; `"diverges"` if the last
# of `held` is above the first; `"by heart"` if the last of `held` is over its lowest by more than 0.2 and the last of
# `train` is below half of the first; otherwise `"fine"`. An infinite loss, or one that is no number, anywhere in
# both, is `"diverges"`, whatever else is true.

# %%
def symptom(train, held, base):
    raise NotImplementedError("your turn")


check("12-symptom", symptom)

# %% [markdown]
# ## Exercise 12-leak: has it been seen?
#
# *20 minutes, importance 5 of 5.*
#
# Bug 7 is the most expensive one, because it makes everything look better. Write `leaked(train, held, n)`: the share
# of all runs of n tokens in a row in `held` that stand somewhere in `train`, too; both are lists of ids. A run that
# occurs twice in `held` counts twice. If `held` has no n tokens, the answer is 0.0. With 100,000 tokens in each it
# must take no more than a moment.
#
# <details><summary>Hint</summary>
#
# A `set` of tuples answers "is it there?" at once.
#
# </details>

# %%
def leaked(train, held, n):
    raise NotImplementedError("your turn")


check("12-leak", leaked)

# %% [markdown]
# ## 5. Which method
#
# Three methods over the same batches, each at a rate that suits it (lesson 8): what they learn, and what they forget.

# %%
def everything():
    model = kit.base()
    model.requires_grad_(True)
    return model


def quantised():
    tinyllm.manual_seed(0)
    return apply_qlora(kit.base(), **TARGETS)


untouched = kit.held_out(kit.base(), 1)
results = {}
for name, make, lr in (("full", everything, 3e-3), ("LoRA", adapted, 1e-2), ("QLoRA", quantised, 1e-2)):
    model = make()
    kit.fine_tune(model, steps=14, lr=lr)
    results[name] = kit.held_out(model, 1) | {"trained": model.num_parameters(trainable_only=True)}
assert all(row["jargon"] < untouched["jargon"] - 1 for row in results.values())
assert results["full"]["plays"] > results["LoRA"]["plays"] > untouched["plays"]
assert results["full"]["jargon"] < results["LoRA"]["jargon"]
assert abs(results["LoRA"]["jargon"] - results["QLoRA"]["jargon"]) < 0.1
kit.say(
    "| held out | jargon (learned) | plays (known before) | numbers trained |\n|---|---:|---:|---:|\n"
    f"| base | {untouched['jargon']:.3f} | {untouched['plays']:.3f} | 0 |\n"
    + "\n".join(f"| {n} | {r['jargon']:.3f} | {r['plays']:.3f} | {r['trained']:,} |" for n, r in results.items())
)

# %% [markdown]
# All learn, and all forget some of the plays. Full training learned a little more in these few steps, and forgot
# more; a higher or lower rate would shift both. LoRA and QLoRA are alike. On a model of this size nobody would need
# either: memory decides, and memory depends on the size. The ledger for seven billion parameters, 128 tokens, with
# checkpointing, tells what a parameter costs:

# %%
llama = DecoderConfig(32000, 4096, 32, 32, **llama_shape(intermediate_size=11008, tie_embeddings=False))
METHODS = {"full": ("full", "float32"), "LoRA": ("lora", "bfloat16"), "QLoRA": ("qlora", "nf4")}
a_parameter = {}
for name, (method, storage) in METHODS.items():
    targets = None if method == "full" else "all-linear"
    ledger = plan(llama, method, storage=storage, target_modules=targets, seq_len=128, checkpointing=True)
    a_parameter[name] = (ledger.peak - ledger.library) / ledger.parameters
assert a_parameter["QLoRA"] < a_parameter["LoRA"] / 2 < a_parameter["full"] / 8
kit.say("Bytes a parameter: " + ", ".join(f"{name} {n:.2f}" for name, n in a_parameter.items()) + ".")
CARDS = (8, 16, 24, 80)  # gigabytes


def figure_chart(a_parameter):
    """Which methods fit, by memory and by the model's size; returns the largest model for each method and card."""
    figure, ax = kit.plt.subplots(figsize=(7, 4), layout="constrained")
    memory = np.geomspace(1, 200, 50)
    lower = np.full(50, 0.05)
    colours = {"full": "#009e73", "LoRA": "#56b4e9", "QLoRA": "#e69f00"}
    for name, hatch in zip(a_parameter, ("", "//", ".."), strict=True):
        upper = memory / a_parameter[name]
        look = {"facecolor": colours[name], "hatch": hatch, "edgecolor": "white", "alpha": 0.85}
        ax.fill_between(memory, lower, upper, **look)
        lower = upper
    for size, name in ((0.135, "135M"), (1, "1B"), (7, "7B"), (70, "70B")):
        ax.axhline(size, color="#333333", linewidth=0.8)
        ax.text(1.05, size * 1.06, name, fontsize=8)
    ax.set(xscale="log", yscale="log", xlim=(1, 200), ylim=(0.05, 200))
    ax.set(xlabel="memory (GB)", ylabel="parameters (billions)", xticks=CARDS, xticklabels=[str(n) for n in CARDS])
    ax.legend(["full fits (and the others)", "LoRA fits (and QLoRA)", "only QLoRA fits"], fontsize=8)
    largest = {name: {card: card / n for card in CARDS} for name, n in a_parameter.items()}
    kit.show(
        figure,
        "Chart of the model's size against memory, both logarithmic, with three bands. With 24 GB full fine-tuning "
        f"fits up to {largest['full'][24]:.1f} billion parameters, LoRA over 16 bits up to {largest['LoRA'][24]:.1f}, "
        f"QLoRA up to {largest['QLoRA'][24]:.0f}. Above the bands nothing fits.",
    )
    return largest


largest = figure_chart(a_parameter)
kit.say(
    "Largest models, in billions of parameters:\n\n| card | full | LoRA | QLoRA |\n|---|---:|---:|---:|\n"
    + "\n".join(f"| {n} GB | " + " | ".join(f"{row[n]:.1f}" for row in largest.values()) + " |" for n in CARDS)
)

# %% [markdown]
# Find your memory, go up to your model, read off the band. It is a rule of thumb: other shapes differ by some per
# cent, long texts need more, and `tinyllm memory --model NAME` counts yours. Then ask, in this order:
#
# | question | if yes |
# |---|---|
# | Does a better prompt do it already? | train nothing |
# | Does full training fit, and is there one task and much text? | full, at a lower rate than LoRA's (lesson 8) |
# | Are there several tasks, or must the base stay as it is? | LoRA: one base, a small file for each task |
# | Does LoRA over 16 bits fit? | LoRA; it is faster than QLoRA, which unpacks weights in each step |
# | Does only QLoRA fit? | QLoRA; keep the adapter apart, or merge into floats (lesson 11) |
# | Not even that? | a smaller model; checkpointing and shorter texts only lower the activations |
#
# ## Exercise 12-rank: the largest rank that fits
#
# *15 minutes, importance 4 of 5.*
#
# Write `largest_rank(shapes, budget, frozen)`: the largest rank for which LoRA fits, 0 if none does. `shapes` are the
# adapted weights' shapes (out, in), `frozen` the bytes of the frozen base, `budget` all bytes there are. Each trained
# number takes sixteen bytes (lesson 7); leave activations out. A rank above the smaller side of the smallest weight
# is of no use: stop there.

# %%
def largest_rank(shapes, budget, frozen):
    raise NotImplementedError("your turn")


check("12-rank", largest_rank)

# %% [markdown]
# ## Three questions
#
# **1.** My loss curve looks just like the one in the paper. Is my program right?
#
# <details><summary>Answer</summary>
#
# Perhaps. Section 4 has mistakes whose curves nobody would tell from the right one. A curve can say that something is
# wrong; that all is right is said by tests of the parts.
#
# </details>
#
# **2.** The held-out loss is far below the training loss. Did I find a very good setting?
#
# <details><summary>Answer</summary>
#
# First suspect a leak: text that stands in both parts. (Small differences are harmless: dropout is off in evaluation,
# and the texts differ.)
#
# </details>
#
# **3.** I have memory for full training. Must I use it?
#
# <details><summary>Answer</summary>
#
# No. Above, LoRA learned nearly as much and forgot less; it leaves the base untouched, and a task is a small file.
# Full training is for much text, and for changes for which a low rank is not enough.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * What a good model is. The loss on held-out text says how well the text is guessed, not whether answers are true.
# * Long runs. Mistakes that do not show in a dozen steps may in a thousand: what is not clipped may break at a rare
#   batch.
# * That one look is enough: two bugs at once make curves that resemble none of these.
# * Speed. The chart is of memory alone.

# %% [markdown]
# ## Now read
#
# - `tinyllm.backend.replacement.use`: how your parts came in
# - `tinyllm.qlora.apply_qlora`: quantise and adapt in one go
# - `tinyllm.train.loop.fit`: the loop of the runs
# - `tinyllm.train.trouble`: how a run that goes wrong says where
# - `tinyllm.models.checkpoints.named.find`: from a short name to a file
# - `tinyllm.inspect.plan.plan`: the ledger behind the chart
