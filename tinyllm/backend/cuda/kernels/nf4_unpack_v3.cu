// nf4_unpack_v3: weights from four-bit codes, eight at a time, many times a thread.
//
// What changed since v2: the sixteen levels are copied to shared memory once a thread block (sixteen words lie in sixteen
// banks, so any codes are looked up without a conflict); a fixed grid walks over the weight, which pays for that copy and
// for the launch; `__restrict__` lets the loads go through the read-only cache.
//
// T: float32, float16, bfloat16
// exact
// wide
#include "types.cuh"
extern "C" __global__ void nf4_unpack_v3(
    const unsigned char* __restrict__ packed, const float* __restrict__ absmax, const float* __restrict__ level,
    int shift, long long n, T* __restrict__ y)
{
    __shared__ float table[16];
    if (threadIdx.x < 16)
        table[threadIdx.x] = level[threadIdx.x];
    __syncthreads();

    const long long stride = 8LL * gridDim.x * blockDim.x;
    for (long long first = 8LL * (blockIdx.x * blockDim.x + threadIdx.x); first < n; first += stride) {
        const float scale = absmax[first >> shift];
        if (first + 8 <= n) {
            const unsigned int codes = *(const unsigned int*)(packed + first / 2);
            __align__(16) T w[8];
            for (int k = 0; k < 8; ++k)
                w[k] = narrow<T>(__fmul_rn(table[codes >> (8 * (k / 2) + 4 * (1 - k % 2)) & 15u], scale));
            for (int k = 0; k < (int)sizeof(w) / 16; ++k)
                ((uint4*)(y + first))[k] = ((const uint4*)w)[k];
        } else {
            for (long long j = first; j < n; ++j)
                y[j] = narrow<T>(__fmul_rn(table[j % 2 ? packed[j / 2] & 15 : packed[j / 2] >> 4], scale));
        }
    }
}
