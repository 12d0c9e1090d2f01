// What passes between Python (launch.py mirrors these with ctypes), the runtime and a kernel.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {
struct mtl_ids {  // as in shim/metal_cpu/entry.h
  uint32_t dispatch_quadgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
  uint32_t dispatch_threads_per_threadgroup[3], grid_origin[3], grid_size[3];
  uint32_t quadgroup_index_in_threadgroup, quadgroups_per_threadgroup;
  uint32_t simdgroup_index_in_threadgroup, simdgroups_per_threadgroup;
  uint32_t thread_execution_width, thread_index_in_quadgroup, thread_index_in_simdgroup;
  uint32_t thread_index_in_threadgroup;
  uint32_t thread_position_in_grid[3], thread_position_in_threadgroup[3];
  uint32_t threadgroup_position_in_grid[3], threadgroups_per_grid[3], threads_per_grid[3];
  uint32_t threads_per_simdgroup, threads_per_threadgroup[3];
};

typedef void (*mtl_entry)(void *const *buffers, const mtl_ids *ids);
typedef unsigned (*mtl_combine)(void *const *in, void *const *out, unsigned active);

struct mtl_counts {  // of one buffer in one direction; `traffic` fills them
  uint64_t lane_bytes;      // bytes that lanes asked for
  uint64_t simd_bytes;      // different bytes per request of a simdgroup, summed
  uint64_t request_lines;   // 64-byte lines per request, summed
  uint64_t group_lines;     // different lines per threadgroup, summed
  uint64_t grid_lines;      // different lines in all
};

struct mtl_buffer {
  const char *name;
  void *data;          // host memory: read before, and written after for outputs
  uint64_t size;       // bytes
  uint32_t itemsize;   // bytes
  uint32_t role;       // 0 input, 1 output
  uint32_t filled;     // 1: the contents of `data` are the initial contents
  uint32_t modified;   // result: an input that the kernel wrote to
  uint64_t unwritten;  // result: bytes of an output that nobody wrote (checked builds)
  uint64_t first_unwritten;
  mtl_counts read, write;
};

enum mtl_issue_kind : uint32_t {
  issue_out_of_bounds, issue_write_input, issue_uninitialised, issue_race,
  issue_same_address, issue_barrier_divergence, issue_simd_divergence, issue_inactive_lane,
  issue_threadgroup_limit, issue_trap, issue_timeout, issue_red_zone,
  issue_misaligned,
};

struct mtl_issue {
  uint32_t kind, buffer;    // buffer: index; threadgroup memory has bit 31 set
  int64_t offset;           // bytes from the start of the buffer
  uint64_t pc, other_pc;    // offsets in the kernel's library, 0 if unknown
  uint32_t size, write;     // of the access
  uint32_t lane, other_lane, group, other_group;
  uint32_t mask, line;      // lanes that took part; line of the call, 0 if pc tells it
  const char *file;
  uint64_t count;
};

struct mtl_launch {
  mtl_entry entry;
  mtl_buffer *buffers;
  uint32_t n_buffers, order, checked, traffic;
  uint64_t seed;
  double timeout;           // seconds of processor time
  uint32_t grid[3], group[3];
  uint32_t granule;         // bytes per cell of the shadow memory
  uint32_t status;          // 0 done, 1 stopped, 2 asks for a smaller granule
  uint64_t threads, groups, barriers, simd_barriers, collectives, matrix_products;
  uint64_t threadgroup_bytes, tg_read_bytes, tg_write_bytes, tg_requests, tg_cycles;
  mtl_issue *issues;
  uint32_t n_issues, n_arrays;
  const char *const *array_names;
};

int mtl_run(mtl_launch *);
}
