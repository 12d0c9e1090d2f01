// What the compiler's own checks call: array bounds, shifts, division by zero, alignment.
//
// Kernels are built with -fsanitize=bounds,... but without the sanitizer's library; these are the
// entry points it would have.  Each is told the place in the source.
#include "state.h"

namespace {
struct place {  // starts every record of the sanitizer
  const char *file;
  uint32_t line, column;
};
enum causes : uint32_t { array_bounds = 1001, shift, division, alignment };

void fault(uint32_t kind, const void *record, causes cause, uint64_t value, void *caller) {
  auto *at = static_cast<const place *>(record);
  auto &issue = mtl::report(kind, at->line, cause, int64_t(value), 0);
  if (issue.count > 1) return;
  issue.pc = mtl::code_offset(reinterpret_cast<uintptr_t>(caller) - 1);
  issue.file = at->file;
  issue.line = at->line;
  issue.size = cause;
}
}  // namespace

// The sanitizer calls either form of each, by its options.
#define MTL_STOPS(name, parameters, cause, value)                                    \
  void __ubsan_handle_##name parameters {                                            \
    fault(issue_trap, record, cause, value, __builtin_return_address(0));            \
    mtl::leave(1);                                                                   \
  }                                                                                  \
  void __ubsan_handle_##name##_abort parameters {                                    \
    fault(issue_trap, record, cause, value, __builtin_return_address(0));            \
    mtl::leave(1);                                                                   \
  }
extern "C" {
MTL_STOPS(out_of_bounds, (void *record, uint64_t index), array_bounds, index)
MTL_STOPS(shift_out_of_bounds, (void *record, uint64_t, uint64_t by), shift, by)
MTL_STOPS(divrem_overflow, (void *record, uint64_t x, uint64_t), division, x)
void __ubsan_handle_type_mismatch_v1(void *record, uint64_t address) {
  fault(issue_misaligned, record, alignment, address, __builtin_return_address(0));
}
void __ubsan_handle_type_mismatch_v1_abort(void *record, uint64_t address) {
  fault(issue_misaligned, record, alignment, address, __builtin_return_address(0));
}
}
