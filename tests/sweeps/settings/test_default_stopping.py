"""The rule of early stopping that a file gets which names none."""

from typing import Any

import pytest
import yaml

from sweep_examples import tiny_sweep
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep

SECTIONS: dict[str, Any] = {
    "search": {
        "training.learning_rate": {"log_uniform": [1e-3, 1e-2]},
        "training.batch_size": {"choice": [2, 4, 8, 16]},
    },
    "budget": {"trials": 12, "tokens_per_trial": "200k"},
}


def sweep(**sections: Any) -> SweepConfig:
    """The tiny sweep with rows of 32 tokens, a space of learning rates and batches, and these sections."""
    raw = tiny_sweep().model_dump(mode="json", exclude_none=True)
    del raw["early_stopping"], raw["training"]["warmup"]
    return SweepConfig.model_validate(raw | SECTIONS | sections)


def test_a_sweep_that_can_be_probed_searches_for_the_full_length_and_nothing_is_remarked() -> None:
    found = sweep()
    assert found.early_stopping.method == "full-length"
    # A tenth of the shortest probe.
    assert found.training.warmup == pytest.approx(1 / 160)
    rungs = rung_tokens(found.early_stopping, found.budget.trial_tokens)
    assert RemarkVerdict.REFUSED not in {one.verdict for one in remarks(found, rungs=rungs)}


@pytest.mark.parametrize(
    "sections",
    [
        {"budget": {"trials": 12, "tokens_per_trial": "20k"}},
        {"budget": {"trials": 9, "tokens_per_trial": "200k"}},
        {"budget": {"trials": 12, "epochs_per_trial": 1.0}},
        {"budget": {"trials": 12, "tokens_per_trial": "200k", "patience": 5}},
        {"early_stopping": {"first_rung": 0.2}},
        {"searcher": {"method": "grid"}},
        {"search": {"training.learning_rate": {"choice": [1e-3]}, "training.batch_size": {"choice": [2]}}},
        {"search": {"objective.masked_lm.masking_rate": {"uniform": [0.1, 0.5]}}},
    ],
    ids=str,
)
def test_a_sweep_that_cannot_be_probed_or_asks_for_rungs_keeps_them(sections: dict[str, Any]) -> None:
    assert sweep(**sections).early_stopping.method == "trunk-and-branch"


def test_a_schedule_without_a_trunk_has_neither() -> None:
    training = tiny_sweep().training.model_dump(mode="json", exclude_none=True) | {"schedule": "cosine"}
    assert sweep(training=training).early_stopping.method == "asha"


def test_a_resolved_file_keeps_its_rule_when_it_is_loaded_again() -> None:
    for one in (sweep(), sweep(early_stopping={"method": "trunk-and-branch"})):
        again = SweepConfig.model_validate(yaml.safe_load(dump_sweep(one)))
        assert again == one
