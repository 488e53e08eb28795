# %% [markdown]
# # Lesson 6: How does a file become a model?
#
# Weights are handed around as files. Reading them is a matter of bytes, names and shapes, none of it deep, and all of
# it easy to get wrong without an error: the model answers, only badly. Here you read a real checkpoint with nothing but
# NumPy, put it into an empty model, and build the tool that finds the first layer which differs.
#
# - **Needs**: lessons 2, 4
# - **Minutes**: 60
# - **Replaces in lesson 0**: lines of `read_weights` by the real ones
# - **Afterwards you can**: read a safetensors file by hand, say what bfloat16 keeps, and find a wrong weight in a
#   model that runs

# %%
import json
import numpy as np
import tinyllm
from tinyllm import assets
from tinyllm.course import check, kit
kit.begin(6, needs="0.2")

# %% [markdown]
# ## 1. The bytes
#
# The embedded base is a checkpoint as one finds them on the web: a folder with `config.json` (the shape),
# `model.safetensors` (the weights) and the tokenizer's files.
#
# A safetensors file has three parts: eight bytes that are a whole number, the length of the header; the header, which
# is JSON and says for each array its dtype, shape, and from which byte to which; and the bytes of all arrays. So:

# %%
def read_arrays(path):
    """The arrays of a safetensors file, by name; of float32 only."""
    file = path.read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    arrays = {}
    for name, about in header.items():
        if name != "__metadata__":
            first, end = about["data_offsets"]
            array = np.frombuffer(file[start + first : start + end], np.float32)
            arrays[name] = array.reshape(about["shape"])
    return arrays


folder = assets.path("base")
arrays = read_arrays(folder / "model.safetensors")
for name in list(arrays)[:4]:
    print(f"{name:48} {arrays[name].shape}")
kit.say(f"{len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers.")

# %% [markdown]
# **Predict.** The model has a head, a matrix from vectors of 160 to 1,024 logits. Which array is it?

# %% tags=["hide-output"]
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
assert not any("lm_head" in name for name in arrays) and config["tie_word_embeddings"]
kit.say("None. The configuration says `tie_word_embeddings`: the head is the embedding, used the other way round.")

# %% [markdown]
# **Why.** The embedding has a row for each token, the vector that stands for it. The head compares the last vector with
# a row for each token. With small models these are most of the parameters, so they share. Whoever reads such a file and
# makes a head of its own leaves it random.
#
# ## Exercise 06-header: what is in a file?
#
# *15 minutes, importance 4 of 5.*
#
# Write `summary(data)` for the `bytes` of a safetensors file: a dict from name to (dtype, shape as a tuple, number of
# bytes); `__metadata__`, if it is there, is no array. If the header would reach beyond the end of the file, or an
# array's bytes lie outside of it, or two arrays' bytes overlap, raise a `ValueError`: a file from the web may be
# broken, or made to break things.

# %%
def summary(data):
    raise NotImplementedError("your turn")


check("06-header", summary)

# %% [markdown]
# ## 2. The names
#
# Now an empty model of that shape, with random weights, and the names of both sides:

# %%
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

shape = llama_shape(
    vocab_size=config["vocab_size"], hidden_size=config["hidden_size"], num_layers=config["num_hidden_layers"],
    num_heads=config["num_attention_heads"], num_kv_heads=config["num_key_value_heads"], head_dim=config["head_dim"],
    intermediate_size=config["intermediate_size"], max_seq_len=config["max_position_embeddings"],
    norm_eps=config["rms_norm_eps"], rope_theta=config["rope_theta"], tie_embeddings=True,
)  # fmt: skip
model = DecoderModel(**shape).eval()
wanted = dict(model.named_weights())
theirs, ours = {name.removeprefix("model.") for name in arrays}, set(wanted)
print("only in the file: ", sorted(theirs - ours)[:2], "...")
print("only in the model:", sorted(ours - theirs)[:2], "...")

# %% [markdown]
# One part of a block is called `o_proj` there and `out_proj` here. The rest is the same. Two rules keep one from a half
# loaded model, which answers and says nothing: *every* weight of the model must be found, and *every* array of the file
# must be used.

# %%
def filled(model, arrays):
    """The model with the arrays in it; every one of both sides must find its other half."""
    weights, used = dict(model.named_weights()), set()
    for name, array in arrays.items():
        path = name.removeprefix("model.").replace("o_proj", "out_proj")
        if weights[path].shape != array.shape:
            raise ValueError(f"{name} has shape {array.shape}, the model's {weights[path].shape}")
        weights[path].data = array.copy()
        used.add(path)
    missing = set(weights) - used
    if missing:
        raise ValueError(f"the file lacks {sorted(missing)}")
    return model


batch = next(kit.batches(text="plays"))


def loss_of(model):
    with tinyllm.no_grad():
        return model.loss(batch).item()


