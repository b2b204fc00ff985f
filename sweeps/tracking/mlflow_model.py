"""The winner in MLflow's model registry: saved as a pyfunc model without a pickle, registered once per sweep."""

import inspect
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import DataType

from sweeps.tracking import served_model
from sweeps.tracking.served_model import CONTINUED, DEFAULTS, FOLDER, RESTORED, TEXT

ARTIFACT = "model"
"""Artifact of a sweep's run that holds its winner."""
_SET_MODEL = """

from mlflow.models import set_model

set_model(ServedModel())
"""
"""Last lines of the model's script: MLflow runs the script instead of loading a pickle ("models from code")."""
_EXAMPLE_CHARACTERS = 80
"""Length of the example before and after the mask."""
_NEEDS = ("torch", "transformers", "pandas")


def save_model(best: Path, into: Path, *, example: str = "") -> None:
    """Write the pyfunc model: script, transformers folder, signature, example.

    Args:
        best: Folder of the model for transformers.
        into: Folder to create.
        example: Example input; with a mask for a masked LM. Empty: a short default.
    """
    is_causal = _is_causal(best)
    given, made = Schema([ColSpec("string", TEXT)]), Schema([ColSpec("string", CONTINUED if is_causal else RESTORED)])
    params = ParamSchema([ParamSpec(name, _type(value), value) for name, value in DEFAULTS.items()])
    into.parent.mkdir(parents=True, exist_ok=True)
    script = into.parent / "served_model.py"
    script.write_text(inspect.getsource(served_model) + _SET_MODEL, encoding="utf-8")
    # No progress bar for a copy of four local files.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.pyfunc.save_model(
        str(into),
        python_model=str(script),
        artifacts={FOLDER: str(best)},
        signature=ModelSignature(inputs=given, outputs=made, params=params if is_causal else None),  # type: ignore[arg-type]
        input_example=pd.DataFrame({TEXT: [example or ("Once" if is_causal else mask_of(best))]}),
        pip_requirements=[_requirement(name) for name in _NEEDS],
    )


def mask_of(best: Path) -> str:
    """Mask token of the model in a transformers folder; empty without one."""
    return str(json.loads((best / "tokenizer_config.json").read_text(encoding="utf-8")).get("mask_token") or "")


def example_of(sweep_folder: Path) -> str:
    """Example input for the winner: a shortened text of the holdout; empty if no samples were drawn."""
    summary = sweep_folder / "summary.json"
    samples = json.loads(summary.read_text(encoding="utf-8")).get("samples") if summary.is_file() else None
    if not samples:
        return ""
    mask = mask_of(sweep_folder / "best")
    # Samples show masked tokens in brackets; the example masks one of them, as a user would.
    before, bracket, rest = re.sub(r"</?s>", "", str(samples[0]["text"])).partition("⟦")
    _, _, after = rest.partition("⟧")
    text = before[:_EXAMPLE_CHARACTERS]
    if bracket:
        after = re.sub("[⟦⟧]", "", after)[:_EXAMPLE_CHARACTERS]
        text = f"{before[-_EXAMPLE_CHARACTERS:]}{mask}{after}"
    return text.strip()


def register(client: MlflowClient, *, name: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Register the model of a run as a version of the registered model `name`; a version that exists gets the tags.

    Returns:
        Address of the version, e.g. `models:/traffic-mlm/1`.
    """
    known = client.search_model_versions(f"run_id = '{run_id}'")
    if known:
        # After a retry the model of the run may be that of another trial.
        for key, value in tags.items():
            if known[0].tags.get(key) != value:
                client.set_model_version_tag(known[0].name, known[0].version, key, value)
        return f"models:/{known[0].name}/{known[0].version}"
    _create(client, name)
    source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{ARTIFACT}"
    made = client.create_model_version(name, source, run_id, tags=dict(tags))
    return f"models:/{name}/{made.version}"


def _create(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Winners of the sweeps of this name, one version a sweep.")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _is_causal(best: Path) -> bool:
    config = json.loads((best / "config.json").read_text(encoding="utf-8"))
    return str(config["architectures"][0]).endswith("ForCausalLM")


def _type(value: float) -> DataType:
    return DataType.long if isinstance(value, int) else DataType.double


def _requirement(package: str) -> str:
    # transformers serves the model but is no dependency of pretune: any version with the three model types works.
    with suppress(PackageNotFoundError):
        return f"{package}=={version(package).split('+')[0]}"
    return package
