// nf4_pack_v1: weights to four-bit codes, one thread a block of weights. The version to read.
//
// It reads every weight twice, one after the other, so neighbouring threads read far apart: slow, and plain.
//
// in: raw T x, raw float32 midpoint, int32 block, int64 count
// out: raw uint8 packed, raw float32 absmax
// T: float32, float16, bfloat16
// exact
#include "nf4.cuh"
const long long first = (long long)i * block;
const int size = count - first < block ? (int)(count - first) : block;
const bool partial = size < block;

unsigned int largest = 0;  // as bits without the sign, magnitudes keep their order, and NaN comes out on top
for (int k = 0; k < size; ++k)
    largest = max(largest, __float_as_uint(float(x[first + k])) & 0x7fffffffu);
const float scale = nf4_scale(largest, partial);
absmax[i] = scale;

for (int k = 0; k < size; k += 2) {
    unsigned int pair = 0;
    for (int half = 0; half < 2; ++half) {
        const float w = k + half < size ? float(x[first + k + half]) : 0.0f;  // an odd end is filled up with 0.0
        const float scaled = nf4_scaled(w, scale, partial);
        unsigned int code = 15;
        for (int m = 0; m < 15; ++m)
            code -= scaled <= midpoint[m];  // "not above": a tie takes the lower level
        pair = pair << 4 | code;  // the even weight in the high nibble
    }
    packed[(first + k) / 2] = pair;
}
