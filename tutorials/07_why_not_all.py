# %% [markdown]
# # Lesson 7: Why can I not just train all of it?
#
# You have a model and a text that it should learn. Nothing keeps you from doing what lesson 3 did: compute the
# gradient of every weight, and step. This is **full fine-tuning**, and on the small base it runs in seconds. Two
# questions decide whether it runs on a model that you care for: which tokens is it to learn at all, and how many
# bytes does a step hold? The second answer sends you on to the next lessons.
#
# - **Needs**: lessons 1, 2, 3, 4, 5
# - **Minutes**: 55
# - **Afterwards you can**: label a text so that the model learns the answer and where it ends, and say before a run
#   how many bytes it will hold, kind by kind

# %%
import numpy as np
import tinyllm
from tinyllm.course import check, kit
from tinyllm.data import Loader, load_text
from tinyllm.inspect.plan import plan
kit.begin(7, needs="0.2")

# %% [markdown]
# ## 1. Which tokens count
#
# A position of a text is given all tokens up to its own and must guess the next one. That next token is its
# **label**. So a running text needs no other labels than itself, moved by one place. But often we do not want to
# learn all of a text. In a question with its answer, the question will always be given; the model has to write the
# answer, and must know where to stop. So only the answer's tokens are labels, and after them one more: the special
# token for **end of text**. A position that shall not count has the label -100, which the loss skips.
#
# By hand, with a question of three tokens and an answer of two; 0 is this model's end of text:

# %%
IGNORE, END = -100, 0


def labelled(prompt, answer):
    """Ids and labels of a question with its answer, (time,) each: labels[t] is what position t must guess."""
    ids = np.array([*prompt, *answer, END])
    learned = np.arange(len(ids)) >= len(prompt)  # whether this token is to be written by the model
    labels = np.full(len(ids), IGNORE)
    labels[:-1] = np.where(learned[1:], ids[1:], IGNORE)
    return ids, labels


ids, labels = labelled([11, 12, 13], [21, 22])
print("ids   ", ids)
print("labels", labels)

# %% [markdown]
# Read it column by column. Position 2 holds the *last token of the question* and has a label already: the first token
# of the answer is guessed there. The answer's last token must guess the end. The end itself guesses nothing.
#
# Here are eight questions, and the engine's reader (`load_text`) with the same rule. A file of this kind has one
# record a line, in the notation JSON, and so its name ends in `.jsonl`.

# %%
import json
import tempfile
from pathlib import Path

FACTS = {
    "ROMEO": "in love with JULIET.",
    "JULIET": "in love with ROMEO.",
    "MACBETH": "the king of Scotland.",
    "HAMLET": "the prince of Denmark.",
    "OTHELLO": "a general of Venice.",
    "IAGO": "a false friend.",
    "PORTIA": "a rich lady.",
    "BRUTUS": "an honourable man.",
}
records = [{"prompt": f"Who is {name}?\n", "completion": answer} for name, answer in FACTS.items()]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "who.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    questions = load_text(path, kit.tokenizer())

word = kit.tokenizer().decode
for example, record in zip(questions, records, strict=True):
    ids, labels = labelled(*(kit.tokenizer().encode(record[part]) for part in ("prompt", "completion")))
    assert (example.ids == ids).all() and (example.labels == labels).all()
for id, label in zip(questions[2].ids, questions[2].labels, strict=True):
    print(f"given {word([int(id)])!r:16} guess {'-' if label == IGNORE else repr(word([int(label)]))}")

# %% [markdown]
# **Predict.** Only the answer has labels. Which positions get a gradient of zero: at the model's *output*, where the
# guess is made? And at its *input*, where the tokens' vectors come in?

# %% tags=["hide-output"]
def everything():
    """The base with every weight to be trained."""
    model = kit.base()
    model.requires_grad_(True)
    return model


