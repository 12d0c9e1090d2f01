"""Runs Metal kernels of `mx.fast.metal_kernel` on the CPU, to test them without a Mac.

See README.md.  The names below are all a test needs.
"""

from .build import CompilerMissing, KernelBuildError
from .launch import KernelFault, MetalKernel, Options
from .report import Issue, Report
from .rewrite import RewriteError

__all__ = [
    "CompilerMissing",
    "Issue",
    "KernelBuildError",
    "KernelFault",
    "MetalKernel",
    "Options",
    "Report",
    "RewriteError",
]
