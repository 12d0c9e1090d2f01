// SIMD-group and quad-group functions, barriers.
//
// Every call is a collective: a lane waits until all live lanes of its simdgroup are at the same
// call (file and line), then one combine function computes every lane's result.  Reductions add
// in the order of the ascending xor butterfly (1, 2, 4, 8, 16), which current GPUs use.
#pragma once
#include "math.h"

namespace metal {
enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16,
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

METAL_FUNC void threadgroup_barrier(mem_flags flags, MTL_SITE) {
  mtl_threadgroup_barrier(uint(flags), MTL_AT);
}
METAL_FUNC void simdgroup_barrier(mem_flags flags, MTL_SITE) {
  mtl_simdgroup_barrier(uint(flags), MTL_AT);
}

namespace mtl {
template <class T>
METAL_FUNC T run(mtl_kind kind, mtl_combine fn, T x, MTL_SITE) {
  T result = x;
  mtl_collective(kind, fn, &x, &result, MTL_AT);
  return result;
}

template <class T>
struct add {
  static T of(T x, T y) { return T(x + y); }
};
template <class T>
struct mul {
  static T of(T x, T y) { return T(x * y); }
};
template <class T>
struct least {
  static T of(T x, T y) { return min(x, y); }
};
template <class T>
struct most {
  static T of(T x, T y) { return max(x, y); }
};
template <class T>
struct conj {
  static T of(T x, T y) { return x & y; }
};
template <class T>
struct disj {
  static T of(T x, T y) { return x | y; }
};
template <class T>
struct excl {
  static T of(T x, T y) { return x ^ y; }
};

// Butterfly over groups of `width` lanes; a lane that takes no part contributes nothing.
template <class T, class Op, int width>
MTL_HIDDEN unsigned reduce(void *const *in, void *const *out, unsigned active) {
  T value[32], next[32];
  bool has[32], next_has[32];
  for (int i = 0; i < 32; i++) {
    has[i] = active >> i & 1;
    if (has[i]) value[i] = *static_cast<const T *>(in[i]);
  }
  for (int d = 1; d < width; d *= 2) {
    for (int i = 0; i < 32; i++) {
      int j = i ^ d;
      next_has[i] = has[i] || has[j];
      if (has[i] && has[j]) {
        next[i] = Op::of(value[i], value[j]);
      } else if (next_has[i]) {
        next[i] = value[has[i] ? i : j];
      }
    }
    for (int i = 0; i < 32; i++) {
      has[i] = next_has[i];
      if (has[i]) value[i] = next[i];
    }
  }
  for (int i = 0; i < 32; i++) {
    if (active >> i & 1) *static_cast<T *>(out[i]) = value[i];
  }
  return 0;
}

template <class T, class Op, bool inclusive>
MTL_HIDDEN unsigned scan(void *const *in, void *const *out, unsigned active) {
  bool any = false;
  T total = T(0);
  for (int i = 0; i < 32; i++) {
    if (!(active >> i & 1)) continue;
    T x = *static_cast<const T *>(in[i]);
    T before = any ? total : Op::of(T(1), T(1)) == T(1) ? T(1) : T(0);
    total = any ? Op::of(total, x) : x;
    any = true;
    *static_cast<T *>(out[i]) = inclusive ? total : before;
  }
  return 0;
}

// What a shuffle carries: the data, the filling, and the lane to read (negative: the filling).
template <class T>
struct parcel {
  T data, filling;
  int lane;
};
template <class T>
MTL_HIDDEN unsigned deliver(void *const *in, void *const *out, unsigned active) {
  unsigned missing = 0;
  for (int i = 0; i < 32; i++) {
    if (!(active >> i & 1)) continue;
    const auto *mine = static_cast<const parcel<T> *>(in[i]);
    auto *result = static_cast<parcel<T> *>(out[i]);
    if (mine->lane < 0) {
      result->data = mine->filling;
    } else if (active >> mine->lane & 1) {
      result->data = static_cast<const parcel<T> *>(in[mine->lane])->data;
    } else {
      missing |= 1u << i;
    }
  }
  return missing;
}
template <class T>
METAL_FUNC T shuffle(T x, T filling, int lane, MTL_SITE) {
  parcel<T> p{x, filling, lane};
  return run(mtl_shuffle, deliver<T>, p, MTL_AT).data;
}
MTL_HIDDEN inline unsigned vote(void *const *in, void *const *out, unsigned active) {
  ulong bits = 0;
  for (int i = 0; i < 32; i++) {
    if (active >> i & 1) bits |= ulong(*static_cast<const ulong *>(in[i]) != 0) << i;
  }
  for (int i = 0; i < 32; i++) {
    if (active >> i & 1) *static_cast<ulong *>(out[i]) = bits;
  }
  return 0;
}
METAL_FUNC int here() { return mtl_lane(); }
}  // namespace mtl

#define MTL_REDUCE(name, Op)                                                        \
  template <class T>                                                                \
  METAL_FUNC T simd_##name(T x, MTL_SITE) {                                         \
    return mtl::run(mtl_reduce, mtl::reduce<T, mtl::Op<T>, 32>, x, MTL_AT);         \
  }                                                                                 \
  template <class T>                                                                \
  METAL_FUNC T quad_##name(T x, MTL_SITE) {                                         \
    return mtl::run(mtl_reduce, mtl::reduce<T, mtl::Op<T>, 4>, x, MTL_AT);          \
  }
