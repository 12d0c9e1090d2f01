"""Metal kernel sources: data, read with importlib.resources by `dflash_mlx.kernels`."""
