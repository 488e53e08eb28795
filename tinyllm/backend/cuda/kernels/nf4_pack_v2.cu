// nf4_pack_v2: weights to four-bit codes, one thread for eight weights. Blocks of 32 to 256 weights.
//
// What changed since v1: a thread loads its eight weights at once, 16 bytes a load, beside those of its neighbours; the
// lanes of a block agree on the largest by shuffles, without memory; the code is found in four steps instead of fifteen;
// four bytes leave in one store. Every lane must reach the shuffles, so the caller fills `size` up to whole warps, and a
// lane past the end goes along with zeros: an early `continue` here would be a bug.
//
// in: raw T x, raw float32 midpoint, int32 block, int64 count
// out: raw uint8 packed, raw float32 absmax
// T: float32, float16, bfloat16
// exact
// wide
#include "nf4.cuh"
const long long first = 8 * (long long)i;
const bool whole = first + 8 <= count;

__align__(16) T loaded[8];
if (whole) {
    for (int k = 0; k < (int)sizeof(loaded) / 16; ++k)
        ((uint4*)loaded)[k] = ((const uint4*)&x[first])[k];
} else {
    for (int k = 0; k < 8; ++k)
        loaded[k] = first + k < count ? T(x[first + k]) : T(0.0f);
}

unsigned int largest = 0;
for (int k = 0; k < 8; ++k)
    largest = max(largest, __float_as_uint(float(loaded[k])) & 0x7fffffffu);
for (int lanes = 1; lanes < block / 8; lanes *= 2)
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));

const long long block_start = first & ~(long long)(block - 1);
const bool partial = block_start + block > count;
const float scale = nf4_scale(largest, partial);
if (first == block_start && first < count)
    absmax[first / block] = scale;

unsigned int codes = 0;
for (int k = 0; k < 8; ++k) {
    const float scaled = nf4_scaled(float(loaded[k]), scale, partial);
    unsigned int code = !(scaled <= midpoint[7]) * 8;  // a search by halves; a NaN goes up all the way, as in v1
    code += !(scaled <= midpoint[code + 3]) * 4;
    code += !(scaled <= midpoint[code + 1]) * 2;
    code += !(scaled <= midpoint[code]);
    codes |= code << (8 * (k / 2) + 4 * (1 - k % 2));  // byte k/2, the even weight in its high nibble
}
if (whole) {
    *(unsigned int*)&packed[first / 2] = codes;
} else {
    for (int k = 0; first + 2 * k < count; ++k)
        packed[first / 2 + k] = codes >> (8 * k) & 255u;
}
