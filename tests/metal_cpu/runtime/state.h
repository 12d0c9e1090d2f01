// The state of the one launch that runs at a time, shared by the files of the runtime.
#pragma once
#include <string>
#include <vector>

#include "abi.h"
#include "fiber.h"

namespace mtl {
enum spaces { space_device, space_threadgroup, n_spaces };
enum lane_state { lane_ready, lane_collective, lane_barrier, lane_done };
constexpr unsigned flag_device = 1, flag_threadgroup = 2;
constexpr int kind_matrix = 2, kind_simd_barrier = 100;

struct lane {
  context where;
  lane_state state;
  int kind;
  mtl_combine fn;
  const void *in;
  void *out;
  const char *file;
  unsigned line, flags;
  uintptr_t caller;
  mtl_ids *ids;
};

struct simdgroup {
  int first, count;
  unsigned live, waiting;        // bit per lane
  uint32_t epoch[n_spaces];      // simdgroup barriers so far, by the memory they fence
};

// A threadgroup array, in the arena.
struct array {
  const void *id;
  std::string name;
  size_t offset, size;
  uint32_t serial;               // threadgroup that has declared it last
};

struct state {
  mtl_launch *launch;
  std::vector<lane> lanes;
  std::vector<simdgroup> simds;
  int now;                       // running lane, -1 outside
  int live, at_barrier;
  uint32_t serial;               // running threadgroup + 1
  uint32_t epoch[n_spaces];      // threadgroup barriers so far, by the memory they fence
  context main;
  std::vector<char *> places;    // of the buffers, in the region
  std::vector<void *> parameters;
  std::vector<array> arrays;
  uintptr_t last;                // where the kernel called the runtime last
  uintptr_t code_low, code_high; // the kernel's library
};
extern state S;

// memory.cpp
void make_region();
bool region_contains(uintptr_t a);
int nearest_buffer(uintptr_t a);
void finish_region();
char *arena();
size_t arena_used();
constexpr size_t arena_size = 1 << 20, arena_gap = 256;
int nearest_array(uintptr_t a);
void begin_arena();

// check.cpp
void begin_check();
void end_check();
mtl_issue &report(uint32_t kind, uint64_t pc, uint32_t buffer, int64_t offset, uint32_t other);
uint64_t code_offset(uintptr_t pc);
extern bool watching;            // accesses are looked at

// traffic.cpp
void begin_traffic();
void log_access(bool threadgroup, int buffer, size_t offset, size_t size, bool write, uint32_t pc);
void end_group_traffic();

// trap.cpp
int guarded(void (*run)());
[[noreturn]] void leave(int status);
}  // namespace mtl
