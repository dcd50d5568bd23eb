"""Names of folders and files that a writer gives to identities and images."""

from collections.abc import Callable

from data.image_size import kind_and_size
from data.types import FaceSet

Progress = Callable[[int], None]


def identity_names(faces: FaceSet, fit: Callable[[str], str]) -> list[str]:
    """Names of all identities, which `fit` makes fit for folders or archives.

    They are the names that the set has, or else the labels in seven digits.
    """
    names = getattr(faces, "names", None)
    if names is None:
        return [f"{label:07d}" for label in range(faces.num_classes)]
    fitting = [fit(str(name)) for name in names]
    if len(set(fitting)) != len(fitting):
        return [f"{label:07d}_{name}" for label, name in enumerate(fitting)]
    return fitting


def image_suffix(encoded: bytes, where: str) -> str:
    """File name suffix of an image, by its first bytes."""
    found = kind_and_size(encoded)
    if found is None:
        raise ValueError(
            f"{where}: begins {encoded[:8].hex()}, no image of a known kind; see tools.verify"
        )
    return found[0]