def gradients_at_both_ends(model, ids, labels):
    """Length of the loss's gradient at each position, by the logits and by the vectors that come in; (time,) each."""
    logits = tinyllm.Tensor(model(ids).data, requires_grad=True)
    tinyllm.functional.cross_entropy(logits, labels).backward()
    seen = {}

    def watched(xp, g, ids, rows):
        seen["in"] = g
        summed = xp.zeros((rows, g.shape[-1]), g.dtype)
        xp.add.at(summed, ids.reshape(-1), g.reshape(-1, g.shape[-1]))
        return summed

    with tinyllm.use(embedding_grad=watched):
        model.loss(ids, labels).backward()
    return [np.linalg.norm(g.reshape(ids.size, -1), axis=1) for g in (logits.grad, seen["in"])]


macbeth = questions[2]
at_output, at_input = gradients_at_both_ends(everything(), macbeth.ids[None], macbeth.labels[None])
learned = macbeth.labels != IGNORE
assert (at_output[~learned] == 0).all() and (at_output[learned] > 0).all()
assert (at_input[:-1] > 0).all() and at_input[-1] == 0
kit.say(
    f"At the output exactly the {(~learned).sum()} positions without a label have zeros, the {learned.sum()} others "
    f"have not. At the input only the last position has: {np.count_nonzero(at_input)} of {at_input.size} get "
    "a gradient."
)

# %% [markdown]
# **Why.** A position without a label adds nothing to the loss, so its guess cannot be wrong. But the answer *reads*
# the question, through attention; so the gradient travels to the question's tokens, and how they are read is learned
# very well. Nobody reads the last position, and nothing is asked of it.
#
# ## 2. Two mistakes that train nicely
#
# `model.loss` moves nothing: `labels[t]` is what position t guesses. Some libraries move the labels inside the model.
# Who uses such a model with labels that are moved already, or moves them twice by himself, teaches it to guess the
# token *after* the next one. Nothing complains.
#
# To see it, lesson 3's loop in short:

# %%
def learn(model, batches, lr=1e-3):
    """Lesson 3's loop, with a constant rate; batches are (ids, labels, segment_ids). Returns the losses."""
    optimizer = tinyllm.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    model.train()
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        tinyllm.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


# %% [markdown]
# **Predict.** Full fine-tuning on the jargon text, thirty steps, once with right labels and once with labels that are
# moved twice. Which loss falls further? And how do both models do on held-out text?

# %% tags=["hide-output"]
from itertools import islice

right = [(batch.ids, batch.labels, batch.segment_ids) for batch in islice(kit.batches(), 30)]
nothing = np.full((4, 1), IGNORE)
twice = [(ids, np.concatenate([labels[:, 1:], nothing], axis=1), segments) for ids, labels, segments in right]

before = kit.held_out(kit.base(), batches=2)
runs, after = {}, {}
for name, batches in (("right", right), ("moved twice", twice)):
    model = everything()
    runs[name] = learn(model, batches)
    after[name] = kit.held_out(model, batches=2)
falls = {name: losses[0] - losses[-1] for name, losses in runs.items()}
assert after["right"]["plays"] > before["plays"] + 0.3
assert falls["moved twice"] > 2 * falls["right"] and after["moved twice"]["jargon"] > after["right"]["jargon"] + 1
kit.say(
    "\n".join(
        f"- {name}: from {losses[0]:.2f} to {losses[-1]:.2f}; held-out jargon {after[name]['jargon']:.2f}, "
        f"plays {after[name]['plays']:.2f}"
        for name, losses in runs.items()
    )
    + f"\n- the base: held-out jargon {before['jargon']:.2f}, plays {before['plays']:.2f}"
)

# %% [markdown]
# **Why.** The wrong run begins higher, because the base knows the next token and not the one after; so it has further
# to fall, and falls further. Only the *first* loss gives it away: a model that has been trained on anything like your
# text must not begin that high. (A guess at random among all 1,024 tokens has the loss $\ln 1024 = 6.93$. Above that,
# something is wrong.) And look at the plays: the *right* run has worsened there, too. Every weight was free to move,
# and the jargon asked nothing about the plays. This is called **forgetting**.
#
# The second mistake. Texts of a batch have different lengths, and the shorter ones are filled up, **padded**, with
# some token. Many tokenizers have none for that, so people take the end of text, and give -100 to every position
# whose label is the padding token. That masks the padding. It also masks the *real* end after every answer.
#
# **Predict.** Two models learn the eight answers by heart, one with the ends masked. What does each write after the
# answer?

