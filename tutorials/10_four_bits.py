# %% [markdown]
# # Lesson 10: How does a weight fit into four bits?
#
# LoRA froze the base model and trained a few numbers beside it. The base still lies in memory at 32 bits a weight, and
# for a model of seven billion weights that alone is more than a graphics card holds. But nobody will change these
# weights again, so they need not be exact. Here you choose sixteen numbers, write each weight as the nearest of them,
# two to a byte, and fine-tune a model over your own bytes. The format is NF4, the one that QLoRA uses.
#
# - **Needs**: lessons 1, 2, 8
# - **Minutes**: 60
# - **Replaces in lesson 0**: lines of `NF4` by the real ones
# - **Afterwards you can**: follow a weight into its byte and back, say why NF4's levels stand where they stand, and
#   judge a quantiser by its error, by the bits it uses and by the loss on the right text

# %%
import numpy as np
import tinyllm
from tinyllm.course import check, kit
from tinyllm.frozen.nf4 import NF4_LEVELS, derive_nf4_levels, quantize_nf4
from tinyllm.qlora import apply_qlora
kit.begin(10, needs="0.2")

# %% [markdown]
# ## 1. A block and its scale
#
# Four bits can say sixteen different things. So a weight becomes a **code**, a whole number from 0 to 15, and a table
# says which number each code stands for: its **level**. One table for a whole model would fit badly, because some parts
# of it hold large numbers and some small ones. So the table goes from -1 to 1, and every 64 weights, a **block**,
# keep one ordinary float beside their codes: the largest magnitude among them, called `absmax`. Divided by it, the
# block fits between -1 and 1 exactly.
#
# By hand, with a block of six weights and five levels:

# %%
block = np.array([0.10, -0.06, 0.40, -0.17, 0.0, 0.26], np.float32)
levels = np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32)

absmax = np.abs(block).max()
scaled = block / absmax
codes = np.abs(scaled[:, None] - levels).argmin(axis=1)
back = levels[codes] * absmax
for row in zip(block, scaled, codes, back, strict=True):
    print("weight {:5.2f}   divided by absmax {:6.3f}   code {}   comes back as {:5.2f}".format(*row))

# %% [markdown]
# Check one line with a pencil: -0.17 / 0.40 is -0.425, the nearest level is -0.5, its code is 1, and -0.5 · 0.40 is
# -0.20. The largest weight of a block always comes back exactly. The others are off by at most half the gap between
# two levels, times `absmax`.
#
# To *find* the nearest level there is no need to compare with each: between two neighbours lies a midpoint, and the
# code is the number of midpoints below the value.

# %%
def nearest(scaled, levels):
    """The code of the nearest level for every value; half-way between two the lower one."""
    midpoints = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(midpoints, scaled)


assert (nearest(scaled, levels) == codes).all()

# %% [markdown]
# Now real weights: the 35 matrices of the small base model's five layers. `rounded` sends an array through any
# levels and back. It returns the codes, too, because we want to see which of them are used.

# %%
def blocks_of(weights, block_size=64):
    """A weight's blocks, scaled to [-1, 1], and their scales; the weight fills whole blocks here."""
    blocks = weights.reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    return blocks / absmax, absmax


def rounded(weights, levels, block_size=64):
    """What comes back of `weights` through `levels`, and the codes."""
    scaled, absmax = blocks_of(weights, block_size)
    codes = nearest(scaled, levels)
    return (levels[codes] * absmax).reshape(weights.shape).astype(np.float32), codes.reshape(-1)


base = kit.base()
weights = {name: w.data for name, w in base.named_weights() if "proj" in name}
every = np.concatenate([blocks_of(w)[0].reshape(-1) for w in weights.values()])
kit.say(
    f"{len(weights)} matrices hold {every.size:,} of the model's {base.num_parameters():,} numbers. The largest "
    "weight is "
    f"{max(np.abs(w).max() for w in weights.values()):.2f}, a typical one "
    f"{np.sqrt(np.mean([np.mean(w**2) for w in weights.values()])):.2f}."
)

# %% [markdown]
# **Predict.** Put the sixteen levels at equal distances from -1 to 1. Two of them are the outermost, four lie around
# zero. Which share of all weights gets one of the two outermost codes, and which share one of the middle four?

# %% tags=["hide-output"]
even = np.linspace(-1, 1, 16)
uses = np.bincount(nearest(every, even), minlength=16) / every.size
outer, middle = uses[[0, 15]].sum(), uses[6:10].sum()
assert outer < 0.05 and middle > 0.4
kit.say(f"The two outermost codes serve {outer:.1%} of the weights, the middle four {middle:.1%}.")

