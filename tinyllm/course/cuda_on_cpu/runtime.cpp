// The machine that runs a kernel: threads as fibers, barriers, warps, and a look at every byte they touch.
//
// g++ compiles the kernel with -fsanitize=thread and -fsanitize=undefined, which put a call in front of every load and
// store of memory that others can see (`__tsan_read4(address)`) and of every broken rule (`__ubsan_handle_...`). Both
// come with big libraries of their own; here the functions they call are ours (hooks.cpp), and know what a block and a warp are.
//
// One thread of the operating system runs everything. A block's threads are fibers that take turns, and switch only
// where CUDA makes threads meet: barriers, shuffles, votes. What the hardware may do in any order is done in the order
// asked for (forward, reverse, shuffled). The language the kernel sees is in cuda_cpu.h.
#include "runtime.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "machine.h"

extern "C" {
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
extern char __start_cuda_shared __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared __attribute__((weak, visibility("hidden")));
}

namespace cuda {

Thread* current = nullptr;

namespace {

constexpr size_t STACK = 64 * 1024;
constexpr int MOST_THREADS = 1024;

Launch* launch;
void (*entry)(void**);
Thread threads[MOST_THREADS];
int thread_count;
uint32_t block_number;
Idx block_index;
char* stacks = nullptr;
jmp_buf scheduler, abandoned;

}  // namespace

uint32_t offset_of(const void* instruction) { return uint32_t((char*)instruction - &__ehdr_start) & 0x7fffffff; }

// Ends the launch. In messages <12ab> stands for the source line of an instruction, <#2> for the third argument; Python
// puts them in (report.py).
[[noreturn]] void fail(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    vsnprintf(launch->message, sizeof launch->message, format, rest);
    va_end(rest);
    _longjmp(abandoned, 1);
}

Words name(const Thread& t) {
    Words w;
    if (launch->block[1] * launch->block[2] == 1) snprintf(w.text, sizeof w.text, "thread %u", t.index.x);
    else snprintf(w.text, sizeof w.text, "thread (%u, %u, %u)", t.index.x, t.index.y, t.index.z);
    return w;
}

Words here() {
    Words w;
    if (launch->grid[1] * launch->grid[2] == 1)
        snprintf(w.text, sizeof w.text, "block %u, %s", block_index.x, name(*current).text);
    else
        snprintf(w.text, sizeof w.text, "block (%u, %u, %u), %s", block_index.x, block_index.y, block_index.z,
                 name(*current).text);
    return w;
}

namespace {

const char* called(int kind) { return kind == READ ? "reads" : kind == WRITE ? "writes" : "updates"; }

Words place(const Region& region, uint64_t address) {
    Words w;
    if (region.argument < 0)
        snprintf(w.text, sizeof w.text, "byte %lld of %s", (long long)(address - region.begin),
                 region.flags & SHARED && region.begin == launch->dynamic ? "the dynamic shared memory" : "shared memory");
    else
        snprintf(w.text, sizeof w.text, "element %lld of <#%d>",
                 ((long long)address - (long long)region.begin) / (long long)region.item -
                     (address < region.begin && (region.begin - address) % region.item ? 1 : 0),
                 region.argument);
    return w;
}

// ---- the race check: happens-before, by clocks ----

// A thread's clock ticks at every barrier and __syncwarp it passes. An earlier access is ordered before this one if the
// same thread made it, or its block has since passed a barrier, or its warp's __syncwarp has since told us of it.
// Blocks are never ordered. Shuffles and votes order nothing: CUDA says so.
bool ordered(const Event& event, const Thread& t, bool shared) {
    if (event.thread == 0 || event.thread == t.number) return true;
    if ((event.thread - 1) / thread_count != block_number) return shared;  // shared memory of a block that is gone
    const Thread& other = threads[(event.thread - 1) % thread_count];
    if (event.when < other.last_barrier) return true;
    return other.warp == t.warp && event.when < t.seen[other.lane];
}

[[noreturn]] void race(const Region& region, uint64_t address, const Event& event, const char* did, int kind,
                       uint32_t where) {
    uint32_t block = (event.thread - 1) / thread_count;
    Words other = name(threads[(event.thread - 1) % thread_count]), mine = here();
    if (block == block_number)
        fail("%s, <%x>: a race on %s: it %s what %s %s in <%x>, with no barrier between", mine.text, where,
             place(region, address).text, called(kind), other.text, did, unsigned(event.where));
    fail("%s, <%x>: a race on %s: it %s what %s of block %u %s in <%x>, and nothing orders two blocks", mine.text, where,
         place(region, address).text, called(kind), other.text, block, did, unsigned(event.where));
}

void check_race(Region& region, uint64_t address, uint32_t size, int kind, uint32_t where) {
    if (size % region.granule || (address - region.begin) % region.granule) return;
    const Thread& t = *current;
    const bool shared = region.flags & SHARED, atomic = kind == ATOMIC;
    const Event now{t.number, t.clock, where, atomic};
    for (uint64_t i = (address - region.begin) / region.granule; size; i++, size -= region.granule) {
        Cell& cell = region.cells[i];
        uint64_t at = region.begin + i * region.granule;
        if (!(atomic && cell.write.atomic) && !ordered(cell.write, t, shared))
            race(region, at, cell.write, cell.write.atomic ? "updated" : "wrote", kind, where);
        if (kind == READ) {
            if (cell.read.thread == t.number || ordered(cell.read, t, shared)) cell.read = now;
            else cell.other_read = now;
        } else {
            if (!ordered(cell.read, t, shared)) race(region, at, cell.read, "read", kind, where);
            if (!ordered(cell.other_read, t, shared)) race(region, at, cell.other_read, "read", kind, where);
            cell.write = now;
        }
    }
}

// ---- every access ----

Step* pending = nullptr;  // a traced write, whose bytes are there to be read only once it has happened

void settle() {
    if (pending) memcpy(pending->bytes, (void*)(launch->regions[pending->region].begin + pending->offset), pending->size);
    pending = nullptr;
}

void trace(int kind, int region, uint64_t offset, uint32_t size, uint32_t where) {
    settle();
    if (launch->traced_block != block_number || current != threads + launch->traced_thread) return;
    if (launch->step_count == launch->step_capacity) return;
    Step& step = launch->steps[launch->step_count++];
    step = Step{kind, region, where, size > 16 ? 16 : size, offset, {}};
    if (kind == SYNC) return;
    if (kind == READ) memcpy(step.bytes, (void*)(launch->regions[region].begin + offset), step.size);
    else pending = &step;
}

[[noreturn]] void outside(uint64_t address, uint32_t size, int kind, uint32_t where) {
    const Region* nearest = nullptr;
    uint64_t best = ~0ull;
    for (const Region* r = launch->regions; r != launch->regions + launch->region_count; r++) {
        uint64_t distance = address < r->begin ? r->begin - address : address < r->end ? 0 : address - r->end;
        if (distance < best) best = distance, nearest = r;
    }
    for (int i = 0; i < thread_count; i++)
        if (address - uint64_t(threads[i].stack) < STACK)
            fail("%s, <%x>: %s %u bytes in a local variable of %s", here().text, where, called(kind), size,
                 name(threads[i]).text);
    if (!nearest || best > 1u << 30)
        fail("%s, <%x>: %s %u bytes at address %#llx, which belongs to no argument", here().text, where, called(kind),
             size, (unsigned long long)address);
    if (address < nearest->begin)
        fail("%s, <%x>: out of bounds: %s %u bytes at %s, %llu bytes before it begins", here().text, where, called(kind),
             size, place(*nearest, address).text, (unsigned long long)(nearest->begin - address));
    fail("%s, <%x>: out of bounds: %s %u bytes at %s, which ends after %llu bytes", here().text, where, called(kind),
         size, place(*nearest, address).text, (unsigned long long)(nearest->end - nearest->begin));
}

}  // namespace

void access(uint64_t address, uint32_t size, int kind, const void* instruction) {
    Thread* t = current;
    if (!t || address - uint64_t(t->stack) < STACK) return;  // a local variable whose address was taken
    const uint32_t where = offset_of(instruction);
    if (++t->steps > launch->step_limit)
        fail("%s, <%x>: %llu accesses and no end in sight: does this loop end?", here().text, where,
             (unsigned long long)launch->step_limit);
    for (int i = 0; i < launch->region_count; i++) {
        Region& region = launch->regions[i];
        if (address < region.begin || address >= region.end) continue;
        if (address + size > region.end) outside(address, size, kind, where);
        if (region.flags & CONSTANT && kind != READ)
            fail("%s, <%x>: writes to %s, which the kernel declares const", here().text, where,
                 place(region, address).text);
        const uint64_t offset = address - region.begin;
        if (region.written) {
            if (kind != WRITE)
                for (uint32_t k = 0; k < size; k++)
                    if (!region.written[offset + k])
                        fail("%s, <%x>: %s %u bytes at %s, which no thread of the block has written yet", here().text,
                             where, called(kind), size, place(region, address + k).text);
            memset(region.written + offset, 1, size);
        }
        if (region.cells) check_race(region, address, size, kind, where);
        if (kind != WRITE) region.reads++, region.bytes_read += size;
        if (kind != READ) region.writes++, region.bytes_written += size;
        if (kind == ATOMIC) launch->atomics++;
        if (launch->steps) trace(kind, i, offset, size, where);
        return;
    }
    if (address - uint64_t(&__ehdr_start) < uint64_t(&_end - &__ehdr_start)) return;  // a table in the source
    outside(address, size, kind, where);
}

namespace {

// ---- fibers ----

void fiber_body() {
    for (;;) {
        entry(launch->arguments);
        current->state = DONE;
        if (!_setjmp(current->resume)) _longjmp(scheduler, 1);
    }
}

void run(Thread& t) {
    current = &t;
    if (_setjmp(scheduler) == 0) {
        if (t.started) _longjmp(t.resume, 1);
        t.started = true;
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = t.stack;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, fiber_body, 0);
        setcontext(&context);
    }
    if (launch->steps && t.state == DONE) settle();
}

// ---- meeting points ----

void release_barrier() {
    int any = 0, all = 1, count = 0;
    for (Thread* t = threads; t != threads + thread_count; t++) {
        if (t->line != threads[0].line) {
            current = t;
            fail("%s, line %d: a divergent barrier: waits at this __syncthreads() while %s waits at the one on line %d",
                 here().text, t->line, name(threads[0]).text, threads[0].line);
        }
        any |= t->value != 0, all &= t->value != 0, count += t->value != 0;
    }
    for (Thread* t = threads; t != threads + thread_count; t++) {
        t->last_barrier = ++t->clock;
        t->snapshot[0] = any, t->snapshot[1] = all, t->snapshot[2] = count;
        t->state = READY;
    }
    launch->barriers++;
}

bool release_warp(Thread& leader) {
    const int first = leader.warp * 32;
    const int lanes = thread_count - first < 32 ? thread_count - first : 32;
    uint32_t alive = 0;
    for (int lane = 0; lane < 32; lane++) {
        if (!(leader.mask >> lane & 1)) continue;
        if (lane >= lanes) {
            current = &leader;
            fail("%s, line %d: the mask %#x of %s names lane %d, but this warp has only %d threads", here().text,
                 leader.line, leader.mask, leader.what, lane, lanes);
        }
        Thread& t = threads[first + lane];
        if (t.state == DONE) continue;
        if (t.state != WAITING || t.what != leader.what || t.mask != leader.mask) return false;
        alive |= 1u << lane;
    }
    uint32_t seen[32] = {};
    for (int lane = 0; lane < lanes; lane++)
        if (alive >> lane & 1)
            for (int k = 0; k < 32; k++) {
                const Thread& t = threads[first + lane];
                const uint32_t known = k == lane ? t.clock + 1 : t.seen[k];
                if (known > seen[k]) seen[k] = known;
            }
    for (int lane = 0; lane < lanes; lane++) {
        if (!(alive >> lane & 1)) continue;
        Thread& t = threads[first + lane];
        for (int k = 0; k < lanes; k++) t.snapshot[k] = threads[first + k].value;
        t.present = alive;
        if (leader.orders_memory) memcpy(t.seen, seen, sizeof seen), t.clock++;
    }
    for (int lane = 0; lane < lanes; lane++)
        if (alive >> lane & 1) threads[first + lane].state = READY;
    launch->warp_syncs++;
    return true;
}

[[noreturn]] void deadlock() {
    Thread *waiting = nullptr, *done = nullptr, *warp = nullptr;
    for (Thread* t = threads; t != threads + thread_count; t++) {
        if (t->state == DONE) done = done ? done : t;
        else if (t->mask) warp = warp ? warp : t;
        else waiting = waiting ? waiting : t;
    }
    current = warp ? warp : waiting;
    if (!warp)
        fail("%s, line %d: a divergent barrier: waits at %s, but %s has ended without reaching it", here().text,
             waiting->line, waiting->what, name(*done).text);
    for (int lane = 0; lane < 32; lane++) {
        const Thread& t = threads[warp->warp * 32 + lane];
        if (!(warp->mask >> lane & 1) || t.state == DONE || (t.what == warp->what && t.mask == warp->mask)) continue;
        fail("%s, line %d: waits at %s for every lane of its mask %#x, but lane %d waits at %s on line %d", here().text,
             warp->line, warp->what, warp->mask, lane, t.what, t.line);
    }
    fail("%s, line %d: waits at %s for ever", here().text, warp->line, warp->what);
}

uint64_t random_state;
uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return uint32_t(random_state >> 33) % n;
}

