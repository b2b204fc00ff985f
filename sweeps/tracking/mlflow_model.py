"""The winner in MLflow's model registry: saved as a pyfunc model without a pickle, registered once a sweep."""

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
"""Ends the script that is the model: MLflow runs it instead of reading a pickle ("models from code")."""
_EXAMPLE_CHARACTERS = 80
"""Of the text before and after the mask."""
_NEEDS = ("torch", "transformers", "pandas")


def save_model(best: Path, into: Path, *, example: str = "") -> None:
    """Write the pyfunc model: a script, the folder of transformers, signature, an example.

    Args:
        best: Folder of transformers.
        into: Folder to make.
        example: A text to try the model with; a masked LM's has a mask in it. Empty: a short one.
    """
    is_causal = _is_causal(best)
    given, made = Schema([ColSpec("string", TEXT)]), Schema([ColSpec("string", CONTINUED if is_causal else RESTORED)])
    params = ParamSchema([ParamSpec(name, _type(value), value) for name, value in DEFAULTS.items()])
    into.parent.mkdir(parents=True, exist_ok=True)
    script = into.parent / "served_model.py"
    script.write_text(inspect.getsource(served_model) + _SET_MODEL, encoding="utf-8")
    # A bar for four local files that are copied.
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
    """How the model in a folder of transformers writes a mask; empty for one that has none."""
    return str(json.loads((best / "tokenizer_config.json").read_text(encoding="utf-8")).get("mask_token") or "")


def example_of(sweep_folder: Path) -> str:
    """A text of the holdout to try the winner with, cut to what an example needs; empty where none was drawn."""
    summary = sweep_folder / "summary.json"
    samples = json.loads(summary.read_text(encoding="utf-8")).get("samples") if summary.is_file() else None
    if not samples:
        return ""
    mask = mask_of(sweep_folder / "best")
    # Samples show hidden tokens in brackets; the example hides one of them, as a user would.
    before, bracket, rest = re.sub(r"</?s>", "", str(samples[0]["text"])).partition("⟦")
    _, _, after = rest.partition("⟧")
    text = before[:_EXAMPLE_CHARACTERS]
    if bracket:
        after = re.sub("[⟦⟧]", "", after)[:_EXAMPLE_CHARACTERS]
        text = f"{before[-_EXAMPLE_CHARACTERS:]}{mask}{after}"
    return text.strip()


def register(client: MlflowClient, *, name: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Make the model that lies in a run a version of the registered model `name`, unless it is one already.

    Returns:
        Its address, as `models:/traffic-mlm/1`.
    """
    known = client.search_model_versions(f"run_id = '{run_id}'")
    if known:
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
    # transformers serves the model and is no part of pretune: any version that has the three forms will do.
    with suppress(PackageNotFoundError):
        return f"{package}=={version(package).split('+')[0]}"
    return package
