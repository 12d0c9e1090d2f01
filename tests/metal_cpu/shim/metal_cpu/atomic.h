// atomic<T> and its explicit functions.  Lanes run one at a time, so plain operations are atomic;
// the runtime is told of each, and lets atomics race with each other but not with plain accesses.
#pragma once
#include "matrix.h"

namespace metal {
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release,
                    memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup,
                    thread_scope_device };

template <class T>
struct atomic {
  typedef T value_type;
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

namespace mtl {
template <class T, class Op>
MTL_HIDDEN T update(atomic<T> *a, T x, Op op) {
  mtl_atomic(a, sizeof(T), 1);
  T old = a->value;
  a->value = op(old, x);
  return old;
}
}  // namespace mtl

template <class T>
MTL_HIDDEN T atomic_load_explicit(const atomic<T> *a, memory_order) {
  mtl_atomic(a, sizeof(T), 0);
  return a->value;
}
#define MTL_ATOMIC(name, result, expression)                                              \
  template <class T, class U>                                                             \
  METAL_FUNC result atomic_##name##_explicit(atomic<T> *a, U x, memory_order) {           \
    return result(mtl::update(a, T(x), [](T old, T y) { (void)old; return T(expression); })); \
  }
MTL_ATOMIC(store, void, y)
MTL_ATOMIC(exchange, T, y)
MTL_ATOMIC(fetch_add, T, old + y)
MTL_ATOMIC(fetch_sub, T, old - y)
MTL_ATOMIC(fetch_min, T, old < y ? old : y)
MTL_ATOMIC(fetch_max, T, old < y ? y : old)
MTL_ATOMIC(fetch_and, T, old & y)
MTL_ATOMIC(fetch_or, T, old | y)
MTL_ATOMIC(fetch_xor, T, old ^ y)
#undef MTL_ATOMIC
template <class T, class U>
MTL_HIDDEN bool atomic_compare_exchange_weak_explicit(atomic<T> *a, T *expected, U desired,
                                                      memory_order, memory_order) {
  mtl_atomic(a, sizeof(T), 1);
  if (__builtin_memcmp(&a->value, expected, sizeof(T)) == 0) {
    a->value = T(desired);
    return true;
  }
  *expected = a->value;
  return false;
}
METAL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
}  // namespace metal
