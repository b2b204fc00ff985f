"""A sweep of six small trials from end to end, on a text made for it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from core.doctor.check import Check, verdict_of
from data_pipeline.files.whole_files import write_atomically
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialStore

_NUM_TRIALS = 6
_LONGEST_S = 900.0
_WORDS = ("the", "tree", "stands", "beside", "a", "river", "and", "its", "leaves", "fall", "when", "wind", "comes")


def six_trials() -> Check:
    """The verdict on a sweep of six trials: all completed or stopped early, and a best one exported."""
    subject = f"sweep of {_NUM_TRIALS} trials"
    with tempfile.TemporaryDirectory() as folder:
        file = _sweep_file(Path(folder))
        started_at = time.monotonic()
        command = [sys.executable, "-m", "sweeps", "sweep", str(file), "--results", f"{folder}/results"]
        try:
            done = subprocess.run(
                command,
                cwd=Path(__file__).parents[2],
                env=os.environ | {"MLFLOW_TRACKING_URI": ""},
                capture_output=True,
                text=True,
                timeout=_LONGEST_S,
            )
        except subprocess.TimeoutExpired:
            return Check(subject, "fail", f"it did not end within {_LONGEST_S:.0f} s")
        took_s = time.monotonic() - started_at
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            return Check(subject, "fail", f"exit code {done.returncode}: {last[:200]}")
        (sweep,) = [path.parent for path in Path(folder, "results").glob("*/summary.json")]
        outcomes = [record.outcome for record in TrialStore(sweep / "trials").load_all()]
        is_kept = (sweep / "best").is_dir() and set(outcomes) <= {Outcome.COMPLETED, Outcome.STOPPED}
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in sorted(set(outcomes), key=str))
        return Check(subject, verdict_of(is_kept), f"{counts} in {took_s:.0f} s", {"took_s": took_s})


def _sweep_file(folder: Path) -> Path:
    texts = [" ".join(_WORDS[(start + step * step) % len(_WORDS)] for step in range(40)) for start in range(400)]
    corpus = folder / "corpus.jsonl"
    write_atomically(
        corpus, "".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(texts))
    )
    sweep = {
        "name": "doctor",
        "corpus": {"path": str(corpus), "text": "text", "holdout": "5%"},
        "tokenizer": {"kind": "byte-bpe", "vocabulary": 300},
        "model": {"family": "decoder", "layers": 1, "width": 64, "heads": 2, "sequence_length": 32},
        "objective": "causal_lm",
        "search": {"training.learning_rate": {"log_uniform": [1e-3, 1e-2]}},
        "training": {"batch_size": 16, "micro_batch_size": 8},
        "budget": {"trials": _NUM_TRIALS, "tokens_per_trial": 20_000},
    }
    file = folder / "doctor.yaml"
    write_atomically(file, yaml.safe_dump(sweep))
    return file
