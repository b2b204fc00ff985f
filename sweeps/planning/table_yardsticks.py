"""The yardsticks of a sweep: losses of tables of token counts, from its prepared corpus."""

from dataclasses import asdict

from core.step.token_tables import table_losses
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.analysis.yardsticks import Yardsticks
from sweeps.settings.sweep_config import SweepConfig


def measured_yardsticks(sweep: SweepConfig, data: PreparedCorpus) -> Yardsticks | None:
    """Losses of the tables on the sweep's holdout; None if it has no token to predict."""
    found = table_losses(data, is_causal=sweep.model.is_causal)
    return None if found is None else Yardsticks.model_validate(asdict(found))
