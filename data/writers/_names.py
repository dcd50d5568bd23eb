"""Names of folders and files that a writer gives to identities and images."""

import re
from collections.abc import Callable

from data.types import FaceSet

Progress = Callable[[int], None]
# The first bytes of an image, and the suffix of its file.
KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"))


def identity_names(faces: FaceSet) -> list[str]:
    """Names of all identities, fit for folders.

    They are the names that the set has, or else the labels in seven digits.
    """
    names = getattr(faces, "names", None)
    if names is None:
        return [f"{label:07d}" for label in range(faces.num_classes)]
    clean = [re.sub(r"[\\:\0]|^\.+|/(?=\.)", "_", str(name)).strip("/") or "_" for name in names]
    if len(set(clean)) != len(clean):
        return [f"{label:07d}_{name}" for label, name in enumerate(clean)]
    return clean


def image_suffix(encoded: bytes, where: str) -> str:
    """File name suffix of an image, by its first bytes."""
    for begin, suffix in KINDS:
        if encoded.startswith(begin):
            return suffix
    raise ValueError(
        f"{where}: begins {encoded[:8].hex()}, neither JPEG, PNG, BMP nor WebP; see tools.verify"
    )
