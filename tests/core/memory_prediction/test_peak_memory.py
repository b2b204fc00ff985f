"""Predicted memory against measured: torch's record of allocations, the counting budget, and the process as a whole."""

import math
import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from full_rows import a_run, an_optimizer_step, take_steps
from recorded_memory import recorded_peak_bytes
from small_corpus import small_corpus
from two_workers import on_workers

from core.distributed.workers import Workers
from core.layers import cache_blocks
from core.layers.rms_norm import RMSNorm
from core.memory.memory_limit import memory_limit
from core.memory_prediction import peak_memory as memory_model
from core.memory_prediction.cuda_emulation import CudaForms
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.settings.run_config import RunConfig
from core.step.evaluation import Evaluation
from core.training.training_run import run_training
from data_pipeline.schema.settings import format_bytes
from patience import HANGS_AFTER_S

CPU = torch.device("cpu")
VOCABULARY_SIZE = 3000


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DECODER = {"family": "decoder"}
MODERN = {"form": "modern"}
MEMORY = {"feed_forward": "memory", "memory": {"entries": 4096}}

QUICK_RUNS = {
    "roberta, accumulating": ({}, 8, False),
    "decoder, grouped, one pass": (DECODER | {"kv_heads": 2}, 16, False),
    "decoder, muon": (DECODER | {"optimizer": "muon", "kv_heads": 2}, 8, False),
    "decoder, adapters": (DECODER | {"lora": {}, "precision": "bf16"}, 8, False),
}
SLOW_RUNS = {
    "roberta, checkpointing": ({"activation_checkpointing": True}, 8, False),
    "roberta, one pass": ({}, 16, False),
    "roberta, a short last pass": ({}, 6, False),
    "roberta, two unequal passes": ({}, 12, False),
    "roberta, documents apart": ({}, 8, True),
    "roberta, dropout": ({"dropout": 0.1}, 8, False),
    "roberta, longer positions": ({"max_sequence_length": 200}, 8, False),
    "untied embeddings": ({"tied_embeddings": False}, 8, False),
    "no feed-forward": ({"feed_forward": "none"}, 8, False),
    "roberta, swiglu": ({"feed_forward": "swiglu"}, 8, False),
    "modern": (MODERN, 8, False),
    "modern, documents apart": (MODERN, 8, True),
    "modern, dropout": (MODERN | {"dropout": 0.1}, 8, False),
    "modern, checkpointing": (MODERN | {"activation_checkpointing": True}, 8, False),
    "decoder": (DECODER, 8, False),
    "decoder, documents apart": (DECODER, 8, True),
    "decoder, grouped, documents apart": (DECODER | {"kv_heads": 1}, 8, True),
    "decoder, gelu, untied": (DECODER | {"feed_forward": "gelu", "tied_embeddings": False}, 8, False),
    "decoder, no feed-forward": (DECODER | {"feed_forward": "none"}, 8, False),
    "decoder, checkpointing": (DECODER | {"activation_checkpointing": True}, 8, False),
    "decoder, dropout": (DECODER | {"dropout": 0.1}, 8, False),
    "roberta, bf16": ({"precision": "bf16"}, 8, False),
    "roberta, bf16, checkpointing": ({"precision": "bf16", "activation_checkpointing": True}, 8, False),
    "modern, bf16, documents apart": (MODERN | {"precision": "bf16"}, 8, True),
    "decoder, bf16, grouped": (DECODER | {"precision": "bf16", "kv_heads": 2}, 8, False),
    "decoder, bf16, dropout": (DECODER | {"precision": "bf16", "dropout": 0.1}, 8, False),
    "roberta, bf16, attention in blocks": ({"precision": "bf16", "sequence_length": 256, "heads": 8}, 16, False),
    "decoder, bf16, attention in blocks": (
        DECODER | {"precision": "bf16", "sequence_length": 512, "heads": 8},
        16,
        False,
    ),
    "decoder, mixture of experts": (DECODER | {"feed_forward": "moe"}, 8, False),
    "decoder, mixture of experts, bf16": (DECODER | {"feed_forward": "moe", "precision": "bf16"}, 8, False),
    "decoder, mixture of experts, checkpointing": (
        DECODER | {"feed_forward": "moe", "activation_checkpointing": True},
        8,
        False,
    ),
    "roberta, mixture of experts": ({"feed_forward": "moe"}, 8, False),
    "decoder, memory layer": (DECODER | MEMORY, 8, False),
    "decoder, memory layer, bf16": (DECODER | MEMORY | {"precision": "bf16"}, 8, False),
    "modern, memory layer": (MODERN | MEMORY, 8, False),
    "roberta, muon, bf16, one pass": ({"optimizer": "muon", "precision": "bf16"}, 16, False),
    "modern, muon, tiny batch": (MODERN | {"optimizer": "muon", "batch_size": 1, "sequence_length": 8}, 1, False),
    "decoder, muon, mixture of experts": (DECODER | {"optimizer": "muon", "feed_forward": "moe"}, 8, False),
    "decoder, muon, memory layer": (DECODER | MEMORY | {"optimizer": "muon"}, 8, False),
    "roberta, adapters": ({"lora": {}}, 8, False),
    "roberta, adapters of attention": ({"lora": {"targets": "attention"}, "precision": "bf16"}, 16, False),
    "modern, adapters, documents apart": (MODERN | {"lora": {"rank": 2}}, 8, True),
    "modern, adapters, dropout": (MODERN | {"lora": {}, "dropout": 0.1}, 8, False),
    "decoder, adapters, all kept": (DECODER | {"lora": {"recompute_feed_forward": False}}, 8, False),
    "decoder, adapters, checkpointing": (DECODER | {"lora": {}, "activation_checkpointing": True}, 16, False),
    "decoder, adapters of queries": (DECODER | {"lora": {"targets": "q_proj"}, "precision": "bf16"}, 16, False),
    "decoder, adapters, mixture of experts": (DECODER | {"lora": {}, "feed_forward": "moe"}, 8, False),
    "decoder, adapters, memory layer": (DECODER | MEMORY | {"lora": {}}, 8, False),
}
ALL_RUNS = [
    *(pytest.param(*case, id=name) for name, case in QUICK_RUNS.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in SLOW_RUNS.items()),
]


@pytest.mark.parametrize("micro_batch_size", [1, 16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_with_a_large_vocabulary_takes_no_more_than_training_was_predicted_to(precision, micro_batch_size):
    run = a_run(layers=1, width=64, precision=precision, batch_size=32)
    with memory_limit(None, CPU) as meter:
        step = an_optimizer_step(run, 65_000, micro_batch_size=micro_batch_size)
        held_before = meter.peak_bytes
        rehearsed = Evaluation(
            step.model, step.source, Workers(), step.precision, num_rows=micro_batch_size, shrinks=False
        )
        assert rehearsed.rehearse(step=0) is None
    predicted_bytes = predict_memory(run, 65_000, micro_batch_size=micro_batch_size, setup=WorkerSetup()).peak_bytes
    assert held_before < meter.peak_bytes < predicted_bytes


@pytest.mark.parametrize(("changes", "micro_batch_size", "has_documents"), ALL_RUNS)
def test_prediction_equals_what_training_really_holds(changes, micro_batch_size, has_documents):
    run = a_run(**changes)
    predicted_bytes = predict_memory(
        run, VOCABULARY_SIZE, micro_batch_size=micro_batch_size, setup=WorkerSetup(has_document_ids=has_documents)
    ).peak_bytes
    with memory_limit(None, CPU) as meter:
        take_steps(run, VOCABULARY_SIZE, micro_batch_size=micro_batch_size, num_steps=3, has_documents=has_documents)
    # Equal to the byte, but causal rows of two documents predict a token less than the full rows that are assumed.
    tolerance = 0.01 if has_documents and run.model.is_causal else 0.0
    assert predicted_bytes == pytest.approx(meter.peak_bytes, rel=tolerance, abs=0)

    recorded_bytes = recorded_peak_bytes(
        lambda: take_steps(run, VOCABULARY_SIZE, micro_batch_size=micro_batch_size, has_documents=has_documents)
    )
    assert predicted_bytes == pytest.approx(recorded_bytes, rel=0.01)


@pytest.mark.long
def test_rows_in_which_fewer_positions_predict_need_no_more_than_was_predicted():
    # Two chunks of the vocabulary head for full rows; of the last there are few enough for one, of nearly twice that.
    run = a_run(layers=1, width=64, batch_size=16).with_overrides({"objective.masked_lm.masking_rate": 0.5})
    predicted_bytes = predict_memory(run, 40_000, micro_batch_size=16).peak_bytes
    for num_special in (0, 1, 14, 40):
        with memory_limit(None, CPU) as meter:
            take_steps(run, 40_000, micro_batch_size=16, num_special=num_special)
        assert meter.peak_bytes <= predicted_bytes, num_special
        assert num_special > 0 or meter.peak_bytes == predicted_bytes


def peak_of_worker(workers: Workers, run: RunConfig) -> int:
    with memory_limit(None, CPU) as meter:
        take_steps(run, VOCABULARY_SIZE, micro_batch_size=4, num_steps=3, workers=workers)
    return meter.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, DECODER], ids=["roberta", "decoder"])