void arrange(std::vector<uint32_t>& order) {
    const uint32_t n = uint32_t(order.size());
    for (uint32_t i = 0; i < n; i++) order[i] = launch->order == 1 ? n - 1 - i : i;
    if (launch->order == 2)
        for (uint32_t i = n; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
}

void run_block() {
    for (int i = 0; i < thread_count; i++) {
        Thread& t = threads[i];
        const uint32_t x = launch->block[0], y = launch->block[1];
        t.index = Idx{i % x, i / x % y, i / (x * y)};
        t.number = block_number * thread_count + i + 1;
        t.warp = i / 32, t.lane = i % 32, t.state = READY, t.mask = 0;
        t.clock = 1, t.last_barrier = 0, t.steps = 0;
        memset(t.seen, 0, sizeof t.seen);
    }
    for (Region* r = launch->regions; r != launch->regions + launch->region_count; r++)
        if (r->written) {
            memset(r->written, 0, r->end - r->begin);
            memset((void*)r->begin, 0xA5, r->end - r->begin);  // poison: a value that shows, should a check be missed
        }
    std::vector<uint32_t> order(thread_count);
    for (;;) {
        arrange(order);
        int left = 0, at_barrier = 0;
        for (uint32_t i : order) {
            Thread& t = threads[i];
            if (t.state == READY) run(t);
            left += t.state != DONE;
        }
        if (!left) return;
        bool progress = false;
        for (int i = 0; i < thread_count; i++) {
            Thread& t = threads[i];
            if (t.state == WAITING && t.mask && release_warp(t)) progress = true;
            at_barrier += t.state == WAITING && !t.mask;
        }
        if (at_barrier == thread_count) release_barrier(), progress = true;
        if (!progress) deadlock();
    }
}

}  // namespace

