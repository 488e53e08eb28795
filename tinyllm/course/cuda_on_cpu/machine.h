// A CUDA thread as the runtime keeps it, and the calls that the language (cuda_cpu.h) makes into the runtime.
#pragma once
#include <setjmp.h>

#include <cstdint>

namespace cuda {

struct Idx {
    uint32_t x, y, z;
};

enum State { READY, WAITING, DONE };

struct Thread {
    Idx index;                      // threadIdx
    uint32_t number;                // through the whole grid, from 1
    int warp, lane;
    State state;
    bool started;                   // its fiber stands at `resume`; else it begins afresh
    char* stack;
    jmp_buf resume;
    uint64_t steps;                 // accesses so far
    // Where it waits. A block barrier has mask 0; a warp's meeting point has the lanes that meet.
    const char* what;
    int line;
    uint32_t mask;
    uint64_t value;                 // what it brings
    bool orders_memory;
    uint64_t snapshot[32];          // what the lanes brought
    uint32_t present;               // the lanes that met
    // Its clock ticks at every barrier and __syncwarp; seen[k] is how far it knows lane k to have come.
    uint32_t clock, last_barrier, seen[32];
};

extern Thread* current;             // the one whose turn it is; null outside of a launch

struct Words {
    char text[512];
};

Words here();                       // "block 0, thread 5"
uint32_t offset_of(const void* instruction);
[[noreturn]] void fail(const char* format, ...);
void access(uint64_t address, uint32_t size, int kind, const void* instruction);

// The language.
Idx thread_index();
Idx block_position();
Idx block_size();
Idx grid_size();
void* dynamic_shared();
int lane();
void note(const void* address, uint32_t size, int kind, const void* instruction);
const Thread& meet(const char* what, int line, uint32_t mask, uint64_t value, bool orders_memory);
uint64_t from_lane(const Thread& t, int source);
void refuse(const char* text, int line);

}  // namespace cuda
