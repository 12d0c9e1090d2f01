// What the trampoline after a kernel needs: the identity of a lane, and the kernel's parameters
// made from a list of addresses.  Mirrors runtime/abi.h.
#pragma once
#include "all.h"

struct mtl_ids {
  uint dispatch_quadgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
  uint dispatch_threads_per_threadgroup[3], grid_origin[3], grid_size[3];
  uint quadgroup_index_in_threadgroup, quadgroups_per_threadgroup;
  uint simdgroup_index_in_threadgroup, simdgroups_per_threadgroup;
  uint thread_execution_width, thread_index_in_quadgroup, thread_index_in_simdgroup;
  uint thread_index_in_threadgroup;
  uint thread_position_in_grid[3], thread_position_in_threadgroup[3];
  uint threadgroup_position_in_grid[3], threadgroups_per_grid[3], threads_per_grid[3];
  uint threads_per_simdgroup, threads_per_threadgroup[3];
};

namespace mtl_entry_of {
// The I-th parameter type of a function.
template <int I, class F>
struct parameter;
template <class A, class... Rest>
struct parameter<0, void(A, Rest...)> {
  typedef A type;
};
template <int I, class A, class... Rest>
struct parameter<I, void(A, Rest...)> : parameter<I - 1, void(Rest...)> {};

// Parameter T from the address of its buffer, or from the identity of the lane.
template <class T>
struct from {
  static T buffer(void *p) { return *static_cast<T *>(p); }
  static T id(uint x) { return T(x); }
  static T id(const uint *x) {
    if constexpr (metal::is_integral_v<T>) {
      return T(x[0]);
    } else if constexpr (metal::mtl_width<T> == 2) {
      return T(x[0], x[1]);
    } else {
      return T(x[0], x[1], x[2]);
    }
  }
};
template <class T>
struct from<T *> {
  static T *buffer(void *p) { return static_cast<T *>(p); }
};
template <class T>
struct from<const T *> {
  static const T *buffer(void *p) { return static_cast<const T *>(p); }
};
template <class T>
struct from<T &> {
  static T &buffer(void *p) { return *static_cast<T *>(p); }
};
}  // namespace mtl_entry_of

#define MTL_BUFFER(F, I, k) \
  (mtl_entry_of::from<typename mtl_entry_of::parameter<I, F>::type>::buffer(b[k]))
#define MTL_ID(F, I, name) \
  (mtl_entry_of::from<typename mtl_entry_of::parameter<I, F>::type>::id(id->name))
