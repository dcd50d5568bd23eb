"""Common GPUs: what their vendor's data sheets promise.

Peaks are dense (without sparsity), with sums in float32 as torch computes them. GeForce cards reach
only half of their advertised fp16 rate that way. Only `reached` was measured.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["fp32", "tf32", "bf16", "fp16"]
"""How a matrix product is computed."""


@dataclass(frozen=True)
class Card:
    """One GPU.

    device: its name in torch. fp32, tf32, bf16, fp16: peaks in 10¹² operations per second, where a
    multiply-add counts as two; None where the card lacks such units. memory: GB. bandwidth: of its
    memory, GB/s. link: to another GPU of the machine, GB/s in one direction (NVLink, else PCIe).
    reached: the share of the peak that products in bf16 and fp16 had in eager training steps of
    R100 (docs/benchmarks/gpu.md); None where no such card was measured.
    """

    name: str
    device: str
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float
    memory: float
    bandwidth: float
    link: float
    reached: float | None = None

    def supported(self, kind: Kind) -> Kind:
        """What the card computes for `kind`: fp32 for a tf32 that it lacks.

        ValueError where it can't compute in bf16.
        """
        if kind == "bf16" and self.bf16 is None:
            raise ValueError(f"the {self.name} has no bf16 units; use run.precision=fp16")
        return "fp32" if kind == "tf32" and self.tf32 is None else kind

    def peak(self, kind: Kind) -> float:
        """Operations per second in a supported kind."""
        rate: float = getattr(self, kind)
        return 1e12 * rate


# name, device, fp32, tf32, bf16, fp16, memory, bandwidth, link, reached
CARDS = (
    Card("H200", "NVIDIA H200", 67, 494.5, 989, 989, 141, 4800, 450),
    Card("H100", "NVIDIA H100 80GB HBM3", 67, 494.5, 989, 989, 80, 3350, 450, 0.16),
    Card("H100 PCIe", "NVIDIA H100 PCIe", 51, 378, 756, 756, 80, 2000, 64),
    Card("A100", "NVIDIA A100-SXM4-80GB", 19.5, 156, 312, 312, 80, 2039, 300),
    Card("A100 40GB", "NVIDIA A100-SXM4-40GB", 19.5, 156, 312, 312, 40, 1555, 300),
    Card("L40S", "NVIDIA L40S", 91.6, 183, 362, 362, 48, 864, 32),
    Card("L4", "NVIDIA L4", 30.3, 60, 121, 121, 24, 300, 32),
    Card("A10", "NVIDIA A10", 31.2, 62.5, 125, 125, 24, 600, 32),
    Card("A40", "NVIDIA A40", 37.4, 74.8, 149.7, 149.7, 48, 696, 32),
    Card("T4", "Tesla T4", 8.1, None, None, 65, 16, 320, 16),
    Card("V100", "Tesla V100-SXM2-32GB", 15.7, None, None, 125, 32, 900, 150),
    Card("RTX 5090", "NVIDIA GeForce RTX 5090", 104.8, 104.8, 209.5, 209.5, 32, 1792, 64),
    Card("RTX 4090", "NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2, 165.2, 24, 1008, 32),
    Card("RTX 4080", "NVIDIA GeForce RTX 4080", 48.7, 48.7, 97.5, 97.5, 16, 717, 32),
    Card("RTX 3090", "NVIDIA GeForce RTX 3090", 35.6, 35.6, 71, 71, 24, 936, 32),
    Card("RTX A6000", "NVIDIA RTX A6000", 38.7, 77.4, 154.8, 154.8, 48, 768, 32),
    Card("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation", 91.1, 182.1, 364.2, 364.2, 48, 960, 32),
)


def find_card(name: str) -> Card:
    """The card of a name such as `rtx4090` or `H100 PCIe`; ValueError lists all cards."""
    known = {_plain(card.name): card for card in CARDS}
    if _plain(name) not in known:
        names = ", ".join(card.name for card in CARDS)
        raise ValueError(f"--card {name}: no such card; there are {names}")
    return known[_plain(name)]


def card_of(device: str) -> Card | None:
    """The card that torch calls `device`, if it is in the table."""
    return next((card for card in CARDS if card.device == device), None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
