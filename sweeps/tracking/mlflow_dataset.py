"""The corpus of a sweep as MLflow data sets, identified by digest: one for training, one held out."""

import json
from pathlib import PurePosixPath

from mlflow.entities import Dataset, DatasetInput, InputTag

from data_pipeline.schema.manifest import Manifest, SplitName
from data_pipeline.schema.redaction import redact_urls

_DIGEST_CHARACTERS = 36
"""MLflow's limit."""
_CONTEXTS: dict[SplitName, str] = {"train": "training", "holdout": "evaluation"}


def dataset_inputs(manifest: Manifest) -> list[DatasetInput]:
    """The data sets that every run of a sweep on this corpus reads.

    The digest is the fingerprint of the prepared corpus; it changes with the corpus, the tokenizer and the packing.
    """
    corpus = manifest.corpus
    paths: list[str] = redact_urls([corpus.path] if isinstance(corpus.path, str) else list(corpus.path or ()))
    name = PurePosixPath(paths[0].rstrip("/")).name if paths else str(corpus.builtin)
    source = json.dumps({"uri": paths[0] if len(paths) == 1 else paths or f"builtin:{corpus.builtin}"})
    schema = json.dumps({"mlflow_colspec": [{"type": "string", "name": corpus.text or "text", "required": True}]})
    inputs = []
    for split, context in _CONTEXTS.items():
        report = manifest.splits[split]
        profile = {
            "num_rows": report.num_documents,
            "num_elements": report.num_tokens,
            "rows_read": manifest.rows_read,
            "rows_rejected": manifest.rows_rejected,
            "vocabulary": manifest.tokenizer_report.vocabulary_size,
        }
        dataset = Dataset(
            name=f"{name} {split}",
            digest=manifest.fingerprint[:_DIGEST_CHARACTERS],
            source_type="local" if not paths or "://" not in paths[0] else paths[0].split("://")[0],
            source=source,
            schema=schema,
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs
