"""Contracts with what torch does not promise: where each name is and what it does for us.

Imports stand in the contracts, so that a name that has moved is named with the files that use it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from private_names import check_contract, names_of


def seeing() -> Any:
    """A mode that notes each operator in `seen`."""
    from core.torch_internals.operator_watch import TorchDispatchMode

    class Seeing(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[object] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    return Seeing()


def fakes_have_shapes_and_no_memory() -> None:
    from core.torch_internals.fake_tensors import FakeTensor, all_fake

    with all_fake():
        product = torch.empty(2**20, 2**20) @ torch.empty(2**20, 3)
    assert isinstance(product, FakeTensor)
    assert product.shape == (2**20, 3)
    assert not isinstance(torch.empty(1), FakeTensor)


def fakes_answer_for_their_device_as_the_operator_does() -> None:
    from core.torch_internals.fake_tensors import all_fake, device_query

    asked = []
    with all_fake(), seeing() as mode:
        layer = torch.nn.Linear(2, 3)
        layer(torch.empty(1, 2)).sum().backward()
        asked = [device_query(parameter) for parameter in layer.parameters()]
        assert asked == [parameter.device for parameter in layer.parameters()]
    assert device_query in mode.seen[: -len(asked)], "C++ asks in another way: the shortcut in our modes is dead"


def sparse_tensors_have_two_parts() -> None:
    from core.torch_internals.operator_watch import sparse_parts

    tensor = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([2.0, 3.0]), (4,), check_invariants=True)
    indices, values = sparse_parts(tensor)
    assert indices.tolist() == [[1, 1]]
    assert values.tolist() == [2.0, 3.0]


def storages_have_keys() -> None:
    from core.torch_internals.operator_watch import storage_key

    whole, other = torch.empty(8), torch.empty(8)
    assert storage_key(whole.untyped_storage()) == storage_key(whole[2:].untyped_storage())
    assert storage_key(whole.untyped_storage()) != storage_key(other.untyped_storage())


def modes_see_operators_and_the_last_one_in_is_innermost() -> None:
    from core.torch_internals.operator_watch import is_innermost

    outer, inner = seeing(), seeing()
    with outer, inner:
        assert is_innermost(inner)
        assert not is_innermost(outer)
        torch.ones(2).neg()
    assert torch.ops.aten.neg.default in outer.seen
    assert not is_innermost(outer)


def leaves_of_nested_containers_come_in_order() -> None:
    from core.torch_internals.operator_watch import tree_leaves

    assert tree_leaves([1, {"a": (2, [3])}]) == [1, 2, 3]


def softmax_has_its_gradient() -> None:
    from core.torch_internals.unlisted_kernels import softmax_gradient

    scores = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    probabilities, gradient = scores.softmax(-1), torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    (wanted,) = torch.autograd.grad(probabilities, scores, gradient)
    torch.testing.assert_close(softmax_gradient(gradient, probabilities.detach()), wanted)


def all_are_multiplied_in_place() -> None:
    from core.torch_internals.unlisted_kernels import multiply_all

    tensors = [torch.ones(2), torch.full((3,), 2.0)]
    multiply_all(tensors, 0.5)
    assert [tensor.tolist() for tensor in tensors] == [[0.5, 0.5], [1.0, 1.0, 1.0]]


def grouped_products_are_that_operator() -> None:
    from core.torch_internals.unlisted_kernels import GROUPED_PRODUCT

    with seeing() as mode:
        torch.nn.functional.grouped_mm(
            torch.ones(8, 16, dtype=torch.bfloat16),
            torch.ones(2, 16, 8, dtype=torch.bfloat16),
            offs=torch.tensor([4, 8], dtype=torch.int32),
        )
    assert GROUPED_PRODUCT.default in mode.seen


CONTRACTS: dict[str, Callable[[], object]] = {
    "torch.Tensor._indices": sparse_tensors_have_two_parts,
    "torch.Tensor._values": sparse_tensors_have_two_parts,
    "torch.UntypedStorage._cdata": storages_have_keys,
    "torch._foreach_mul_": all_are_multiplied_in_place,
    "torch._softmax_backward_data": softmax_has_its_gradient,
    "torch._subclasses.fake_tensor.FakeTensor": fakes_have_shapes_and_no_memory,
    "torch._subclasses.fake_tensor.FakeTensorMode": fakes_have_shapes_and_no_memory,
    "torch.ops.aten._grouped_mm": grouped_products_are_that_operator,
    "torch.ops.prim.device": fakes_answer_for_their_device_as_the_operator_does,
    "torch.utils._python_dispatch.TorchDispatchMode": modes_see_operators_and_the_last_one_in_is_innermost,
    "torch.utils._python_dispatch._get_current_dispatch_mode": modes_see_operators_and_the_last_one_in_is_innermost,
    "torch.utils._pytree.tree_leaves": leaves_of_nested_containers_come_in_order,
}


@pytest.mark.parametrize("name", names_of("torch"))
def test_a_private_name_of_torch_is_where_and_what_we_need(name: str) -> None:
    check_contract(name, CONTRACTS)
