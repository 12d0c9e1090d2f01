// vec<T, N> with components, swizzles, element-wise operators, and Metal's names for them.
//
// N of 2, 3, 4 have x/y/z/w, r/g/b/a and swizzles; any other N is an array with operators.  A
// vector of 3 takes the room of 4.  A scalar becomes a vector implicitly, a vector of another type
// only explicitly.
#pragma once
#include "bfloat.h"

namespace metal {
template <class T, int N>
struct vec;

constexpr int mtl_pad(int n) { return n == 3 ? 4 : n; }

// A view of some components of a vector, in place.
template <class T, int M, int... I>
struct mtl_swizzle {
  T e[mtl_pad(M)];
  constexpr operator vec<T, sizeof...(I)>() const { return vec<T, sizeof...(I)>(e[I]...); }
  constexpr vec<T, sizeof...(I)> operator()() const { return *this; }
  constexpr mtl_swizzle &operator=(vec<T, sizeof...(I)> v) {
    int k = 0;
    ((e[I] = v[k++]), ...);
    return *this;
  }
  constexpr mtl_swizzle &operator=(const mtl_swizzle &v) {
    return *this = vec<T, sizeof...(I)>(v);
  }
  constexpr mtl_swizzle &operator+=(vec<T, sizeof...(I)> v) { return *this = *this + v; }
  constexpr mtl_swizzle &operator-=(vec<T, sizeof...(I)> v) { return *this = *this - v; }
  constexpr mtl_swizzle &operator*=(vec<T, sizeof...(I)> v) { return *this = *this * v; }
  T operator[](int k) const {
    const int at[] = {I...};
    return e[at[k]];
  }
};

template <class T, int N>
struct mtl_store {
  T e[N];
};
#define MTL_S(M, name, ...) mtl_swizzle<T, M, __VA_ARGS__> name;
#define MTL_S2(M)                                                                     \
  MTL_S(M, xx, 0, 0) MTL_S(M, xy, 0, 1) MTL_S(M, yx, 1, 0) MTL_S(M, yy, 1, 1)         \
  MTL_S(M, rg, 0, 1)
#define MTL_S3(M)                                                                     \
  MTL_S(M, xz, 0, 2) MTL_S(M, yz, 1, 2) MTL_S(M, zx, 2, 0) MTL_S(M, zy, 2, 1)         \
  MTL_S(M, zz, 2, 2) MTL_S(M, xyz, 0, 1, 2) MTL_S(M, zyx, 2, 1, 0)                    \
  MTL_S(M, xxx, 0, 0, 0) MTL_S(M, yyy, 1, 1, 1) MTL_S(M, zzz, 2, 2, 2)                \
  MTL_S(M, yzx, 1, 2, 0) MTL_S(M, zxy, 2, 0, 1) MTL_S(M, rgb, 0, 1, 2)
#define MTL_S4(M)                                                                     \
  MTL_S(M, xw, 0, 3) MTL_S(M, yw, 1, 3) MTL_S(M, zw, 2, 3) MTL_S(M, wx, 3, 0)         \
  MTL_S(M, wz, 3, 2) MTL_S(M, ww, 3, 3) MTL_S(M, yzw, 1, 2, 3) MTL_S(M, www, 3, 3, 3) \
  MTL_S(M, xyzw, 0, 1, 2, 3) MTL_S(M, wzyx, 3, 2, 1, 0) MTL_S(M, zwxy, 2, 3, 0, 1)    \
  MTL_S(M, yzwx, 1, 2, 3, 0) MTL_S(M, wxyz, 3, 0, 1, 2) MTL_S(M, yxwz, 1, 0, 3, 2)    \
  MTL_S(M, xxxx, 0, 0, 0, 0) MTL_S(M, yyyy, 1, 1, 1, 1) MTL_S(M, zzzz, 2, 2, 2, 2)    \
  MTL_S(M, wwww, 3, 3, 3, 3)
template <class T>
struct mtl_store<T, 2> {
  union {
    T e[2];
    struct { T x, y; };
    struct { T r, g; };
    MTL_S2(2)
  };
};
template <class T>
struct mtl_store<T, 3> {
  union {
    T e[4];
    struct { T x, y, z; };
    struct { T r, g, b; };
    MTL_S2(3) MTL_S3(3)
  };
};
template <class T>
struct mtl_store<T, 4> {
  union {
    T e[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
    MTL_S2(4) MTL_S3(4) MTL_S4(4)
  };
};

template <class P>
constexpr int mtl_width = 1;
template <class T, int N>
constexpr int mtl_width<vec<T, N>> = N;
template <class T, int M, int... I>
constexpr int mtl_width<mtl_swizzle<T, M, I...>> = sizeof...(I);

template <class T, int N>
struct alignas(sizeof(T) * mtl_pad(N)) vec : mtl_store<T, N> {
  using mtl_store<T, N>::e;

