"""How the epochs of a run are divided into optimizer steps, counted in images of all processes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of `images` images, in a run that was planned with steps of `planned` images.

    epoch: images of an epoch, the most that whole planned steps have. It does not depend on
        `images`, so a run may go on with steps of another size.

    A place is the number of images of the run before the next step. The images at the end of an
    epoch that do not fill a step, fewer than `images`, are left out; they count as passed.
    """

    images: int
    planned: int
    epoch: int

    @property
    def planned_per_epoch(self) -> int:
        """Planned steps of an epoch."""
        return self.epoch // self.planned

    def whole(self, place: int) -> int:
        """`place`, or the start of the next epoch if no whole step is left in this one."""
        rest = self.epoch - place % self.epoch
        return place + rest if rest < self.images else place

    def after(self, place: int) -> int:
        """The place after the step that begins at `place`."""
        return self.whole(place + self.images)

    def end(self, consumed: int) -> int:
        """Where in an epoch its last step ends, if a step begins at `consumed`."""
        return self.epoch - (self.epoch - consumed) % self.images

    def left(self, place: int, epochs: int) -> int:
        """Steps from `place` to the end of a run of that many epochs."""
        epoch, consumed = divmod(place, self.epoch)
        if epoch >= epochs:
            return 0
        whole_epochs = epochs - epoch - 1
        return (self.epoch - consumed) // self.images + whole_epochs * (self.epoch // self.images)
