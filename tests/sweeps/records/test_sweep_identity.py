"""A sweep's identity and its resolved file: the same from one version to the next, so that results are found again."""

import hashlib
from pathlib import Path

import pytest

from sweep_examples import tiny_sweep
from sweeps.records.results_folder import sweep_identity
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file

CONFIGS = Path(__file__).parents[3] / "sweeps/configs"
QUICKSTART_OF_THEN = """\
name: quickstart
purpose: >-
  See a whole sweep in a few minutes: which learning rate, batch size and masking rate train a small masked language
  model best on equal tokens, and what becomes of settings that do not fit in memory.
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 4096}
model: {family: encoder, layers: 3, width: 192, heads: 3, sequence_length: 64}
objective: {masked_lm: {masking_rate: 0.15}}
training: {on_oom: stop}
search:
  training.learning_rate: {log_uniform: [5e-4, 1e-2]}
  training.batch_size: {choice: [32, 64, 128]}
  training.micro_batch_size: {choice: [8, 16, 32, 128]}
  objective.masked_lm.masking_rate: {uniform: [0.10, 0.40]}
start_with:
  - {training.learning_rate: 2e-3, training.batch_size: 128, training.micro_batch_size: 128,
     objective.masked_lm.masking_rate: 0.15}
  - {training.learning_rate: 1e-3, training.batch_size: 128, training.micro_batch_size: 128,
     objective.masked_lm.masking_rate: 0.30}
budget: {trials: 10, tokens_per_trial: 400k, shorten_to: 3min}
early_stopping: {first_rung: 30%}
resources: {memory: 150MiB}
"""
"""The shipped one has another job now."""


# Taken from the version that filled in 1 for tokens that are counted later. Another value here makes every results
# folder of an earlier version another sweep, which would train all of its trials again.
@pytest.mark.parametrize(
    ("name", "size", "counted_tokens", "file_sha256", "identity"),
    [
        ("quickstart", "laptop", None, "8b5c4dea26ce6f40", "80924e5020576e0e"),
        ("kant", "full", None, "6c0b787247caa706", "365c20dfc2aae4dc"),
        ("chinese-train", "laptop", None, "0d201c0eeee8ec4a", "9b1b6d51343dae22"),
        # Files in epochs and in stages, once the corpus has said how many tokens those are.
        ("chinese-sft-train", "laptop", 123_456, "2c1df036da867de6", "922b6c0e575ddcab"),
        ("traffic-train", "full", 7_654_321, "52b696ab3207ad23", "8fa7a0e0b46491fd"),
    ],
)
def test_a_shipped_file_resolves_to_the_same_bytes_and_identity_as_before(
    name: str, size: str, counted_tokens: int | None, file_sha256: str, identity: str, tmp_path: Path
) -> None:
    file = CONFIGS / f"{name}.yaml"
    if name == "quickstart":
        file = tmp_path / "quickstart.yaml"
        file.write_text(QUICKSTART_OF_THEN)
    sweep = load_sweep_file(file, [f"size={size}"])
    if counted_tokens is not None:
        counted = {"tokens_per_trial": counted_tokens, "epochs_per_trial": None}
        sweep = sweep.model_copy(update={"budget": sweep.budget.model_copy(update=counted)})
    assert hashlib.sha256(dump_sweep(sweep).encode()).hexdigest().startswith(file_sha256)
    assert sweep_identity(sweep, "x").startswith(identity)


def test_the_wording_of_notes_does_not_make_another_training() -> None:
    sweep = load_sweep_file(CONFIGS / "chinese-sft-train.yaml", ["size=laptop"])
    assert sweep.start is not None
    noted = [
        sweep.model_copy(update={"start": sweep.start.model_copy(update={"notes": notes})})
        for notes in ((), ("learning rate 0.001, scaled",), ("the learning rate is 0.001",))
    ]
    assert len({sweep_identity(one, "x") for one in noted}) == 1
    other = sweep.model_copy(update={"start": sweep.start.model_copy(update={"weights_of": "another"})})
    assert sweep_identity(other, "x") != sweep_identity(sweep, "x")


def test_a_presigned_url_is_the_same_sweep_when_it_is_signed_again_and_no_file_has_its_signature() -> None:
    address = "https://host/rows.csv?part=1&X-Amz-Date={0}&X-Amz-Signature={0}CANARY"
    first, again = (tiny_sweep(f"corpus.path={address.format(day)}") for day in ("20260101", "20260202"))
    assert first.corpus.path == address.format("20260101"), "it could not be read any more"
    assert sweep_identity(first, "x") == sweep_identity(again, "x")
    assert dump_sweep(first) == dump_sweep(again)
    assert "CANARY" not in dump_sweep(first)


def test_urls_without_a_secret_are_written_as_they_are() -> None:
    paths = ("s3://bucket/a@b/*.jsonl?region=eu-1", "https://host/x?file=a.csv", "rows.csv")
    sweep = tiny_sweep(f"corpus.path={list(paths)}")
    assert sweep.corpus.path == paths
    assert sweep.model_dump(mode="json")["corpus"]["path"] == list(paths)
    assert all(path in dump_sweep(sweep) for path in paths)