def test_prediction_holds_for_each_of_two_workers(changes):
    run = a_run(**changes)
    two_workers = WorkerSetup(num_workers=2)
    predicted_bytes = predict_memory(run, VOCABULARY_SIZE, micro_batch_size=4, setup=two_workers).peak_bytes
    assert on_workers(2, peak_of_worker, run) == [predicted_bytes, predicted_bytes]


def test_parts_are_named_and_sum_to_the_peak():
    run = a_run()
    for device_type in ("cpu", "cuda"):
        setup = WorkerSetup(device_type=device_type)
        prediction = predict_memory(run, VOCABULARY_SIZE, micro_batch_size=16, setup=setup)
        assert sum(prediction.parts.values()) == prediction.peak_bytes
        assert list(prediction.parts.values()) == sorted(prediction.parts.values(), reverse=True)
    parts = predict_memory(run, VOCABULARY_SIZE, micro_batch_size=8).parts
    assert {"parameters", "gradients", "optimizer state", "activations", "logits"} <= parts.keys()
    num_tensors = 2 * 12 + 9
    assert parts["optimizer state"] == pytest.approx(2 * parts["parameters"] + 4 * num_tensors, abs=200)


@pytest.mark.long
def test_each_feature_moves_the_part_that_it_should():
    def parts(**changes: Any) -> dict[str, int]:
        return predict_memory(a_run(**changes), VOCABULARY_SIZE, micro_batch_size=8).parts

    plain = parts()
    assert parts(activation_checkpointing=True)["activations"] < 0.35 * plain["activations"]
    assert parts(layers=4)["activations"] > 1.7 * plain["activations"]
    assert parts(tied_embeddings=False)["parameters"] == plain["parameters"] + 4 * VOCABULARY_SIZE * 128
    assert parts(precision="bf16")["cast parameters"] > 0
    assert "cast parameters" not in plain


def test_several_workers_hold_one_gradient_more_than_one_pass_alone():
    run = a_run(batch_size=8)
    alone = predict_memory(run, VOCABULARY_SIZE, micro_batch_size=8)
    both = predict_memory(a_run(batch_size=16), VOCABULARY_SIZE, micro_batch_size=8, setup=WorkerSetup(num_workers=2))
    assert both.parts["gradients"] == alone.parts["parameters"]
    assert both.peak_bytes > alone.peak_bytes


def test_a_device_needs_more_than_its_tensors_but_not_twice():
    run = a_run(width=256, sequence_length=128, batch_size=64, precision="bf16")
    prediction = predict_memory(run, 30_000, micro_batch_size=32, setup=WorkerSetup(device_type="cuda"))
    tensors_bytes = prediction.peak_bytes - prediction.parts["allocator"] - prediction.parts["workspaces"]
    assert 1.0 <= (prediction.peak_bytes - prediction.parts["workspaces"]) / tensors_bytes < 1.41


def test_rms_norm_on_a_gpu_keeps_its_input_and_one_factor_a_row():
    norm, rows = RMSNorm(256, 1e-5), torch.randn(100, 256, requires_grad=True)
    with cache_blocks.as_on_a_gpu(), CudaForms(), memory_limit(None, CPU) as meter:
        meter.track(norm, rows)
        before_bytes = meter.current_bytes
        out = norm(rows)
        assert meter.current_bytes - before_bytes == out.nbytes + 100 * 4
        out.sum().backward()
    # Shapes of gradients are right, values are not.
    assert rows.grad is not None
    assert (rows.grad.shape, norm.weight.grad.shape) == (rows.shape, norm.weight.shape)


