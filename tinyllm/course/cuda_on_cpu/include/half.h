// half and bfloat16: sixteen bits in memory, float in between, every result rounded to the nearest, ties to even.
//
// A float holds the exact product of two halves and more than twice a half's digits, so that a sum, difference, product or
// quotient computed in float and rounded again is the correctly rounded one. Subnormal halves are kept: -ftz=true is about
// float alone.
#pragma once

namespace cuda {

CUDA_PLAIN uint16_t half_bits(float value) {
    const uint32_t x = reinterpret<uint32_t>(value), sign = x >> 16 & 0x8000u, a = x & 0x7fffffffu;
    if (a > 0x7f800000u) return uint16_t(0x7fffu);                 // NaN: the card's canonical one
    if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00u);         // 65520 and above round to infinity
    if (a >= 0x38800000u) return uint16_t(sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13));
    if (a < 0x33000000u) return uint16_t(sign);                    // below half of the smallest subnormal
    const uint32_t digits = (a & 0x7fffffu) | 0x800000u, shift = 126 - (a >> 23);
    const uint32_t down = digits >> shift, rest = digits & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return uint16_t(sign | (down + (rest > tie || (rest == tie && (down & 1)))));
}

CUDA_PLAIN float half_value(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31, digits = h & 0x3ffu;
    if (exponent == 31) return reinterpret<float>(sign | 0x7f800000u | digits << 13);
    if (exponent) return reinterpret<float>(sign | (exponent + 112) << 23 | digits << 13);
    const float small = float(digits) * 0x1p-24f;
    return sign ? -small : small;
}