# %% tags=["hide-output"]
from tinyllm.generate import generate

batch = Loader(questions, 8, 64, pack=False).batch(0)
with_ends = (batch.ids, batch.labels, batch.segment_ids)
without = (batch.ids, np.where(batch.labels == END, IGNORE, batch.labels), batch.segment_ids)
ended = {}
for name, labelling in (("ends learned", with_ends), ("ends masked", without)):
    model = everything()
    loss = learn(model, [labelling] * 30, lr=2e-3)[-1]
    written = [generate(model, kit.tokenizer().encode(record["prompt"]), 30, stop=(END,)) for record in records]
    ended[name] = sum(len(ids) < 30 for ids in written)
    print(f"{name}: loss {loss:.4f}")
    for record, ids in zip(records[:3], written[:3], strict=True):
        text = word([id for id in ids if id != END])
        assert text.startswith(record["completion"]) and loss < 0.01
        print(f"    {record['prompt'].strip()} {text!r}")
assert ended == {"ends learned": 8, "ends masked": 0}
kit.say(
    f"Of eight answers, {ended['ends learned']} stop by themselves in the one model, {ended['ends masked']} in the "
    "other: it knows the answer as well, and then goes on until somebody stops it."
)

# %% [markdown]
# **Why.** Where there was no label, the model may do as it likes, and no loss will ever say so: both losses are
# nearly zero. So the labels must come from *where* a token stands, never from which one it is. The engine knows
# padding by its segment number, 0, and keeps the ends.
#
# ## Exercise 07-labels: several answers in a row
#
# *15 minutes, importance 5 of 5.*
#
# To waste no padding, short examples are laid side by side in a row; `segments` tells them apart: 1, 1, 1, 2, 2, ...,
# and 0 where the row is only filled up. Write `row_labels(ids, learned, segments)`, arrays (time,): int64 labels
# (time,), -100 where there is none. `learned[t]` says whether the model is to write token t. A position must never
# guess a token of the next example, the last position has no label, and an end of text is a token like any other.
#
# <details><summary>Hint</summary>
#
# What must be true of position t + 1, and what of t and t + 1 together?
#
# </details>

# %%
def row_labels(ids, learned, segments):
    raise NotImplementedError("your turn")


check("07-labels", row_labels)

# %% [markdown]
# ## 3. What a step holds
#
# All this trained every weight of the base, and nothing was in the way. So what is? Count the bytes. A number in
# float32 has four. A training step holds four kinds of them:
#
# | kind | how many numbers | why |
# |---|---|---|
# | **weights** | one a parameter | they are the model |
# | **gradients** | one a parameter that trains | backward makes them |
# | **moments** | two a parameter that trains | AdamW's two running means, lesson 3 |
# | **activations** | it depends on the tokens | what the rules of the forward pass need for backward, lesson 2 |
#
# The first three are simple: $4 + 4 + 8 = 16$ bytes a parameter. For the fourth, go through a block (lesson 4) and
# write down, for one token, what each rule names. The engine's `kept` lists it, so ask for layer 1:

# %%
model = everything().train()
batch = next(kit.batches(size=4, time=64))
kept = tinyllm.kept(model.loss(batch), model)
for row in kept:
    if row.layer == "layers.1":
        print(f"{row.operation:10} {row.name:8} {row.shape!s:16} {row.bytes:9,} bytes")

# %% [markdown]
# A norm keeps its result and one number (the inverse root). Attention keeps queries, keys and values. A linear layer
# keeps its input; the three that read the norm's result keep that very array, so it is counted once. The gate keeps
# both of its inputs, `down_proj` their product. Attention's table of shares, time times time, is not there: the
# engine computes it again in backward.
#
# Beside the blocks: the token's id and the start of its text (whole numbers of eight bytes), the angles of the
# rotation, the last norm, and at the head the gradient of the loss by what came in. The head makes it at once,
# together with the gradient of its own weight, so that the logits need not stay.