// ---- what the kernel's language calls (cuda_cpu.h) ----

Idx thread_index() { return current->index; }
Idx block_position() { return block_index; }
Idx block_size() { return Idx{launch->block[0], launch->block[1], launch->block[2]}; }
Idx grid_size() { return Idx{launch->grid[0], launch->grid[1], launch->grid[2]}; }
void* dynamic_shared() { return (void*)launch->dynamic; }
int lane() { return current->lane; }

void note(const void* address, uint32_t size, int kind, const void* instruction) {
    access(uint64_t(address), size, kind, instruction);
}

const Thread& meet(const char* what, int line, uint32_t mask, uint64_t value, bool orders_memory) {
    Thread& t = *current;
    t.what = what, t.line = line, t.mask = mask, t.value = value, t.orders_memory = orders_memory;
    if (strcmp(what, "__syncthreads()") && !(mask >> t.lane & 1))
        fail("%s, line %d: the mask %#x of %s leaves out the calling lane %d", here().text, line, mask, what, t.lane);
    if (launch->steps) trace(SYNC, -1, uint64_t(what), 0, line);
    t.state = WAITING;
    if (!_setjmp(t.resume)) _longjmp(scheduler, 1);
    return t;
}

uint64_t from_lane(const Thread& t, int source) {
    if (!(t.present >> source & 1)) {
        const bool ended = t.mask >> source & 1;
        fail("%s, line %d: %s reads lane %d, which %s", here().text, t.line, t.what, source,
             ended ? "has ended" : "is not in the mask");
    }
    return t.snapshot[source];
}