# %% [markdown]
# **Why.** Trained weights are bell-shaped: many are small, few are large. Even levels spend codes on places where
# hardly any weight is. A rare code is a wasted one, and one can say by how much. A code that is used with
# probability $p$ tells $-\log_2 p$ bits when it comes up; the mean over all codes, the **entropy** $-\sum p \log_2
# p$, is what the codes tell on average. Four codes used equally often tell 2 bits. Used with probabilities 1/2, 1/4,
# 1/8 and 1/8 they tell 1/2 · 1 + 1/4 · 2 + 1/8 · 3 + 1/8 · 3 = 1.75. Sixteen codes tell 4 bits at the very best:
# when all are used equally often.

# %%
def bits_used(codes):
    """The entropy of the codes, in bits."""
    p = np.bincount(codes) / codes.size
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


assert bits_used(np.array([0, 1, 2, 3])) == 2 and bits_used(np.array([0, 0, 0, 0, 1, 1, 2, 3])) == 1.75
kit.say(f"Evenly spaced levels use {bits_used(nearest(every, even)):.2f} of their 4 bits.")

# %% [markdown]
# ## 2. Levels where the weights are
#
# To use all codes equally often, cut the area under the bell into sixteen equal shares and put one level into the
# middle of each. Such places are called **quantiles**: the quantile at 0.9 is the number that 90 % lie below. Python
# knows those of the normal distribution.

# %%
from statistics import NormalDist

quantile = NormalDist().inv_cdf
middles = np.array([quantile((i + 0.5) / 16) for i in range(16)])
middles /= middles.max()
kit.say(f"Levels in the middle of sixteen equal shares use {bits_used(nearest(every, middles)):.2f} bits.")

# %% [markdown]
# **Predict.** These levels are found in quite some notebooks on the web. One kind of weight goes wrong with them:
# what comes back of a weight that is exactly 0, in a block whose `absmax` is 0.4?

# %% tags=["hide-output"]
zero = np.abs(middles).min()
assert zero > 0 and 0.0 in NF4_LEVELS
kit.say(f"The level nearest to 0 is {zero:.3f} away from it, so 0 comes back as {zero * 0.4:.4f} or its negative.")

# %% [markdown]
# **Why.** An even number of equal shares has a cut at zero, not a middle. But zeros matter: rows that only fill a
# matrix up, and weights that somebody has pruned away, shall stay away. So NF4 takes zero as a level and cuts each
# side by itself: seven shares below zero, eight above. The outermost cut cannot be at probability 1, which lies at
# infinity; the authors took 0.9677. `tinyllm.frozen.nf4.derive_nf4_levels` does this, and explains that number. The
# *format* is the published table, because two programs must agree to the bit.

# %%
gap = np.abs(derive_nf4_levels() - NF4_LEVELS).max()
assert gap < 2e-7 and (np.diff(NF4_LEVELS) > 0).all()
print(np.round(NF4_LEVELS, 3))
kit.say(f"The derived levels differ from the table by at most {gap:.1e}.")

# %%
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"


def figure_levels(scaled):
    """The scaled weights with NF4's levels and even ones below, and how often each code is used."""
    figure, (left, right) = kit.plt.subplots(1, 2, figsize=(7, 3.2), width_ratios=(3, 2), layout="constrained")
    left.hist(scaled, 120, range=(-1, 1), density=True, color="#c9dbe8")
    both = {"NF4": (NF4_LEVELS, BLUE, "-"), "even": (even, ORANGE, "--")}
    counts = {name: np.bincount(nearest(scaled, levels), minlength=16) for name, (levels, _, _) in both.items()}
    shares = {name: count / scaled.size for name, count in counts.items()}
    for place, (name, (levels, colour, line)) in zip((-0.12, -0.3), both.items(), strict=True):
        ticks = {"color": colour, "markersize": 11, "markeredgewidth": 2}
        left.plot(levels, np.full(16, place), "|", label=f"{name} levels", **ticks)
        right.step(range(16), 100 * shares[name], line, where="mid", color=colour, label=name, linewidth=2)
    left.set(xlabel="weight / absmax of its block", ylabel="density", yticks=[0, 0.5, 1], ylim=(-0.42, 1.5))
    right.axhline(100 / 16, color=GREY, linewidth=1)
    right.set(xlabel="code", ylabel="used by (% of weights)", ylim=(0, None))
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8, loc="upper right")
    low, high = ({name: 100 * pick(share) for name, share in shares.items()} for pick in (np.min, np.max))
    kit.show(
        figure,
        "Left: the scaled weights are bell-shaped; NF4's levels are dense in the middle and sparse outside, even "
        "ones are not. "
        f"Right: NF4 uses each code for {low['NF4']:.1f} to {high['NF4']:.1f} % of the weights, even levels theirs for "
        f"{low['even']:.1f} to {high['even']:.1f} %.",
    )
    return shares


uses = figure_levels(every)
nf4_bits = bits_used(nearest(every, NF4_LEVELS))
assert 3.8 < nf4_bits < 4 and uses["NF4"].max() < uses["even"].max()
kit.say(
    f"NF4's codes tell {nf4_bits:.2f} bits: its most common code serves {uses['NF4'].max():.1%} of the weights, "
    "that of the "
    f"even levels {uses['even'].max():.1%}. The line is 1/16, which would be 4 bits."
)

