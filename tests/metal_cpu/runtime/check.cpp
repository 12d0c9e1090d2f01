// Looks at every memory access of a kernel built with ThreadSanitizer's instrumentation.
//
// The compiler calls __tsan_read4(address) and the like; we define those instead of linking the
// sanitizer.  An access to a lane's own stack is ignored; one to a buffer or a threadgroup array
// is checked; anything else near them is out of bounds.
//
// Races are found exactly, not by chance: each cell remembers its last writer and readers with
// the counts of barriers at that time.  Two accesses are ordered if one thread made both, if a
// threadgroup barrier that fences this memory lies between, or a simdgroup barrier within one
// simdgroup.  Different threadgroups are never ordered.
#include <dlfcn.h>
#ifdef __linux__
#include <link.h>
#endif
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "state.h"

namespace mtl {
bool watching;

namespace {
enum reader_kind : uint8_t { one_lane, one_simdgroup, one_group, many_groups };

struct mark {
  uint32_t serial;  // threadgroup + 1, 0: never
  uint16_t lane;
  bool atomic;
  reader_kind who;
  uint32_t epoch, simd_epoch, pc;
};
struct cell {
  mark write, read;
};

struct shadow {
  cell *cells = nullptr;
  size_t bytes = 0;
  void make(size_t n) {
    drop();
    bytes = std::max<size_t>(n, 1) * sizeof(cell);
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cells = p == MAP_FAILED ? nullptr : static_cast<cell *>(p);
  }
  void drop() {
    if (cells) munmap(cells, bytes);
    cells = nullptr;
  }
};

std::vector<shadow> outputs;
shadow arena_cells;
std::vector<mtl_issue> issues;
std::vector<const char *> array_names;
uintptr_t stacks_low;
int recent;

struct place {
  bool threadgroup;
  int index;
  size_t offset;
  uint32_t id() const { return threadgroup ? 1u << 31 | uint32_t(index) : uint32_t(index); }
};

bool ordered(const mark &m, const place &p) {
  if (!m.serial) return true;
  if (m.serial != S.serial) return p.threadgroup;
  if (m.who == many_groups) return false;
  if (m.who == one_lane && m.lane == S.now) return true;
  int space = p.threadgroup ? space_threadgroup : space_device;
  if (m.epoch != S.epoch[space]) return true;
  if (m.who == one_group) return false;
  return m.lane / 32 == S.now / 32 && m.simd_epoch != S.simds[S.now / 32].epoch[space];
}

mark here(const place &p, bool atomic, uint32_t pc) {
  int space = p.threadgroup ? space_threadgroup : space_device;
  return {S.serial, uint16_t(S.now), atomic,        one_lane, S.epoch[space],
          S.simds[S.now / 32].epoch[space], pc};
}

void conflict(uint32_t kind, const place &p, size_t offset, size_t size, bool write, uint32_t pc,
              const mark &m) {
  auto &issue = report(kind, pc, p.id(), int64_t(offset), m.pc);
  if (issue.count > 1) return;
  issue.size = uint32_t(size);
  issue.write = write;
  issue.other_lane = m.who == one_lane ? m.lane : ~0u;
  issue.other_group = m.serial - 1;
}

// Readers that later accesses must still be ordered with; older ones are implied by these.
void note_reader(mark &old, const mark &now) {
  if (old.serial && old.serial != now.serial) {
    old.who = many_groups;
  } else if (!old.serial || (old.who != many_groups && old.epoch < now.epoch)) {
    old = now;
  } else if (old.who >= one_group) {
    return;
  } else if (old.lane / 32 != now.lane / 32) {
    old.who = one_group;
  } else if (old.simd_epoch < now.simd_epoch || (old.who == one_lane && old.lane == now.lane)) {
    old = now;
  } else {
    old.who = one_simdgroup;
  }
}

void check_cell(cell &c, const place &p, size_t offset, size_t size, bool write, bool atomic,
                bool filled, uint32_t pc) {
  if (p.threadgroup && c.write.serial != S.serial) c.write.serial = 0;
  if (p.threadgroup && c.read.serial != S.serial) c.read.serial = 0;
  mark now = here(p, atomic, pc);
  if (!ordered(c.write, p) && !(atomic && c.write.atomic)) {
    bool same = write && c.write.pc == pc && c.write.serial == S.serial &&
                c.write.lane / 32 == S.now / 32;
    conflict(same ? issue_same_address : issue_race, p, offset, size, write, pc, c.write);
  }
  if (write) {
    if (!ordered(c.read, p) && !(atomic && c.read.atomic)) {
      conflict(issue_race, p, offset, size, write, pc, c.read);
    }
    c.write = now;
    c.read.serial = 0;
  } else {
    if (!c.write.serial && !filled) {
      conflict(issue_uninitialised, p, offset, size, write, pc, now);
    }
    note_reader(c.read, now);
  }
}

// Finds the buffer or array that holds the address, or reports and returns false.
bool find(uintptr_t a, size_t size, bool write, uint32_t pc, place &p) {
  uintptr_t low = reinterpret_cast<uintptr_t>(arena());
  if (a - low < arena_size) {
    int i = nearest_array(a);
    p = {true, std::max(i, 0), 0};
    if (i >= 0) p.offset = a - low - S.arrays[i].offset;
    if (i >= 0 && p.offset < S.arrays[i].size && p.offset + size <= S.arrays[i].size) return true;
  } else {
    auto inside = [&](int i) {
      return a - reinterpret_cast<uintptr_t>(S.places[i]) < S.launch->buffers[i].size;
    };
    if (recent >= int(S.places.size()) || !inside(recent)) recent = nearest_buffer(a);
    p = {false, recent, a - reinterpret_cast<uintptr_t>(S.places[recent])};
    if (inside(recent) && p.offset + size <= S.launch->buffers[recent].size) return true;
  }
  auto &issue = report(issue_out_of_bounds, pc, p.id(), int64_t(p.offset), 0);
  if (issue.count == 1) issue.size = uint32_t(size), issue.write = write;
  return false;
}

void access(const void *address, size_t size, bool write, bool atomic, uintptr_t caller) {
  auto a = reinterpret_cast<uintptr_t>(address);
  if (!watching || S.now < 0 || a - stacks_low < stacks_size) return;
  if (a - S.code_low < S.code_high - S.code_low) return;
  S.last = caller;
  auto pc = uint32_t(code_offset(caller - 1));
  place p;
  if (!find(a, size, write, pc, p)) return;
  if (S.launch->traffic) log_access(p.threadgroup, p.index, p.offset, size, write, pc);
  bool filled = false;
  cell *cells;
  size_t base = 0;
  if (p.threadgroup) {
    cells = arena_cells.cells;
    base = S.arrays[p.index].offset;
  } else {
    auto &b = S.launch->buffers[p.index];
    if (b.role == 0) {
      if (write) conflict(issue_write_input, p, p.offset, size, write, pc, here(p, false, pc));
      return;
    }
    cells = outputs[p.index].cells;
    filled = b.filled;
  }
  size_t g = S.launch->granule;
  if ((p.offset | size) & (g - 1)) leave(2);
  for (size_t at = 0; at < size; at += g) {
    cell &c = cells[(base + p.offset + at) / g];
    check_cell(c, p, p.offset + at, size, write, atomic, filled, pc);
  }
}

struct range {
  uintptr_t inside, low, high;
};

// The addresses at which the library that holds `inside` lies.
#ifdef __linux__
int visit(dl_phdr_info *info, size_t, void *data) {
  auto *r = static_cast<range *>(data);
  uintptr_t low = ~uintptr_t(0), high = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto &h = info->dlpi_phdr[i];
    if (h.p_type != PT_LOAD) continue;
    low = std::min<uintptr_t>(low, info->dlpi_addr + h.p_vaddr);
    high = std::max<uintptr_t>(high, info->dlpi_addr + h.p_vaddr + h.p_memsz);
  }
  if (r->inside < low || r->inside >= high) return 0;
  r->low = info->dlpi_addr;
  r->high = high;
  return 1;
}
range library_of(uintptr_t inside) {
  range r{inside, 0, 0};
  dl_iterate_phdr(visit, &r);
  return r;
}
#else
range library_of(uintptr_t inside) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void *>(inside), &info)) return {inside, 0, 0};
  auto low = reinterpret_cast<uintptr_t>(info.dli_fbase);
  return {inside, low, low + (1 << 24)};
}
#endif
}  // namespace

