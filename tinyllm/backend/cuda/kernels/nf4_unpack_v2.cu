// nf4_unpack_v2: weights from four-bit codes, one thread for eight weights.
//
// What changed since v1: eight codes come in one 4-byte load and eight weights leave in 16-byte stores, so a warp moves
// whole cache lines with few instructions; the scale is read once for the eight; a shift replaces the 64-bit division.
//
// in: raw uint8 packed, raw float32 absmax, raw float32 level, int32 shift, int64 count
// out: raw T y
// T: float32, float16, bfloat16
// exact
// wide
const long long first = 8 * (long long)i;
const float scale = absmax[first >> shift];  // block = 1 << shift
if (first + 8 <= count) {
    const unsigned int codes = *(const unsigned int*)&packed[first / 2];  // the first byte in the low bits
    __align__(16) T w[8];
    for (int k = 0; k < 8; ++k) {
        const unsigned int code = codes >> (8 * (k / 2) + 4 * (1 - k % 2)) & 15u;
        w[k] = T(__fmul_rn(level[code], scale));
    }
    for (int k = 0; k < (int)sizeof(w) / 16; ++k)
        ((uint4*)&y[first])[k] = ((const uint4*)w)[k];
} else {
    for (long long j = first; j < count; ++j) {
        const unsigned char pair = packed[j / 2];
        y[j] = T(__fmul_rn(level[j % 2 ? pair & 15 : pair >> 4], scale));
    }
}
