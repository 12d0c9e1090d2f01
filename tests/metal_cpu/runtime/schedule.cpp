// Runs the lanes of one threadgroup after another: a ready stack, collectives and barriers.
//
// A lane runs until it needs others.  The last lane of a simdgroup to reach a collective computes
// all results and makes the simdgroup ready again.  When nobody can run, the collective with the
// lowest line completes with the lanes that are there ("divergent"), else the barrier opens.
#include <string.h>

#include <algorithm>

#include "state.h"

namespace mtl {
state S;

namespace {
enum orders { ascending, descending, shuffled };
std::vector<int> ready;  // the next lane is at the back
uint64_t random_state;

uint64_t random() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return random_state >> 33;
}

void make_ready(int first, unsigned mask) {
  bool down = S.launch->order == descending;
  for (int k = 0; k < 32; k++) {
    int i = down ? k : 31 - k;
    if (!(mask >> i & 1)) continue;
    S.lanes[first + i].state = lane_ready;
    ready.push_back(first + i);
  }
}

context *next() {
  if (ready.empty()) {
    S.now = -1;
    return &S.main;
  }
  if (S.launch->order == shuffled) std::swap(ready[random() % ready.size()], ready.back());
  S.now = ready.back();
  ready.pop_back();
  return &S.lanes[S.now].where;
}

void wait() {
  lane &me = S.lanes[S.now];
  int before = S.now;
  context *to = next();
  if (S.now != before) switch_context(&me.where, to);
}

bool same_call(const lane &a, const lane &b) {
  return a.kind == b.kind && a.line == b.line && a.fn == b.fn &&
         (a.file == b.file || strcmp(a.file, b.file) == 0);
}

mtl_issue &report_call(uint32_t kind, const lane &l, int index, unsigned mask) {
  mtl_issue &issue = report(kind, l.line, 0, 0, 0);
  if (issue.count == 1) {
    issue.pc = code_offset(l.caller - 1);
    issue.file = l.file;
    issue.line = l.line;
    issue.lane = index;
    issue.mask = mask;
  }
  return issue;
}

// Completes the collective that the lanes of `mask` wait at.
void complete(simdgroup &g, unsigned mask) {
  int one = g.first + __builtin_ctz(mask);
  lane &l = S.lanes[one];
  bool all = mask == g.live && g.live == (g.count == 32 ? ~0u : (1u << g.count) - 1);
  if (!all || (l.kind == kind_matrix && g.count < 32)) {
    report_call(issue_simd_divergence, l, one, mask);
  }
  if (l.kind == kind_simd_barrier) {
    S.launch->simd_barriers++;
    if (l.flags & flag_device) g.epoch[space_device]++;
    if (l.flags & flag_threadgroup) g.epoch[space_threadgroup]++;
  } else {
    void *in[32], *out[32];
    for (int i = 0; i < g.count; i++) {
      in[i] = const_cast<void *>(S.lanes[g.first + i].in);
      out[i] = S.lanes[g.first + i].out;
    }
    S.launch->collectives++;
    if (l.kind == kind_matrix) S.launch->matrix_products++;
    unsigned missing = l.fn(in, out, mask);
    if (missing && l.kind != kind_matrix) {
      report_call(issue_inactive_lane, l, g.first + __builtin_ctz(missing), missing);
    }
  }
  g.waiting &= ~mask;
  make_ready(g.first, mask);
}

// The lanes of g that wait at the same call as the waiting lane with the lowest line.
unsigned waiting_together(const simdgroup &g) {
  int low = -1;
  for (int i = 0; i < g.count; i++) {
    if ((g.waiting >> i & 1) && (low < 0 || S.lanes[g.first + i].line < S.lanes[low].line)) {
      low = g.first + i;
    }
  }
  unsigned mask = 0;
  for (int i = 0; i < g.count; i++) {
    if ((g.waiting >> i & 1) && same_call(S.lanes[g.first + i], S.lanes[low])) mask |= 1u << i;
  }
  return mask;
}

void complete_if_all(simdgroup &g) {
  if (g.waiting && g.waiting == g.live && waiting_together(g) == g.live) complete(g, g.live);
}

void open_barrier() {
  const lane *first = nullptr;
  unsigned flags = ~0u;
  int at = -1;
  for (size_t i = 0; i < S.lanes.size(); i++) {
    lane &l = S.lanes[i];
    if (l.state == lane_done) {
      if (at < 0) at = int(i);
      continue;
    }
    flags &= l.flags;
    if (!first) first = &l;
    if (first->line != l.line) at = int(i);
  }
  if (at >= 0) report_call(issue_barrier_divergence, *first, at, 0);
  S.launch->barriers++;
  if (flags & flag_device) S.epoch[space_device]++;
  if (flags & flag_threadgroup) S.epoch[space_threadgroup]++;
  S.at_barrier = 0;
  bool down = S.launch->order == descending;
  for (size_t k = 0; k < S.simds.size(); k++) {
    auto &g = S.simds[down ? k : S.simds.size() - 1 - k];
    make_ready(g.first, g.live);
  }
}

void open_if_all() {
  if (S.at_barrier && S.at_barrier == S.live) open_barrier();
}

// Nobody can run: some lanes wait for others that will not come.
void resolve() {
  for (auto &g : S.simds) {
    if (g.waiting) return complete(g, waiting_together(g));
  }
  open_barrier();
}

void start() {
  lane &me = S.lanes[S.now];
  S.launch->entry(S.parameters.data(), me.ids);
  auto &g = S.simds[S.now / 32];
  me.state = lane_done;
  g.live &= ~(1u << S.now % 32);
  S.live--;
  complete_if_all(g);
  open_if_all();
  context unused;
  switch_context(&unused, next());
  __builtin_unreachable();
}

void collective(int kind, mtl_combine fn, const void *in, void *out, const char *file,
                unsigned line, uintptr_t caller) {
  lane &me = S.lanes[S.now];
  me.kind = kind;
  me.fn = fn;
  me.in = in;
  me.out = out;
  me.file = file;
  me.line = line;
  me.caller = S.last = caller;
  me.state = lane_collective;
  auto &g = S.simds[S.now / 32];
  g.waiting |= 1u << S.now % 32;
  if (g.waiting == g.live) complete_if_all(g);
  wait();
}

struct shape {
  uint32_t groups[3], size[3], at[3];
  int count;
};

shape shape_of(uint32_t linear) {
  auto &L = *S.launch;
  shape s;
  for (int d = 0; d < 3; d++) s.groups[d] = (L.grid[d] + L.group[d] - 1) / L.group[d];
  s.at[0] = linear % s.groups[0];
  s.at[1] = linear / s.groups[0] % s.groups[1];
  s.at[2] = linear / s.groups[0] / s.groups[1];
  s.count = 1;
  for (int d = 0; d < 3; d++) {
    s.size[d] = std::min(L.group[d], L.grid[d] - s.at[d] * L.group[d]);
    s.count *= int(s.size[d]);
  }
  return s;
}

void identify(const shape &s, int i, mtl_ids &id) {
  auto &L = *S.launch;
  memset(&id, 0, sizeof id);
  uint32_t nominal = L.group[0] * L.group[1] * L.group[2];
  uint32_t in[3] = {i % s.size[0], i / s.size[0] % s.size[1], i / s.size[0] / s.size[1]};
  id.dispatch_quadgroups_per_threadgroup = (nominal + 3) / 4;
  id.dispatch_simdgroups_per_threadgroup = (nominal + 31) / 32;
  id.quadgroups_per_threadgroup = (s.count + 3) / 4;
  id.simdgroups_per_threadgroup = (s.count + 31) / 32;
  id.quadgroup_index_in_threadgroup = i / 4;
  id.simdgroup_index_in_threadgroup = i / 32;
  id.thread_index_in_quadgroup = i % 4;
  id.thread_index_in_simdgroup = i % 32;
  id.thread_index_in_threadgroup = i;
  id.thread_execution_width = id.threads_per_simdgroup = 32;
  for (int d = 0; d < 3; d++) {
    id.dispatch_threads_per_threadgroup[d] = L.group[d];
    id.grid_size[d] = id.threads_per_grid[d] = L.grid[d];
    id.threads_per_threadgroup[d] = s.size[d];
    id.threadgroups_per_grid[d] = s.groups[d];
    id.threadgroup_position_in_grid[d] = s.at[d];
    id.thread_position_in_threadgroup[d] = in[d];
    id.thread_position_in_grid[d] = s.at[d] * L.group[d] + in[d];
  }
}

void run_group(uint32_t linear) {
  shape s = shape_of(linear);
  S.serial = linear + 1;
  S.lanes.assign(s.count, lane{});
  S.simds.clear();
  S.live = s.count;
  S.at_barrier = 0;
  memset(S.epoch, 0, sizeof S.epoch);
  ready.clear();
  for (int i = 0; i < s.count; i += 32) {
    int n = std::min(32, s.count - i);
    S.simds.push_back({i, n, n == 32 ? ~0u : (1u << n) - 1, 0, {0, 0}});
  }
  for (int i = 0; i < s.count; i++) {
    lane &l = S.lanes[i];
    l.ids = static_cast<mtl_ids *>(top_of(i));
    identify(s, i, *l.ids);
    prepare(&l.where, i, start);
  }
  bool down = S.launch->order == descending;
  for (size_t k = 0; k < S.simds.size(); k++) {
    auto &g = S.simds[down ? k : S.simds.size() - 1 - k];
    make_ready(g.first, g.live);
  }
  while (S.live) {
    if (ready.empty()) resolve();
    switch_context(&S.main, next());
  }
  S.launch->threads += s.count;
  S.launch->groups++;
  if (S.launch->traffic) end_group_traffic();
}

void run_grid() {
  auto &L = *S.launch;
  uint32_t n = 1;
  for (int d = 0; d < 3; d++) n *= (L.grid[d] + L.group[d] - 1) / L.group[d];
  std::vector<uint32_t> groups(n);
  for (uint32_t i = 0; i < n; i++) groups[i] = L.order == descending ? n - 1 - i : i;
  if (L.order == shuffled) {
    for (uint32_t i = n; i > 1; i--) std::swap(groups[i - 1], groups[random() % i]);
  }
  for (uint32_t g : groups) run_group(g);
}
}  // namespace
}  // namespace mtl

using namespace mtl;

extern "C" {
int mtl_lane() { return S.now % 32; }

void mtl_collective(int kind, mtl_combine fn, const void *in, void *out, const char *file,
                    unsigned line) {
  collective(kind, fn, in, out, file, line,
             reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}

void mtl_simdgroup_barrier(unsigned flags, const char *file, unsigned line) {
  S.lanes[S.now].flags = flags;
  collective(kind_simd_barrier, nullptr, nullptr, nullptr, file, line,
             reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}

void mtl_threadgroup_barrier(unsigned flags, const char *file, unsigned line) {
  lane &me = S.lanes[S.now];
  me.flags = flags;
  me.file = file;
  me.line = line;
  me.caller = S.last = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  me.state = lane_barrier;
  S.at_barrier++;
  open_if_all();
  wait();
}

int mtl_run(mtl_launch *launch) {
  S.launch = launch;
  S.now = -1;
  S.last = 0;
  random_state = launch->seed * 2 + 1;
  make_region();
  begin_arena();
  begin_check();
  if (launch->traffic) begin_traffic();
  launch->status = guarded(run_grid);
  S.now = -1;
  if (launch->status != 2) finish_region();
  end_check();
  return int(launch->status);
}
}
