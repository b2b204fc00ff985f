"""One stage of a training: settings and data. Without torch: commands that train nothing name it, too."""

from dataclasses import dataclass

from core.settings.run_config import RunConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus


@dataclass(frozen=True)
class Stage:
    """Settings and data of one stage."""

    run: RunConfig
    data: PreparedCorpus
