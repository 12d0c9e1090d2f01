// Scalar types, type traits, and what the runtime offers to a kernel (the ABI).
//
// Everything here is written without the C++ standard library: its headers would bring names such
// as ::abs(int) into reach of `using namespace metal` and make calls ambiguous that are not.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

constexpr half operator""h(long double x) { return half(x); }

#define METAL_FUNC inline __attribute__((always_inline))
// Code of the emulator itself, whose memory accesses are not the kernel's.
#define MTL_HIDDEN __attribute__((no_sanitize("thread"), noinline))
#define MTL_SITE const char *mtl_file = __builtin_FILE(), unsigned mtl_line = __builtin_LINE()
#define MTL_AT mtl_file, mtl_line

// Kinds of collectives; the runtime knows mtl_matrix (kind_matrix in runtime/state.h).
enum mtl_kind : int { mtl_reduce, mtl_shuffle, mtl_matrix, mtl_vote };

// A combine function sees every lane's in and out pointer; bit i of `active` is set when lane i
// takes part.  It returns the lanes that read from a lane that takes no part.
typedef unsigned (*mtl_combine)(void *const *in, void *const *out, unsigned active);

extern "C" {
void *mtl_tg_alloc(const void *id, size_t size, size_t align, const char *name);
void mtl_collective(int kind, mtl_combine fn, const void *in, void *out, const char *file,
                    unsigned line);
void mtl_threadgroup_barrier(unsigned flags, const char *file, unsigned line);
void mtl_simdgroup_barrier(unsigned flags, const char *file, unsigned line);
void mtl_atomic(const void *address, size_t size, int writes);
int mtl_lane();  // of the simdgroup
}

#define MTL_T(...) __VA_ARGS__
#define MTL_TG(type, name, shape)                                                          \
  typedef type mtl_type_##name shape;                                                      \
  static char mtl_id_##name = 0;                                                           \
  mtl_type_##name &name = *static_cast<mtl_type_##name *>(mtl_tg_alloc(                    \
      &mtl_id_##name, sizeof(mtl_type_##name), alignof(mtl_type_##name), #name))

namespace metal {
using ::half;
using ::ptrdiff_t;
using ::size_t;
using ::uchar, ::ushort, ::uint, ::ulong;

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  constexpr operator T() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool b, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool b, class T = void>
using enable_if_t = typename enable_if<b, T>::type;
template <bool b, class T, class U>
struct conditional {
  typedef T type;
};
template <class T, class U>
struct conditional<false, T, U> {
  typedef U type;
};
template <bool b, class T, class U>
using conditional_t = typename conditional<b, T, U>::type;

template <class T, class U>
struct is_same : false_type {};
template <class T>
struct is_same<T, T> : true_type {};
template <class T, class U>
constexpr bool is_same_v = is_same<T, U>::value;
template <class T, class... U>
constexpr bool mtl_one_of = (is_same_v<T, U> || ...);

template <class T>
struct remove_cv {
  typedef T type;
};
template <class T>
struct remove_cv<const T> : remove_cv<T> {};
template <class T>
struct remove_cv<volatile T> : remove_cv<T> {};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
struct remove_reference {
  typedef T type;
};
template <class T>
struct remove_reference<T &> {
  typedef T type;
};
template <class T>
struct remove_reference<T &&> {
  typedef T type;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
using remove_const_t = remove_cv_t<T>;
template <class T>
using remove_addrspace_t = T;
template <class T>
struct remove_pointer {
  typedef T type;
};
template <class T>
struct remove_pointer<T *> {
  typedef T type;
};
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
using decay_t = remove_cv_t<remove_reference_t<T>>;
template <class T>
T &&declval() noexcept;

template <class T>
constexpr bool is_integral_v =
    mtl_one_of<remove_cv_t<T>, bool, char, signed char, uchar, short, ushort, int, uint, long,
               ulong, long long, unsigned long long>;
template <class T>
struct is_integral : bool_constant<is_integral_v<T>> {};
template <class T>
struct is_pointer : false_type {};
template <class T>
struct is_pointer<T *> : true_type {};
template <class T>
constexpr bool is_pointer_v = is_pointer<T>::value;
template <class T>
struct is_const : false_type {};
template <class T>
struct is_const<const T> : true_type {};
template <class T>
constexpr bool is_const_v = is_const<T>::value;
template <class T>
constexpr bool is_enum_v = __is_enum(T);
template <class T>
constexpr bool is_unsigned_v =
    mtl_one_of<remove_cv_t<T>, bool, uchar, ushort, uint, ulong, unsigned long long>;
template <class T>
struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class T>
constexpr bool is_signed_v = !is_unsigned_v<T> && T(-1) < T(0);
template <class T>
struct is_signed : bool_constant<is_signed_v<T>> {};

template <class From, class To, class = void>
struct is_convertible : false_type {};
template <class From, class To>
struct is_convertible<From, To, decltype((void)static_cast<void (*)(To)>(nullptr)(declval<From>()))>
    : true_type {};
template <class From, class To>
constexpr bool is_convertible_v = is_convertible<From, To>::value;

template <class... B>
struct _disjunction : bool_constant<(B::value || ...)> {};
template <class... B>
struct _conjunction : bool_constant<(B::value && ...)> {};
template <class... B>
using disjunction = _disjunction<B...>;
template <class... B>
using conjunction = _conjunction<B...>;
template <class T>
struct make_unsigned;
#define MTL_UNSIGNED(S, U) \
  template <>              \
  struct make_unsigned<S> { \
    typedef U type;        \
  };
MTL_UNSIGNED(signed char, uchar)
MTL_UNSIGNED(char, uchar)
MTL_UNSIGNED(short, ushort)
MTL_UNSIGNED(int, uint)
MTL_UNSIGNED(long, ulong)
MTL_UNSIGNED(uchar, uchar)
MTL_UNSIGNED(ushort, ushort)
MTL_UNSIGNED(uint, uint)
MTL_UNSIGNED(ulong, ulong)
#undef MTL_UNSIGNED
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;

// A value that is the same in all lanes.
template <class T>
struct uniform {
  T value;
  constexpr uniform(T x) : value(x) {}
  constexpr operator T() const { return value; }
};
template <class T>
constexpr uniform<T> make_uniform(T x) {
  return x;
}

template <class T, size_t N>
struct array {
  T elements[N];
  constexpr T &operator[](size_t i) { return elements[i]; }
  constexpr const T &operator[](size_t i) const { return elements[i]; }
  static constexpr size_t size() { return N; }
};
}  // namespace metal

template <class To, class From>
constexpr METAL_FUNC To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
  if constexpr (__is_trivially_copyable(To) && __is_trivially_copyable(From)) {
    return __builtin_bit_cast(To, x);
  } else {
    To y;
    __builtin_memcpy(static_cast<void *>(&y), &x, sizeof(To));
    return y;
  }
}
