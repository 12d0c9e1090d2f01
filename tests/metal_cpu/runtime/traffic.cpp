// Counts memory traffic: what lanes ask for, what a simdgroup's requests touch, what a threadgroup
// and the whole grid touch.  64-byte lines; 32 banks of 4 bytes for threadgroup memory.
//
// A request is the k-th execution of one instruction by the lanes of one simdgroup.  Lanes run one
// after another, so accesses are logged and put together when the threadgroup ends.
#include <algorithm>
#include <unordered_map>

#include "state.h"

namespace mtl {
namespace {
constexpr size_t line = 64, log_limit = 1 << 22;

struct entry {
  uint32_t request;   // instruction and direction, numbered by first use
  uint32_t turn;      // how often this lane has executed it before
  uint32_t simd;
  int32_t buffer;     // -1: threadgroup memory
  uint64_t offset;
  uint32_t size;
  bool write;
};
struct lines {
  std::vector<uint32_t> last_group;  // per line: the threadgroup that touched it last
};

std::vector<entry> entries;
std::unordered_map<uint64_t, uint32_t> requests;
std::unordered_map<uint64_t, uint32_t> turns;
std::vector<lines> touched[2];

void touch(lines &l, mtl_counts &c, size_t offset, size_t size) {
  for (size_t k = offset / line; k <= (offset + size - 1) / line; k++) {
    uint32_t &last = l.last_group[k];
    if (!last) c.grid_lines++;
    if (last != S.serial) c.group_lines++;
    last = S.serial;
  }
}

// Different bytes and lines of one request; entries are sorted by offset.
void count_device(const entry *from, const entry *to) {
  auto &b = S.launch->buffers[from->buffer];
  auto &c = from->write ? b.write : b.read;
  uint64_t end = 0, last_line = ~uint64_t(0);
  for (; from < to; from++) {
    uint64_t high = from->offset + from->size, low = std::max(end, from->offset);
    if (high > low) c.simd_bytes += high - low;
    end = std::max(end, high);
    for (uint64_t k = from->offset / line; k <= (high - 1) / line; k++) {
      if (last_line == ~uint64_t(0) || k > last_line) c.request_lines++, last_line = k;
    }
  }
}

// A request takes as many turns as the busiest bank has different words.
void count_banks(const entry *from, const entry *to) {
  unsigned words[32] = {}, most = 0;
  uint64_t last = ~uint64_t(0);
  for (; from < to; from++) {
    for (uint64_t w = from->offset / 4; w <= (from->offset + from->size - 1) / 4; w++) {
      if (last != ~uint64_t(0) && w <= last) continue;
      last = w;
      most = std::max(most, ++words[w % 32]);
    }
  }
  S.launch->tg_requests++;
  S.launch->tg_cycles += most;
}

void put_together() {
  std::sort(entries.begin(), entries.end(), [](const entry &a, const entry &b) {
    if (a.request != b.request) return a.request < b.request;
    if (a.turn != b.turn) return a.turn < b.turn;
    if (a.simd != b.simd) return a.simd < b.simd;
    if (a.buffer != b.buffer) return a.buffer < b.buffer;
    return a.offset < b.offset;
  });
  const entry *e = entries.data(), *end = e + entries.size();
  while (e < end) {
    const entry *to = e;
    while (to < end && to->request == e->request && to->turn == e->turn && to->simd == e->simd &&
           to->buffer == e->buffer) {
      to++;
    }
    e->buffer < 0 ? count_banks(e, to) : count_device(e, to);
    e = to;
  }
  entries.clear();
}
}  // namespace

void begin_traffic() {
  entries.clear();
  requests.clear();
  turns.clear();
  for (auto &t : touched) {
    t.assign(S.launch->n_buffers, lines());
    for (unsigned i = 0; i < S.launch->n_buffers; i++) {
      t[i].last_group.assign(S.launch->buffers[i].size / line + 1, 0);
    }
  }
}

void log_access(bool threadgroup, int buffer, size_t offset, size_t size, bool write, uint32_t pc) {
  if (threadgroup) {
    (write ? S.launch->tg_write_bytes : S.launch->tg_read_bytes) += size;
    offset += S.arrays[buffer].offset;
    buffer = -1;
  } else {
    auto &b = S.launch->buffers[buffer];
    auto &c = write ? b.write : b.read;
    c.lane_bytes += size;
    touch(touched[write][buffer], c, offset, size);
  }
  uint64_t key = uint64_t(pc) << 1 | write;
  uint32_t request = requests.emplace(key, uint32_t(requests.size())).first->second;
  uint32_t turn = turns[uint64_t(request) << 16 | uint32_t(S.now)]++;
  entries.push_back({request, turn, uint32_t(S.now / 32), buffer, offset, uint32_t(size), write});
  if (entries.size() >= log_limit) put_together();
}

void end_group_traffic() {
  put_together();
  turns.clear();
}
}  // namespace mtl
