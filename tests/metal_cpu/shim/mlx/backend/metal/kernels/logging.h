// Replaces MLX's file, whose constructor and methods differ by address space alone.
#pragma once
#include "metal_cpu/all.h"

namespace mlx {
struct os_log {
  constexpr os_log(const char *, const char *) {}
  template <class... Args>
  void log_debug(const char *, Args...) const {}
  template <class... Args>
  void log_info(const char *, Args...) const {}
};
}  // namespace mlx
