"""Profiles against clocks and counts that can be told by hand."""

import time

import pytest
import torch
from absent_workers import AbsentWorkers
from small_corpus import VOCABULARY, small_corpus
from small_steps import a_step, train
from torch.utils.flop_counter import FlopCounterMode

from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.step import step_profile
from core.step.step_profile import StepProfile, matmul_flops_per_s, model_flops_a_token
from core.step.step_stretches import STRETCHES
from data_pipeline.tokens.batches import BatchSource

torch.set_num_threads(1)


def test_stretches_are_means_a_step_since_the_last_reading() -> None:
    profile = StepProfile(torch.device("cpu"))
    began_at = time.perf_counter()
    for _ in range(4):
        with profile.span("forward"):
            time.sleep(0.01)
    took_ms = 1000 * (time.perf_counter() - began_at)
    found = profile.read(num_steps=2)
    assert 20 <= found["profile/forward_ms"] <= took_ms / 2
    assert found["profile/backward_ms"] == 0.0
    assert profile.read(num_steps=1)["profile/forward_ms"] == 0.0


class CountedEvent:
    """A device event of a device that is always done after a millisecond."""

    living = 0
    most = 0

    def __init__(self) -> None:
        CountedEvent.living += 1
        CountedEvent.most = max(CountedEvent.most, CountedEvent.living)

    def __del__(self) -> None:
        CountedEvent.living -= 1

    def record(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: object) -> float:
        return 1.0


def test_a_thousand_steps_without_a_report_keep_few_device_events_and_ranks_that_report_nothing_keep_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_profile, "_cuda_event", CountedEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    first, other = (StepProfile(torch.device("cuda"), is_read=is_first) for is_first in (True, False))

    def steps(profile: StepProfile) -> None:
        CountedEvent.most = 0
        for _ in range(1000):
            for stretch in STRETCHES:
                with profile.span(stretch):
                    pass

    steps(other)
    assert CountedEvent.most == 0
    steps(first)
    assert CountedEvent.most < 600
    assert first.read(num_steps=1000)["profile/backward_ms"] == pytest.approx(1.0)
    assert CountedEvent.living == 0


def test_only_rank_0_measures_its_steps() -> None:
    for rank in (0, 1):
        step = a_step(AbsentWorkers(rank=rank, count=2), micro_batch_size=8)
        train(step, num_steps=1)
        assert (step.profile.read(num_steps=1)["profile/forward_ms"] > 0) == (rank == 0)


def test_model_flops_are_six_a_parameter_and_token_plus_attention() -> None:
    config = ModelConfig(family="decoder", layers=2, width=64, heads=2, sequence_length=16, feed_forward_width=128)
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY.size)
    source = BatchSource(small_corpus().train, VOCABULARY, masking_rate=None, seed=0)
    batch = source.batch(source.shard(position=0, batch_size=4, rank=0, num_workers=1), 0, 4)
    layer = 4 * 64 * 64 + 3 * 64 * 128
    products = 6 * (2 * layer + VOCABULARY.size * 64 * 15 / 16)  # the last token of a row predicts nothing
    attention = 12 * 2 * 64 * 16  # two products of all pairs, whether or not a kernel leaves the later ones out
    found = model_flops_a_token(model, batch, Precision("fp32", "cpu"))
    assert products <= found <= (products + attention) * 1.001


def test_matmul_rate_is_measured_once() -> None:
    matmul_flops_per_s.cache_clear()
    began_at = time.perf_counter()
    with FlopCounterMode(display=False) as first:
        rate = matmul_flops_per_s(torch.device("cpu"), torch.float32)
    took_s = time.perf_counter() - began_at
    with FlopCounterMode(display=False) as later:
        assert {matmul_flops_per_s(torch.device("cpu"), torch.float32) for _ in range(3)} == {rate}
    assert later.get_total_flops() == 0
    # That of the fastest of several products, which take a slow processor seconds.
    assert first.get_total_flops() / took_s <= rate
    assert first.get_total_flops() < 1e11
