// Replaces MLX's file: its pointer_element has one form per address space, which are one form here.
#pragma once
#include "metal_cpu/all.h"

namespace metal {
template <class T>
struct is_empty : bool_constant<__is_empty(T)> {};
template <class T>
constexpr bool is_empty_v = is_empty<T>::value;
template <class... T>
struct make_void {
  typedef void type;
};
template <class... T>
using void_t = typename make_void<T...>::type;
template <class T>
struct is_static : bool_constant<__is_empty(remove_cv_t<T>)> {};
template <class T>
struct pointer_element {};
template <class T>
struct pointer_element<T *> {
  typedef remove_cv_t<T> type;
};
template <class T>
using pointer_element_t = typename pointer_element<remove_cv_t<T>>::type;
}  // namespace metal