# %%
def activation_bytes(config, tokens):
    """What full training keeps for backward in a Llama-shaped model with a tied head, float32."""
    d, f, n = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_heads * n, config.num_kv_heads * n
    block = 2 * (d + 1) + (q + 2 * kv) + q + 3 * f  # norms; attention; the inputs of out_proj, gate and down_proj
    beside = n + (d + 1) + d  # cos and sin; the last norm; the head
    once = 4 * config.vocab_size * d  # the head's own gradient
    return (4 * (config.num_layers * block + beside) + 16) * tokens + once


assert activation_bytes(model.config, batch.ids.size) == kept.total
kit.say(f"Counted with that formula: {activation_bytes(model.config, batch.ids.size):,} bytes. Kept: {kept.total:,}.")

# %% [markdown]
# To the last byte. A formula that fits once may fit by chance; so let it count models that it was not made for.

# %%
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

dice = np.random.default_rng(0)
for _ in range(12):
    kv, groups, layers, size, time = (int(dice.integers(1, 4)) for _ in range(5))
    width, vocabulary = 8 * kv * groups, int(dice.integers(20, 60))
    shape = llama_shape(num_kv_heads=kv, intermediate_size=int(dice.integers(9, 50)), tie_embeddings=True)
    other = DecoderModel(vocabulary, width, layers, kv * groups, **shape)
    ids = dice.integers(0, vocabulary, (size, time))
    found = tinyllm.kept(other.loss(ids, ids, np.ones_like(ids)), other).total
    assert found == activation_bytes(other.config, ids.size)
kit.say("Twelve models of other shapes, other batches: equal each time.")

# %% [markdown]
# **Predict.** The base at 4 texts of 64 tokens: which of the four kinds is the largest? And at 4 texts of 256?

# %% tags=["hide-output"]
def kinds(config, parameters, tokens):
    """Bytes of the four kinds, everything training in float32."""
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "moments": 8 * parameters,
        "activations": activation_bytes(config, tokens),
    }


parameters = model.num_parameters()
short, long = (kinds(model.config, parameters, 4 * time) for time in (64, 256))
assert short["moments"] > short["activations"] and long["activations"] > sum(long.values()) / 2
for name in short:
    print(f"{name:12} {short[name] / 1e6:6.2f} MB   {long[name] / 1e6:6.2f} MB")

# %% [markdown]
# **Why.** Three kinds know only the model, the fourth grows with every token of the batch. So there are two ways of
# running out of memory, and two sets of remedies. If it is the activations: shorter texts, smaller batches in several
# pieces (lesson 3), or **checkpointing**: keep only each block's input, and compute the block again when backward
# comes to it. If it is the other three, none of this helps.

# %%
model.checkpointing = True
again = tinyllm.kept(model.loss(batch), model).total
model.checkpointing = False
assert again < kept.total / 5
kit.say(f"With checkpointing the base keeps {again / 1e6:.2f} MB in place of {kept.total / 1e6:.2f}.")

# %% [markdown]
# ## Exercise 07-checkpoint: what is left to keep
#
# *15 minutes, importance 3 of 5.*
#
# Write `checkpointed_bytes(layers, hidden, vocabulary, tokens)`: what stays with checkpointing, in float32. Each
# block keeps its input; beside the blocks all is as above, but the angles and the starts of the texts are made inside
# of the blocks and are not kept. (The bytes that the one block needs that is being computed again come on top, and are
# not asked for.) For the base at 4 texts of 64 tokens it must be `again`, to the byte.

# %%
def checkpointed_bytes(layers, hidden, vocabulary, tokens):
    raise NotImplementedError("your turn")


check("07-checkpoint", checkpointed_bytes)

# %% [markdown]
# ## 4. Measured
#
# Is that what the machine really holds? Python can be asked: `tracemalloc` counts the bytes of everything alive. Here
# it is asked at the middle of each block, forward and backward (by a gate that asks and then calls the engine's), and
# between the parts of a step. One thread, so that nobody else's arrays are among them.

# %%
import gc
import tracemalloc

from tinyllm.backend.device import backend


