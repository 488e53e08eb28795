// CuPy's class float16, and in bfloat16.cuh its class bfloat16: 16 bits that turn into a float when they are computed with.
#pragma once
#include "half.h"

#define CUDA_CUPY_FLOAT(type, word)                                                                                    \
    class type {                                                                                                       \
        word data_;                                                                                                    \
                                                                                                                       \
    public:                                                                                                            \
        type() = default;                                                                                              \
        type(float x) : data_(x) {}                                                                                    \
        template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>>                                          \
        explicit type(A x) : data_(float(x)) {}                                                                        \
        explicit type(const word& x) : data_(x) {}                                                                     \
        operator float() const { return float(data_); }                                                                \
        type& operator=(const type&) = default;                                                                        \
        template <class A>                                                                                             \
        type& operator=(const A& x) { return *this = static_cast<type>(x); }                                           \
        unsigned short to_bits() const { return data_.bits; }                                                          \
        static type from_bits(unsigned short x) { return type(word(word##_raw{x})); }                                  \
        template <class A>                                                                                             \
        type& operator+=(const A& x) { return *this = *this + x; }                                                     \
        template <class A>                                                                                             \
        type& operator-=(const A& x) { return *this = *this - x; }                                                     \
        template <class A>                                                                                             \
        type& operator*=(const A& x) { return *this = *this * x; }                                                     \
        int isnan() const { return float(*this) != float(*this); }                                                     \
    };                                                                                                                 \
    inline type max(type x, type y) { return type(max(float(x), float(y))); }                                          \
    inline type min(type x, type y) { return type(min(float(x), float(y))); }

CUDA_CUPY_FLOAT(float16, __half)
CUDA_CUPY_FLOAT(bfloat16, __nv_bfloat16)
#undef CUDA_CUPY_FLOAT
