// Fibers: one stack per lane, and a switch that saves the registers a called function must keep.
//
// Stacks live in one reservation with a guard page between them; their tops are staggered so that
// the lanes of a simdgroup do not compete for the same cache sets.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace mtl {
constexpr int max_lanes = 1024;
constexpr size_t stack_size = 256 * 1024, stack_guard = 16 * 1024;

#if defined(__x86_64__) || defined(__aarch64__)
typedef void *context;
#else
typedef ucontext_t context;
#endif

// Saves the present context in `from` and continues `to`.
void switch_context(context *from, context *to);
// Prepares lane `i` to start in `start` when first switched to.
void prepare(context *c, int lane, void (*start)());
// The reservation of all stacks; made once.
char *stacks();
constexpr size_t stacks_size = max_lanes * stack_size;
// Room for `size` bytes at the top of a lane's stack, above what the fiber uses.
void *top_of(int lane);
constexpr size_t top_room = 1024;
}  // namespace mtl