  vec() = default;
  constexpr vec(const vec &v) : mtl_store<T, N>{} { copy(v); }
  constexpr vec &operator=(const vec &v) {
    copy(v);
    return *this;
  }
  constexpr vec(T s) : mtl_store<T, N>{} {
    for (int i = 0; i < N; i++) e[i] = s;
  }
  template <class U, class = enable_if_t<is_arithmetic_v<U> && !is_same_v<U, T>>>
  constexpr vec(U s) : vec(T(s)) {}
  template <class U>
  constexpr explicit vec(vec<U, N> v) : mtl_store<T, N>{} {
    for (int i = 0; i < N; i++) e[i] = T(v.e[i]);
  }
  template <class P, class Q, class... R,
            class = enable_if_t<((mtl_width<P> + mtl_width<Q>) + ... + mtl_width<R>) == N>>
  constexpr vec(P p, Q q, R... rest) : mtl_store<T, N>{} {
    int i = 0;
    put(i, p);
    put(i, q);
    (put(i, rest), ...);
  }
  constexpr T &operator[](int i) { return e[i]; }
  constexpr const T &operator[](int i) const { return e[i]; }

#define MTL_OP(op)                                          \
  constexpr vec &operator op##=(vec b) {                    \
    for (int i = 0; i < N; i++) e[i] = T(e[i] op b.e[i]);   \
    return *this;                                           \
  }
  MTL_OP(+) MTL_OP(-) MTL_OP(*) MTL_OP(/) MTL_OP(%) MTL_OP(&) MTL_OP(|) MTL_OP(^)
  MTL_OP(<<) MTL_OP(>>)
#undef MTL_OP

  constexpr vec &operator++() { return *this += vec(T(1)); }
  constexpr vec operator-() const {
    vec v = *this;
    for (int i = 0; i < N; i++) v.e[i] = T(-e[i]);
    return v;
  }
  constexpr vec<bool, N> operator!() const { return vec<bool, N>(*this == vec(T(0))); }
  constexpr vec operator~() const {
    vec v = *this;
    for (int i = 0; i < N; i++) v.e[i] = T(~e[i]);
    return v;
  }

