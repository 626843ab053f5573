"""Trace a network into a graph whose modules keep their names and their training behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import fx, nn

_DROPOUT = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a network; the graph's modules are the network's own.

    Branches on `self.training` are taken as in eval mode, so auxiliary heads are left out; dropout
    and other modules that read the flag stay modules (functional dropout becomes one) and behave in
    either mode as they did.

    Args:
        model: Any network that `torch.fx` can trace.

    Returns:
        A graph module in the training mode that `model` was in; `model` keeps its own.

    Raises:
        ValueError: If the network cannot be traced, with the tracer's reason.
    """
    try:
        with evaluating(model):
            network = fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)
    except Exception as error:  # the tracer runs the user's forward: anything may come out of it
        raise ValueError(
            f"cannot trace {type(model).__name__}: {error}. Its forward must not branch on the "
            "values or shapes of tensors; rewrite that part, or convert the traceable trunk alone"
        ) from error
    for name, module in network.named_modules():  # those that only hold others are new
        module.training = model.get_submodule(name).training
    _dropout_as_modules(network)
    return network


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into the mode it was in."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _depends_on_training(m)


def _depends_on_training(module: nn.Module) -> bool:
    """Whether a module without layers reads its training flag, as stochastic depth does."""
    code = getattr(type(module).forward, "__code__", None)
    reads = code is not None and "training" in code.co_names
    return reads and not any(
        isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) for m in module.modules()
    )


def _dropout_as_modules(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUT:
            continue
        given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
        if given.get("training") is not False:
            continue  # it did not ask for the mode, and goes on in either
        name = f"{node.name}_module"
        dropout = _DROPOUT[node.target](given.get("p", 0.5))
        network.add_module(name, dropout.train(network.training))
        with network.graph.inserting_before(node):
            module = network.graph.call_module(name, (given["input"],))
        node.replace_all_uses_with(module)
        network.graph.erase_node(node)
    network.recompile()
