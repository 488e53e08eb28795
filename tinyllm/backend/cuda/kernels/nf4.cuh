// NF4's rule, once (backend/nf4.py has it in NumPy). Bits matter here: every product and quotient is rounded by itself.

// The scale to store, from the largest magnitude's bits. Below 2^-126 the device reads zero, so the block counts as one
// of zeros. A last, partial block of zeros keeps 1e-38, as in bitsandbytes; it is stored as bits, since 1e-38 is subnormal.
__device__ __forceinline__ float nf4_scale(unsigned int largest, bool partial)
{
    if (largest < 0x00800000u)
        return __uint_as_float(partial ? 0x006ce3eeu : 0u);
    return __uint_as_float(largest);
}

// A weight between -1 and 1: times the reciprocal in a whole block, divided in a partial one. Both are the format's.
__device__ __forceinline__ float nf4_scaled(float x, float scale, bool partial)
{
    if (scale < 0x1p-126f)
        return 0.0f;
    if (partial || scale > 0x1p126f)  // there the reciprocal is subnormal, which the device reads as zero
        return __fdiv_rn(x, scale);
    return __fmul_rn(x, __frcp_rn(scale));
}
