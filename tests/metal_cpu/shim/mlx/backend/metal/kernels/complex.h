// Replaces MLX's file, which repeats every constructor and conversion for each address space.
// A complex number of two T; arithmetic with scalars, comparison by real part, then imaginary.
#pragma once
#include "metal_cpu/all.h"
#include "mlx/backend/metal/kernels/bf16.h"

using namespace metal;

template <class T>
struct complex_t;
template <class T>
constexpr bool is_complex_v = false;
template <class T>
constexpr bool is_complex_v<complex_t<T>> = true;

template <class T>
struct complex_t {
  typedef T value_type;
  T real, imag;
  constexpr complex_t() : real(0), imag(0) {}
  constexpr complex_t(T r, T i) : real(r), imag(i) {}
  template <class U, class = enable_if_t<is_arithmetic_v<U>>>
  constexpr complex_t(U x) : real(static_cast<T>(x)), imag(0) {}
  template <class U, class = enable_if_t<!is_same_v<U, T>>>
  constexpr complex_t(complex_t<U> x) : real(static_cast<T>(x.real)), imag(static_cast<T>(x.imag)) {}
  constexpr complex_t(vec<T, 2> v) : real(v.x), imag(v.y) {}
  constexpr operator vec<T, 2>() const { return vec<T, 2>(real, imag); }
  template <class U, class = enable_if_t<is_arithmetic_v<U>>>
  constexpr operator U() const {
    return static_cast<U>(real);
  }
};
typedef complex_t<half> complex32_t;
typedef complex_t<float> complex64_t;

#define MTL_COMPLEX(op, re, im)                                                     \
  template <class T>                                                                \
  constexpr complex_t<T> operator op(complex_t<T> a, complex_t<T> b) {              \
    return {T(re), T(im)};                                                          \
  }                                                                                 \
  template <class T, class U, class = enable_if_t<is_arithmetic_v<U>>>              \
  constexpr complex_t<T> operator op(complex_t<T> a, U b) {                         \
    return a op complex_t<T>(b);                                                    \
  }                                                                                 \
  template <class T, class U, class = enable_if_t<is_arithmetic_v<U>>>              \
  constexpr complex_t<T> operator op(U a, complex_t<T> b) {                         \
    return complex_t<T>(a) op b;                                                    \
  }
MTL_COMPLEX(+, a.real + b.real, a.imag + b.imag)
MTL_COMPLEX(-, a.real - b.real, a.imag - b.imag)
MTL_COMPLEX(*, a.real *b.real - a.imag * b.imag, a.real *b.imag + a.imag * b.real)
MTL_COMPLEX(/, (a.real * b.real + a.imag * b.imag) / (b.real * b.real + b.imag * b.imag),
            (a.imag * b.real - a.real * b.imag) / (b.real * b.real + b.imag * b.imag))
#undef MTL_COMPLEX
template <class T>
constexpr complex_t<T> operator-(complex_t<T> x) {
  return {-x.real, -x.imag};
}
template <class T>
constexpr complex_t<T> &operator+=(complex_t<T> &a, complex_t<T> b) {
  return a = a + b;
}
template <class T>
constexpr bool operator==(complex_t<T> a, complex_t<T> b) {
  return a.real == b.real && a.imag == b.imag;
}
template <class T>
constexpr bool operator>(complex_t<T> a, complex_t<T> b) {
  return a.real > b.real || (a.real == b.real && a.imag > b.imag);
}
template <class T>
constexpr bool operator<(complex_t<T> a, complex_t<T> b) {
  return b > a;
}
template <class T>
constexpr bool operator>=(complex_t<T> a, complex_t<T> b) {
  return a > b || a == b;
}
template <class T>
constexpr bool operator<=(complex_t<T> a, complex_t<T> b) {
  return b >= a;
}