# %% [markdown]
# It is not quite flat, and cannot be. A block is divided by *its own* largest weight, which is sometimes a bit
# larger and sometimes smaller than what the bell would give, and one weight of 64 always sits at the very end.

# %% [markdown]
# ## Exercise 10-absmax: the plainest quantiser
#
# *10 minutes, importance 3 of 5.*
#
# Before NF4 there were even levels with whole numbers as codes. Write `absmax_quantize(x, bits)` for a
# one-dimensional float32 array: with `top = 2**(bits - 1) - 1` (7 for four bits), the scale is the largest magnitude
# divided by `top`, and a code is the whole number nearest to `x / scale`. Return `(codes, scale)`: codes as int8 of
# `x`'s shape, scale as a float32 number. Half-way between two codes either one is right. An array of zeros has scale 0
# and codes 0, and no warning is raised on the way.
#
# <details><summary>Hint</summary>
#
# `np.rint` rounds to the nearest whole number. Divide by 1 instead of the scale where the scale is 0.
#
# </details>

# %%
def absmax_quantize(x, bits):
    raise NotImplementedError("your turn")


check("10-absmax", absmax_quantize)

# %% [markdown]
# ## Exercise 10-levels: the levels from their definition
#
# *20 minutes, importance 5 of 5.*
#
# Write `normal_levels(bits)`: the levels of an NF-format with `k = 2**bits` codes, float64, sorted, shape `(k,)`.
# Above zero there are `k / 2` levels, the quantiles at `k / 2` equal steps from probability 0.5 (left out: that is
# zero itself) to `outermost`. Below zero there are `k / 2 - 1`, made in the same way with fewer steps and the sign
# turned. Zero is a level. `outermost` is `1 - (1 / (2 * k) + 1 / (2 * k - 2)) / 2`. At the end all is divided by the
# largest. For four bits you get NF4's table to within 1e-6.
#
# <details><summary>Hint</summary>
#
# `np.linspace(0.5, outermost, k // 2 + 1)[1:]` are the probabilities above zero; `NormalDist().inv_cdf` takes one at
# a time.
#
# </details>

# %%
def normal_levels(bits):
    raise NotImplementedError("your turn")


check("10-levels", normal_levels)

# %% [markdown]
# ## 3. Level, nibble, byte
#
# Memory is counted in bytes, eight bits each. Half a byte is a **nibble**, and a code is one nibble. So two weights
# that follow one another share a byte: the first in the high half, the second in the low half. A dump of the bytes in
# hexadecimal, one digit a nibble, then reads in the order of the weights.
#
# Follow the first two weights of a matrix all the way:

# %%
w = weights["layers.2.mlp.up_proj.weight"]
block = w.reshape(-1)[:64]
absmax = np.abs(block).max()
first, second = nearest(block[:2] / absmax, NF4_LEVELS)
byte = first << 4 | second
print(f"weights            {block[0]:9.5f} and {block[1]:9.5f}     absmax of their 64: {absmax:.5f}")
print(f"divided by absmax  {block[0] / absmax:9.5f} and {block[1] / absmax:9.5f}")
print(f"codes              {first:9d} and {second:9d}     nibbles {first:04b} and {second:04b}")
print(f"one byte           {byte:08b}                    that is {byte}, in hexadecimal {byte:02x}")
high, low = NF4_LEVELS[byte >> 4], NF4_LEVELS[byte & 15]
print(f"levels             {high:9.5f} and {low:9.5f}     from byte >> 4 and byte & 15")
print(f"come back as       {NF4_LEVELS[byte >> 4] * absmax:9.5f} and {NF4_LEVELS[byte & 15] * absmax:9.5f}")
indices, scales = quantize_nf4(w)
assert byte == indices[0] and absmax == scales[0]
kit.say(f"The engine's first byte of this matrix is {indices[0]:02x} as well, and its first scale {scales[0]:.5f}.")

# %% [markdown]
# The same for the next two thousand weights. Look for a weight whose code is 7 although it is not zero, for the one
# that makes its whole block coarse, and for what larger blocks or your levels change.

# %%
from tinyllm.course.figures import nf4_microscope

nf4_microscope(w, levels=middles).show()

# %% [markdown]
# ## 4. Your quantiser in the engine
#
# The engine has two functions for this, `nf4_quantize` and `nf4_dequantize`. They take plain arrays, and
# `tinyllm.use` puts yours in their place. Three rules of the format are worth a second look:
#
# * a whole block is **multiplied** by the reciprocal `1 / absmax`; only a last block that is not full is really
#   divided. The two round differently, now and then by enough to change a code;
# * a block of zeros has no largest magnitude to divide by: it is raised to 1e-38, which is stored only for a last
#   block that is not full;
# * an odd number of weights leaves half a byte over: it is filled with the code of zero.

