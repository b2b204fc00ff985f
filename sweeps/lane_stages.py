"""How a lane's workers train a trial: in one run, in one that goes on from a trunk, or in stages."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from core.checkpoint import trunk_checkpoint
from core.run_config import RunConfig
from core.run_end import RunEnd
from core.run_start import Beginning
from core.staged_run import Stage, run_stages
from core.training_run import run_training
from data_pipeline.token_blocks import PreparedCorpus
from sweeps.mailbox import Assignment


def trainer_of(
    assignment: Assignment,
    corpora: dict[str, PreparedCorpus],
    open_corpus: Callable[[Path, Any], PreparedCorpus],
) -> Callable[..., RunEnd]:
    """`run_training` for this trial, or what takes the same arguments and trains the trial's stages.

    Args:
        corpora: Those that are open, by folder; grows.
        open_corpus: Opens one in a folder, by way of a server of copies where there is one.
    """
    if not assignment.stages:
        trunk = None if assignment.trunk_folder is None else trunk_checkpoint(Path(assignment.trunk_folder))
        return partial(run_training, begins_with=None if trunk is None else Beginning(trunk, is_same_run=True))

    def train(_run: RunConfig, _data: PreparedCorpus, **settings: Any) -> RunEnd:
        stages = []
        for stage in assignment.stages:
            folder = stage.prepared_folder
            if folder not in corpora:
                corpora[folder] = open_corpus(Path(folder), stage.corpus_server)
            stages.append(Stage(RunConfig.model_validate(stage.run), corpora[folder]))
        return run_stages(stages, **settings)

    return train
