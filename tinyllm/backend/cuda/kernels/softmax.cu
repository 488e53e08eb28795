// softmax over rows of n, with attention's scale and mask inside, and its gradient; one thread block a row.
//
// The largest is taken off first, so nothing overflows; sums are float32. Attention's scores come as float32 (the matrix
// product sums in float32, and rounding scores to half would move probabilities by per cents); probabilities leave as T.
//
// T: float32, float16, bfloat16
#include "types.cuh"
#include "rows.cuh"

// e^(scale x - top) / sum over the keys from `from` up to `to`; zero elsewhere. X may be the same array as y.
template <typename X>
__device__ __forceinline__ void softmax_row(const X* x, T* y, int n, int from, int to, float scale, float* shared)
{
    float top = minus_infinity();
    for (int j = from + threadIdx.x; j < to; j += blockDim.x)
        top = fmaxf(top, scale * widen(x[j]));
    top = block_max(top, shared);
    float sum = 0.0f;
    for (int j = from + threadIdx.x; j < to; j += blockDim.x)
        sum += expf(scale * widen(x[j]) - top);
    sum = block_sum(sum, shared);
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        y[j] = narrow<T>(from <= j && j < to ? expf(scale * widen(x[j]) - top) / sum : 0.0f);
}

extern "C" __global__ void softmax(const T* x, T* y, int n)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    softmax_row(x + row, y + row, n, 0, n, 1.0f, shared);
}

// Rows are (batch, head, query); query t of a tile stands at position first + t and sees the keys starts[b, t] .. itself.
extern "C" __global__ void masked_softmax(
    const float* scores, T* y, const long long* starts, int has_starts, int queries, int rows_a_batch, int keys,
    int first, float scale)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * keys;
    const int t = blockIdx.x % queries, batch = blockIdx.x / rows_a_batch;
    const int from = has_starts ? (int)starts[(long long)batch * queries + t] : 0;
    softmax_row(scores + row, y + row, keys, from, min(first + t + 1, keys), scale, shared);
}

// dL/dx = scale * y * (g - sum(g y))
template <typename G>
__device__ __forceinline__ void softmax_row_backward(const G* g, const T* y, T* gx, int n, float scale, float* shared)
{
    float sum = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        sum += widen(g[j]) * widen(y[j]);
    sum = block_sum(sum, shared);
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        gx[j] = narrow<T>(scale * widen(y[j]) * (widen(g[j]) - sum));
}

extern "C" __global__ void softmax_backward(const T* g, const T* y, T* gx, int n)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    softmax_row_backward(g + row, y + row, gx + row, n, 1.0f, shared);
}

// The same for attention: g in float32 as it leaves the matrix product, scaled.
extern "C" __global__ void scaled_softmax_backward(const float* g, const T* y, T* gx, int n, float scale)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    softmax_row_backward(g + row, y + row, gx + row, n, scale, shared);
}
