"""LoRA against its definition: W + scale x B A and nothing else is trained, in the memory and operations counted."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from full_rows import a_run
from small_corpus import VOCABULARY, small_corpus
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from two_workers import on_workers

from core.costs.training_flops import training_flops_a_token
from core.distributed.gradient_exchange import GradientExchange
from core.distributed.workers import Workers
from core.layers.low_rank import LowRankLinear
from core.memory_prediction.peak_memory import largest_micro_batch, predict_memory
from core.model_files.checkpoint import model_tensors, newest_checkpoint
from core.model_files.initial_weights import whole_model
from core.models.language_model import LanguageModel
from core.models.lora import add_lora, lora_faults, merge_lora
from core.models.model_factory import build_model
from core.settings.precision import Precision
from core.settings.run_config import RunConfig
from core.settings.training_config import LoraConfig
from core.step.objectives import add_gradients, summed_loss
from core.step.optimizer import build_optimizer
from core.training.run_end import RunEnd
from core.training.training_run import run_training
from data_pipeline.tokens.batches import Batch

FORMS = {"roberta": {}, "modern": {"form": "modern"}, "llama": {"family": "decoder", "kv_heads": 1}}
FP32 = Precision("fp32", "cpu")


def small_run(form: str, *, lora: dict[str, Any] | None, **training: Any) -> RunConfig:
    family = FORMS[form].get("family", "encoder")
    return RunConfig.model_validate(
        {
            "model": {"layers": 2, "width": 32, "heads": 2, "sequence_length": 16, **FORMS[form]},
            "objective": "causal_lm" if family == "decoder" else "masked_lm",
            "training": {
                "batch_size": 16,
                "micro_batch_size": 8,
                "tokens": 20 * 256,
                "learning_rate": 1e-2,
                "precision": "fp32",
                "lora": lora,
                **training,
            },
        }
    )


def adapted_model(run: RunConfig, *, is_learnt: bool = True) -> LanguageModel:
    """With random weights; as if something had been learnt, unless not."""
    torch.manual_seed(1)
    model = build_model(run.model, VOCABULARY.size, pad_id=VOCABULARY.pad_id)
    assert run.training.lora is not None
    add_lora(model, run.model, run.training.lora)
    if is_learnt:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, LowRankLinear):
                    module.lora_B.normal_(std=0.1)
    return model


def a_batch(num_rows: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(2)
    inputs_BT = torch.randint(5, VOCABULARY.size, (num_rows, 16), generator=generator)
    positions_P = torch.arange(0, num_rows * 16, 2)
    labels_P = torch.randint(5, VOCABULARY.size, (len(positions_P),), generator=generator)
    return Batch(inputs_BT, positions_P, labels_P, None, num_tokens=inputs_BT.numel(), most_predicted=len(positions_P))


def a_base(form: str, folder: Path) -> Path:
    """Checkpoint of an untrained model."""
    run = small_run(form, lora=None, tokens=256)
    run_training(run, small_corpus(), workers=Workers(), folder=folder, report=lambda _: True, evaluate_at_tokens=[])
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def train(run: RunConfig, folder: Path, **arguments: Any) -> RunEnd:
    settings: dict[str, Any] = {"report": lambda _: True, "evaluate_at_tokens": [], "checkpoint_every_s": None}
    return run_training(run, small_corpus(), workers=Workers(), folder=folder, **(settings | arguments))


@pytest.mark.parametrize("form", FORMS)
def test_fresh_adapters_change_no_logit(form: str) -> None:
    run = small_run(form, lora={})
    inputs_BT = a_batch().inputs_BT
    torch.manual_seed(1)
    base = build_model(run.model, VOCABULARY.size, pad_id=VOCABULARY.pad_id)
    assert torch.equal(adapted_model(run, is_learnt=False)(inputs_BT), base(inputs_BT))


@pytest.mark.parametrize("targets", ["all-linear", "attention", "feed-forward", "first"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_the_sum_of_both_matrices(form: str, targets: str) -> None:
    first = {"roberta": "value", "modern": "Wi", "llama": "q_proj,v_proj,up_proj"}[form]
    run = small_run(form, lora={"rank": 3, "alpha": 5, "targets": first if targets == "first" else targets})
    model = adapted_model(run)
    batch = a_batch()
    loss_sum, _ = add_gradients(model, batch, FP32)
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    thin = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters() if "lora" in name}
    plain = adapted_model(run)
    merge_lora(plain)
    merged = summed_by_definition(model, thin)
    reference_loss, _ = summed_loss(WithWeights(plain, merged), batch, FP32)  # type: ignore[arg-type]
    reference_loss.backward()
    # fp32 sums in another order, of gradients up to some tens.
    assert loss_sum.item() == pytest.approx(reference_loss.item(), rel=1e-5)
    assert set(ours) == set(thin)
    for name, tensor in thin.items():
        assert tensor.grad is not None
        torch.testing.assert_close(ours[name], tensor.grad, rtol=1e-4, atol=1e-4, msg=name)


def summed_by_definition(model: LanguageModel, thin: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha / rank x B A for every adapted matrix, differentiable in the thin ones."""
    merged = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            down, up = thin[f"{name}.lora_A"], thin[f"{name}.lora_B"]
            pieces, first_up = [], 0
            change = torch.zeros_like(module.weight)
            for number, part in enumerate(module.parts):
                size = part.last_row - part.first_row
                product = up[first_up : first_up + size] @ down[3 * number : 3 * number + 3]
                above, below = part.first_row, change.shape[0] - part.last_row
                pieces.append(torch.nn.functional.pad(product, (0, 0, above, below)))
                first_up += size
            merged[f"{name}.weight"] = module.weight + 5 / 3 * sum(pieces, start=change)
    return merged


