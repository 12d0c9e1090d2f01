// simdgroup_matrix<T, 8, 8>: two elements per lane, in the layout that Apple's GPUs use and MLX's
// kernels hard-code.  Lane l holds row (l/4 & 4) + (l/2 % 4), columns (l/4 & 2)*2 + (l%2)*2 and the
// next.  A product is one collective, accumulated in float by fma in the order of k, then rounded.
#pragma once
#include "simd.h"

namespace metal {
namespace mtl {
METAL_FUNC constexpr int row(int lane) { return (lane / 4 & 4) + (lane / 2) % 4; }
METAL_FUNC constexpr int col(int lane) { return (lane / 4 & 2) * 2 + (lane % 2) * 2; }

template <class A, class B, class C>
struct operands {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
};

template <class D, class A, class B, class C>
MTL_HIDDEN unsigned multiply(void *const *in, void *const *out, unsigned active) {
  float a[8][8] = {}, b[8][8] = {}, c[8][8] = {};
  for (int l = 0; l < 32; l++) {
    if (!(active >> l & 1)) continue;
    const auto *x = static_cast<const operands<A, B, C> *>(in[l]);
    for (int e = 0; e < 2; e++) {
      a[row(l)][col(l) + e] = float(x->a[e]);
      b[row(l)][col(l) + e] = float(x->b[e]);
      c[row(l)][col(l) + e] = float(x->c[e]);
    }
  }
  for (int i = 0; i < 8; i++) {
    for (int k = 0; k < 8; k++) {
      for (int j = 0; j < 8; j++) c[i][j] = __builtin_fmaf(a[i][k], b[k][j], c[i][j]);
    }
  }
  for (int l = 0; l < 32; l++) {
    if (!(active >> l & 1)) continue;
    auto *y = static_cast<vec<D, 2> *>(out[l]);
    for (int e = 0; e < 2; e++) (*y)[e] = D(c[row(l)][col(l) + e]);
  }
  return ~active;
}
}  // namespace mtl

template <class T, int R, int C = R>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "simdgroup_matrix is 8 x 8");
  typedef vec<T, 2> storage_type;
  storage_type elements;

  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T x) {  // a diagonal matrix
    int l = mtl::here();
    for (int e = 0; e < 2; e++) elements[e] = mtl::row(l) == mtl::col(l) + e ? x : T(0);
  }
  storage_type &thread_elements() { return elements; }
  const storage_type &thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C = R>
METAL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T x) {
  simdgroup_matrix<T, R, C> m;
  m.elements = vec<T, 2>(x);
  return m;
}

// Loads and stores are plain accesses of each lane, so they count in traffic and races.
template <class T>
METAL_FUNC void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const T *from, ulong stride = 8,
                               ulong2 origin = ulong2(0, 0), bool transpose = false) {
  int l = mtl::here();
  for (int e = 0; e < 2; e++) {
    ulong r = mtl::row(l), c = mtl::col(l) + e;
    m.elements[e] = transpose ? from[(c + origin.y) * stride + r + origin.x]
                              : from[(r + origin.y) * stride + c + origin.x];
  }
}
template <class T>
METAL_FUNC void simdgroup_store(const simdgroup_matrix<T, 8, 8> &m, T *to, ulong stride = 8,
                                ulong2 origin = ulong2(0, 0), bool transpose = false) {
  int l = mtl::here();
  for (int e = 0; e < 2; e++) {
    ulong r = mtl::row(l), c = mtl::col(l) + e;
    if (transpose) {
      to[(c + origin.y) * stride + r + origin.x] = m.elements[e];
    } else {
      to[(r + origin.y) * stride + c + origin.x] = m.elements[e];
    }
  }
}

template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d,
                                              const simdgroup_matrix<A, 8, 8> &a,
                                              const simdgroup_matrix<B, 8, 8> &b,
                                              const simdgroup_matrix<C, 8, 8> &c, MTL_SITE) {
  mtl::operands<A, B, C> x{a.elements, b.elements, c.elements};
  vec<D, 2> y;
  mtl_collective(mtl_matrix, mtl::multiply<D, A, B, C>, &x, &y, MTL_AT);
  d.elements = y;
}
template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                                   const simdgroup_matrix<B, 8, 8> &b, MTL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), MTL_AT);
}
template <class T>
METAL_FUNC simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8> &a,
                                               const simdgroup_matrix<T, 8, 8> &b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}
}  // namespace metal
