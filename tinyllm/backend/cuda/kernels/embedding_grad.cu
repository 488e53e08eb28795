// embedding_grad: row r of the result is the sum of the gradients g[i] whose id is r. One thread block a row.
//
// Adding with atomics would be shorter, but their order, and so the rounding, would change from run to run. Here every
// warp looks through all the ids, 32 at a time: a ballot tells each lane which of them are its row's, and the lanes add
// those gradients in order, a lane a column. No shared memory and no barrier.
//
// T: float32, float16, bfloat16
#include "types.cuh"
extern "C" __global__ void embedding_grad(const T* g, const long long* ids, T* y, int count, int n)
{
    const int lane = threadIdx.x % 32;
    for (int j = threadIdx.x; j - lane < n; j += blockDim.x) {  // a warp goes round together, also past the row's end
        float sum = 0.0f;
        for (int start = 0; start < count; start += 32) {
            const bool mine = start + lane < count && ids[start + lane] == blockIdx.x;
            for (unsigned int found = __ballot_sync(0xffffffffu, mine); found; found &= found - 1)
                if (j < n)
                    sum += widen(g[(long long)(start + __ffs(found) - 1) * n + j]);
        }
        if (j < n)
            y[(long long)blockIdx.x * n + j] = narrow<T>(sum);
    }
}