 private:
  // All components as one access of memory, as a GPU does it.
  struct alignas(sizeof(T) * mtl_pad(N)) whole {
    T e[mtl_pad(N)];
  };
  constexpr void copy(const vec &v) {
    if (__builtin_is_constant_evaluated()) {
      for (int i = 0; i < N; i++) e[i] = v.e[i];
    } else {
      *reinterpret_cast<whole *>(this) = *reinterpret_cast<const whole *>(&v);
    }
  }
  template <class P>
  constexpr void put(int &i, P p) {
    if constexpr (is_arithmetic_v<P>) {
      e[i++] = T(p);
    } else if constexpr (mtl_width<P> == 1) {
      e[i++] = static_cast<T>(p);
    } else {
      for (int k = 0; k < mtl_width<P>; k++) e[i++] = T(p[k]);
    }
  }
};

template <class P>
constexpr bool mtl_is_swizzle = false;
template <class T, int M, int... I>
constexpr bool mtl_is_swizzle<mtl_swizzle<T, M, I...>> = true;
template <class P>
constexpr auto mtl_plain(const P &p) {
  if constexpr (mtl_is_swizzle<P>) {
    return p();
  } else {
    return p;
  }
}

#define MTL_BINARY(op, R)                                                                    \
  template <class T, int N>                                                                  \
  constexpr vec<R, N> operator op(vec<T, N> a, vec<T, N> b) {                                \
    vec<R, N> c{};                                                                           \
    for (int i = 0; i < N; i++) c.e[i] = R(a.e[i] op b.e[i]);                                \
    return c;                                                                                \
  }                                                                                          \
  template <class T, int N, class S, class = enable_if_t<is_arithmetic_v<S>>>                \
  constexpr vec<R, N> operator op(vec<T, N> a, S b) {                                        \
    return a op vec<T, N>(T(b));                                                             \
  }                                                                                          \
  template <class T, int N, class S, class = enable_if_t<is_arithmetic_v<S>>>                \
  constexpr vec<R, N> operator op(S a, vec<T, N> b) {                                        \
    return vec<T, N>(T(a)) op b;                                                             \
  }                                                                                          \
  template <class P, class Q, class = enable_if_t<mtl_is_swizzle<P> || mtl_is_swizzle<Q>>>   \
  constexpr auto operator op(const P &p, const Q &q) {                                       \
    return mtl_plain(p) op mtl_plain(q);                                                     \
  }
MTL_BINARY(+, T) MTL_BINARY(-, T) MTL_BINARY(*, T) MTL_BINARY(/, T) MTL_BINARY(%, T)
MTL_BINARY(&, T) MTL_BINARY(|, T) MTL_BINARY(^, T) MTL_BINARY(<<, T) MTL_BINARY(>>, T)
MTL_BINARY(<, bool) MTL_BINARY(>, bool) MTL_BINARY(<=, bool) MTL_BINARY(>=, bool)
MTL_BINARY(==, bool) MTL_BINARY(!=, bool) MTL_BINARY(&&, bool) MTL_BINARY(||, bool)
#undef MTL_BINARY

// Without the padding and alignment of vec.
template <class T, int N>
struct mtl_packed {
  T e[N];
  mtl_packed() = default;
  constexpr mtl_packed(vec<T, N> v) : e{} {
    for (int i = 0; i < N; i++) e[i] = v[i];
  }
  constexpr operator vec<T, N>() const {
    vec<T, N> v{};
    for (int i = 0; i < N; i++) v[i] = e[i];
    return v;
  }
  constexpr T &operator[](int i) { return e[i]; }
  constexpr const T &operator[](int i) const { return e[i]; }
};

#define MTL_NAMES(T)          \
  typedef vec<T, 2> T##2;     \
  typedef vec<T, 3> T##3;     \
  typedef vec<T, 4> T##4;     \
  typedef mtl_packed<T, 2> packed_##T##2; \
  typedef mtl_packed<T, 3> packed_##T##3; \
  typedef mtl_packed<T, 4> packed_##T##4;
MTL_NAMES(bool) MTL_NAMES(char) MTL_NAMES(uchar) MTL_NAMES(short) MTL_NAMES(ushort)
MTL_NAMES(int) MTL_NAMES(uint) MTL_NAMES(long) MTL_NAMES(ulong) MTL_NAMES(float)
MTL_NAMES(half) MTL_NAMES(bfloat)
#undef MTL_NAMES
}  // namespace metal

#define MTL_NAMES(T)                             \
  using metal::T##2, metal::T##3, metal::T##4;   \
  using metal::packed_##T##2, metal::packed_##T##3, metal::packed_##T##4;
MTL_NAMES(bool) MTL_NAMES(char) MTL_NAMES(uchar) MTL_NAMES(short) MTL_NAMES(ushort)
MTL_NAMES(int) MTL_NAMES(uint) MTL_NAMES(long) MTL_NAMES(ulong) MTL_NAMES(float)
MTL_NAMES(half) MTL_NAMES(bfloat)
#undef MTL_NAMES
