// One thread block a row: the sum, or the largest, of one number a thread, known to every thread afterwards.
// Whole warps only: blockDim.x is a multiple of 32, at most 1024.
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }  // NVRTC has no INFINITY

__device__ __forceinline__ float warp_sum(float v)
{
    for (int lanes = 16; lanes; lanes /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

__device__ __forceinline__ float warp_max(float v)
{
    for (int lanes = 16; lanes; lanes /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lanes));
    return v;
}

__device__ __forceinline__ float block_sum(float v, float* shared)  // shared: 32 floats
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    v = warp_sum(v);
    __syncthreads();  // whoever still reads an earlier result here is done
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / 32 ? shared[lane] : 0.0f);
}

__device__ __forceinline__ float block_max(float v, float* shared)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
    return warp_max(lane < (int)blockDim.x / 32 ? shared[lane] : minus_infinity());
}
