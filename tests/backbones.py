"""The backbones that can be tested on this machine."""

from importlib.util import find_spec

from data.parts import part_names


def installed_backbones() -> list[str]:
    """All backbones, but `timm` only where the package timm is installed."""
    names = part_names("recognition.backbones")
    return [name for name in names if name != "timm" or find_spec("timm")]


def backbone_text(name: str) -> str:
    """The backbone in a config, with the options that have no default."""
    return f"{{name: {name}, landmarks: template}}" if name == "kprpe" else f"{{name: {name}}}"
