// CUDA C for g++: the keywords, built-in variables and functions a kernel uses, over the runtime's fibers.
//
// Included in front of every kernel. What synchronises stands here as a macro that passes the line on, so that a
// message can say where a thread waited. Floats: see arithmetic.h; half and bfloat16: half.h; vectors: vectors.h.
#pragma once
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../machine.h"

#define CUDA_ON_CPU 1
#define __CUDA_ARCH__ 800

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __constant__ const
// Every static shared variable lands in one section of the shared object, whose bounds the linker knows.
#define __shared__ static __attribute__((section("cuda_shared")))
// Not for the checks: the language's own machinery.
#define CUDA_PLAIN __attribute__((no_sanitize("thread", "undefined"))) inline

#define threadIdx (cuda::thread_index())
#define blockIdx (cuda::block_position())
#define blockDim (cuda::block_size())
#define gridDim (cuda::grid_size())
constexpr int warpSize = 32;

#include "vectors.h"
#include "arithmetic.h"

// NVRTC has no C headers, so neither has a kernel.
#undef INFINITY
#undef NAN
#undef HUGE_VALF
#undef FLT_MAX

// ---- barriers and warps ----

namespace cuda {

template <class T>
CUDA_PLAIN uint64_t bits(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    return word;
}

template <class T>
CUDA_PLAIN T shuffle(const char* what, int line, unsigned mask, T value, int source, bool from_self) {
    const Thread& t = meet(what, line, mask, bits(value), false);
    if (from_self) return value;
    const uint64_t word = from_lane(t, source);
    memcpy(&value, &word, sizeof value);
    return value;
}

CUDA_PLAIN void check_width(const char* what, int line, int width) {
    if (width < 1 || width > 32 || (width & (width - 1)))
        refuse((std::string(what) + ": the width must be a power of two up to 32").c_str(), line);
}

template <class T>
CUDA_PLAIN T shfl(int line, unsigned mask, T value, int source, int width = 32) {
    check_width("__shfl_sync()", line, width);
    if (source < 0 || source >= width)
        refuse(("__shfl_sync() reads lane " + std::to_string(source) + " of " + std::to_string(width)).c_str(), line);
    return shuffle("__shfl_sync()", line, mask, value, (lane() & ~(width - 1)) + source, false);
}
template <class T>
CUDA_PLAIN T shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    check_width("__shfl_up_sync()", line, width);
    const int source = lane() - int(delta);
    return shuffle("__shfl_up_sync()", line, mask, value, source, source < (lane() & ~(width - 1)));
}
template <class T>
CUDA_PLAIN T shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    check_width("__shfl_down_sync()", line, width);
    const int source = lane() + int(delta);
    return shuffle("__shfl_down_sync()", line, mask, value, source, source > (lane() | (width - 1)));
}
template <class T>
CUDA_PLAIN T shfl_xor(int line, unsigned mask, T value, int lanes, int width = 32) {
    check_width("__shfl_xor_sync()", line, width);
    const int source = lane() ^ lanes;
    return shuffle("__shfl_xor_sync()", line, mask, value, source, source > (lane() | (width - 1)));
}

CUDA_PLAIN unsigned ballot(const char* what, int line, unsigned mask, bool predicate) {
    const Thread& t = meet(what, line, mask, predicate, false);
    unsigned votes = 0;
    for (int k = 0; k < 32; k++)
        if (t.present >> k & 1) votes |= unsigned(t.snapshot[k]) << k;
    return votes;
}
CUDA_PLAIN bool all_of(int line, unsigned mask, bool predicate) {
    return !ballot("__all_sync()", line, mask, !predicate);
}
CUDA_PLAIN uint64_t barrier(int line, int which, bool predicate) {
    return meet("__syncthreads()", line, 0, predicate, true).snapshot[which];
}

}  // namespace cuda

#define __syncthreads() ((void)cuda::barrier(__LINE__, 0, false))
#define __syncthreads_or(p) int(cuda::barrier(__LINE__, 0, p))
#define __syncthreads_and(p) int(cuda::barrier(__LINE__, 1, p))
#define __syncthreads_count(p) int(cuda::barrier(__LINE__, 2, p))
#define CUDA_MASK(mask, ...) mask
#define __syncwarp(...) ((void)cuda::meet("__syncwarp()", __LINE__, CUDA_MASK(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu), 0, true))
#define __shfl_sync(...) cuda::shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cuda::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cuda::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda::shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, p) cuda::ballot("__ballot_sync()", __LINE__, mask, p)
#define __any_sync(mask, p) int(cuda::ballot("__any_sync()", __LINE__, mask, p) != 0)
#define __all_sync(mask, p) int(cuda::all_of(__LINE__, mask, p))
// Memory is always in order here: one thread of the operating system runs every fiber.
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)

// ---- atomics: noted as such, so that two of them on one word are no race ----

#define CUDA_ATOMIC(name, expression)                                                                                  \
    template <class T>                                                                                                 \
    CUDA_PLAIN __noinline__ T name(T* address, std::common_type_t<T> value) {                                          \
        cuda::note(address, sizeof(T), 2, __builtin_return_address(0));                                                \
        const T old = *address;                                                                                        \
        *address = expression;                                                                                         \
        return old;                                                                                                    \
    }
CUDA_ATOMIC(atomicAdd, old + value)
CUDA_ATOMIC(atomicSub, old - value)
CUDA_ATOMIC(atomicMax, old < value ? value : old)
CUDA_ATOMIC(atomicMin, value < old ? value : old)
CUDA_ATOMIC(atomicAnd, old & value)
CUDA_ATOMIC(atomicOr, old | value)
CUDA_ATOMIC(atomicXor, old ^ value)
CUDA_ATOMIC(atomicExch, value)
template <class T>
CUDA_PLAIN __noinline__ T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
    cuda::note(address, sizeof(T), 2, __builtin_return_address(0));
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

// ---- how a kernel is described to Python ----

namespace cuda {

// "const float32*", "int32": a parameter as arguments.py reads it.
template <class A>
struct Parameter {
    static std::string text() {
        using B = std::remove_cv_t<A>;
        if constexpr (std::is_pointer_v<B>) {
            using E = std::remove_pointer_t<B>;
            return std::string(std::is_const_v<E> ? "const " : "") + Element<std::remove_cv_t<E>>::name() + "*";
        } else {
            return Element<B>::name();
        }
    }
};

template <class... A, size_t... I>
CUDA_PLAIN void invoke(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
}
template <class... A>
CUDA_PLAIN void invoke(void (*kernel)(A...), void** arguments) {
    invoke(kernel, arguments, std::index_sequence_for<A...>());
}
template <class... A>
std::string signature(void (*)(A...)) {
    std::string text;
    ((text += Parameter<A>::text() + ";"), ...);
    return text;
}

}  // namespace cuda

// Written by library.py under the source, once a kernel.
#define CUDA_KERNEL(name)                                                                                              \
    extern "C" CUDA_PLAIN __attribute__((used)) void cuda_enter_##name(void** arguments) {                             \
        cuda::invoke(name, arguments);                                                                                 \
    }                                                                                                                  \
    extern "C" CUDA_PLAIN __attribute__((used)) const char* cuda_signature_##name() {                                  \
        static const std::string text = cuda::signature(name);                                                         \
        return text.c_str();                                                                                           \
    }