empty = loss_of(model)
loss = loss_of(filled(model, arrays))
assert loss == loss_of(kit.base().eval()) < empty
kit.say(f"Its loss on four pieces of the plays was {empty:.2f} and is {loss:.4f} now, as with the engine's reader.")

# %% [markdown]
# ## 3. Sixteen bits
#
# Most files on the web hold **bfloat16**: the upper half of a float32. A float32 has 1 bit for the sign, 8 for the
# exponent, and 23 for the digits; bfloat16 keeps 1, 8, and 7. So the *range* is that of float32, and there are two to
# three decimal digits.
#
# Widening is easy: sixteen zeros below. Narrowing rounds to the nearest, and where two are equally near, to the one
# whose last bit is 0. With integers this is one addition: add a little less than half of the lowest bit that stays,
# and one more if that bit is 1; then cut.

# %%
def my_to_bfloat16(w):
    """The upper half of each float32, rounded to nearest, ties to even: uint16."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) >> 16).astype(np.uint16)


def my_from_bfloat16(bits):
    """The float32 that each pattern stands for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# %% [markdown]
# **Predict.** Which of these come back unchanged from bfloat16: 1, 0.5, 0.1, 256, 257, 3.140625?

# %% tags=["hide-output"]
numbers = np.array([1, 0.5, 0.1, 256, 257, 3.140625], np.float32)
back = my_from_bfloat16(my_to_bfloat16(numbers))
for before, after in zip(numbers, back, strict=True):
    print(f"{before:9} -> {after:9} {'' if before == after else '   changed'}")
assert (numbers == back).tolist() == [True, True, False, True, False, True]

# %% [markdown]
# **Why.** Seven digits (and one that is always there) are eight binary digits: whole numbers up to 256 are exact, 257
# is not. 3.140625 is 201/64, and 201 has eight.
#
# There are only 65,536 patterns, so one can test them all: narrowing what was widened gives the pattern again.

# %%
every = np.arange(65_536, dtype=np.uint16)
numbers = my_from_bfloat16(every)
real = ~np.isnan(numbers)
assert (my_to_bfloat16(numbers)[real] == every[real]).all()
with tinyllm.use(to_bfloat16=my_to_bfloat16, from_bfloat16=my_from_bfloat16):
    half = loss_of(kit.base(storage="bfloat16").eval())
assert half == loss_of(kit.base(storage="bfloat16").eval())
kit.say(f"All of them. The base in bfloat16, by your rounding, has the loss {half:.4f}; in float32 it was {loss:.4f}.")

# %% [markdown]
# ## Exercise 06-round: one number, by hand
#
# *15 minutes, importance 4 of 5.*
#
# Write `rounded(bits)`: the upper 16 bits of a 32-bit whole number, rounded to nearest, ties to even, without an array
# and without floats. Beware of one thing: a NaN (exponent all ones, digits not all zero) whose digits are all in the
# lower half must not become an infinity.

# %%
def rounded(bits):
    raise NotImplementedError("your turn")


check("06-round", rounded)

# %% [markdown]
# ## 4. The first layer that differs
#
# Suppose a model was read, and its loss is bad. Somewhere one thing is wrong, and everything after it is wrong too.
# With a reference at hand, here the base, the search is short: run both on the same tokens, write down what each block
# gives, and compare from the front.

# %%
class Listening(tinyllm.nn.Module):
    """A module that passes everything on, and keeps what came out."""

    def __init__(self, module):
        self.module, self.heard = module, None

    def forward(self, *inputs):
        y = self.module(*inputs)
        self.heard = y.data
        return y


def outputs(model, paths):
    """What the modules at these paths give on the batch, by path."""
    for path in paths:
        model.replace(path, Listening(model.get(path)))
    with tinyllm.no_grad():
        model(batch.ids, batch.segment_ids)
    found = {}
    for path in paths:
        listening = model.get(path)
        found[path] = listening.heard
        model.replace(path, listening.module)
    return found


BLOCKS = ["embed_tokens", *(f"layers.{i}" for i in range(5)), "norm"]


def differences(model, paths=BLOCKS):
    """How far each module's output is from the base's, relatively."""
    right, wrong = outputs(kit.base().eval(), paths), outputs(model, paths)
    return {path: float(np.linalg.norm(wrong[path] - y) / np.linalg.norm(y)) for path, y in right.items()}


# %% [markdown]
# Three ways to go wrong. Each is a mistake that people have made:

# %%
def transposed(arrays):
    """A square matrix of block 3, the wrong way round."""
    return arrays | {"model.layers.3.self_attn.o_proj.weight": arrays["model.layers.3.self_attn.o_proj.weight"].T}


def exchanged(arrays):
    """gate and up of block 1, which have the same shape."""
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    return arrays | {gate: arrays[up], up: arrays[gate]}


def paired(arrays):
    """All queries and keys reordered, as for a program that pairs neighbours (lesson 4)."""
    changed = {}
    for name, w in arrays.items():
        if "q_proj" in name or "k_proj" in name:
            changed[name] = w.reshape(-1, 2, 20, 160).swapaxes(1, 2).reshape(w.shape)
    return arrays | changed


