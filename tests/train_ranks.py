"""One of several processes that train the tiny draft together; see test_train_distributed.py."""

import sys
from pathlib import Path

from dflash_mlx.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

from dflash_mlx.train.arrays import flat, write_arrays  # noqa: E402
from dflash_mlx.train.distributed import Group  # noqa: E402
from dflash_mlx.train.fit import StepReport  # noqa: E402

from .training import Training  # noqa: E402

SETTINGS = {"epochs": 4, "pack_tokens": 80, "packs": 3, "anchors": 12}


def main(folder: Path) -> None:
    """Write the gradient of the first step and the weights behind the last, once."""
    training = Training(folder / "fit", count=6, **SETTINGS)
    group = Group()
    fit = training.fit(group=group)
    _, gradients = group.sum(fit._own_share(0, fit.schedule.packs(0), group))
    losses: list[float] = []
    fit.run(lambda report: losses.append(report.loss) if isinstance(report, StepReport) else None)
    if group.leads:
        write_arrays(folder / "gradients.safetensors", flat(gradients))
        write_arrays(folder / "weights.safetensors", flat(training.draft.parameters()))
        (folder / "result.txt").write_text(f"{group.size} {' '.join(map(str, losses))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
