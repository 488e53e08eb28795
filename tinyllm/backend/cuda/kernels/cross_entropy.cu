// cross_entropy: -log softmax(logits)[target] of each row, and its gradient; one thread block a row of classes.
//
// Forward reads a row once: a thread keeps the largest it has met and the sum of e^(x - largest), scaled anew when a
// larger one comes ("online softmax", Milakov & Gimelshein 2018). Losses are float32, whatever the logits are. A negative
// target is ignored: its loss and its gradient are 0.
//
// T: float32, float16, bfloat16
#include "types.cuh"
#include "rows.cuh"
extern "C" __global__ void cross_entropy(
    const T* logits, const long long* targets, float* losses, float* lse, int classes)
{
    __shared__ float shared[32];
    const T* x = logits + (long long)blockIdx.x * classes;
    float top = minus_infinity(), sum = 0.0f;
    for (int j = threadIdx.x; j < classes; j += blockDim.x) {
        const float v = widen(x[j]);
        if (v > top) {
            sum *= expf(top - v);
            top = v;
        }
        sum += v == minus_infinity() ? 0.0f : expf(v - top);  // a NaN goes on into the sum
    }
    const float largest = block_max(top, shared);
    const float total = block_sum(sum * expf(top - largest), shared);
    if (threadIdx.x == 0) {
        const long long target = targets[blockIdx.x];
        const float value = logf(total) + largest;
        lse[blockIdx.x] = value;
        losses[blockIdx.x] = target >= 0 ? value - widen(x[target]) : 0.0f;
    }
}

// dL/dlogits = g * (softmax - one hot). `y` may be `logits` itself: each element is read and written by one thread.
extern "C" __global__ void cross_entropy_backward(
    const float* g, const T* logits, const long long* targets, const float* lse, T* y, int classes)
{
    const long long row = (long long)blockIdx.x * classes, target = targets[blockIdx.x];
    const float each = target >= 0 ? g[blockIdx.x] : 0.0f, sum = lse[blockIdx.x];
    for (int j = threadIdx.x; j < classes; j += blockDim.x)
        y[row + j] = narrow<T>(each * (expf(widen(logits[row + j]) - sum) - (j == target ? 1.0f : 0.0f)));
}