MTL_REDUCE(sum, add)
MTL_REDUCE(product, mul)
MTL_REDUCE(min, least)
MTL_REDUCE(max, most)
MTL_REDUCE(and, conj)
MTL_REDUCE(or, disj)
MTL_REDUCE(xor, excl)
#undef MTL_REDUCE
#define MTL_SCAN(name, Op, inclusive)                                               \
  template <class T>                                                                \
  METAL_FUNC T simd_prefix_##name(T x, MTL_SITE) {                                  \
    return mtl::run(mtl_reduce, mtl::scan<T, mtl::Op<T>, inclusive>, x, MTL_AT);    \
  }
MTL_SCAN(inclusive_sum, add, true)
MTL_SCAN(exclusive_sum, add, false)
MTL_SCAN(inclusive_product, mul, true)
MTL_SCAN(exclusive_product, mul, false)
#undef MTL_SCAN

// WIDTH lanes work together; `at` is the source within them.  Sources past the ends: `down` and
// `up` leave the lane its own value (Metal leaves it undefined), `fill` forms take the filling.
#define MTL_SHUFFLES(prefix, WIDTH)                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle(T x, ushort lane, MTL_SITE) {                                    \
    return mtl::shuffle(x, x, (mtl::here() & ~(WIDTH - 1)) | (lane & (WIDTH - 1)), MTL_AT);      \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_broadcast(T x, ushort lane, MTL_SITE) {                                  \
    return prefix##_shuffle(x, lane, MTL_AT);                                                    \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_xor(T x, ushort mask, MTL_SITE) {                                \
    return prefix##_shuffle(x, ushort(mtl::here() ^ mask), MTL_AT);                              \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_and_fill_down(T x, T filling, ushort delta, MTL_SITE) {          \
    int at = (mtl::here() & (WIDTH - 1)) + delta;                                                \
    return mtl::shuffle(x, filling, at < WIDTH ? mtl::here() + delta : -1, MTL_AT);              \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_and_fill_up(T x, T filling, ushort delta, MTL_SITE) {            \
    int at = (mtl::here() & (WIDTH - 1)) - delta;                                                \
    return mtl::shuffle(x, filling, at >= 0 ? mtl::here() - delta : -1, MTL_AT);                 \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_down(T x, ushort delta, MTL_SITE) {                              \
    return prefix##_shuffle_and_fill_down(x, x, delta, MTL_AT);                                  \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_up(T x, ushort delta, MTL_SITE) {                                \
    return prefix##_shuffle_and_fill_up(x, x, delta, MTL_AT);                                    \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_rotate_down(T x, ushort delta, MTL_SITE) {                       \
    return prefix##_shuffle(x, ushort(mtl::here() + delta), MTL_AT);                             \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T prefix##_shuffle_rotate_up(T x, ushort delta, MTL_SITE) {                         \
    return prefix##_shuffle(x, ushort(mtl::here() - delta), MTL_AT);                             \
  }
MTL_SHUFFLES(simd, 32)
MTL_SHUFFLES(quad, 4)
#undef MTL_SHUFFLES

struct simd_vote {
  ulong bits;
  typedef ulong vote_t;
  explicit constexpr operator vote_t() const { return bits; }
  bool all() const { return bits == 0xffffffffu; }
  bool any() const { return bits != 0; }
};
METAL_FUNC simd_vote simd_ballot(bool x, MTL_SITE) {
  return simd_vote{mtl::run(mtl_vote, mtl::vote, ulong(x), MTL_AT)};
}
METAL_FUNC simd_vote simd_active_threads_mask(MTL_SITE) { return simd_ballot(true, MTL_AT); }
METAL_FUNC bool simd_any(bool x, MTL_SITE) { return simd_ballot(x, MTL_AT).bits != 0; }
METAL_FUNC bool simd_all(bool x, MTL_SITE) { return simd_ballot(!x, MTL_AT).bits == 0; }
METAL_FUNC bool simd_is_first(MTL_SITE) {
  return int(__builtin_ctzll(simd_ballot(true, MTL_AT).bits)) == mtl::here();
}
template <class T>
METAL_FUNC T simd_broadcast_first(T x, MTL_SITE) {
  ushort first = ushort(__builtin_ctzll(simd_ballot(true, MTL_AT).bits));
  return simd_shuffle(x, first, MTL_AT);
}
}  // namespace metal