uint64_t code_offset(uintptr_t pc) {
  return pc - S.code_low < S.code_high - S.code_low ? pc - S.code_low : 0;
}

mtl_issue &report(uint32_t kind, uint64_t pc, uint32_t buffer, int64_t offset, uint32_t other) {
  for (auto &i : issues) {
    if (i.kind == kind && i.buffer == buffer && (i.line ? i.line : i.pc) == pc) {
      i.count++;
      return i;
    }
  }
  static mtl_issue overflow;
  if (issues.size() == issues.capacity()) return overflow = mtl_issue(), overflow;
  mtl_issue i = mtl_issue();
  i.kind = kind;
  i.pc = pc;
  i.buffer = buffer;
  i.offset = offset;
  i.other_pc = other;
  i.lane = uint32_t(S.now);
  i.group = S.serial - 1;
  i.count = 1;
  issues.push_back(i);
  return issues.back();
}

void begin_check() {
  issues.clear();
  issues.reserve(200);
  range code = library_of(reinterpret_cast<uintptr_t>(S.launch->entry));
  S.code_low = code.low;
  S.code_high = code.high;
  stacks_low = reinterpret_cast<uintptr_t>(stacks());
  recent = 0;
  watching = S.launch->checked;
  if (!watching) return;
  outputs.resize(S.launch->n_buffers);
  for (unsigned i = 0; i < S.launch->n_buffers; i++) {
    auto &b = S.launch->buffers[i];
    if (b.role == 1) outputs[i].make(b.size / S.launch->granule + 1);
  }
  arena_cells.make(arena_size / S.launch->granule);
}

