// rms_norm: y = x / sqrt(mean(x^2) + eps) * w, and its gradient; one thread block a row of n.
//
// The inverse root mean square is kept in float32 for backward, whatever x is.
//
// T: float32, float16, bfloat16
#include "types.cuh"
#include "rows.cuh"
extern "C" __global__ void rms_norm(const T* x, const float* w, T* y, float* inverse, int n, float eps)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    float sum = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float v = widen(x[row + j]);
        sum += v * v;
    }
    const float r = 1.0f / sqrtf(block_sum(sum, shared) / n + eps);
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        y[row + j] = narrow<T>(widen(x[row + j]) * r * w[j]);
    if (threadIdx.x == 0)
        inverse[blockIdx.x] = r;
}

// dL/dx = r * (g w) - x * r^3 * mean(x g w)
extern "C" __global__ void rms_norm_backward(
    const T* g, const T* x, const float* w, const float* inverse, T* gx, int n)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    float sum = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        sum += widen(g[row + j]) * w[j] * widen(x[row + j]);
    const float r = inverse[blockIdx.x];
    const float along = block_sum(sum, shared) / n * r * r * r;
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        gx[row + j] = narrow<T>(r * widen(g[row + j]) * w[j] - widen(x[row + j]) * along);
}
