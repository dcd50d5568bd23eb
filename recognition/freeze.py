"""Parts of a backbone that a run leaves as they are, and networks that embed in between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recognition.name_patterns import match_names


@dataclass(frozen=True)
class Frozen:
    """What `freeze` has frozen: names of parameters, and of batch norms."""

    parameters: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()

    def report(self, backbone: nn.Module) -> str:
        """What stays as it is, in counts."""
        of = {name: weight.numel() for name, weight in backbone.named_parameters()}
        norms = sum(isinstance(module, _BatchNorm) for module in backbone.modules())
        numbers = sum(of[name] for name in self.parameters)
        return (
            f"{len(self.parameters)} of {len(of)} parameters ({numbers:,} of {sum(of.values()):,} "
            f"numbers) and {len(self.norms)} of {norms} batch norms stay as they are"
        )


def freeze(backbone: nn.Module, patterns: Sequence[str], *, more: bool = False) -> Frozen:
    """Freeze the parameters whose names match one of the patterns.

    A batch norm whose parameters are all frozen stays in evaluation mode: it keeps its running
    statistics, and normalizes by them. The name of a batch norm without parameters is that of its
    statistics, such as `features.running_mean`.

    more: parameters are added later, so that all of these may be frozen. Raises ValueError for a
    pattern that matches nothing, and where nothing is left to train.
    """
    weights = dict(backbone.named_parameters())
    norms = {
        prefix: [f"{prefix}.{name}" for name, _ in _named_tensors(module)]
        for prefix, module in backbone.named_modules()
        if isinstance(module, _BatchNorm)
    }
    names = list(dict.fromkeys([*weights, *(name for own in norms.values() for name in own)]))
    found = match_names(patterns, names, "init.freeze").values()
    matched = frozenset(name for some in found for name in some)
    for name in matched & weights.keys():
        weights[name].requires_grad_(False)
    if matched and not more and not any(weight.requires_grad for weight in weights.values()):
        raise ValueError(
            f"init.freeze: found {list(patterns)}, which leaves nothing of the backbone to train; "
            "freeze less"
        )

    still = frozenset(prefix for prefix, own in norms.items() if matched.issuperset(own))
    for prefix in still:
        backbone.get_submodule(prefix).eval()
    return Frozen(matched & weights.keys(), still)


def _named_tensors(norm: nn.Module) -> list[tuple[str, object]]:
    """The parameters of a batch norm; its statistics if it has none."""
    return list(norm.named_parameters(recurse=False)) or list(norm.named_buffers(recurse=False))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode that it had before.

    `network.train()` would put frozen batch norms into training mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
