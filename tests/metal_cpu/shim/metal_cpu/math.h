// Metal's math, for float, half, bfloat and vectors of them, also as fast:: and precise::.
//
// The scalar overloads are no templates, so that arguments of mixed types are ambiguous, as on a
// Mac.  half and bfloat compute in float and round once.
#pragma once
#include "vec.h"

#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_E_F 2.71828182845904523536f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define MAXFLOAT __FLT_MAX__
#define HUGE_VALF __builtin_inff()
#ifndef INFINITY
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#endif

namespace metal {
namespace mtl {
METAL_FUNC float exp10(float x) { return __builtin_exp10f(x); }
METAL_FUNC float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
METAL_FUNC float fract(float x) { return __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f); }
METAL_FUNC float saturate(float x) { return __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f); }
METAL_FUNC float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f; }
METAL_FUNC float sinpi(float x) { return __builtin_sinf(M_PI_F * x); }
METAL_FUNC float cospi(float x) { return __builtin_cosf(M_PI_F * x); }
METAL_FUNC float tanpi(float x) { return __builtin_tanf(M_PI_F * x); }
METAL_FUNC float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
METAL_FUNC float divide(float x, float y) { return x / y; }
METAL_FUNC float mix(float x, float y, float a) { return x + (y - x) * a; }
METAL_FUNC float smoothstep(float a, float b, float x) {
  float t = saturate((x - a) / (b - a));
  return t * t * (3.0f - 2.0f * t);
}
}  // namespace mtl

#define MTL_UNARY(name, f)                                                    \
  METAL_FUNC float name(float x) { return f(x); }                             \
  METAL_FUNC half name(half x) { return half(f(float(x))); }                  \
  METAL_FUNC bfloat name(bfloat x) { return bfloat(f(float(x))); }            \
  template <class T, int N>                                                   \
  METAL_FUNC vec<T, N> name(vec<T, N> x) {                                    \
    for (int i = 0; i < N; i++) x[i] = name(x[i]);                            \
    return x;                                                                 \
  }
#define MTL_BINARY(name, f)                                                              \
  METAL_FUNC float name(float x, float y) { return f(x, y); }                            \
  METAL_FUNC half name(half x, half y) { return half(f(float(x), float(y))); }           \
  METAL_FUNC bfloat name(bfloat x, bfloat y) { return bfloat(f(float(x), float(y))); }   \
  template <class T, int N>                                                              \
  METAL_FUNC vec<T, N> name(vec<T, N> x, vec<T, N> y) {                                  \
    for (int i = 0; i < N; i++) x[i] = name(x[i], y[i]);                                 \
    return x;                                                                            \
  }
#define MTL_TERNARY(name, f)                                                                   \
  METAL_FUNC float name(float x, float y, float z) { return f(x, y, z); }                      \
  METAL_FUNC half name(half x, half y, half z) {                                               \
    return half(f(float(x), float(y), float(z)));                                              \
  }                                                                                            \
  METAL_FUNC bfloat name(bfloat x, bfloat y, bfloat z) {                                       \
    return bfloat(f(float(x), float(y), float(z)));                                            \
  }                                                                                            \
  template <class T, int N>                                                                    \
  METAL_FUNC vec<T, N> name(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                           \
    for (int i = 0; i < N; i++) x[i] = name(x[i], y[i], z[i]);                                 \
    return x;                                                                                  \
  }