# %%
def my_nf4_quantize(xp, flat, block_size):
    """Packed codes (uint8) and scales (float32) of a flat float32 array."""
    n, rest = flat.size, flat.size % block_size
    filled = xp.concatenate([flat, xp.zeros(-n % block_size, xp.float32)])  # zeros change no block's largest magnitude
    blocks = filled.reshape(-1, block_size)
    absmax = xp.abs(blocks).max(axis=1)
    divisor = xp.maximum(absmax, xp.float32(1e-38))
    scaled = blocks * (xp.float32(1) / divisor)[:, None]
    if rest:
        scaled[-1], absmax[-1] = blocks[-1] / divisor[-1], divisor[-1]
    levels = xp.asarray(NF4_LEVELS)
    codes = xp.searchsorted((levels[:-1] + levels[1:]) / 2, scaled.reshape(-1)).astype(xp.uint8)
    codes = codes[: n + n % 2]
    return codes[0::2] << 4 | codes[1::2], absmax


def my_nf4_dequantize(xp, packed, absmax, block_size, n, start=0, out=None, dtype=np.float32):
    """`n` weights from element `start` on; `absmax` begins with the scale of that element's block."""
    pairs = packed[start // 2 : (start + n + 1) // 2]
    codes = xp.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:n]
    return (xp.asarray(NF4_LEVELS)[codes] * xp.repeat(absmax, block_size)[:n]).astype(dtype)


# %% [markdown]
# `out` is an array the engine would like to have written into; a replacement may ignore it and return a new one. And
# `start` is there because the engine never unpacks a whole matrix at once: lesson 11 shows why.
#
# First alone, on every matrix, and on awkward sizes:

# %%
def engines_bytes(flat):
    """Whether yours gives the engine's bytes and scales for this array, and the engine's floats back."""
    indices, scales = quantize_nf4(flat)
    packed, absmax = my_nf4_quantize(np, flat, 64)
    with tinyllm.use(nf4_dequantize=my_nf4_dequantize):
        back = tinyllm.qlora.dequantize_nf4(packed, absmax, flat.shape)
    same_floats = (back == tinyllm.qlora.dequantize_nf4(indices, scales, flat.shape)).all()
    return (packed == indices).all() and (absmax == scales).all() and same_floats


assert all(engines_bytes(w.reshape(-1)) for w in weights.values())
for flat in (w.reshape(-1)[:1], w.reshape(-1)[:63], w.reshape(-1)[:129], np.zeros(65, np.float32)):
    assert engines_bytes(flat)