class WithWeights(torch.nn.Module):
    """A model some of whose weights are other tensors."""

    def __init__(self, model: LanguageModel, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.tokens = model.tokens
        self.vocabulary_matrix = model.vocabulary_matrix
        self.logits = model.logits

    def hidden_states(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        body = Body(self.model)
        weights = {f"model.{name}": tensor for name, tensor in self.weights.items()}
        hidden: Tensor = functional_call(body, weights, (inputs_BT, document_ids_BT))
        return hidden


class Body(torch.nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: Tensor, document_ids_BT: Tensor | None) -> Tensor:
        return self.model.hidden_states(inputs_BT, document_ids_BT)


@pytest.mark.parametrize("form", FORMS)
def test_merged_model_computes_the_same(form: str) -> None:
    model = adapted_model(small_run(form, lora={})).eval()
    inputs_BT = a_batch().inputs_BT
    adapted = model(inputs_BT)
    merge_lora(model)
    assert not any(isinstance(module, LowRankLinear) for module in model.modules())
    assert (model(inputs_BT) - adapted).abs().max().item() < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_frozen_weights_in_the_format_of_the_products_change_no_bit_of_loss_or_gradient(form: str) -> None:
    run = small_run(form, lora={"recompute_feed_forward": False})
    bf16 = Precision("bf16", "cpu")
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        model = build_model(run.model, VOCABULARY.size, pad_id=VOCABULARY.pad_id)
        assert run.training.lora is not None
        add_lora(model, run.model, run.training.lora, frozen_dtype=dtype)
        found.append((add_gradients(model, a_batch(), bf16)[0], [p.grad for p in model.parameters()]))
    (loss, gradients), (other_loss, other_gradients) = found
    assert torch.equal(loss, other_loss)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_recomputed_feed_forward_changes_no_bit_and_takes_less_memory(form: str) -> None:
    gradients, peaks = [], []
    for is_on in (False, True):
        run = small_run(form, lora={"recompute_feed_forward": is_on})
        model = adapted_model(run)
        add_gradients(model, a_batch(), FP32)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        peaks.append(predict_memory(run, VOCABULARY.size, micro_batch_size=8).peak_bytes)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("form", FORMS)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit_and_keeps_adapters_alone(form: str, tmp_path: Path) -> None:
    base = a_base(form, tmp_path / "base")
    run = small_run(form, lora={"rank": 2}, initial_weights=str(base))
    whole = train(run, tmp_path / "whole")
    for last_step in (7, 99):
        train(
            run,
            tmp_path / "parts",
            report=lambda values, last=last_step: values["step"] < last,
            report_every_s=0.0,
        )
    ends = [newest_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    assert whole.outcome == "completed"
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = ((end / file).read_bytes() for end in ends if end is not None)
        assert one == other
        assert len(one) < (base / file).stat().st_size / 3
    before, after = (
        whole_model(a_run_of, VOCABULARY, checkpoint)
        for a_run_of, checkpoint in ((small_run(form, lora=None), base), (run, ends[0]))
        if checkpoint is not None
    )
    changed = {
        name for name, tensor in model_tensors(after).items() if not torch.equal(tensor, model_tensors(before)[name])
    }
    matrices = ("qkv.weight", "out.weight", "up.weight", "down.weight", "gate_and_up.weight")
    assert changed == {name for name in model_tensors(before) if name.endswith(matrices)}


@pytest.mark.long
def test_adapters_learn(tmp_path: Path) -> None:
    base = a_base("llama", tmp_path / "base")
    losses: list[float] = []
    train(
        small_run("llama", lora={}, initial_weights=str(base), tokens=100 * 256),
        tmp_path / "run",
        report=lambda values: losses.append(values.get("holdout/loss_nats_per_token", math.nan)) or True,
        evaluate_at_tokens=[1],
        report_every_s=1e9,
    )
    assert losses[-1] < losses[0] - 0.1


def test_base_that_has_changed_under_a_run_is_refused_with_both_hashes(tmp_path: Path) -> None:
    base = a_base("llama", tmp_path / "base")
    run = small_run("llama", lora={}, initial_weights=str(base))
    train(run, tmp_path / "run", report=lambda values: values["step"] < 3, report_every_s=0.0)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"trained on other weights than those in .*SHA-256 [0-9a-f]{12} there and"):
        train(run, tmp_path / "run")


def test_run_without_a_base_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give one as training.initial_weights \(its folder\) or start.weights_of"):
        train(small_run("llama", lora={}), tmp_path)


@pytest.mark.parametrize(
    ("form", "lora", "said"),
    [
        (
            "llama",
            {"targets": "q_proj,query"},
            r"targets=q_proj,query names 'query', which this model lacks; use q_proj, k_proj, v_",
        ),
        (
            "roberta",
            {"targets": "q_proj"},
            r"names 'q_proj', which this model lacks; use query, key, value, attention.output.dense",
        ),
        ("llama", {"rank": 17}, r"rank=17 is above the size of k_proj, 16 x 32.*use at most 16"),
        ("llama", {"rank": 33, "targets": "gate_proj"}, r"above the size of gate_proj, 128 x 32.*use at most 32"),
    ],
)
def test_impossible_adapters_are_refused_by_name(form: str, lora: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = small_run(form, lora=lora, initial_weights=str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=said):
        train(run, tmp_path / "run")


def test_model_without_feed_forward_has_none_to_adapt() -> None:
    model = small_run("llama", lora=None).model.model_copy(update={"feed_forward": "none"})
    (fault,) = lora_faults(model, LoraConfig(targets="feed-forward"))
    assert "names no matrix of a model with feed_forward: none; use attention" in fault
    assert lora_faults(model, LoraConfig()) == []


def test_optimizer_and_exchange_hold_the_adapters_and_nothing_else() -> None:
    run = small_run("llama", lora={"rank": 4, "targets": "q_proj"})
    model = adapted_model(run)
    trainable = 2 * (4 * 32 + 32 * 4)
    assert model.num_trainable_parameters() == trainable
    optimizer = build_optimizer(model, run.training, tokens_per_step=1.0)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == trainable
    assert GradientExchange(model, Workers()).num_bytes == 4 * trainable


def adapters_after(workers: Workers, base: Path, folder: Path) -> dict[str, Tensor]:
    run = small_run("llama", lora={}, initial_weights=str(base), batch_size=16, micro_batch_size=4)
    run_training(run, small_corpus(), workers=workers, folder=folder, report=lambda _: True, evaluate_at_tokens=[])
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return model_tensors(whole_model(run, VOCABULARY, checkpoint))


@pytest.mark.long
def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    base = a_base("llama", tmp_path / "base")
    alone = adapters_after(Workers(), base, tmp_path / "alone")
    together, _ = on_workers(2, adapters_after, base, tmp_path / "together")
    for name, tensor in alone.items():
        # Twenty steps of AdamW on sums in another order.
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_operations_are_those_of_both_passes_but_for_the_input_of_the_first_matrix(form: str) -> None:
    run = small_run(form, lora={"rank": 4, "recompute_feed_forward": False})
    model = adapted_model(run)
    batch = a_batch(num_rows=1)
    predicted = 16 if form == "llama" else 2
    positions_P = torch.arange(predicted)
    batch = replace(batch, positions_P=positions_P, labels_P=torch.full_like(positions_P, 7), most_predicted=predicted)
    with FlopCounterMode(display=False) as counter:
        add_gradients(model, batch, FP32)
    # What the first layer reads needs no gradient: a product with the joint matrix, and one with its thin one.
    first = model.get_submodule("layers.0.attention.qkv")
    assert isinstance(first, LowRankLinear)
    of_first = 2 * 16 * (first.weight.numel() + first.lora_A.numel())
    counted = counter.get_total_flops() + of_first
    ours = training_flops_a_token(run, VOCABULARY.size) * 16
    # 15 % of 16 positions are no whole number: the head's share, two products a position, is set right.
    ours += 2 * head_flops(model) * (predicted - 16 * (run.objective.masking_rate or 1))
    assert ours == pytest.approx(counted)


def head_flops(model: LanguageModel) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(torch.zeros(1, 32))
    return float(counter.get_total_flops())


@pytest.mark.long
def test_largest_micro_batch_fits_and_no_larger_one_does() -> None:
    run = a_run(family="decoder", lora={}, layers=1, width=64, batch_size=6)
    peaks = {size: predict_memory(run, 900, micro_batch_size=size).peak_bytes for size in range(1, 7)}
    largest = largest_micro_batch(run, 900, memory_bytes=peaks[4])
    assert largest >= 4
    assert {size for size, peak in peaks.items() if peak <= peaks[4]} == set(range(1, largest + 1))


def test_frozen_weights_have_no_state_and_no_gradient_in_the_prediction() -> None:
    parts = predict_memory(a_run(lora={}, width=256), 3000, micro_batch_size=8).parts
    full = predict_memory(a_run(width=256), 3000, micro_batch_size=8).parts
    assert parts["optimizer state"] < full["optimizer state"] / 10
    assert parts.get("gradients", 0) < full["gradients"] / 10
    assert parts["parameters"] == pytest.approx(full["parameters"], rel=0.1)