faults = {"o_proj transposed": transposed, "gate and up exchanged": exchanged, "pairs reordered": paired}
models = {name: filled(DecoderModel(**shape).eval(), fault(arrays)) for name, fault in faults.items()}
losses = {name: loss_of(model) for name, model in models.items()}
assert min(losses.values()) > loss
kit.say(
    "No error anywhere; every name is found, every shape fits. The losses: "
    + ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
    + "."
)

# %% [markdown]
# **Predict.** For each of the three: which is the first of the five blocks (counted from 0) whose output differs?

# %% tags=["hide-output"]
found = {name: differences(model) for name, model in models.items()}


def figure_differences(found):
    """The relative difference of each block's output, for each fault."""
    figure, ax = kit.plt.subplots(figsize=(7, 3), layout="constrained")
    styles = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"))
    for (name, gaps), (colour, marker) in zip(found.items(), styles, strict=True):
        ax.plot(range(len(gaps)), [100 * gap for gap in gaps.values()], color=colour, marker=marker, label=name)
    ax.set_xticks(range(len(BLOCKS)), BLOCKS, fontsize=8)
    ax.set(ylabel="difference (% of the output)")
    ax.legend(frameon=False, fontsize=8)
    first = {name: next(path for path, gap in gaps.items() if gap > 1e-5) for name, gaps in found.items()}
    kit.show(
        figure,
        "The difference of each module's output from the base's, from front to back, for three faults. "
        + " ".join(f"{name}: zero up to {path}, where it is {found[name][path]:.0%}." for name, path in first.items()),
    )
    return first


first = figure_differences(found)
assert list(first.values()) == ["layers.3", "layers.1", "layers.0"]
kit.say("; ".join(f"{name}: first in `{path}`" for name, path in first.items()) + ".")

# %% [markdown]
# Then the same within that block, from part to part:

# %%
parts = ("input_layernorm", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj")
inside = [f"layers.3.{part}" for part in parts]
gaps = differences(models["o_proj transposed"], inside)
for path, gap in gaps.items():
    print(f"{path:30} {gap:.1%}")
assert [gap > 1e-5 for gap in gaps.values()] == [False, False, False, True]

# %% [markdown]
# ## Exercise 06-first: where does it begin?
#
# *10 minutes, importance 5 of 5.*
#
# Write `first_difference(right, wrong, budget)`: two dicts from path to array, in the order in which they are computed;
# return the first path whose relative difference (the norm of the difference over the norm of `right`) is above
# `budget`, or None. A NaN in `wrong` alone is a difference, and an array of another shape is one; two arrays of zeros
# are equal.

# %%
def first_difference(right, wrong, budget):
    raise NotImplementedError("your turn")


check("06-first", first_difference)

# %% [markdown]
# ## 5. A real one
#
# Where a model of 135 million parameters lies on this machine (`tinyllm fetch smollm2-135m` puts it there, 93 MB,
# once), it is read the same way.

# %%
try:
    real = DecoderModel.from_pretrained("smollm2-135m").eval()
except (FileNotFoundError, ImportError) as error:
    kit.say(f"Not here: {error}. The lesson is complete without it.")
else:
    sizes = {}
    for name, w in real.named_weights():
        part = name.split(".")[2] if name.startswith("layers") else name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + w.size
    total = real.num_parameters()
    kit.say(f"{total:,} parameters: " + ", ".join(f"{part} {size / total:.0%}" for part, size in sizes.items()) + ".")

# %% [markdown]
# ## Three questions
#
# **1.** "All names were found and all shapes fit, so the model is read right." True?
#
# <details><summary>Answer</summary>
#
# No: see above, three times. Only numbers tell: the loss on a known text, or the outputs beside a reference.
#
# </details>
#
# **2.** A file holds bfloat16, and is read into float32. Has anything been lost by reading?
#
# <details><summary>Answer</summary>
#
# No. Each bfloat16 is a float32 with zeros below, so widening is exact. What was lost was lost when it was written.
#
# </details>
#
# **3.** Why not keep the arrays in Python's own pickle?
#
# <details><summary>Answer</summary>
#
# Reading a pickle can run any code that whoever wrote it put in. A safetensors file holds numbers and a header, and can
# be read without trusting anybody.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * Other families' files, which fuse matrices, transpose them, or split them over several files. The engine reads some;
#   the two rules and the comparison from the front are the same.
# * That equal outputs on one batch prove everything. A wrong rotation may not show at position 0, nor a wrong window on
#   a short text.

# %% [markdown]
# ## Now read
#
# - `tinyllm.formats.safetensors_file`: reading and writing, with what is refused
# - `tinyllm.backend.half.to_bfloat16`: yours
# - `tinyllm.models.checkpoints.folder.load_pretrained`: from a folder to a model
# - `tinyllm.models.families.family.family_of`: each family's names