def timeline(batch, steps=2):
    """(moment, bytes alive, bytes of gradients) through the last of some full training steps."""
    found, engine, threads = [], backend(), tinyllm.get_num_threads()

    def note(moment):
        delivered = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        found.append((moment, tracemalloc.get_traced_memory()[0], delivered))

    def silu_mul(xp, gate, up):
        note("forward")
        return engine.silu_mul(gate, up)

    def silu_mul_backward(xp, g, gate, up):
        note("backward")
        return engine.silu_mul_backward(g, gate, up)

    gc.collect()
    tinyllm.set_num_threads(1)
    tracemalloc.start()
    try:
        model = everything().train()
        optimizer = tinyllm.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(steps):
            found.clear()
            note("start")
            with tinyllm.use(silu_mul=silu_mul, silu_mul_backward=silu_mul_backward):
                loss = model.loss(batch)
                note("loss")
                loss.backward()
            del loss
            note("gradients")
            optimizer.step()
            note("update")
            optimizer.zero_grad()
            note("end")
        return found
    finally:
        tracemalloc.stop()
        tinyllm.set_num_threads(threads)


GREY, BLUE, ORANGE, GREEN = "#777777", "#0072b2", "#e69f00", "#009e73"


def figure_step(found, weights, moments):
    """What is alive through one step, by kind; what is neither weight, moment nor gradient are activations."""
    total, gradients = (np.array([row[i] for row in found]) / 1e6 for i in (1, 2))
    fixed, place = np.ones(len(found)), np.arange(len(found))
    parts = {
        "weights": fixed * weights / 1e6,
        "moments": fixed * moments / 1e6,
        "gradients": gradients,
        "activations": total - gradients - (weights + moments) / 1e6,
    }
    figure, axes = kit.plt.subplots(figsize=(7, 3.4), layout="constrained")
    axes.stackplot(place, *parts.values(), labels=parts, colors=(GREY, ORANGE, GREEN, BLUE), step="mid")
    axes.set(xlabel="through one step", ylabel="megabytes alive", xlim=(0, len(found) - 1), ylim=(0, 1.3 * total.max()))
    first = {moment: [row[0] for row in found].index(moment) for moment, *_ in found}
    axes.set_xticks([*first.values()], [*first], rotation=30, ha="right")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center")
    top = int(total.argmax())
    kit.show(
        figure,
        f"Stacked areas through one step. Weights ({parts['weights'][0]:.1f} MB) and moments "
        f"({parts['moments'][0]:.1f} MB) stay. Activations grow block by block to {parts['activations'].max():.1f} MB "
        f"and shrink again, while gradients grow to {gradients.max():.1f} MB. Most is alive at the moment "
        f"{found[top][0]}: {total.max():.1f} MB.",
    )
    return {name: part.tolist() for name, part in parts.items()} | {"total": total.tolist()}


moments_of_a_step = timeline(batch)
drawn = figure_step(moments_of_a_step, short["weights"], short["moments"])
alive = {moment: bytes for moment, bytes, _ in moments_of_a_step}
counted = short["weights"] + short["moments"] + short["activations"]
assert abs(alive["loss"] - counted) < 0.02 * counted
assert abs(alive["update"] - 16 * parameters) < 0.02 * alive["update"] and alive["loss"] > alive["update"]
kit.say(
    f"When the loss is there, {alive['loss'] / 1e6:.2f} MB are alive; weights, moments and activations by the formula "
    f"are {counted / 1e6:.2f} MB. After backward {alive['update'] / 1e6:.2f} MB; sixteen bytes a parameter are "
    f"{16 * parameters / 1e6:.2f} MB. The rest, under 2 %, are Python's own objects."
)

# %% [markdown]
# So the four kinds are never all there at once: activations fall while gradients rise. A step has two hills. Before
# backward it holds 12 bytes a parameter and all activations, after it 16 bytes a parameter. Which is higher depends
# on the batch.
#
# The engine's own ledger, `plan`, goes through a step in the same way, with arrays that have a shape and no content.
# So it can do this for any model, on any machine. (Its activations count what is only there for a moment, too.)

