"""The operations that have a Metal kernel of their own, one a file.

Each file has `<op>_reference`, plain MLX that defines the result, and `<op>_metal`, the kernel with
the same arguments. The kernel's source is `metal/<op>.metal`.
"""

# Those that decoding chooses from. None yet: they are proven by the emulator, but not timed.
IN_USE: tuple[str, ...] = ()