#define MTL_ALL_MATH                                                                          \
  MTL_UNARY(acos, __builtin_acosf) MTL_UNARY(acosh, __builtin_acoshf)                         \
  MTL_UNARY(asin, __builtin_asinf) MTL_UNARY(asinh, __builtin_asinhf)                         \
  MTL_UNARY(atan, __builtin_atanf) MTL_UNARY(atanh, __builtin_atanhf)                         \
  MTL_UNARY(ceil, __builtin_ceilf) MTL_UNARY(cos, __builtin_cosf)                             \
  MTL_UNARY(cosh, __builtin_coshf) MTL_UNARY(cospi, mtl::cospi) MTL_UNARY(exp, __builtin_expf) \
  MTL_UNARY(exp2, __builtin_exp2f) MTL_UNARY(exp10, mtl::exp10)                               \
  MTL_UNARY(fabs, __builtin_fabsf) MTL_UNARY(floor, __builtin_floorf)                         \
  MTL_UNARY(fract, mtl::fract) MTL_UNARY(log, __builtin_logf) MTL_UNARY(log2, __builtin_log2f) \
  MTL_UNARY(log10, __builtin_log10f) MTL_UNARY(rint, __builtin_rintf)                         \
  MTL_UNARY(round, __builtin_roundf) MTL_UNARY(rsqrt, mtl::rsqrt)                             \
  MTL_UNARY(saturate, mtl::saturate) MTL_UNARY(sign, mtl::sign)                               \
  MTL_UNARY(sin, __builtin_sinf) MTL_UNARY(sinh, __builtin_sinhf) MTL_UNARY(sinpi, mtl::sinpi) \
  MTL_UNARY(sqrt, __builtin_sqrtf) MTL_UNARY(tan, __builtin_tanf)                             \
  MTL_UNARY(tanh, __builtin_tanhf) MTL_UNARY(tanpi, mtl::tanpi)                               \
  MTL_UNARY(trunc, __builtin_truncf)                                                          \
  MTL_BINARY(atan2, __builtin_atan2f) MTL_BINARY(copysign, __builtin_copysignf)               \
  MTL_BINARY(divide, mtl::divide) MTL_BINARY(fdim, __builtin_fdimf)                           \
  MTL_BINARY(fmax, __builtin_fmaxf) MTL_BINARY(fmin, __builtin_fminf)                         \
  MTL_BINARY(fmod, __builtin_fmodf) MTL_BINARY(pow, __builtin_powf)                           \
  MTL_BINARY(powr, __builtin_powf) MTL_BINARY(step, mtl::step)                                \
  MTL_TERNARY(fma, __builtin_fmaf) MTL_TERNARY(mix, mtl::mix)                                 \
  MTL_TERNARY(smoothstep, mtl::smoothstep)
MTL_ALL_MATH

#define MTL_TEST(name, f)                                                  \
  METAL_FUNC bool name(float x) { return f(x); }                           \
  METAL_FUNC bool name(half x) { return f(float(x)); }                     \
  METAL_FUNC bool name(bfloat x) { return f(float(x)); }                   \
  template <class T, int N>                                                \
  METAL_FUNC vec<bool, N> name(vec<T, N> x) {                              \
    vec<bool, N> r{};                                                      \
    for (int i = 0; i < N; i++) r[i] = name(x[i]);                         \
    return r;                                                              \
  }
MTL_TEST(isnan, __builtin_isnan)
MTL_TEST(isinf, __builtin_isinf)
MTL_TEST(isfinite, __builtin_isfinite)
MTL_TEST(isnormal, __builtin_isnormal)
MTL_TEST(signbit, __builtin_signbit)

METAL_FUNC float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
METAL_FUNC half ldexp(half x, int k) { return half(__builtin_ldexpf(x, k)); }
METAL_FUNC bfloat ldexp(bfloat x, int k) { return bfloat(__builtin_ldexpf(x, k)); }
METAL_FUNC float frexp(float x, int &k) { return __builtin_frexpf(x, &k); }
METAL_FUNC int ilogb(float x) { return __builtin_ilogbf(x); }
METAL_FUNC float modf(float x, float &whole) { return __builtin_modff(x, &whole); }
METAL_FUNC float sincos(float x, float &c) { return c = __builtin_cosf(x), __builtin_sinf(x); }
METAL_FUNC float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }

typedef signed char mtl_schar;
// min, max, clamp, abs: one overload per type.  For floats a NaN loses, as with fmin and fmax.
#define MTL_MINMAX(T)                                                                   \
  constexpr METAL_FUNC T min(T x, T y) { return y < x || x != x ? y : x; }              \
  constexpr METAL_FUNC T max(T x, T y) { return x < y || x != x ? y : x; }              \
  constexpr METAL_FUNC T min3(T x, T y, T z) { return min(x, min(y, z)); }              \
  constexpr METAL_FUNC T max3(T x, T y, T z) { return max(x, max(y, z)); }              \
  constexpr METAL_FUNC T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); } \
  constexpr METAL_FUNC T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }
#define MTL_ABS(T) \
  constexpr METAL_FUNC T abs(T x) { return x < T(0) ? T(-x) : x; }
#define MTL_FABS(T) \
  METAL_FUNC T abs(T x) { return fabs(x); }
#define MTL_INTEGERS(F) \
  F(char) F(mtl_schar) F(uchar) F(short) F(ushort) F(int) F(uint) F(long) F(ulong)
MTL_INTEGERS(MTL_MINMAX)
MTL_MINMAX(float) MTL_MINMAX(half) MTL_MINMAX(bfloat)
MTL_INTEGERS(MTL_ABS)
MTL_FABS(float) MTL_FABS(half) MTL_FABS(bfloat)

#define MTL_EACH(name)                                       \
  template <class T, int N>                                  \
  METAL_FUNC vec<T, N> name(vec<T, N> x, vec<T, N> y) {      \
    for (int i = 0; i < N; i++) x[i] = name(x[i], y[i]);     \
    return x;                                                \
  }
