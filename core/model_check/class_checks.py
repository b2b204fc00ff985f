"""Checks of a user's class on four rows of random tokens, in the order in which a later one needs the earlier.

Each asks one question of the contract (core/models/README.md). The answer is one line, with the place in the user's
file.

Shape suffixes: B rows, T tokens a row, N = B x T, D width, P predicted positions, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from core.memory_prediction.peak_memory import why_untraceable
from core.model_check.quiet_dropout import without_dropout
from core.models.given_class import GivenModel, build_given
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.step.objectives import add_gradients
from core.user_code.code_places import UserCodeError
from core.user_code.forward_places import backward_errors_placed
from data_pipeline.tokens.batches import Batch

_ROWS = 4
_SAME = 1e-3
"""Largest difference, as a share of the largest number, that rounding explains in fp32."""
_SEED = 1234


@dataclass(frozen=True)
class Checked:
    """One question and its answer."""

    name: str
    fault: str | None = None
    """None: the class passes."""
    note: str = ""
    """What was found, of a class that passes."""
    is_essential: bool = True
    """False: training is possible all the same, so a sweep only tells the fault."""


@dataclass(frozen=True)
class ClassCheck:
    """The checks of one configuration of a class."""

    run: RunConfig
    vocabulary_size: int
    pad_id: int = 1
    confines_attention: bool = False
    """Rows hold several documents that must not see each other."""

    def results(self) -> Iterator[Checked]:
        """The answers, in order; after a class that cannot be built or run, no more."""
        has_fault = False
        for name, check in self._checks().items():
            if name == "memory" and has_fault:
                return
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(_SEED)
                    found = check()
            except UserCodeError as error:
                has_fault = True
                yield Checked(name, str(error))
                if name in ("builds", "shapes"):
                    return
                continue
            if found is not None:
                yield found

    def _checks(self) -> dict[str, Callable[[], Checked | None]]:
        return {
            "builds": self._builds,
            "shapes": self._shapes,
            "both paths": self._paths,
            "gradients": self._gradients,
            "micro-batches": self._micro_batches,
            "instances": self._instances,
            "devices": self._devices,
            "state_dict": self._state_dict,
            "looks ahead": self._looks_ahead,
            "documents": self._documents,
            "memory": self._memory,
        }

    # Questions

    def _builds(self) -> Checked:
        model = self._model
        wrong = [name for name, one in model.module.named_parameters() if one.dtype != torch.float32]
        if wrong:
            raise self._fault(f"{wrong[0]} is {_dtype_of(model, wrong[0])}; weights are fp32 in training")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise self._fault("it has no parameter to train; register its modules as attributes")
        path = "fast path" if model.has_two_halves else "simple path"
        return Checked("builds", note=f"{model.num_trainable_parameters():,} parameters to train, {path}")

    def _shapes(self) -> Checked:
        with torch.no_grad():
            logits_NV = self._logits(self._model, self._tokens)
        if not logits_NV.is_floating_point():
            raise self._fault(f"its logits are {logits_NV.dtype}, and floating-point numbers are needed")
        if not bool(logits_NV.isfinite().all()):
            raise self._fault("its first logits are not finite; look at the initial weights")
        shape = (_ROWS, self._tokens.shape[1], self.vocabulary_size)
        return Checked("shapes", note=f"logits of {shape}, {str(logits_NV.dtype).removeprefix('torch.')}")

    def _paths(self) -> Checked | None:
        model = self._model
        if not model.has_two_halves or type(model.module).forward is nn.Module.forward:
            return None
        model.eval()
        with torch.no_grad(), model.errors_placed(f"{model.code.class_name}.forward"):
            whole_NV = model.module(self._tokens).flatten(0, 1)
            halves_NV = self._logits(model, self._tokens)
        model.train()
        if whole_NV.shape != halves_NV.shape or _difference(whole_NV, halves_NV) > _SAME:
            raise self._fault("forward gives other logits than logits(hidden_states(..)); remove one, or mend it")
        return Checked("both paths", note="forward and the two halves agree")

    def _gradients(self) -> Checked:
        model = self._fresh()
        self._take_gradients(model, slice(0, _ROWS))
        without = [name for name, one in model.module.named_parameters() if one.requires_grad and one.grad is None]
        if without:
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            words = f"no gradient reaches {', '.join(without[:3])}{more}; use them in the forward pass, or remove them"
            return Checked("gradients", f"{model.place_of_body()}: {words}", is_essential=False)
        bad = [name for name, one in model.module.named_parameters() if _is_broken(one.grad)]
        if bad:
            raise self._fault(f"the first gradient of {bad[0]} is not finite; look at the initial weights")
        return Checked("gradients", note="they reach every parameter")

    def _micro_batches(self) -> Checked:
        whole, parts = self._fresh(), self._fresh()
        with without_dropout():
            torch.manual_seed(_SEED)
            at_once = self._take_gradients(whole, slice(0, _ROWS))
            torch.manual_seed(_SEED)
            one_by_one = sum(self._take_gradients(parts, slice(row, row + 1)) for row in range(_ROWS))
        gradients = [
            _difference(one.grad, other.grad)
            for one, other in zip(whole.parameters(), parts.parameters(), strict=True)
            if one.grad is not None and other.grad is not None and _largest(one.grad) > 1e-3 * _largest_of_all(whole)
        ]
        loss_differs = abs(at_once - one_by_one) > _SAME * abs(at_once)
        if not loss_differs and max(gradients, default=0.0) <= 10 * _SAME:
            return Checked("micro-batches", note=f"{_ROWS} rows at once train as one by one")
        batch_norms = [name for name, one in whole.module.named_modules() if isinstance(one, _BATCH_NORM)]
        cause = f"{batch_norms[0]} takes its statistics over a micro-batch" if batch_norms else "its rows are not apart"
        if self.run.model.allow_batch_statistics:
            return Checked("micro-batches", note=f"{cause}; the file allows that")
        raise self._fault(
            f"the loss of {_ROWS} rows is {at_once:.6g} at once and {one_by_one:.6g} one by one: {cause}, so results "
            "would depend on the micro-batch; use a norm over the width, or set model.allow_batch_statistics: true"
        )

    def _instances(self) -> Checked:
        one, other = self._fresh(), self._fresh()
        theirs = {tensor.untyped_storage().data_ptr(): name for name, tensor in _all_tensors(other.module)}
        shared = [name for name, tensor in _all_tensors(one.module) if tensor.untyped_storage().data_ptr() in theirs]
        if shared:
            raise self._fault(f"two instances share {shared[0]}; make it in __init__, not in the class or the module")
        return Checked("instances", note="two instances share no state")

    def _devices(self) -> Checked:
        model = self._fresh()
        plain = [name for name, _ in _plain_tensors(model.module)]
        if plain:
            raise self._fault(f"self.{plain[0]} is a plain tensor and would stay on the CPU; use register_buffer")
        elsewhere = [name for name, one in _all_tensors(model.module) if one.device.type != "cpu"]
        if elsewhere:
            raise self._fault(f"{elsewhere[0]} is not on the CPU after the constructor; leave the device to pretune")
        model.to("meta")
        try:
            # Tensors of another device than the module's are an error there, as they would be on a GPU.
            self._logits(model, self._tokens.to("meta"))
        except UserCodeError as error:
            if "device" in str(error) and "meta tensors" not in str(error):
                raise UserCodeError(f"{error}; make tensors with device=input_ids.device, or register_buffer") from None
            return Checked("devices", note="no tensor of its own; not run on another device")
        return Checked("devices", note="all its tensors move with it")

    def _state_dict(self) -> Checked:
        one = self._fresh()
        torch.manual_seed(_SEED + 1)
        other = build_given(self.run.model, self.vocabulary_size, pad_id=self.pad_id)
        with other.errors_placed(f"{other.code.class_name}.load_state_dict"):
            other.module.load_state_dict(one.module.state_dict())
        one.eval()
        other.eval()
        with torch.no_grad():
            before, after = (self._logits(model, self._tokens) for model in (one, other))
        if _difference(before, after) > _SAME:
            raise self._fault("a copy by state_dict gives other logits; register what it keeps as parameter or buffer")
        return Checked("state_dict", note="a copy gives the same logits")

    def _looks_ahead(self) -> Checked | None:
        if not self.run.model.is_causal:
            return None
        middle = self._tokens.shape[1] // 2
        changed_BT = self._tokens.clone()
        changed_BT[:, middle] = self._another(changed_BT[:, middle])
        before_BTV, after_BTV = self._both(self._tokens, changed_BT)
        if _difference(before_BTV[:, :middle], after_BTV[:, :middle]) > 0.1 * _SAME:
            raise self._fault("a token changes the logits before it, and the objective is causal; mask later tokens")
        return Checked("looks ahead", note="no: logits depend on earlier tokens alone")

    def _documents(self) -> Checked | None:
        model = self._model
        if not model.takes_document_ids and not self.confines_attention:
            return None
        middle = self._tokens.shape[1] // 2
        ids_BT = (torch.arange(self._tokens.shape[1]) >= middle).to(torch.int32).expand(_ROWS, -1).contiguous()
        changed_BT = self._tokens.clone()
        changed_BT[:, : middle - 1] = self._another(changed_BT[:, : middle - 1])
        before_BTV, after_BTV = self._both(self._tokens, changed_BT, ids_BT)
        if _difference(before_BTV[:, middle:], after_BTV[:, middle:]) <= 0.1 * _SAME:
            return Checked("documents", note="none sees another")
        if self.confines_attention:
            raise self._fault("a document sees the one before it in its row; use document_ids to keep them apart")
        return Checked("documents", note="each sees the others of its row, as packing.attention says")

    def _memory(self) -> Checked:
        why = why_untraceable(self.run, self.vocabulary_size)
        if why is None:
            return Checked("memory", note="predicted without a run")
        return Checked("memory", note=f"measured with up to 16 rows, because values decide: {why}")

    # Parts

    @cached_property
    def _model(self) -> GivenModel:
        return self._fresh()

    def _fresh(self) -> GivenModel:
        torch.manual_seed(_SEED)
        return build_given(self.run.model, self.vocabulary_size, pad_id=self.pad_id)

    @cached_property
    def _tokens(self) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED)
        shape = (_ROWS, self.run.model.sequence_length)
        first = min(self.pad_id + 1, self.vocabulary_size - 1)  # No padding.
        return torch.randint(first, self.vocabulary_size, shape, generator=generator)

    def _another(self, tokens: Tensor) -> Tensor:
        first = min(self.pad_id + 1, self.vocabulary_size - 1)
        return first + (tokens - first + 1) % (self.vocabulary_size - first)

    def _logits(self, model: GivenModel, inputs_BT: Tensor, ids_BT: Tensor | None = None) -> Tensor:
        ids_BT = ids_BT if model.takes_document_ids else None
        return model.logits(model.hidden_states(inputs_BT, ids_BT).flatten(0, 1))

    @torch.no_grad()
    def _both(self, one_BT: Tensor, other_BT: Tensor, ids_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        model = self._fresh()
        model.eval()
        first, second = (self._logits(model, tokens, ids_BT).view(*tokens.shape, -1) for tokens in (one_BT, other_BT))
        return first, second

    def _take_gradients(self, model: GivenModel, rows: slice) -> float:
        """Summed loss of some rows; adds their gradients."""
        inputs_BT = self._tokens[rows]
        num_rows, length = inputs_BT.shape
        positions_P = (torch.arange(num_rows)[:, None] * length + torch.arange(length - 1)).flatten()
        batch = Batch(
            inputs_BT=inputs_BT,
            positions_P=positions_P,
            labels_P=inputs_BT[:, 1:].flatten(),
            document_ids_BT=None,
            num_tokens=inputs_BT.numel(),
            most_predicted=len(positions_P),
        )
        with backward_errors_placed(model.files):
            loss, _ = add_gradients(model, batch, choose_precision("fp32", torch.device("cpu")))
        return float(loss)

    def _fault(self, words: str) -> UserCodeError:
        return UserCodeError(f"{self._model.place_of_body()}: {self._model.code.class_name}: {words}")


_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _dtype_of(model: GivenModel, name: str) -> str:
    """Number format of a parameter, in words."""
    return str(model.module.get_parameter(name).dtype).removeprefix("torch.")


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
    yield from _plain_tensors(module)


def _plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are neither parameters nor buffers, of instances and of their classes."""
    for prefix, one in module.named_modules():
        of_class = {name: value for cls in type(one).__mro__ for name, value in vars(cls).items()}
        for name, value in (of_class | vars(one)).items():
            if isinstance(value, Tensor):
                yield (f"{prefix}.{name}" if prefix else name), value


def _largest(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None or tensor.numel() == 0 else float(tensor.abs().max())


def _largest_of_all(model: nn.Module) -> float:
    return max((_largest(parameter.grad) for parameter in model.parameters()), default=0.0)


def _is_broken(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(gradient.isfinite().all())


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    return float((one - other).abs().max()) / max(_largest(one), 1e-12)
