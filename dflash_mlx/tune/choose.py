"""From a pair to the policy of one generation."""

from __future__ import annotations

from functools import partial

from ..costs import Corrected, CostCurve, widths_of
from ..loading import Pair
from ..options import Options
from ..width import Calibration, Policy
from .measure import Progress, measure
from .store import Record, read, setting_of, write

COPIED = 64  # widest round with a lookup draft
FIRST_USE = 6.0  # seconds, where nobody asked for a measurement


def costs_of(pair: Pair, progress: Progress | None = None) -> Corrected:
    """What rounds of `pair` take: known already, stored, or measured now and stored."""
    ranks = pair.ranks
    if pair.costs is None or ranks.size > 1:
        curve = pair.costs.curve if pair.costs else stored(pair)
        if ranks.agree(curve is None):
            curve = measure(pair, progress=progress, limit=FIRST_USE)
            ranks.together(partial(_keep, pair, curve))
        if ranks.size > 1:  # all of them, or some would wait for the others
            curve = CostCurve.from_dict(ranks.share(curve and curve.as_dict()), "process 0")
        assert curve is not None
        pair.costs = pair.costs or Corrected(curve)
    return pair.costs


def _keep(pair: Pair, curve: CostCurve) -> None:
    """Store what was measured, on rank 0."""
    if pair.ranks.leads:
        write(Record(setting_of(pair), curve))


def stored(pair: Pair) -> CostCurve | None:
    """What was measured of `pair` before, on this machine as it is."""
    setting = setting_of(pair)
    record = read(setting.file)
    return record.curve if record is not None and record.setting == setting else None


def policy_of(pair: Pair, options: Options) -> Policy:
    """How widths of a generation are chosen.

    What is learned of draft and machine stays with the pair. Where a seed is to reproduce a
    sampled answer, though, widths may follow from the answer alone: nothing learned before is
    used, and no clock.
    """
    assert pair.draft is not None
    sampled, config = not options.sampling.greedy, pair.draft.config
    costs, places = costs_of(pair), config.block_size - 1
    if sampled and options.seed is not None:
        costs, calibration = Corrected(costs.curve, still=True), Calibration(places)
    else:
        calibration = pair.calibrations.setdefault(sampled, Calibration(places))
    ordered = sampled and config.dflash2 is not None
    # Copied runs may be longer than a block; what such passes take is corrected in use.
    widths, copies = widths_of(config.block_size), widths_of(min(2 * config.block_size, COPIED))
    return Policy(costs, widths, calibration, ordered, copies)
