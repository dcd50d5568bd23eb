"""KP-RPE against the equations of its paper, and CVLface's published form."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recognition
from data.landmarks import TEMPLATE_SHARES
from recognition.backbones import kprpe
from recognition.config import Part
from tools._backbone import trace

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "mlp": 3, "embedding": 8}
# Of offsets from 0 on; iRPE draws the function in its figure 3.
NEAR_AND_FAR = [0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]


def network(landmarks: Any = "given", size: int = 64) -> kprpe.KeypointTransformer:
    """A network whose weights are all random, those of the landmarks too."""
    torch.manual_seed(0)
    net = kprpe.build(size, landmarks=landmarks, **SMALL).eval()
    for name, weight in net.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=1.0 if "keypoint" in name else 0.3)
    return net


def faces(count: int = 2, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=draw)
    moved = 0.1 * torch.randn(count, 5, 2, generator=draw)
    return images, torch.from_numpy(TEMPLATE_SHARES.copy()) + moved


def test_buckets() -> None:
    assert [kprpe.bucket(offset) for offset in range(14)] == NEAR_AND_FAR
    assert [kprpe.bucket(-offset) for offset in range(14)] == [-one for one in NEAR_AND_FAR]


def literal(
    weights: dict[str, np.ndarray], image: np.ndarray, points: np.ndarray, size: int
) -> np.ndarray:
    """One image, float64, patch by patch: KP-RPE's equations, in a transformer as in ViT."""
    patch, heads, width = 8, SMALL["heads"], SMALL["width"]
    side = size // patch
    each = width // heads

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        mapped: np.ndarray = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)
        return mapped

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        centered = (x - x.mean(-1, keepdims=True)) / spread
        scaled: np.ndarray = centered * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return scaled

    cells = [(row, column) for row in range(side) for column in range(side)]
    kernel = weights["patch_embed.proj.weight"].reshape(width, -1)
    x = np.stack(
        [
            kernel
            @ image[
                :, patch * row : patch * (row + 1), patch * column : patch * (column + 1)
            ].ravel()
            for row, column in cells
        ]
    )
    x = x + weights["patch_embed.proj.bias"] + weights["pos_embed"][0]
    for number in range(SMALL["depth"]):
        name = f"blocks.{number}"
        q, k, v = np.split(linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x)), 3, axis=1)
        mixed = np.zeros_like(x)
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            for i, (row, column) in enumerate(cells):
                center = (np.array([column, row]) + 0.5) / side
                # Of this query: the offsets to all landmarks, mapped to one number per bucket.
                table = linear("keypoint_linear", (center - points).ravel())
                table = table.reshape(SMALL["depth"], heads, 7, 7)[number, head]
                logits = np.empty(len(cells))
                for j, (other_row, other_column) in enumerate(cells):
                    down, right = row - other_row, column - other_column
                    far_down = int(math.copysign(NEAR_AND_FAR[abs(down)], down))
                    far_right = int(math.copysign(NEAR_AND_FAR[abs(right)], right))
                    bias = table[far_down + 3, far_right + 3]
                    logits[j] = q[i, own] @ k[j, own] / math.sqrt(each) + bias
                shares = np.exp(logits - logits.max())
                mixed[i, own] = shares / shares.sum() @ v[:, own]
        x = x + linear(f"{name}.attn.proj", mixed)
        hidden = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)).clip(0, 6)
        x = x + linear(f"{name}.mlp.fc2", hidden)
    x = norm("norm", x).ravel()
    for first in ("feature.0", "feature.2"):
        second = f"feature.{int(first[-1]) + 1}"
        x = linear(first, x) - weights[f"{second}.running_mean"]
        x = x / np.sqrt(weights[f"{second}.running_var"] + 2e-5)
        x = x * weights[f"{second}.weight"] + weights[f"{second}.bias"]
    return x


def test_the_papers_equations() -> None:
    net, (images, landmarks) = network().double(), faces()
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    with torch.no_grad():
        outputs = net(images.double(), landmarks.double())
    expected = [
        literal(weights, image, points, 64)
        for image, points in zip(images.double().numpy(), landmarks.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(outputs, np.stack(expected), rtol=1e-9, atol=1e-9)


def test_landmarks_matter_and_the_templates_are_the_template() -> None:
    net, (images, landmarks) = network("template"), faces()
    with torch.no_grad():
        without, same = net(images), net(images, net.template.expand(2, -1, -1))
        other = net(images, landmarks)
    torch.testing.assert_close(without, same)
    assert (without - other).abs().max() > 0.01


def test_given_landmarks_may_not_be_missing() -> None:
    net, (images, _) = network("given"), faces()
    with pytest.raises(ValueError, match=r"needs the landmarks of each image") as error:
        net(images)
    assert "\n" not in str(error.value)


def test_training_begins_without_any_bias_and_learns_it() -> None:
    images, landmarks = faces()
    net = kprpe.build(64, landmarks="given", **SMALL)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images, landmarks), net(images, landmarks.flip(1)))
    net.train()
    net(images, landmarks).square().mean().backward()
    gradient = net.keypoint_linear.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_recomputed_with_landmarks() -> None:
    images, landmarks = faces()
    gradients = []
    for checkpoint in (False, True):
        net = kprpe.build(64, landmarks="given", **SMALL, drop_path=0.0, checkpoint=checkpoint)
        net.load_state_dict(network().state_dict())
        net(images, landmarks).sum(1).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in net.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("prefix", ["", "net."])
def test_cvlfaces_form_is_recognized(prefix: str, tmp_path: Path) -> None:
    state = network(size=112).state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "model.pt")
    if prefix:
        (tmp_path / "model.yaml").write_text("color_space: RGB")
    model = recognition.load(tmp_path / "model.pt", color=None if prefix else "rgb", device="cpu")
    options = model.architecture.options
    assert model.architecture.name == "kprpe"
    assert (options["landmarks"], options["heads"], options["depth"]) == ("given", 2, 2)
    assert all(torch.equal(model.network.state_dict()[name], state[name]) for name in state)


def test_the_planner_gives_landmarks_and_counts_attention_with_a_bias() -> None:
    traced = trace(Part("kprpe", {"landmarks": "given", **SMALL}), 4, 64, "fp32")
    of_all_pairs = 4 * 4 * SMALL["heads"] * 64**2  # bytes of a block, of four images
    assert traced.activations.count(of_all_pairs) >= SMALL["depth"]


@pytest.mark.parametrize("variant", ["small", "base"])
def test_published_shapes_are_recognized(variant: Any) -> None:
    with torch.device("meta"):
        net = kprpe.build(landmarks="given", variant=variant)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    options, size = kprpe.recognize(shapes)
    assert (options.pop("variant"), options.pop("landmarks"), size) == (variant, "given", 112)
    assert options == {"patch": 8, "width": 512, "embedding": 512}