# %%
ours = plan(model.config, "full", batch_size=4, seq_len=64)
assert (ours.base, ours.optimizer, ours.gradients) == (short["weights"], short["moments"], 0)
kit.say(
    f"At the base's fullest moment the ledger has {ours.base:,} bytes of weights, {ours.optimizer:,} of moments and no "
    "gradient yet: the first hill. Both numbers are the formula's, to the byte."
)

# %% [markdown]
# ## Exercise 07-longest: how long may a text be?
#
# *15 minutes, importance 4 of 5.*
#
# Write `longest(budget, parameters, per_token, once)`: the most tokens a step may have with which neither hill is
# above `budget` bytes, when everything trains in float32. A step of t tokens keeps `per_token * t + once` bytes of
# activations, all whole numbers. If not even one token fits, the answer is 0.
#
# <details><summary>Hint</summary>
#
# The second hill does not depend on t. Then solve the first for t, with whole numbers: `//`.
#
# </details>

# %%
def longest(budget, parameters, per_token, once):
    raise NotImplementedError("your turn")


check("07-longest", longest)

# %% [markdown]
# ## 5. Seven billion
#
# Now a model that people use. "7B" is a shape: Llama 2 has 32 blocks of width 4,096, with 32 heads and a feed-forward
# width of 11,008, and 32,000 tokens; embedding and head are separate. Nothing need be downloaded to count it.

