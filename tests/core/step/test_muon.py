"""Muon as the run sets it up: its maths against torch's own, and what a step promises whatever the optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_corpus import VOCABULARY
from small_runs import TOKENS_PER_STEP, final_weights, small_run
from small_runs import train as run_to_its_end
from small_steps import a_step, train

from core.distributed.workers import Workers
from core.memory.memory_limit import memory_limit
from core.model_files.checkpoint import model_tensors
from core.models.language_model import LanguageModel
from core.models.layer_matrices import layer_matrices
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.settings.training_config import MuonConfig, TrainingConfig
from core.step.muon import _Workspace
from core.step.optimizer import build_optimizer, update
from core.step.optimizer_step import StepResult

torch.set_num_threads(1)

MUON = {"optimizer": "muon"}


def a_model(**changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"family": "decoder", "layers": 1, "width": 32, "heads": 4, "kv_heads": 2, "sequence_length": 8}
    return build_model(ModelConfig(**{**shape, **changes}), VOCABULARY.size)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("feed_forward", ["swiglu", "moe"])
def test_each_matrix_moves_as_torchs_own_muon_would_move_it_alone(feed_forward: str, nesterov: bool) -> None:
    model = a_model(feed_forward=feed_forward)
    training = TrainingConfig(optimizer="muon", weight_decay=0.2, muon=MuonConfig(nesterov=nesterov, momentum=0.9))
    # torch multiplies in bf16 whatever the weights are.
    ours = build_optimizer(model, training, tokens_per_step=1.0, precision=Precision("bf16", "cpu"))
    joints = layer_matrices(model)
    plain = {
        parameter: [torch.nn.Parameter(part.clone()) for part in joint.matrices(parameter.detach())]
        for parameter, joint in joints.items()
    }
    reference = torch.optim.Muon(
        [part for parts in plain.values() for part in parts],
        weight_decay=0.2,
        momentum=0.9,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for parameter, joint in joints.items():
            assert parameter.grad is not None
            for one, gradient in zip(plain[parameter], joint.matrices(parameter.grad), strict=True):
                one.grad = gradient.clone()
        rate = 0.02 / (step + 1)
        update(ours, gradient_scale=1.0, learning_rate=rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for parameter, joint in joints.items():
        for one, part in zip(plain[parameter], joint.matrices(parameter.detach()), strict=True):
            # The same products in the same order; a transposed operand may round its last bit of bf16 otherwise.
            assert (one - part).abs().max().item() < 1e-4
    assert sum(map(len, plain.values())) == {"swiglu": 4 + 3, "moe": 4 + 4 * 3 + 3}[feed_forward]


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_orthogonalized_matrix_keeps_its_directions_and_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape, dtype=torch.float64) * torch.linspace(1, 4, shape[1])
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ _Workspace([matrix], torch.float64).orthogonalized(matrix, iterations=8) @ right.T
    assert (found - torch.diag(found.diagonal())).abs().max().item() < 1e-9
    assert values.max() / values.min() > 1.9, "nothing was left to do"
    # The fixed points of the quintic are reached from both sides, so values oscillate around one.
    assert 0.65 < found.diagonal().min().item() < found.diagonal().max().item() < 1.25


@pytest.mark.parametrize(
    ("changes", "by_adamw"),
    [
        ({}, {"tokens.weight", "layers.0.attention_norm.weight", "final_norm.weight"}),
        ({"feed_forward": "moe", "tied_embeddings": False}, {"head_weight", "layers.0.feed_forward.router.weight"}),
        (
            {"feed_forward": "memory", "memory": {"entries": 64, "entries_per_token": 4}},
            {"layers.0.feed_forward.values.weight", "layers.0.feed_forward.half_keys_H2SC"},
        ),
        ({"family": "encoder", "kv_heads": None}, {"head_dense.weight", "positions.weight", "head_bias"}),
    ],
)
def test_muon_changes_the_matrices_of_layers_and_adamw_the_rest(changes: dict[str, Any], by_adamw: set[str]) -> None:
    model = a_model(**changes)
    optimizer = build_optimizer(model, TrainingConfig(optimizer="muon"), tokens_per_step=1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, *adamw = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert by_adamw <= set().union(*adamw)
    assert {name for name in muon if ".attention." in name} == {
        name for name in names.values() if ".attention." in name and name.endswith(".weight")
    }
    assert muon.isdisjoint(set().union(*adamw))
    assert muon.union(*adamw) == set(names.values())
    assert set(optimizer.state) == set(model.parameters()), "state is there before the first step"


def test_one_learning_rate_serves_both_unless_muon_has_its_own() -> None:
    def rates(**muon: Any) -> tuple[float, float]:
        training = TrainingConfig(optimizer="muon", learning_rate=1e-2, muon=MuonConfig(**muon))
        model = a_model()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = build_optimizer(model, training, tokens_per_step=1.0)
        update(optimizer, gradient_scale=1.0, learning_rate=5e-3)
        of_muon, of_adamw, *_ = (float(group["lr"]) for group in optimizer.param_groups)
        return of_muon, of_adamw

    assert rates() == (5e-3, 5e-3)
    # The same point of the schedule, half of the peak.
    assert rates(learning_rate=4e-2) == pytest.approx((2e-2, 5e-3))


def test_an_update_has_the_root_mean_square_of_adamws() -> None:
    model = a_model(width=64)
    optimizer = build_optimizer(model, TrainingConfig(optimizer="muon", weight_decay=0.0), tokens_per_step=1.0)
    joints = layer_matrices(model)
    before = {parameter: parameter.detach().clone() for parameter in joints}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    update(optimizer, gradient_scale=1.0, learning_rate=1.0)
    for parameter, joint in joints.items():
        for change in joint.matrices(parameter.detach() - before[parameter]):
            # Singular values of 0.7 to 1.2 leave a fifth to both sides of 0.2.
            assert change.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_an_update_takes_no_memory_beyond_what_is_there() -> None:
    step = a_step(Workers(), micro_batch_size=8, dtype=torch.float32, **MUON)
    train(step, num_steps=1)
    sums = step._local_work(step.source.shard(position=0, batch_size=16, rank=0, num_workers=1), 1)
    with memory_limit(None, torch.device("cpu")) as meter:
        workspace = step.optimizer._workspace  # type: ignore[attr-defined]
        meter.track(step.model, step.optimizer, workspace._matrices, workspace._squares, workspace._norm)
        before = meter.current_bytes
        step._finish(sums, lambda _: 1e-3)
        # A norm for each tensor, and a few sums; one matrix of a layer alone has 4,096 bytes and more.
        assert meter.peak_bytes - before < 4096


def test_gradient_that_is_not_finite_changes_neither_weights_nor_momentum() -> None:
    step = a_step(Workers(), micro_batch_size=16, **MUON)
    train(step, num_steps=2)
    before = [tensor.clone() for tensor in model_tensors(step.model).values()]
    momenta = [{name: one.clone() for name, one in state.items()} for state in step.optimizer.state.values()]
    assert step.model.head_bias is not None
    saved = step.model.head_bias.detach().clone()
    with torch.no_grad():
        step.model.head_bias.fill_(float("inf"))
    result = step.take(step=2, position=32, learning_rate=lambda _: 3e-3)
    assert isinstance(result, StepResult)
    assert not result.is_applied
    with torch.no_grad():
        step.model.head_bias.copy_(saved)
    assert all(map(torch.equal, before, model_tensors(step.model).values()))
    for state, momentum in zip(step.optimizer.state.values(), momenta, strict=True):
        assert all(torch.equal(state[name], one) for name, one in momentum.items())


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    run = small_run(optimizer="muon")
    run_to_its_end(run, tmp_path / "whole")

    def stops(values: dict[str, float]) -> bool:
        return values["tokens"] < 7 * TOKENS_PER_STEP

    first = run_to_its_end(run, tmp_path / "parts", report=stops, report_every_s=0)
    assert first.outcome == "stopped"
    assert run_to_its_end(run, tmp_path / "parts").outcome == "completed"
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")
    assert b"momentum_buffer/layers.0.attention.qkv.weight" in final_weights(tmp_path / "whole")


def test_another_optimizer_or_another_momentum_refuses_the_checkpoint(tmp_path: Path) -> None:
    run_to_its_end(small_run(optimizer="muon"), tmp_path)
    with pytest.raises(ValueError, match=r"training.optimizer is muon there and None here"):
        run_to_its_end(small_run(), tmp_path)
    with pytest.raises(ValueError, match=r"training.muon"):
        run_to_its_end(small_run(optimizer="muon", muon={"momentum": 0.9}), tmp_path)


def test_adapters_with_muon_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValidationError, match=r"thin factors of them; use training\.optimizer: adamw, or remove"):
        TrainingConfig.model_validate({"optimizer": "muon", "lora": {}})
