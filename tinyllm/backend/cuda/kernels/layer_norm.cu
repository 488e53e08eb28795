// layer_norm: y = (x - mean) / sqrt(variance + eps) * w + b, and its gradient; one thread block a row of n.
//
// The variance is summed in a second pass, from x - mean: the sum of squares minus the square of the sum would cancel.
//
// T: float32, float16, bfloat16
#include "types.cuh"
#include "rows.cuh"
extern "C" __global__ void layer_norm(
    const T* x, const float* w, const float* b, T* y, float* mean, float* inverse, int n, float eps)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    float sum = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        sum += widen(x[row + j]);
    const float m = block_sum(sum, shared) / n;
    sum = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float d = widen(x[row + j]) - m;
        sum += d * d;
    }
    const float r = 1.0f / sqrtf(block_sum(sum, shared) / n + eps);
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        y[row + j] = narrow<T>((widen(x[row + j]) - m) * r * w[j] + b[j]);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        inverse[blockIdx.x] = r;
    }
}

// dL/dx = r * (h - mean(h) - z * mean(h z)), with h = g w and z = (x - mean) r
extern "C" __global__ void layer_norm_backward(
    const T* g, const T* x, const float* w, const float* mean, const float* inverse, T* gx, int n)
{
    __shared__ float shared[32];
    const long long row = (long long)blockIdx.x * n;
    const float m = mean[blockIdx.x], r = inverse[blockIdx.x];
    float sum_h = 0.0f, sum_hz = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float h = widen(g[row + j]) * w[j];
        sum_h += h;
        sum_hz += h * ((widen(x[row + j]) - m) * r);
    }
    const float mean_h = block_sum(sum_h, shared) / n;
    const float mean_hz = block_sum(sum_hz, shared) / n;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float z = (widen(x[row + j]) - m) * r;
        gx[row + j] = narrow<T>(r * (widen(g[row + j]) * w[j] - mean_h - z * mean_hz));
    }
}
