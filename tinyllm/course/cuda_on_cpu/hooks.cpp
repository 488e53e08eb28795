// Where g++ calls us: in front of every load and store (-fsanitize=thread), and where a rule of C++ is broken
// (-fsanitize=undefined). The real libraries behind those options are not linked.
#include "machine.h"
#include "runtime.h"

extern "C" {

// ---- what g++ puts in front of every access: -fsanitize=thread ----

#define HOOK(size)                                                                                                     \
    void __tsan_read##size(void* p) { cuda::access(uint64_t(p), size, cuda::READ, __builtin_return_address(0)); }      \
    void __tsan_write##size(void* p) { cuda::access(uint64_t(p), size, cuda::WRITE, __builtin_return_address(0)); }
#define UNALIGNED(size)                                                                                                \
    void __tsan_unaligned_read##size(void* p) {                                                                        \
        cuda::access(uint64_t(p), size, cuda::READ, __builtin_return_address(0));                                      \
    }                                                                                                                  \
    void __tsan_unaligned_write##size(void* p) {                                                                       \
        cuda::access(uint64_t(p), size, cuda::WRITE, __builtin_return_address(0));                                     \
    }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
void __tsan_read_range(void* p, unsigned long n) { cuda::access(uint64_t(p), n, cuda::READ, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) { cuda::access(uint64_t(p), n, cuda::WRITE, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_exit() {}
void __tsan_func_entry(void*) {
    using namespace cuda;
    if (current && uint64_t((char*)__builtin_frame_address(0) - current->stack) < 4096)
        fail("%s: its local variables need more than 64 KiB of stack", here().text);
}

// ---- what g++ calls when a rule of C++ is broken: -fsanitize=undefined (layouts: libubsan's ubsan_handlers.h) ----

struct Location {
    const char* file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;
    char name[1];
};
struct Mismatch {
    Location location;
    Type* type;
    unsigned char log_alignment, check;
};
struct Overflow {
    Location location;
    Type* type;
};

#define RULE(handler, broken)                                                                                          \
    void __ubsan_handle_##handler(Overflow*, uint64_t, uint64_t) {                                                     \
        cuda::fail("%s, <%x>: " broken, cuda::here().text, cuda::offset_of(__builtin_return_address(0)));                \
    }
RULE(add_overflow, "an addition of signed integers overflows")
RULE(sub_overflow, "a subtraction of signed integers overflows")
RULE(mul_overflow, "a multiplication of signed integers overflows")
RULE(negate_overflow, "the negation of the smallest integer overflows")
RULE(divrem_overflow, "an integer is divided by zero")
RULE(shift_out_of_bounds, "an integer is shifted by its width or more")
RULE(float_cast_overflow, "a float does not fit the integer it is converted to (the card would clamp it)")

void __ubsan_handle_out_of_bounds(Overflow* data, int64_t index) {
    (void)data;
    cuda::fail("%s, <%x>: out of bounds: index %lld of an array of fixed size", cuda::here().text,
               cuda::offset_of(__builtin_return_address(0)), (long long)index);
}

void __ubsan_handle_type_mismatch_v1(Mismatch* data, uint64_t address) {
    using namespace cuda;
    static const char* const doing[] = {"a load", "a store", "a reference", "a member access", "a member call"};
    const unsigned alignment = 1u << data->log_alignment;
    const uint32_t where = offset_of(__builtin_return_address(0));
    if (!address) fail("%s, <%x>: a null pointer", here().text, where);
    fail("%s, <%x>: misaligned: %s of %s at an address that is %llu bytes past a multiple of %u", here().text, where,
         doing[data->check < 5 ? data->check : 2], data->type->name, (unsigned long long)(address % alignment),
         alignment);
}
}
