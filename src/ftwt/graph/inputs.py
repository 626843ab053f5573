"""What a network is called with: what its graph takes, and what it refuses as not seen."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn


def inputs_of(example: Any) -> tuple[Any, ...]:
    """Return an example as the inputs of a network, tensors and plain values.

    Raises:
        ValueError: It is no tensor and no tuple that begins with one, or holds a dict or a list.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    odd = next((part for part in inputs if isinstance(part, dict | list | tuple)), None)
    if odd is not None:
        kind = type(odd).__name__
        raise ValueError(
            f"an input that is a {kind}: networks are called with tensors here, one after the "
            f"other; wrap yours in a module whose forward takes tensors and makes the {kind} of "
            "them, and give its inputs as a tuple"
        )
    if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].dim():
        found = type(inputs[0]).__name__ if inputs else "nothing"
        raise ValueError(
            f"an example that begins with {found}; give the network's input, a tensor "
            "(B, C, *spatial), or a tuple of its inputs that begins with one"
        )
    for part in inputs:
        if isinstance(part, Tensor):
            refuse_unreadable(part, "an input")
    if not len(inputs[0]):
        raise ValueError("an example of no image; give one or more")
    return inputs


def images_of(batch: tuple[Tensor, Any] | Tensor) -> Tensor:
    """Return the images of a batch, which has labels beside them or is nothing else.

    Raises:
        ValueError: It is neither.
    """
    images = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(images, Tensor):
        raise ValueError(
            f"batches must be images, a tensor (B, C, *spatial), or pairs (images, labels), not "
            f"{type(images).__name__}; a collate_fn can return (batch['image'], batch['label'])"
        )
    refuse_unreadable(images, "a batch of images")
    return images


def refuse_unreadable(values: Tensor, what: str) -> None:
    """Refuse tensors whose elements do not lie in memory one by one, each a real number.

    Raises:
        ValueError: It is sparse, packed, complex, or has no values at all.
    """
    if values.is_meta:
        raise ValueError(f"{what} lies on the meta device, where it has no values; load it first")
    if values.layout != torch.strided:
        kind = str(values.layout).removeprefix("torch.").lstrip("_")
        raise ValueError(f"{what} is laid out as {kind}; give it as plain numbers, by .to_dense()")
    if values.is_complex():
        raise ValueError(f"{what} holds complex numbers; give real ones, say .abs()")


def refuse_call(model: nn.Module, example: tuple[Any, ...]) -> None:
    """Refuse a network that is not called with these inputs by position."""
    try:
        inspect.signature(model.forward).bind(*example)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be called with {len(example)} inputs by position "
            f"({error}); give all that it needs as a tuple, or wrap a network that takes keywords "
            "in a module whose forward takes tensors by position"
        ) from error


def refuse_spoilt(images: Tensor) -> None:
    """Refuse images that are not finite: no answer to them means anything.

    Raises:
        ValueError: Which image of the batch holds such a value.
    """
    if not images.isfinite().all():
        odd = int(images.isfinite().flatten(1).all(1).int().argmin())
        raise ValueError(f"image {odd} of a batch holds a value that is not finite; leave it out")


def expect_values(network: fx.GraphModule, example: tuple[Any, ...]) -> None:
    """Let a graph refuse what the recording did not follow: other values, and further inputs."""
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, example, strict=False):
        if not node.users and not isinstance(value, Tensor):
            with network.graph.inserting_after(inputs[-1]):
                network.graph.call_function(expect_value, (node, value))
    for node in reversed(inputs[len(example) :]):
        if not node.users:
            network.graph.erase_node(node)
    network.recompile()


def expect_value(value: Any, traced: Any) -> None:
    """Refuse another value than the one that a graph was traced for."""
    if isinstance(value, fx.Proxy):  # a pickled graph is recorded again
        value.tracer.create_proxy("call_function", expect_value, (value, traced), {})
        return
    if type(value) is not type(traced) or value != traced:
        raise ValueError(
            f"an input of {value!r} for a network that was traced for {traced!r}, because its "
            "forward branches on it; trace or convert the network with an example of this value"
        )


fx.node.has_side_effect(expect_value)  # it has no users, and is to stay all the same


def expect_sizes(network: fx.GraphModule, example: tuple[Any, ...]) -> None:
    """Let a graph that holds for the sizes of an example alone refuse all others."""
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, example, strict=False):
        if isinstance(value, Tensor):
            with network.graph.inserting_after(inputs[-1]):
                network.graph.call_function(expect_size, (node, tuple(value.shape[1:])))
    network.recompile()


def expect_size(value: Tensor, size: tuple[int, ...]) -> None:
    """Refuse an input of other sizes than those that a graph was traced for."""
    if isinstance(value, fx.Proxy):  # a pickled graph is recorded again
        value.tracer.create_proxy("call_function", expect_size, (value, tuple(size)), {})
        return
    if tuple(value.shape[1:]) != tuple(size):
        raise ValueError(
            f"an input of shape {tuple(value.shape[1:])} for a network that was traced for "
            f"{tuple(size)}, because its forward computes with sizes; resize the input, or trace "
            "or convert the network with an example of this size"
        )


fx.node.has_side_effect(expect_size)  # it has no users, and is to stay all the same