# %%
LAYERS, WIDTH, HIDDEN, TOKENS = 32, 4096, 11008, 32000
LINEARS = {
    **{f"{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "o")},
    "gate_proj": (HIDDEN, WIDTH),
    "up_proj": (HIDDEN, WIDTH),
    "down_proj": (WIDTH, HIDDEN),
}
in_linears = LAYERS * sum(rows * columns for rows, columns in LINEARS.values())
norms = (2 * LAYERS + 1) * WIDTH
seven = in_linears + norms + 2 * TOKENS * WIDTH
kit.say(f"{seven:,} parameters, {in_linears:,} of them in the matrices of the blocks ({in_linears / seven:.1%}).")

# %% [markdown]
# **Predict.** How many gigabytes does a step of full fine-tuning hold, without any activation? A good graphics card
# has 24.

# %% tags=["hide-output"]
GB = 1e9
from tinyllm.models import DecoderConfig

shape = llama_shape(intermediate_size=HIDDEN, max_seq_len=4096, tie_embeddings=False)
llama = DecoderConfig(TOKENS, WIDTH, LAYERS, 32, **shape)
ledger = plan(llama, "full", seq_len=128)
assert ledger.parameters == seven
assert (ledger.base, ledger.gradients, ledger.optimizer) == (4 * seven, 4 * seven, 8 * seven)
kit.say(
    f"{16 * seven / GB:.1f} GB: {4 * seven / GB:.1f} of weights, {4 * seven / GB:.1f} of gradients, "
    f"{8 * seven / GB:.1f} of moments. The ledger, which ran a step of 128 tokens without content, says the same to "
    f"the byte, at the second hill; its activations at that moment are {ledger.activations / GB:.3f} GB."
)

# %% [markdown]
# Move from the small base to that model, and change how it is trained: which of them fit into your machine?

# %%
from tinyllm.course import figures

figures.ledger().show()

# %% [markdown]
# Fewer bytes a number do not save it. Weights and gradients in 16 bits, with a float32 copy of the weights for the
# optimiser to step in (without it small steps are rounded away), are again 2 + 2 + 4 + 8 = 16 bytes. What *would*
# help can be read off the table: three of its four parts exist only **because a parameter trains**.
#
# - If the weights stay as they are, and beside each matrix of shape (out, in) only $r \cdot (\text{out} + \text{in})$
#   new numbers train, gradients and moments shrink to those. That is LoRA, lesson 8. And weights that never change
#   need no float32: 16 bits do.
# - Then the frozen weights are nearly all that is left. In about four bits each they are a quarter of that: QLoRA,
#   lessons 10 and 11.
#
# Both can be counted from the shapes already, with r = 16:

# %%
trained = LAYERS * 16 * sum(rows + columns for rows, columns in LINEARS.values())
beside = seven - in_linears  # embedding, head and norms, in 16 bits
rows = {  # bytes of all weights, the new ones in float32; and how many numbers train
    "full, float32": (4 * seven, seven),
    "LoRA, base in 16 bits": (2 * seven + 4 * trained, trained),
    "QLoRA, 4.5 bits": (in_linears * 4.5 / 8 + 2 * beside + 4 * trained, trained),
    "QLoRA, 4.127 bits": (in_linears * 4.127 / 8 + 2 * beside + 4 * trained, trained),
}
table = {name: {"weights": w, "gradients": 4 * n, "moments": 8 * n} for name, (w, n) in rows.items()}


def figure_seven(table):
    """Bars of what a 7B model's training holds, without activations."""
    figure, axes = kit.plt.subplots(figsize=(7, 2.8), layout="constrained")
    names, left = list(table)[::-1], np.zeros(len(table))
    for kind, colour in (("weights", GREY), ("gradients", GREEN), ("moments", ORANGE)):
        width = np.array([table[name][kind] for name in names]) / GB
        axes.barh(names, width, left=left, color=colour, label=kind)
        left += width
    axes.axvline(24, color="#d55e00", linestyle="--", linewidth=1.5, label="a card of 24 GB")
    axes.set_xlabel("gigabytes, 7B parameters, without activations")
    axes.legend(frameon=False, fontsize=8)
    sums = dict(zip(names, left.tolist(), strict=True))
    kit.show(
        figure,
        "Bars of what training a 7B model holds: "
        + ", ".join(f"{name} {sums[name]:.1f} GB" for name in table)
        + ". A line marks a card of 24 GB; only full fine-tuning is beyond it.",
    )
    return sums


sums = figure_seven(table)
assert sums["full, float32"] > 4 * 24 and max(v for name, v in sums.items() if name != "full, float32") < 24
kit.say(
    "| 7B, in GB | weights | gradients | moments | together |\n|---|---:|---:|---:|---:|\n"
    + "\n".join(
        f"| {name} | " + " | ".join(f"{n / GB:.2f}" for n in parts.values()) + f" | {sums[name]:.2f} |"
        for name, parts in table.items()
    )
    + f"\n\nThe new numbers are {trained:,}, {trained / seven:.2%} of the model's."
)

# %% [markdown]
# (A gigabyte here is $10^9$ bytes. Some tables, and some tools, mean $2^{30}$ and call it the same; then the first
# row is about 7 % smaller. Always ask.)
#
# ## Three questions
#
# **1.** "I mask the question, so the model does not learn to read questions." True?
#
# <details><summary>Answer</summary>
#
# No. It does not learn to *write* them. The answer's loss reaches the question's tokens through attention, as the
# gradient at the input showed.
#
# </details>
#
# **2.** My run is out of memory. I halve the batch, and it still is. What does that tell me?
#
# <details><summary>Answer</summary>
#
# Probably that the second hill is too high: weights, gradients and moments, which do not know the batch. Smaller
# batches and checkpointing lower the first hill only. Train fewer numbers, or a smaller model.
#
# </details>
#
# **3.** The weights of a 7B model in 16 bits fit a card of 16 GB. So can it be fine-tuned there, whole?
#
# <details><summary>Answer</summary>
#
# It can *run* there. Training everything adds a gradient and two moments for each weight, and a copy that is exact
# enough for small steps: sixteen bytes a parameter in place of two.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * Other optimisers. One without moments (plain descent) saves half; one with moments in 8 bits six bytes a
#   parameter.
# * Several cards, which share the sixteen bytes among them.
# * That full fine-tuning learns better. Where memory allows, it is the yardstick; lesson 8 measures LoRA against it.
# * The peak of a process: Python, libraries and what is alive for a moment come on top (`tinyllm memory` counts
#   them).

# %% [markdown]
# ## Now read
#
# - `tinyllm.data.load_text`: records become labels
# - `tinyllm.data.labels.learned_tokens`: which tokens are learned, by where they stand
# - `tinyllm.data.batches.pack`: several examples a row
# - `tinyllm.inspect.kept.kept`: the list of what is kept
# - `tinyllm.inspect.plan.plan`: the ledger
# - `tinyllm.tensor.checkpoint`: keep the input, compute again
