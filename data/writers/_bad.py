"""Images that a writer cannot read: noted, and left out or waited for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data.files import atomic_write, read_text
from data.text import one_line
from data.types import FaceSet


class BadImages:
    """Reads images for a writer, and notes those that cannot be read.

    skip: finish the target without the bad images. Otherwise what is good is written, but the
        target gets its name only in a call that finds no bad image, or that may skip them.
    unlabeled: what is said of the images that `faces` leaves out, because they have no label.
    found: why each bad image cannot be read, by index.
    """

    def __init__(
        self, faces: FaceSet, *, skip: bool = False, unlabeled: Sequence[str] = ()
    ) -> None:
        self.faces = faces
        self.skip = skip
        self.unlabeled = unlabeled
        self.found: dict[int, str] = {}

    def may_finish(self, missed: Sequence[int]) -> bool:
        """Whether a file gets its name that lacks the images `missed`."""
        return self.skip or not (missed or self.unlabeled)

    def read(self, index: int, check: Callable[[bytes, str], object] | None = None) -> bytes | None:
        """The encoded bytes, or None for a bad image. check: raises ValueError for bad bytes."""
        try:
            encoded = self.faces.read(index)
            where = self.faces.describe(index)
            if not encoded:
                raise ValueError(f"{where}: zero-length image")
            if check is not None:
                check(encoded, where)
        except (ValueError, OSError) as error:
            self.found[index] = one_line(str(error))
            return None
        return encoded

    def still(self, indices: Iterable[int], check: Callable[[bytes, str], object] | None) -> bool:
        """Whether all these images are bad, which notes them. It stops at the first good one."""
        return all(self.read(index, check) is None for index in indices)


def write_numbers(path: Path, numbers: Mapping[int, str]) -> None:
    """Numbers of images with reasons, one a line, for `read_numbers`."""
    with atomic_write(path) as file:
        file.writelines(f"{number}\t{why}\n".encode() for number, why in numbers.items())


def read_numbers(path: Path) -> list[int]:
    """The numbers that a file of `NUMBER<TAB>REASON` lines has; [] without the file.

    A last line without its end, as a crash leaves it, does not count.
    """
    if not path.exists():
        return []
    return [int(line.partition("\t")[0]) for line in read_text(path).split("\n")[:-1]]