void end_check() {
  auto &L = *S.launch;
  if (L.checked) {
    for (unsigned i = 0; i < L.n_buffers; i++) {
      auto &b = L.buffers[i];
      for (size_t at = 0; b.role == 1 && !b.filled && at < b.size; at += L.granule) {
        if (outputs[i].cells[at / L.granule].write.serial) continue;
        if (!b.unwritten) b.first_unwritten = at;
        b.unwritten += std::min<uint64_t>(L.granule, b.size - at);
      }
      outputs[i].drop();
    }
    arena_cells.drop();
  }
  array_names.clear();
  for (auto &a : S.arrays) array_names.push_back(a.name.c_str());
  L.issues = issues.data();
  L.n_issues = uint32_t(issues.size());
  L.array_names = array_names.data();
  L.n_arrays = uint32_t(array_names.size());
}
}  // namespace mtl

extern "C" {
#define MTL_CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))
void mtl_atomic(const void *address, size_t size, int writes) {
  mtl::access(address, size, writes, true, MTL_CALLER);
}
void __tsan_init() {}
#define MTL_HOOK(name, n)                                                                       \
  void __tsan_read##name(void *a) { mtl::access(a, n, false, false, MTL_CALLER); }              \
  void __tsan_write##name(void *a) { mtl::access(a, n, true, false, MTL_CALLER); }
MTL_HOOK(1, 1) MTL_HOOK(2, 2) MTL_HOOK(4, 4) MTL_HOOK(8, 8) MTL_HOOK(16, 16)
MTL_HOOK(_unaligned1, 1) MTL_HOOK(_unaligned2, 2)
#undef MTL_HOOK
#define MTL_HOOK(n)                                                                             \
  void __tsan_unaligned_read##n(void *a) { mtl::access(a, n, false, false, MTL_CALLER); }       \
  void __tsan_unaligned_write##n(void *a) { mtl::access(a, n, true, false, MTL_CALLER); }       \
  void __tsan_volatile_read##n(void *a) { mtl::access(a, n, false, false, MTL_CALLER); }        \
  void __tsan_volatile_write##n(void *a) { mtl::access(a, n, true, false, MTL_CALLER); }        \
  void __tsan_unaligned_volatile_read##n(void *a) { mtl::access(a, n, 0, 0, MTL_CALLER); }      \
  void __tsan_unaligned_volatile_write##n(void *a) { mtl::access(a, n, 1, 0, MTL_CALLER); }
MTL_HOOK(1) MTL_HOOK(2) MTL_HOOK(4) MTL_HOOK(8) MTL_HOOK(16)
#undef MTL_HOOK
void __tsan_read_range(void *a, size_t n) { mtl::access(a, n, false, false, MTL_CALLER); }
void __tsan_write_range(void *a, size_t n) { mtl::access(a, n, true, false, MTL_CALLER); }
void *__tsan_memcpy(void *to, const void *from, size_t n) {
  mtl::access(from, n, false, false, MTL_CALLER);
  mtl::access(to, n, true, false, MTL_CALLER);
  return memcpy(to, from, n);
}
void *__tsan_memset(void *to, int x, size_t n) {
  mtl::access(to, n, true, false, MTL_CALLER);
  return memset(to, x, n);
}
}
