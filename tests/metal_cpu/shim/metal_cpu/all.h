// Stands in for <metal_stdlib> and the other standard headers of Metal.
//
// Address spaces and `kernel` mean nothing on a CPU: they are defined away, last, so that nothing
// included before is affected.  `threadgroup` variables never get here: rewrite.py replaced them.
#pragma once
#include "atomic.h"

#ifndef __METAL_VERSION__
#define __METAL_VERSION__ 310
#endif
#define __METAL__ 1
#define device
#define constant
#define thread
#define threadgroup
#define kernel