void refuse(const char* text, int line) { fail("%s, line %d: %s", here().text, line, text); }

}  // namespace cuda

// ---- what Python calls ----

extern "C" {

void* cuda_static_shared(uint64_t* size) {
    *size = &__start_cuda_shared ? uint64_t(&__stop_cuda_shared - &__start_cuda_shared) : 0;
    return &__start_cuda_shared;
}

int cuda_launch(cuda::Launch* given, void (*kernel)(void**)) {
    using namespace cuda;
    launch = given, entry = kernel, pending = nullptr;
    if (!stacks) {
        stacks = (char*)mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stacks == MAP_FAILED) {
            stacks = nullptr;
            snprintf(launch->message, sizeof launch->message, "no memory for the threads' stacks");
            return 1;
        }
    }
    thread_count = launch->block[0] * launch->block[1] * launch->block[2];
    for (int i = 0; i < thread_count; i++) threads[i].stack = stacks + STACK * i, threads[i].started = false;
    random_state = launch->seed * 2 + 0x9E3779B97F4A7C15ull;
#if defined(__x86_64__)
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);  // flush subnormal results and operands to zero, as CuPy's -ftz=true does
#elif defined(__aarch64__)
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    asm volatile("msr fpcr, %0" : : "r"(mode | 1ull << 24));
#endif
    if (_setjmp(abandoned) == 0) {
        const uint32_t x = launch->grid[0], y = launch->grid[1];
        std::vector<uint32_t> order(size_t(x) * y * launch->grid[2]);
        arrange(order);
        for (uint32_t b : order) {
            block_number = b, block_index = Idx{b % x, b / x % y, b / (x * y)};
            run_block();
        }
    }
    current = nullptr;
#if defined(__x86_64__)
    _mm_setcsr(mode);
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" : : "r"(mode));
#endif
    return launch->message[0] != 0;
}

}
