"""This project for `peers.py`."""

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from peers_cells import Decoded, Task

from dflash_mlx.errors import DFlashError
from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.targets import target_for

sys.path.append(str(Path(__file__).parents[2]))

from tests.families import ScriptedDraft, draft_config, random_draft

REFUSALS = (DFlashError,)


def decode(model: Any, family: str, task: Task) -> Decoded:
    config = draft_config(block_size=task.block, num_target_layers=len(model.layers))
    if task.script is None:
        draft = random_draft(config)
    else:
        places = mx.array(task.script.wrong, mx.int32)
        draft = ScriptedDraft(config, task.script.sequence, lambda start: places[start])
    pair = Pair(
        target=target_for(model, config.taps),
        draft=draft,
        tokenizer=None,
        eos_ids=task.stop,
        max_context=4096,
        name=family,
        draft_name="scripted",
    )
    done = list(rounds(pair, task.prompt, Options(max_tokens=task.tokens)))
    ids = [token for round_ in done for token in round_.tokens]
    return Decoded(ids, [round_.accepted for round_ in done[1:]])
