// What a pointer may point to, by the name that Python's side matches with an array's dtype (arguments.py).
#pragma once
#include <limits>
#include <string>
#include <type_traits>

namespace cuda {

template <class T, class = void>
struct Element {
    static std::string name() { return "structure" + std::to_string(sizeof(T)); }
};
template <class T>
struct Element<T, std::enable_if_t<std::is_arithmetic_v<T>>> {
    static std::string name() {
        if (std::is_same_v<T, bool>) return "bool";
        const char* kind = std::is_floating_point_v<T> ? "float" : std::is_signed_v<T> ? "int" : "uint";
        return kind + std::to_string(8 * sizeof(T));
    }
};
template <>
struct Element<void> {
    static std::string name() { return "void"; }
};
// A vector's arrays hold its components: float4* takes a float32 array.
#define CUDA_ELEMENT(vector, component)                                                                                \
    template <>                                                                                                        \
    struct Element<vector> {                                                                                           \
        static std::string name() { return Element<component>::name(); }                                               \
    };
#define CUDA_ELEMENTS(prefix, component)                                                                               \
    CUDA_ELEMENT(prefix##1, component)                                                                                 \
    CUDA_ELEMENT(prefix##2, component)                                                                                 \
    CUDA_ELEMENT(prefix##3, component)                                                                                 \
    CUDA_ELEMENT(prefix##4, component)
CUDA_ELEMENTS(char, signed char)
CUDA_ELEMENTS(uchar, unsigned char)
CUDA_ELEMENTS(short, short)
CUDA_ELEMENTS(ushort, unsigned short)
CUDA_ELEMENTS(int, int)
CUDA_ELEMENTS(uint, unsigned)
CUDA_ELEMENTS(longlong, long long)
CUDA_ELEMENTS(ulonglong, unsigned long long)
CUDA_ELEMENTS(float, float)
CUDA_ELEMENTS(double, double)
#undef CUDA_ELEMENTS

}  // namespace cuda