def test_settings_that_change_no_shape_cost_no_trace():
    predict_memory(a_run(dropout=0.1), VOCABULARY_SIZE, micro_batch_size=8)
    other = a_run(dropout=0.3).with_overrides({"training.learning_rate": 1e-3, "training.seed": 5})
    traced = memory_model._traced.cache_info().misses
    predict_memory(other, VOCABULARY_SIZE, micro_batch_size=8)
    assert memory_model._traced.cache_info().misses == traced


def test_predicting_leaves_the_random_state_and_the_autocast_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    predict_memory(a_run(dropout=0.2, layers=1, precision="bf16"), 500, micro_batch_size=4)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.is_autocast_enabled("cpu")


def test_predicting_inside_a_budget_does_not_touch_it():
    with memory_limit(1000, CPU) as meter:
        predict_memory(a_run(layers=1), 501, micro_batch_size=4)
    assert meter.peak_bytes < 1000


@pytest.mark.slow
def test_a_prediction_for_a_model_of_roberta_size_takes_under_one_and_a_half_seconds():
    predict_memory(a_run(layers=1), 502, micro_batch_size=4)  # imports
    # Where Python sums a million squares in 45 ms; another processor takes longer for both.
    started_s = time.process_time()
    sum(number * number for number in range(1_000_000))
    limit_s = 1.5 * (time.process_time() - started_s) / 0.045
    for device_type, precision in (("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "bf16")):
        run = a_run(layers=6, width=768, heads=12, sequence_length=512, batch_size=64, precision=precision)
        started_s = time.process_time()
        predict_memory(run, 52_000, micro_batch_size=16, setup=WorkerSetup(device_type=device_type))
        assert time.process_time() - started_s < limit_s


def test_a_micro_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        predict_memory(a_run(), VOCABULARY_SIZE, micro_batch_size=0)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [4, 16])
@pytest.mark.parametrize("changes", [{}, DECODER], ids=["roberta", "decoder"])
def test_a_whole_run_with_evaluation_and_checkpoints_needs_what_its_steps_need(changes, micro_batch_size, tmp_path):
    run = a_run(**changes, micro_batch_size=micro_batch_size).with_overrides(
        {"training.tokens": 8192, "training.on_oom": "stop"}
    )
    data = small_corpus(sequence_length=64)
    needed = predict_memory(run, data.vocabulary.size, micro_batch_size=micro_batch_size).peak_bytes
    for limit_bytes, outcome in ((None, "completed"), (needed, "completed"), (needed - 1, "infeasible")):
        end = run_training(
            run,
            data,
            workers=Workers(),
            folder=tmp_path / str(limit_bytes),
            report=lambda _: True,
            evaluate_at_tokens=[2000],
            memory_limit_bytes=limit_bytes,
        )
        assert end.outcome == outcome, end.reason
        assert end.peak_memory_bytes == needed or outcome == "infeasible"


# The process as a whole

RESIDENT = """
import json, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from core.settings.run_config import RunConfig
from core.training.training_run import run_training
from full_rows import a_run, an_optimizer_step, take_steps
def resident_bytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))
run = RunConfig.model_validate_json({run!r})
small = run.with_overrides({{"model.layers": 1, "training.batch_size": 2}})
take_steps(small, 500, micro_batch_size=1)  # libraries allocate for themselves on first use
before = resident_bytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
take_steps(run, 8000, micro_batch_size={micro_batch_size})
print(resident_bytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "micro_batch_size"),
    [({}, 32), (MODERN, 32), (DECODER, 16), ({"activation_checkpointing": True, "layers": 4}, 64), ({}, 128)],
    ids=["roberta", "modern", "decoder", "checkpointing", "one pass"],
)
def test_the_process_grows_by_what_is_predicted(changes, micro_batch_size):
    # glibc with memory maps from 64 KiB and one arena: what is freed goes back to the system.
    run = a_run(**({"batch_size": 128, "width": 256, "sequence_length": 128} | changes))
    paths = [os.path.dirname(os.path.dirname(__file__)), os.getcwd()]
    output = subprocess.run(
        [
            sys.executable,
            "-c",
            RESIDENT.format(paths=paths, run=run.model_dump_json(), micro_batch_size=micro_batch_size),
        ],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANGS_AFTER_S,
    ).stdout
    predicted_bytes = predict_memory(run, 8000, micro_batch_size=micro_batch_size).peak_bytes
    assert math.isclose(predicted_bytes, int(output), rel_tol=0.10), (
        format_bytes(predicted_bytes),
        format_bytes(int(output)),
    )