CUDA_PLAIN uint16_t bfloat_bits(float value) {
    const uint32_t x = reinterpret<uint32_t>(value);
    if ((x & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;           // NaN: the card's canonical one
    return uint16_t((x + 0x7fffu + (x >> 16 & 1)) >> 16);
}

CUDA_PLAIN float bfloat_value(uint16_t b) { return reinterpret<float>(uint32_t(b) << 16); }

// x * y + z in double, so rounded ("to odd") that rounding once more to 16 bits is the same as rounding once.
CUDA_PLAIN float fma_to_odd(float x, float y, float z) {
    const double product = double(x) * y, sum = product + z;
    const double back = sum - product, lost = (product - (sum - back)) + (z - back);
    double odd = sum;
    if (std::isfinite(sum) && lost != 0 && !(reinterpret<uint64_t>(sum) & 1)) {
        const bool up = (lost > 0) == (sum > 0);
        odd = reinterpret<double>(reinterpret<uint64_t>(sum) + (up ? 1 : -1));
    }
    float result = float(odd);
    if (double(result) != odd && std::isfinite(result)) {          // and the same from double to float
        if (std::fabs(double(result)) > std::fabs(odd)) result = reinterpret<float>(reinterpret<uint32_t>(result) - 1);
        result = reinterpret<float>(reinterpret<uint32_t>(result) | 1u);
    }
    return result;
}

}  // namespace cuda

#define CUDA_SIXTEEN(type, encode, decode)                                                                             \
    struct type##_raw { unsigned short x; };                                                                           \
    struct __align__(2) type {                                                                                         \
        unsigned short bits;                                                                                           \
        type() = default;                                                                                              \
        type(const type##_raw& raw) : bits(raw.x) {}                                                                   \
        type(float x) : bits(cuda::encode(x)) {}                                                                       \
        type(double x) : bits(cuda::encode(float(x))) {}                                                               \
        type(int x) : bits(cuda::encode(float(x))) {}                                                                  \
        type(unsigned x) : bits(cuda::encode(float(x))) {}                                                             \
        operator float() const { return cuda::decode(bits); }                                                          \
        operator type##_raw() const { return {bits}; }                                                                 \
        type& operator=(float x) { return bits = cuda::encode(x), *this; }                                             \
        type operator-() const { return type##_raw{(unsigned short)(bits ^ 0x8000u)}; }                                \
        type& operator+=(type y) { return *this = *this + y; }                                                         \
        type& operator-=(type y) { return *this = *this - y; }                                                         \
        type& operator*=(type y) { return *this = *this * y; }                                                         \
        friend type operator+(type x, type y) { return float(x) + float(y); }                                          \
        friend type operator-(type x, type y) { return float(x) - float(y); }                                          \
        friend type operator*(type x, type y) { return float(x) * float(y); }                                          \
        friend type operator/(type x, type y) { return float(x) / float(y); }                                          \
        friend bool operator<(type x, type y) { return float(x) < float(y); }                                          \
        friend bool operator>(type x, type y) { return float(x) > float(y); }                                          \
        friend bool operator<=(type x, type y) { return float(x) <= float(y); }                                        \
        friend bool operator>=(type x, type y) { return float(x) >= float(y); }                                        \
        friend bool operator==(type x, type y) { return float(x) == float(y); }                                        \
        friend bool operator!=(type x, type y) { return float(x) != float(y); }                                        \
    };                                                                                                                 \
    struct __align__(4) type##2 { type x, y; };                                                                        \
    inline type __hadd(type x, type y) { return x + y; }                                                               \
    inline type __hsub(type x, type y) { return x - y; }                                                               \
    inline type __hmul(type x, type y) { return x * y; }                                                               \
    inline type __hdiv(type x, type y) { return x / y; }                                                               \
    inline type __hneg(type x) { return -x; }                                                                          \
    inline type __habs(type x) { return type##_raw{(unsigned short)(x.bits & 0x7fffu)}; }                              \
    inline type __hfma(type x, type y, type z) { return cuda::fma_to_odd(x, y, z); }                                   \
    inline type __hmax(type x, type y) { return cuda_max(x, y); }                                                      \
    inline type __hmin(type x, type y) { return cuda_min(x, y); }                                                      \
    inline bool __hisnan(type x) { return x != x; }                                                                    \
    inline int __hisinf(type x) { return std::isinf(float(x)) ? (float(x) > 0 ? 1 : -1) : 0; }                         \
    inline bool __hlt(type x, type y) { return x < y; }                                                                \
    inline bool __hgt(type x, type y) { return x > y; }                                                                \
    inline type __low2##type(type##2 v) { return v.x; }                                                                \
    inline type __high2##type(type##2 v) { return v.y; }                                                               \
    inline float __low2float(type##2 v) { return v.x; }                                                                \
    inline float __high2float(type##2 v) { return v.y; }                                                               \
    inline type##2 __hadd2(type##2 a, type##2 b) { return {a.x + b.x, a.y + b.y}; }                                    \
    inline type##2 __hsub2(type##2 a, type##2 b) { return {a.x - b.x, a.y - b.y}; }                                    \
    inline type##2 __hmul2(type##2 a, type##2 b) { return {a.x * b.x, a.y * b.y}; }                                    \
    inline type##2 __hfma2(type##2 a, type##2 b, type##2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
#define CUDA_HALF_NAME(type, text)                                                                                     \
    namespace cuda {                                                                                                   \
    template <>                                                                                                        \
    struct Element<type> {                                                                                             \
        static std::string name() { return text; }                                                                     \
    };                                                                                                                 \
    template <>                                                                                                        \
    struct Element<type##2> {                                                                                          \
        static std::string name() { return text; }                                                                     \
    };                                                                                                                 \
    }

CUDA_SIXTEEN(__half, half_bits, half_value)
CUDA_SIXTEEN(__nv_bfloat16, bfloat_bits, bfloat_value)
CUDA_HALF_NAME(__half, "float16")
CUDA_HALF_NAME(__nv_bfloat16, "bfloat16")
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
#undef CUDA_SIXTEEN
#undef CUDA_HALF_NAME

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __int2half_rn(int x) { return float(x); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline short __half_as_short(__half x) { return short(x.bits); }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
