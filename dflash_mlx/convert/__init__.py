"""From published checkpoints to folders that load fast and fit: `dflash-mlx convert`."""
