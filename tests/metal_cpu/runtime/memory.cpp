// Device buffers in one region with red zones between them, and the arena of threadgroup memory.
//
// Red zones and fresh memory are filled with 0xff: NaN in every float type, -1 in every integer.
// The red zones are compared at the end, so even a fast build notices a write past a buffer.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "state.h"

namespace mtl {
namespace {
constexpr size_t wide = 32 * 1024, narrow = 4096;
char *region, *region_end;
size_t used;

size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
size_t zone(const mtl_buffer &b) { return b.size < 256 ? narrow : wide; }

bool intact(const char *from, const char *to) {
  for (; from < to; from++) {
    if (*from != '\xff') return false;
  }
  return true;
}
}  // namespace

void make_region() {
  auto &L = *S.launch;
  size_t total = wide;
  for (unsigned i = 0; i < L.n_buffers; i++) {
    total += round_up(L.buffers[i].size, 256) + zone(L.buffers[i]);
  }
  total = round_up(total, 1 << 16);
  if (region) munmap(region, region_end - region);
  void *p = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  region = static_cast<char *>(p);
  region_end = region + total;
  memset(region, 0xff, total);
  S.places.clear();
  char *at = region + wide;
  for (unsigned i = 0; i < L.n_buffers; i++) {
    auto &b = L.buffers[i];
    S.places.push_back(at);
    if (b.filled) memcpy(at, b.data, b.size);
    at += round_up(b.size, 256) + zone(b);
  }
  S.parameters.assign(S.places.begin(), S.places.end());
}

bool region_contains(uintptr_t a) {
  return a - reinterpret_cast<uintptr_t>(region) < size_t(region_end - region);
}

int nearest_buffer(uintptr_t a) {
  int best = 0;
  uint64_t least = ~uint64_t(0);
  for (size_t i = 0; i < S.places.size(); i++) {
    auto low = reinterpret_cast<uintptr_t>(S.places[i]), high = low + S.launch->buffers[i].size;
    uint64_t away = a < low ? low - a : a >= high ? a - high + 1 : 0;
    if (away < least) best = int(i), least = away;
  }
  return best;
}

void finish_region() {
  auto &L = *S.launch;
  const char *zone_start = region;
  for (unsigned i = 0; i <= L.n_buffers; i++) {
    const char *zone_end = i < L.n_buffers ? S.places[i] : region_end;
    if (!intact(zone_start, zone_end)) {
      report(issue_red_zone, 0, i ? i - 1 : 0, int64_t(i ? L.buffers[i - 1].size : 0), 0);
    }
    if (i == L.n_buffers) break;
    auto &b = L.buffers[i];
    zone_start = S.places[i] + b.size;
    if (b.role == 0) {
      b.modified = memcmp(S.places[i], b.data, b.size) != 0;
    } else {
      memcpy(b.data, S.places[i], b.size);
    }
  }
}

char *arena() {
  static char *base = [] {
    void *p = mmap(nullptr, arena_size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return static_cast<char *>(p);
  }();
  return base;
}

size_t arena_used() { return used; }

void begin_arena() {
  S.arrays.clear();
  used = arena_gap;
}

int nearest_array(uintptr_t a) {
  int best = -1;
  uint64_t least = ~uint64_t(0);
  for (size_t i = 0; i < S.arrays.size(); i++) {
    uintptr_t low = reinterpret_cast<uintptr_t>(arena()) + S.arrays[i].offset;
    uintptr_t high = low + S.arrays[i].size;
    uint64_t away = a < low ? low - a : a >= high ? a - high + 1 : 0;
    if (away < least) best = int(i), least = away;
  }
  return best;
}
}  // namespace mtl

// Sizes are summed over the arrays of a kernel, as the compiler of a Mac does for all that may be
// alive at once; it may do better for arrays in disjoint scopes.
extern "C" void *mtl_tg_alloc(const void *id, size_t size, size_t, const char *name) {
  using namespace mtl;
  for (auto &a : S.arrays) {
    if (a.id != id) continue;
    if (a.serial != S.serial) {
      memset(arena() + a.offset, 0xff, a.size);
      a.serial = S.serial;
    }
    return arena() + a.offset;
  }
  if (used + size + 2 * arena_gap > arena_size) leave(1);
  S.arrays.push_back({id, name, used, size, S.serial});
  memset(arena() + used - arena_gap, 0xff, size + 2 * arena_gap);
  char *place = arena() + used;
  used += round_up(size, 256) + arena_gap;
  S.launch->threadgroup_bytes += size;
  if (S.launch->threadgroup_bytes > 32768) {
    auto &issue = report(issue_threadgroup_limit, 0, 1u << 31, 0, 0);
    issue.size = uint32_t(S.launch->threadgroup_bytes);
  }
  return place;
}
