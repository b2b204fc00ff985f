"""Tags with code, command and user of a run, under the names that MLflow's own pages read."""

import getpass
from pathlib import Path

from data_pipeline.schema.redaction import redact
from sweeps.analysis.result_tables import versions
from sweeps.records.git_state import git_state
from sweeps.settings.metric_config import Metric

METRIC_TAG, MODE_TAG = "pretune.metric", "pretune.metric_mode"
"""Tags of a sweep whose trials another metric than the holdout loss ranks."""

_GIT = {
    "commit": "mlflow.source.git.commit",
    "branch": "mlflow.source.git.branch",
    "remote": "mlflow.source.git.repoURL",
}


def source_tags(command: str, folder: Path) -> dict[str, str]:
    """Tags of every run of a sweep.

    Args:
        command: The command line.
        folder: Folder of the command. Its git state is recorded, else that of the checkout that pretune runs from.
    """
    state = git_state(folder) or git_state(Path(__file__).parent)
    known = versions()
    tags = {
        "mlflow.source.name": redact(command),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "pretune.version": known["pretune"],
        "pretune.torch_version": known["torch"],
    }
    tags |= {tag: state[name] for name, tag in _GIT.items() if state.get(name)}
    if state.get("changed since", "nothing") != "nothing":
        tags["pretune.git.changed"] = state["changed since"]
    return tags


def metric_tags(metric: Metric) -> dict[str, str]:
    """Tags with the metric that ranks the trials; empty for the holdout loss."""
    return {} if metric.is_loss else {METRIC_TAG: metric.name, MODE_TAG: metric.mode}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""  # A container may run under a user id without a name.
