// bfloat: 2 bytes, rounded to nearest even after every operation.
//
// Conversions are those of Metal 3.1: implicit to float and from integers, explicit from float and
// half.  So `b += f` does not compile for a float f, as on a Mac.  Not accepted though a Mac may:
// `c ? b : 0` (write `T(0)`).
#pragma once
#include "base.h"

struct bfloat {
  uint16_t bits;

  bfloat() = default;
  constexpr explicit bfloat(float x) : bits(round(x)) {}
  constexpr explicit bfloat(half x) : bits(round(float(x))) {}
  template <class I, class = metal::enable_if_t<metal::is_integral_v<I>>>
  constexpr bfloat(I x) : bits(round(float(x))) {}
  constexpr operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
  constexpr explicit operator half() const { return half(float(*this)); }

  static constexpr bfloat of_bits(uint16_t raw) {
    bfloat x(0.0f);
    x.bits = raw;
    return x;
  }

  static constexpr uint16_t round(float x) {
    uint32_t u = __builtin_bit_cast(uint32_t, x);
    if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 0x40);  // NaN stays NaN
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }

#define MTL_ASSIGN(op)                                   \
  constexpr bfloat &operator op##=(bfloat y) {           \
    *this = bfloat(float(*this) op float(y));            \
    return *this;                                        \
  }
  MTL_ASSIGN(+)
  MTL_ASSIGN(-)
  MTL_ASSIGN(*)
  MTL_ASSIGN(/)
#undef MTL_ASSIGN
  constexpr bfloat operator-() const { return of_bits(bits ^ 0x8000); }
  constexpr bfloat operator+() const { return *this; }
  constexpr bfloat &operator++() { return *this += bfloat(1); }
  constexpr bfloat &operator--() { return *this -= bfloat(1); }
};

constexpr bfloat operator""bf(long double x) { return bfloat(float(x)); }

// bfloat with bfloat or an integer gives R; with float the built-in operators serve; with half
// there is no common type.
#define MTL_BINARY(op, R)                                                             \
  constexpr R operator op(bfloat x, bfloat y) { return R(float(x) op float(y)); }     \
  template <class I, class = metal::enable_if_t<metal::is_integral_v<I>>>             \
  constexpr R operator op(bfloat x, I y) {                                            \
    return R(float(x) op float(bfloat(y)));                                           \
  }                                                                                   \
  template <class I, class = metal::enable_if_t<metal::is_integral_v<I>>>             \
  constexpr R operator op(I x, bfloat y) {                                            \
    return R(float(bfloat(x)) op float(y));                                           \
  }                                                                                   \
  template <class H, class = metal::enable_if_t<metal::is_same_v<H, half>>, int = 0>  \
  R operator op(bfloat, H) = delete;                                                  \
  template <class H, class = metal::enable_if_t<metal::is_same_v<H, half>>, int = 0>  \
  R operator op(H, bfloat) = delete;
MTL_BINARY(+, bfloat)
MTL_BINARY(-, bfloat)
MTL_BINARY(*, bfloat)
MTL_BINARY(/, bfloat)
MTL_BINARY(<, bool)
MTL_BINARY(>, bool)
MTL_BINARY(<=, bool)
MTL_BINARY(>=, bool)
MTL_BINARY(==, bool)
MTL_BINARY(!=, bool)
#undef MTL_BINARY

namespace metal {
using ::bfloat;

template <class T>
constexpr bool is_floating_point_v = mtl_one_of<remove_cv_t<T>, float, half, bfloat>;
template <class T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T>
constexpr bool is_arithmetic_v = is_integral_v<T> || is_floating_point_v<T>;
template <class T>
struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};

template <class T>
struct numeric_limits {
  static constexpr bool is_integer = true;
  static constexpr bool is_signed = is_signed_v<T>;
  static constexpr T min() {
    return is_unsigned_v<T> ? T(0) : T(ulong(1) << (8 * sizeof(T) - 1));
  }
  static constexpr T max() {
    return T(~ulong(0) >> (64 - 8 * sizeof(T) + (is_unsigned_v<T> ? 0 : 1)));
  }
  static constexpr T lowest() { return min(); }
};
template <>
struct numeric_limits<bool> {
  static constexpr bool min() { return false; }
  static constexpr bool max() { return true; }
};
#define MTL_LIMITS(T, MIN, MAX, EPS, DIG)                                         \
  template <>                                                                     \
  struct numeric_limits<T> {                                                      \
    static constexpr bool is_integer = false, is_signed = true;                   \
    static constexpr int digits = DIG;                                            \
    static constexpr T min() { return T(MIN); }                                   \
    static constexpr T max() { return T(MAX); }                                   \
    static constexpr T lowest() { return T(-(MAX)); }                             \
    static constexpr T epsilon() { return T(EPS); }                               \
    static constexpr T infinity() { return T(__builtin_inff()); }                 \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }              \
    static constexpr T signaling_NaN() { return T(__builtin_nanf("")); }          \
  };
MTL_LIMITS(float, 0x1p-126f, 0x1.fffffep127f, 0x1p-23f, 24)
MTL_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f, 11)
MTL_LIMITS(bfloat, 0x1p-126f, 0x1.fep127f, 0x1p-7f, 8)
#undef MTL_LIMITS
}  // namespace metal
