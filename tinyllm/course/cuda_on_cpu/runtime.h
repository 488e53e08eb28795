// What one launch is, as Python fills it in and the compiled kernel's shared object reads it.
// Python's twin of these structures is in library.py; the machinery that runs a launch is in runtime.cpp.
#pragma once
#include <cstdint>

namespace cuda {

// One access to a piece of memory: which thread (numbered through the grid, from 1; 0 means none), at which tick of its
// clock, from which instruction.
struct Event {
    uint32_t thread, when, where : 31, atomic : 1;
};

// The last write and two reads (by different threads) of one granule of memory: what the race check compares with.
struct Cell {
    Event write, read, other_read;
};

enum { CONSTANT = 1, SHARED = 2 };

// A range of addresses a kernel may touch: an argument's bytes, or a block's shared memory.
struct Region {
    uint64_t begin, end;
    int32_t argument, flags;        // index of the argument, or -1
    uint32_t item, granule;         // bytes of an element; bytes that one Cell stands for
    Cell* cells;                    // (end - begin) / granule, or null: no race check
    uint8_t* written;               // shared memory: one flag a byte
    uint64_t reads, writes, bytes_read, bytes_written;
};

enum { READ, WRITE, ATOMIC, SYNC };

// What the traced thread did: an access (its bytes) or a synchronisation (its name's index and line).
struct Step {
    int32_t kind, region;
    uint32_t where, size;
    uint64_t offset;
    uint8_t bytes[16];
};

struct Launch {
    uint32_t grid[3], block[3];
    void** arguments;
    Region* regions;
    int32_t region_count, order;    // order: 0 forward, 1 reverse, 2 shuffled
    uint64_t seed, step_limit;
    uint64_t dynamic, dynamic_size; // the dynamic shared memory
    int64_t traced_block, traced_thread;
    Step* steps;
    int32_t step_capacity, step_count;
    uint64_t barriers, warp_syncs, atomics;
    char message[1024];             // empty: the launch went well
};

}  // namespace cuda