assert engines_bytes(np.concatenate([NF4_LEVELS, (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / 2]))  # all the ties
kit.say(f"All bytes and scales of {len(weights)} matrices are the engine's.")

# %% [markdown]
# Now it fine-tunes. `apply_qlora` turns the base into NF4 and puts adapters beside it, as `apply_lora` did; the
# base's bytes are frozen, and only the adapters learn. (`double_quant=False` leaves the scales as floats. What it
# does otherwise is lesson 11.)

# %%
def fine_tuned(steps, **replaced):
    """The losses of a short QLoRA run, with these functions in the engine's place."""
    tinyllm.manual_seed(0)
    with tinyllm.use(**replaced):
        model = kit.base()
        apply_qlora(model, rank=8, alpha=16.0, target_modules="all-linear", double_quant=False, verbose=False)
        return kit.fine_tune(model, steps=steps)


theirs = fine_tuned(10)
mine = fine_tuned(10, nf4_quantize=my_nf4_quantize, nf4_dequantize=my_nf4_dequantize)
assert mine == theirs  # floats, compared bit for bit
kit.say(
    f"In ten steps, each on another batch, the loss went from {mine[0]:.4f} to {mine[-1]:.4f} over your bytes, and "
    "the engine's own run gave the same ten losses to the last bit."
)

# %% [markdown]
# **Predict.** Somebody swaps the halves of each byte: the *first* weight goes into the low nibble. What happens to
# the loss if only the quantiser does so? And if the quantiser and the dequantiser both do?

# %% tags=["hide-output"]
def swapped_quantize(xp, flat, block_size):
    packed, absmax = my_nf4_quantize(xp, flat, block_size)
    return packed << 4 | packed >> 4, absmax


def swapped_dequantize(xp, packed, absmax, block_size, n, start=0, out=None, dtype=np.float32):
    return my_nf4_dequantize(xp, packed << 4 | packed >> 4, absmax, block_size, n, start, out, dtype)


one = fine_tuned(1, nf4_quantize=swapped_quantize)
both = fine_tuned(1, nf4_quantize=swapped_quantize, nf4_dequantize=swapped_dequantize)
assert one[0] > theirs[0] + 1 and both[0] == theirs[0]
kit.say(
    f"The first loss is {theirs[0]:.3f} with the right order, {one[0]:.3f} if one of the two swaps, and "
    f"{both[0]:.3f} if both "
    "do: the very same."
)

# %% [markdown]
# **Why.** Inside one program two mistakes that undo each other cannot be seen. A file can: whoever reads your bytes
# by the published rule gets neighbours exchanged. So a format is tested against *bytes that somebody else has
# written*, and not only by going there and back.

# %% [markdown]
# ## Exercise 10-pack: codes of any width
#
# *20 minutes, importance 4 of 5.*
#
# Three bits do not divide a byte. Write `pack_bits(codes, bits)`: a uint8 array of codes, each below `2**bits` with
# `bits` from 1 to 8, becomes uint8 bytes. The bits of all codes are strung together, each code's highest bit first,
# and cut into bytes; the last byte is filled up with zeros. Eight codes of three bits make three bytes: the codes 1,
# 2, 3, 4, 5, 6, 7, 0 are 001 010 011 100 101 110 111 000, which is 29, cb, b8 in hexadecimal. With `bits=4` it is
# NF4's order.
#
# <details><summary>Hint</summary>
#
# `codes[:, None] >> np.arange(bits)[::-1] & 1` has shape `(n, bits)`; `np.packbits` fills the last byte up by itself.
#
# </details>

# %%
def pack_bits(codes, bits):
    raise NotImplementedError("your turn")


check("10-pack", pack_bits)

# %% [markdown]
# A judge is only as good as what it looks at. These are the mistakes that people make here, and what each property
# catches: leave one out, and see what would pass.

# %%
from tinyllm.course.figures import mistakes_against_properties

try:
    mistakes_against_properties("10-pack", {"yours": pack_bits}).show()
except ImportError as error:  # the judge needs a package that the lessons do not
    print(error)

# %% [markdown]
# ## 5. Are these levels the best ones?
#
# The quantiles use the codes evenly. Another aim would be the smallest error, and for that one can *fit* levels to the
# weights: give every weight to its nearest level, move each level to the mean of the weights it got, and again. Each
# of the two steps can only lessen the squared error. This is Lloyd's algorithm (k-means in one dimension).

# %%
def fitted_levels(scaled, count, rounds=80):
    """Levels that make the squared error of `scaled` small, by Lloyd's algorithm."""
    levels = np.quantile(scaled, (np.arange(count) + 0.5) / count)
    for _ in range(rounds):
        codes = nearest(scaled, levels)
        levels = np.bincount(codes, scaled, count) / np.bincount(codes, minlength=count)
    return levels


sample = every[::15]  # enough to fit sixteen numbers to, and much quicker
candidates = {
    "NF4, 4 bits": NF4_LEVELS,
    "even, 4 bits": even,
    "fitted, 4 bits": fitted_levels(sample, 16),
    "even, 3 bits": np.linspace(-1, 1, 8),
    "fitted, 3 bits": fitted_levels(sample, 8),
    "even, 2 bits": np.linspace(-1, 1, 4),
    "fitted, 2 bits": fitted_levels(sample, 4),
}

# %% [markdown]
# Three ways to judge them. The **error**: the length of what is lost, divided by the length of the weights. The **bits
# used**. And the **loss** of the whole model with these weights, on text that was held out: from the plays, on which
# this base was trained, and from the jargon file, which it has never seen.

# %%
def judged(change):
    """Error, bits used and held-out losses of the base after ``change(w) -> (w, codes)`` of every matrix."""
    model, lost, length, codes = kit.base(), 0.0, 0.0, []
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data, new = change(weights[name])
            lost += np.sum((parameter.data - weights[name]) ** 2, dtype=np.float64)
            length += np.sum(weights[name] ** 2, dtype=np.float64)
            codes.append(new)
    error = float(np.sqrt(lost / length))
    return {"error": error, "bits": bits_used(np.concatenate(codes)), **kit.held_out(model, batches=2)}


untouched = kit.held_out(base, batches=2)
found = {name: judged(lambda w, levels=levels: rounded(w, levels)) for name, levels in candidates.items()}
print(f"{'':16}  error   bits used   loss on plays   on jargon")
print(f"{'float':16}  0.0 %               {untouched['plays']:13.4f}  {untouched['jargon']:10.4f}")
for name, row in found.items():
    print(f"{name:16} {row['error']:5.1%} {row['bits']:11.2f} {row['plays']:15.4f}  {row['jargon']:10.4f}")

# %% [markdown]
# **Predict.** Look at the last column, the text that the base does not know. Does a coarser base do worse there? And
# on the plays: which of the three four-bit rows is the best, and would you bet on it?

# %% tags=["hide-output"]
foreign = {name: row["jargon"] - untouched["jargon"] for name, row in found.items()}
better = [name for name, difference in foreign.items() if difference < 0 and "4 bits" not in name]
four = [row["plays"] for name, row in found.items() if "4 bits" in name]
assert better and max(four) < found["fitted, 3 bits"]["plays"] < found["fitted, 2 bits"]["plays"]
kit.say(
    f"On the jargon {' and '.join(better)} look *better* than float, by up to {-min(foreign.values()):.3f}. On the "
    "plays the "
    f"order is what it should be: four bits between {min(four):.4f} and {max(four):.4f}, three bits "
    f"{found['fitted, 3 bits']['plays']:.4f} at best, two bits {found['fitted, 2 bits']['plays']:.4f}."
)

# %% [markdown]
# **Why.** On text that it does not know the base has nothing to lose. Disturbed weights shift its guesses, at
# random, and some shifts happen to suit the foreign text. That says nothing about what was kept. A quantised base is
# measured on text from the base's own world.
#
# And the three four-bit rows? To know what a difference is worth, disturb the weights *without* any quantiser: add
# random noise of the same length as NF4's error, several times with different seeds.

# %%
def noisy(seed):
    generator = np.random.default_rng(seed)

    def change(w):
        noise = generator.standard_normal(w.shape).astype(np.float32)
        noise *= found["NF4, 4 bits"]["error"] * np.linalg.norm(w) / np.linalg.norm(noise)
        return w + noise, np.zeros(w.size, np.int64)  # noise has no codes

    return judged(change)["plays"]


chance = [noisy(seed) for seed in range(6)]
assert max(four) - min(four) < max(chance) - min(chance)
kit.say(
    f"Noise of that length gives losses from {min(chance):.4f} to {max(chance):.4f} on the plays, a spread of "
    f"{max(chance) - min(chance):.4f}. The three four-bit tables differ by {max(four) - min(four):.4f}: on this "
    "small model the "
    "loss cannot tell them apart."
)

# %%
def figure_judged(found, untouched, chance):
    """Loss on both texts against the error, a point for each table of levels."""
    figure, axes = kit.plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    for ax, text in zip(axes, ("plays", "jargon"), strict=True):
        ax.axhline(untouched[text], color=GREY, linewidth=1, label="float")
        for kind, colour, marker in (("NF4", BLUE, "o"), ("even", ORANGE, "s"), ("fitted", GREEN, "^")):
            rows = [row for name, row in found.items() if name.startswith(kind)]
            x, y = [100 * row["error"] for row in rows], [row[text] for row in rows]
            ax.plot(x, y, marker=marker, color=colour, label=kind, linestyle=":", linewidth=1)
        ax.set(xlabel="error of the weights (%)", title=f"held-out {text}")
    axes[0].set_ylabel("loss (nats a token)")
    axes[0].legend(frameon=False, fontsize=8)
    close = axes[0].inset_axes((0.54, 0.11, 0.44, 0.22))
    for ax in (axes[0], close):
        ax.fill_between([8, 12], min(chance), max(chance), color="#cccccc", linewidth=0)
    for line in axes[0].lines:
        close.plot(line.get_xdata(), line.get_ydata(), marker=line.get_marker(), color=line.get_color(), linestyle=":")
    close.set(xlim=(8, 12), ylim=(min(chance) - 0.006, max(chance) + 0.004), title="grey: noise of NF4's length")
    close.title.set_fontsize(7)
    close.tick_params(labelsize=7)
    coarse = found["even, 2 bits"]
    kit.show(
        figure,
        f"On the plays the loss rises with the error, from {untouched['plays']:.3f} in float to "
        f"{coarse['plays']:.3f} with two "
        f"even bits. On the jargon it goes up and down between {min(r['jargon'] for r in found.values()):.3f} and "
        f"{max(r['jargon'] for r in found.values()):.3f}, with float at {untouched['jargon']:.3f}.",
    )
    return {"found": found, "untouched": untouched, "chance": chance}


figure_judged(found, untouched, chance)
nf4, fitted = found["NF4, 4 bits"], found["fitted, 4 bits"]
assert fitted["error"] < nf4["error"] < found["even, 4 bits"]["error"] and nf4["bits"] > found["even, 4 bits"]["bits"]
kit.say(
    f"The error does tell them apart: {fitted['error']:.2%} fitted, {nf4['error']:.2%} NF4, "
    f"{found['even, 4 bits']['error']:.2%} even. NF4 loses little to levels that were made for these very weights, "
    "needs no "
    "look at any weight, and has a zero, which the fitted ones have not."
)

# %% [markdown]
# ## 6. Large blocks, and one large weight
#
# Each block of 64 keeps a float32 scale: 32 bits for 64 weights are half a bit a weight, so NF4 costs 4.5 bits.
# Larger blocks are cheaper. What do they cost in error?

# %%
def figure_block_sizes(sizes):
    """The error of all matrices through NF4, and bits a weight, for each block size."""
    n, errors, bits = sum(w.size for w in weights.values()), [], [4 + 32 / size for size in sizes]
    length = sum(np.sum(w**2, dtype=np.float64) for w in weights.values())
    for size in sizes:
        lost = 0.0
        for w in weights.values():
            packed, absmax = my_nf4_quantize(np, w.reshape(-1), size)
            lost += np.sum((my_nf4_dequantize(np, packed, absmax, size, w.size) - w.reshape(-1)) ** 2, dtype=np.float64)
        errors.append(100 * np.sqrt(lost / length))
    figure, ax = kit.plt.subplots(figsize=(7, 3), layout="constrained")
    ax.plot(bits, errors, "o-", color=BLUE)
    for size, x, y in zip(sizes, bits, errors, strict=True):
        ax.annotate(f"{size}", (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
    ax.margins(0.08)
    ax.set(xlabel="bits a weight, scales included", ylabel="error (%)", title="NF4; the numbers are block sizes")
    kit.show(
        figure,
        f"From blocks of {sizes[0]} to blocks of {sizes[-1]} the cost falls from {bits[0]:.2f} to {bits[-1]:.2f} "
        "bits a weight "
        f"and the error rises from {errors[0]:.1f} to {errors[-1]:.1f} %; most of the saving is had early.",
    )
    return {"sizes": list(sizes), "bits": bits, "errors": errors, "weights": n}


by_size = figure_block_sizes((32, 64, 128, 256, 512, 1024, 4096))
assert (np.diff(by_size["errors"]) > 0).all()
kit.say(
    f"Every doubling of the block adds to the error: {by_size['errors'][1]:.1f} % at 64, "
    f"{by_size['errors'][-1]:.1f} % at 4096, "
    "for half a bit a weight less."
)

# %% [markdown]
# These weights are well-behaved: no weight is much larger than the rest. In large language models some are.
#
# **Predict.** In a block of 64, one weight is made twenty times the block's largest. How many of the *other* 63 come
# back as anything but zero?

# %% tags=["hide-output"]
def figure_outlier(block, factor):
    """A block through NF4, as it is and with its first weight made `factor` times its largest magnitude."""
    spoiled = block.copy()
    spoiled[0] = factor * np.abs(block).max()
    came_back = {}
    for name, flat in (("as it is", block), ("one large weight", spoiled)):
        packed, absmax = my_nf4_quantize(np, flat, 64)
        came_back[name] = my_nf4_dequantize(np, packed, absmax, 64, 64)[1:]
    figure, axes = kit.plt.subplots(2, 1, figsize=(7, 3.6), sharex=True, sharey=True, layout="constrained")
    for ax, (name, values) in zip(axes, came_back.items(), strict=True):
        ax.bar(range(1, 64), block[1:], color="#c9dbe8", width=1, label="weight")
        ax.plot(range(1, 64), values, ".", color=RED, label="comes back as")
        ax.set_title(name, fontsize=9)
    axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    axes[1].set_xlabel("place in the block (the large weight, at 0, is not drawn)")
    figure.supylabel("value", fontsize=10)
    alive = {name: int((values != 0).sum()) for name, values in came_back.items()}
    errors = {name: float(np.linalg.norm(v - block[1:]) / np.linalg.norm(block[1:])) for name, v in came_back.items()}
    kit.show(
        figure,
        f"Above, the 63 weights and what comes back of them agree to {errors['as it is']:.0%}. Below, beside one "
        "weight "
        f"{factor} times as large as any, {alive['one large weight']} of them come back as anything but zero.",
    )
    return {"alive": alive, "errors": errors}


spoiled = figure_outlier(w.reshape(-1)[:64], 20)
assert spoiled["alive"]["one large weight"] < 16 < spoiled["alive"]["as it is"]
kit.say(
    f"{spoiled['alive']['as it is']} of the 63 were not zero before; beside the large one it is "
    f"{spoiled['alive']['one large weight']}, and their error rises from {spoiled['errors']['as it is']:.1%} to "
    f"{spoiled['errors']['one large weight']:.1%}."
)

# %% [markdown]
# **Why.** The large one alone sets the scale; all others then lie between the two levels next to zero. The harm ends
# at the block's border: that is what small blocks are for.

# %% [markdown]
# ## Exercise 10-outlier: keep the largest apart
#
# *15 minutes, importance 3 of 5.*
#
# A remedy: take the largest weights out before the block is quantised, and put them back as floats. Write
# `rounded_apart(block, levels, keep)`: `block` float64 `(n,)`, `levels` float64 sorted, `keep` a number below `n`.
# The `keep` elements of largest magnitude (of equal ones, the first) come back unchanged. The others are divided by
# the largest magnitude *among them*, replaced by the nearest level (a tie takes the lower one) and multiplied again.
# If all of those are zero, they come back as zeros. Return a float64 array `(n,)`; `block` stays as it is.
#
# <details><summary>Hint</summary>
#
# `np.argsort(-np.abs(block), kind="stable")[:keep]` are the places of the largest.
#
# </details>

# %%
def rounded_apart(block, levels, keep):
    raise NotImplementedError("your turn")


check("10-outlier", rounded_apart)

# %% [markdown]
# ## 7. Blocks that one can see
#
# Weights are no picture, so their blocks cannot be seen. A picture's can. Here is a smooth one made of two formulas,
# sent through your quantiser. It is laid out so that 64 values in a row are a square of 8 by 8 points; in a weight
# they are 64 neighbours of one row.

# %%
def shades(side=128):
    """A smooth picture, values from 0 to 1, float32 (side, side)."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    hill = np.exp(-9 * ((x - 0.4) ** 2 + (y - 0.4) ** 2))
    return (0.12 + 0.45 * x + 0.55 * hill * (1 - 0.4 * x) - 0.1 * y * (1 - x)).astype(np.float32)


def in_squares(picture, edge):
    """The picture through NF4, a block for each square of `edge` by `edge` points."""
    n = len(picture) // edge
    flat = picture.reshape(n, edge, n, edge).transpose(0, 2, 1, 3).reshape(-1)
    packed, absmax = my_nf4_quantize(np, flat, edge * edge)
    flat = my_nf4_dequantize(np, packed, absmax, edge * edge, flat.size)
    return flat.reshape(n, n, edge, edge).transpose(0, 2, 1, 3).reshape(picture.shape)


def figure_picture(picture, edges):
    """The picture, and what comes back of it with squares of these edges as blocks."""
    pictures = {"float32": picture} | {f"NF4, blocks of {edge * edge:,}": in_squares(picture, edge) for edge in edges}
    figure, axes = kit.plt.subplots(1, len(pictures), figsize=(7, 2.6), layout="constrained")
    for ax, (name, values) in zip(axes, pictures.items(), strict=True):
        ax.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(name, fontsize=9)
        ax.set_axis_off()
    counts = [len(np.unique(values)) for values in pictures.values()]
    inside = [max(len(np.unique(v[i : i + 8, j : j + 8])) for i in range(0, 128, 8) for j in range(0, 128, 8))
              for v in pictures.values()]  # fmt: skip
    errors = [float(np.linalg.norm(v - picture) / np.linalg.norm(picture)) for v in pictures.values()]
    kit.show(
        figure,
        "Left, smooth shades. In the middle the same in NF4 with blocks of 8 by 8 points: the squares show, each "
        "with at most "
        f"{inside[1]} shades. Right, with blocks of {edges[-1]} by {edges[-1]}: broad bands, {counts[-1]} shades in "
        "all.",
    )
    return {"shades": counts, "most in 8 by 8": inside, "errors": errors}


seen = figure_picture(shades(), (8, 64))
assert seen["most in 8 by 8"][1] <= 9
assert seen["shades"][1] > seen["shades"][2] and seen["errors"][1] < seen["errors"][2]
kit.say(
    f"The picture has {seen['shades'][0]:,} shades, {seen['shades'][1]:,} in blocks of 64 and {seen['shades'][2]} "
    "in blocks of "
    f"4,096. No square of 8 by 8 has more than {seen['most in 8 by 8'][1]} in the middle, and the error is "
    f"{seen['errors'][1]:.1%}; on the right it is {seen['errors'][2]:.1%}."
)

# %% [markdown]
# **Why.** Within a square there are only the levels times one scale. In so smooth a picture all 64 values are close
# to their largest, up where NF4 has just two levels, 0.72 and 1: it is made for bell-shaped values, and these are
# not. The next square has another scale, so the steps do not meet, and the eye catches such borders at once. A
# matrix product does not: it adds up hundreds of errors that go either way.

# %% [markdown]
# ## Three questions
#
# **1.** "In NF4 a whole matrix can hold only sixteen different numbers." True?
#
# <details><summary>Answer</summary>
#
# No. Each *block* of 64 has sixteen at most, and each block has its own scale. A matrix with 1,120 blocks may hold
# thousands.
#
# </details>
#
# **2.** A weight that came back from NF4 is sent through NF4 again, with the same blocks. Is more lost?
#
# <details><summary>Answer</summary>
#
# No. The largest weight of a block comes back exactly, so the scale is the same; and each of the others now lies on
# a level, so it finds its own code. Quantising twice gives the same bytes as quantising once. (With scales that are
# themselves rounded this is no longer quite so: lesson 11.)
#
# </details>
#
# **3.** "QLoRA trains four-bit weights." What is wrong with that?
#
# <details><summary>Answer</summary>
#
# The four-bit weights never change. They are unpacked to floats wherever they are needed, all arithmetic is done in
# floats, and what trains are the adapters, in float32.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * That NF4 beats even levels. By error and by bits used it does; by the loss of this small model the two cannot be
#   told apart. The paper's evidence for it is from models a thousand times as large.
# * That four bits cost nothing. They cost little *here*. Models whose weights or activations have large outliers
#   suffer more.
# * Speed. Unpacking takes time, and NumPy has no four-bit arithmetic: NF4 saves memory, and on a CPU it pays with time.

# %% [markdown]
# ## Now read
#
# - `tinyllm.backend.nf4.nf4_quantize`: the same rule, in pieces that stay in the cache
# - `tinyllm.backend.nf4.nf4_dequantize`: two weights in one look-up
# - `tinyllm.frozen.nf4.derive_nf4_levels`: the levels, with the reason for 0.9677
# - `tinyllm.frozen.nf4.NF4Weight`: what a layer sees of it
# - `tinyllm.qlora.quantize_base`: a model, one matrix after the other