MTL_EACH(min) MTL_EACH(max)
template <class T, int N>
METAL_FUNC vec<T, N> clamp(vec<T, N> x, vec<T, N> lo, vec<T, N> hi) {
  return min(max(x, lo), hi);
}
template <class T, int N>
METAL_FUNC vec<T, N> clamp(vec<T, N> x, T lo, T hi) {
  return clamp(x, vec<T, N>(lo), vec<T, N>(hi));
}
template <class T, int N>
METAL_FUNC vec<T, N> abs(vec<T, N> x) {
  for (int i = 0; i < N; i++) x[i] = abs(x[i]);
  return x;
}

namespace fast {
MTL_ALL_MATH
using metal::abs, metal::min, metal::max, metal::clamp;
}  // namespace fast
namespace precise {
MTL_ALL_MATH
using metal::abs, metal::min, metal::max, metal::clamp;
}  // namespace precise

template <class T>
METAL_FUNC enable_if_t<is_arithmetic_v<T>, T> select(T x, T y, bool c) {
  return c ? y : x;
}
template <class T, int N>
METAL_FUNC vec<T, N> select(vec<T, N> x, vec<T, N> y, vec<bool, N> c) {
  for (int i = 0; i < N; i++) x[i] = c[i] ? y[i] : x[i];
  return x;
}
template <class T, int N>
METAL_FUNC vec<T, N> select(vec<T, N> x, vec<T, N> y, bool c) {
  return c ? y : x;
}
template <int N>
METAL_FUNC bool any(vec<bool, N> x) {
  bool r = false;
  for (int i = 0; i < N; i++) r |= x[i];
  return r;
}
template <int N>
METAL_FUNC bool all(vec<bool, N> x) {
  return !any(!x);
}
template <class T, int N>
METAL_FUNC T dot(vec<T, N> x, vec<T, N> y) {
  T r = x[0] * y[0];
  for (int i = 1; i < N; i++) r += x[i] * y[i];
  return r;
}
template <class T, int N>
METAL_FUNC T length_squared(vec<T, N> x) {
  return dot(x, x);
}
template <class T, int N>
METAL_FUNC T length(vec<T, N> x) {
  return sqrt(dot(x, x));
}
template <class T, int N>
METAL_FUNC T distance(vec<T, N> x, vec<T, N> y) {
  return length(x - y);
}
template <class T, int N>
METAL_FUNC vec<T, N> normalize(vec<T, N> x) {
  return x * rsqrt(dot(x, x));
}

#define MTL_BITS(T)                                                                        \
  METAL_FUNC T popcount(T x) { return T(__builtin_popcountll(make_unsigned_t<T>(x))); }    \
  METAL_FUNC T clz(T x) {                                                                  \
    return x == 0 ? T(8 * sizeof(T))                                                       \
                  : T(__builtin_clzll(make_unsigned_t<T>(x)) - (64 - 8 * int(sizeof(T)))); \
  }                                                                                        \
  METAL_FUNC T ctz(T x) { return x == 0 ? T(8 * sizeof(T)) : T(__builtin_ctzll(x)); }      \
  METAL_FUNC T extract_bits(T x, uint at, uint n) {                                        \
    return n == 0 ? T(0) : T(T(make_unsigned_t<T>(x) << (8 * sizeof(T) - at - n)) >>       \
                             (8 * sizeof(T) - n));                                         \
  }                                                                                        \
  METAL_FUNC T rotate(T x, T n) {                                                          \
    make_unsigned_t<T> u = x;                                                              \
    uint k = uint(n) & (8 * sizeof(T) - 1);                                                \
    return k == 0 ? x : T(u << k | u >> (8 * sizeof(T) - k));                              \
  }
MTL_BITS(uchar) MTL_BITS(ushort) MTL_BITS(int) MTL_BITS(uint) MTL_BITS(long) MTL_BITS(ulong)
METAL_FUNC uint reverse_bits(uint x) {
  uint r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
  return r;
}
METAL_FUNC uint mulhi(uint x, uint y) { return uint(ulong(x) * y >> 32); }
METAL_FUNC int mulhi(int x, int y) { return int(long(x) * y >> 32); }
template <class T>
METAL_FUNC T absdiff(T x, T y) {
  return x < y ? y - x : x - y;
}
#undef MTL_UNARY
#undef MTL_BINARY
#undef MTL_TERNARY
#undef MTL_TEST
#undef MTL_MINMAX
#undef MTL_EACH
#undef MTL_BITS
}  // namespace metal
