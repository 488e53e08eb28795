// float2, uint4 and the like: plain structures, aligned as on the card, so that one assignment is one wide access.
#pragma once

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define CUDA_VECTORS(T, name, two, four)                                                                               \
    struct name##1 { T x; };                                                                                           \
    struct __align__(two) name##2 { T x, y; };                                                                         \
    struct name##3 { T x, y, z; };                                                                                     \
    struct __align__(four) name##4 { T x, y, z, w; };                                                                  \
    inline name##1 make_##name##1(T x) { return {x}; }                                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_VECTORS(signed char, char, 2, 4)
CUDA_VECTORS(unsigned char, uchar, 2, 4)
CUDA_VECTORS(short, short, 4, 8)
CUDA_VECTORS(unsigned short, ushort, 4, 8)
CUDA_VECTORS(int, int, 8, 16)
CUDA_VECTORS(unsigned int, uint, 8, 16)
CUDA_VECTORS(long long, longlong, 16, 16)
CUDA_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDA_VECTORS(float, float, 8, 16)
CUDA_VECTORS(double, double, 16, 16)
#undef CUDA_VECTORS
