// The card's arithmetic: correctly rounded intrinsics, integer tricks, and C's functions as CUDA has them.
//
// float runs with subnormals flushed to zero (the processor's FTZ and DAZ bits; CuPy compiles with -ftz=true). What is not
// an arithmetic instruction on a processor (fabsf, fmaxf) is flushed by hand. A product and a sum are never contracted
// here (-ffp-contract=off), on the card they may be, unless the kernel writes __fmul_rn or __fmaf_rn: where bits matter, do.
// __expf, rsqrtf and the like are approximate on the card and rounded here: compare with a tolerance.
#pragma once
#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

#include "elements.h"

using std::isfinite;
using std::isinf;
using std::isnan;

namespace cuda {
template <class To, class From>
CUDA_PLAIN To reinterpret(From from) {
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
CUDA_PLAIN float flush(float x) {
    return (reinterpret<uint32_t>(x) & 0x7f800000u) ? x : reinterpret<float>(reinterpret<uint32_t>(x) & 0x80000000u);
}
// Rounds to the nearest integer, ties to even, and clamps to T's range as the card does; NaN gives 0.
template <class T>
CUDA_PLAIN T clamp_to(double x) {
    if (x != x) return 0;
    if (x <= double(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
    if (x >= double(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
    return T(x);
}
}  // namespace cuda

CUDA_PLAIN unsigned __float_as_uint(float x) { return cuda::reinterpret<unsigned>(x); }
CUDA_PLAIN int __float_as_int(float x) { return cuda::reinterpret<int>(x); }
CUDA_PLAIN float __uint_as_float(unsigned x) { return cuda::reinterpret<float>(x); }
CUDA_PLAIN float __int_as_float(int x) { return cuda::reinterpret<float>(x); }
CUDA_PLAIN long long __double_as_longlong(double x) { return cuda::reinterpret<long long>(x); }
CUDA_PLAIN double __longlong_as_double(long long x) { return cuda::reinterpret<double>(x); }

CUDA_PLAIN float __fadd_rn(float x, float y) { return x + y; }
CUDA_PLAIN float __fsub_rn(float x, float y) { return x - y; }
CUDA_PLAIN float __fmul_rn(float x, float y) { return x * y; }
CUDA_PLAIN float __fdiv_rn(float x, float y) { return x / y; }
CUDA_PLAIN float __frcp_rn(float x) { return 1.0f / x; }
CUDA_PLAIN float __fsqrt_rn(float x) { return std::sqrt(x); }
CUDA_PLAIN float __fmaf_rn(float x, float y, float z) {
    return cuda::flush(std::fma(cuda::flush(x), cuda::flush(y), cuda::flush(z)));
}
CUDA_PLAIN double __dadd_rn(double x, double y) { return x + y; }
CUDA_PLAIN double __dmul_rn(double x, double y) { return x * y; }

CUDA_PLAIN float __expf(float x) { return std::exp(x); }
CUDA_PLAIN float __logf(float x) { return std::log(x); }
CUDA_PLAIN float __log2f(float x) { return std::log2(x); }
CUDA_PLAIN float __powf(float x, float y) { return std::pow(x, y); }
CUDA_PLAIN float __sinf(float x) { return std::sin(x); }
CUDA_PLAIN float __cosf(float x) { return std::cos(x); }
CUDA_PLAIN float __fdividef(float x, float y) { return x / y; }
CUDA_PLAIN float __frsqrt_rn(float x) { return float(1.0 / std::sqrt(double(x))); }
CUDA_PLAIN float rsqrtf(float x) { return __frsqrt_rn(x); }
CUDA_PLAIN float rsqrt(float x) { return __frsqrt_rn(x); }
CUDA_PLAIN double rsqrt(double x) { return 1.0 / std::sqrt(x); }
CUDA_PLAIN float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

CUDA_PLAIN int __float2int_rn(float x) { return cuda::clamp_to<int>(std::nearbyint(double(x))); }
CUDA_PLAIN int __float2int_rz(float x) { return cuda::clamp_to<int>(std::trunc(double(x))); }
CUDA_PLAIN int __float2int_rd(float x) { return cuda::clamp_to<int>(std::floor(double(x))); }
CUDA_PLAIN int __float2int_ru(float x) { return cuda::clamp_to<int>(std::ceil(double(x))); }
CUDA_PLAIN unsigned __float2uint_rn(float x) { return cuda::clamp_to<unsigned>(std::nearbyint(double(x))); }
CUDA_PLAIN unsigned __float2uint_rz(float x) { return cuda::clamp_to<unsigned>(std::trunc(double(x))); }
CUDA_PLAIN float __int2float_rn(int x) { return float(x); }
CUDA_PLAIN float __uint2float_rn(unsigned x) { return float(x); }
CUDA_PLAIN float __ull2float_rn(unsigned long long x) { return float(x); }
CUDA_PLAIN float __double2float_rn(double x) { return float(x); }

CUDA_PLAIN unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
CUDA_PLAIN int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
CUDA_PLAIN unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
CUDA_PLAIN int __popc(unsigned x) { return __builtin_popcount(x); }
CUDA_PLAIN int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
CUDA_PLAIN int __clz(int x) { return x ? __builtin_clz(x) : 32; }
CUDA_PLAIN int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
CUDA_PLAIN int __ffs(int x) { return __builtin_ffs(x); }
CUDA_PLAIN unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int k = 0; k < 32; k++) y |= (x >> k & 1) << (31 - k);
    return y;
}
// The byte k of the result is byte (selector's nibble k) of the eight bytes of y:x.
CUDA_PLAIN unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int k = 0; k < 4; k++) result |= unsigned(bytes >> (8 * (selector >> 4 * k & 7)) & 0xff) << 8 * k;
    return result;
}

// CUDA's max and min drop a NaN when the other operand is a number. Macros would not do: overloads, as in CUDA.
CUDA_PLAIN float cuda_max(float x, float y) { return cuda::flush(x != x ? y : y != y ? x : x > y || (x == y && !std::signbit(x)) ? x : y); }
CUDA_PLAIN float cuda_min(float x, float y) { return cuda::flush(x != x ? y : y != y ? x : x < y || (x == y && std::signbit(x)) ? x : y); }
#define fmaxf cuda_max
#define fminf cuda_min
CUDA_PLAIN float max(float x, float y) { return cuda_max(x, y); }
CUDA_PLAIN float min(float x, float y) { return cuda_min(x, y); }
CUDA_PLAIN double max(double x, double y) { return std::fmax(x, y); }
CUDA_PLAIN double min(double x, double y) { return std::fmin(x, y); }
#define CUDA_MIN_MAX(T)                                                                                                \
    CUDA_PLAIN T max(T x, T y) { return x > y ? x : y; }                                                               \
    CUDA_PLAIN T min(T x, T y) { return x < y ? x : y; }
CUDA_MIN_MAX(int)
CUDA_MIN_MAX(unsigned)
CUDA_MIN_MAX(long)
CUDA_MIN_MAX(unsigned long)
CUDA_MIN_MAX(long long)
CUDA_MIN_MAX(unsigned long long)
#undef CUDA_MIN_MAX
#define fabsf(x) cuda::flush(std::fabs(float(x)))

// Loads through the read-only cache, streaming loads and stores: here a load is a load.
template <class T>
inline T __ldg(const T* address) { return *address; }
template <class T>
inline T __ldcs(const T* address) { return *address; }
template <class T>
inline void __stcs(T* address, T value) { *address = value; }
