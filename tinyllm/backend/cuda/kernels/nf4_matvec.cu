// nf4_matvec: y = x W^T for one to four rows of x, straight from W's four-bit codes. One warp an output.
//
// Decoding a token reads every weight once and multiplies it once, so only bytes count: 0.56 a weight here instead of the
// 2 of float16, and no float copy of W. A lane takes eight columns at a time, 4 bytes of codes and 32 or 16 bytes of each
// row of x; eight columns never cross a block of scales. `columns` is a multiple of 8, `rows` at most 4.
//
// T: float32, float16, bfloat16
// wide
#include "types.cuh"
#include "rows.cuh"
extern "C" __global__ void nf4_matvec(
    const T* __restrict__ x, const unsigned char* __restrict__ packed, const float* __restrict__ absmax,
    const float* __restrict__ level, T* __restrict__ y, int rows, int columns, int outputs, int shift)
{
    __shared__ float table[16];
    if (threadIdx.x < 16)
        table[threadIdx.x] = level[threadIdx.x];
    __syncthreads();

    const int lane = threadIdx.x % 32;
    const int output = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (output >= outputs)  // the whole warp leaves, so nobody waits for it in the sums below
        return;
    const long long start = (long long)output * columns;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int column = 8 * lane; column < columns; column += 8 * 32) {
        const unsigned int codes = *(const unsigned int*)(packed + (start + column) / 2);
        const float scale = absmax[(start + column) >> shift];
        float w[8];
        for (int k = 0; k < 8; ++k)
            w[k] = table[codes >> (8 * (k / 2) + 4 * (1 - k % 2)) & 15u];
        for (int row = 0; row < 4; ++row) {
            if (row < rows) {
                __align__(16) T a[8];
                for (int k = 0; k < (int)sizeof(a) / 16; ++k)
                    ((uint4*)a)[k] = ((const uint4*)(x + (long long)row * columns + column))[k];
                float sum = 0.0f;
                for (int k = 0; k < 8; ++k)
                    sum += w[k] * widen(a[k]);
                sums[row] += scale * sum;
            }
        }
    }
    for (int row = 0; row < 4; ++row) {
        const float sum = warp_sum(sums[row]);
        if (lane == 0 && row < rows)
            y[(long long)row * outputs + output] = narrow<T>(sum);
    }
}
