// dropout_mask: 1/(1-p) or 0 from the words of Philox 4x64-10, the same as on the CPU. One thread a Philox block, which
// gives four 64-bit words, so sixteen elements of 16 bits each, the low bits first.
//
// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3. NumPy counts before it computes.
//
// in: uint64 seed, uint64 position, int32 threshold, float32 kept, int64 count
// out: raw T y
// T: float32, float16, bfloat16
// exact
unsigned long long x0 = position + i + 1, x1 = x0 <= position, x2 = 0, x3 = 0;  // the counter, with its carry
unsigned long long k0 = seed, k1 = 0;
for (int round = 0; round < 10; ++round) {
    const unsigned long long low0 = 0xD2E7470EE14C6C93ull * x0, high0 = __umul64hi(0xD2E7470EE14C6C93ull, x0);
    const unsigned long long low1 = 0xCA5A826395121157ull * x2, high1 = __umul64hi(0xCA5A826395121157ull, x2);
    x0 = high1 ^ x1 ^ k0;
    x1 = low1;
    x2 = high0 ^ x3 ^ k1;
    x3 = low0;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
}
const unsigned long long words[4] = {x0, x1, x2, x3};
for (int k = 0; k < 16; ++k) {
    const long long j = 16 * (long long)i + k;
    if (j < count)
        y[j] = T((int)(words[k / 4] >> (16 * (k % 4)) & 0xffffull) >= threshold ? kept : 0.0f);
}
