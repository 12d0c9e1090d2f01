// Replaces MLX's file: the stand-in's own functions already take bfloat.
#pragma once
#include "metal_cpu/all.h"
