"""TensorBoard: event files in the folder `tensorboard` of the run.

The axis is the optimizer step. Losses, rates and accuracies are also shown over images, below
`over_images/`, so that runs with different batches can be compared.
"""

import re
import struct
import threading
from collections.abc import Mapping

import numpy as np

from data.text import one_line
from recognition.trackers import End, TrackedRun, Tracker

PACKAGES = ()
EXTRA = "train"
OVER_IMAGES = re.compile(r"loss|learning_rate|.*/accuracy")


def open_tracker(run: TrackedRun) -> Tracker:
    """Event files whose values after `run.first_step` replace those of an earlier start."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

    events = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_step + 1)
    hook, threading.excepthook = threading.excepthook, _leave_out_os_errors

    def scalars(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            events.add_scalar(tag(name), value, step)
            if "images" in values and OVER_IMAGES.fullmatch(name):
                events.add_scalar(f"over_images/{tag(name)}", value, int(values["images"]))

    def histogram(step: int, name: str, values: np.ndarray) -> None:
        events.add_histogram(tag(name), values, step)

    def picture(step: int, name: str, png: bytes) -> None:
        # SummaryWriter's own add_image needs pillow to encode what is encoded here already.
        width, height = struct.unpack(">II", png[16:24])
        content = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
        value = Summary.Value(tag=tag(name), image=content)
        events._get_file_writer().add_summary(Summary(value=[value]), step)

    def close(end: End) -> None:
        threading.excepthook = hook
        events.close()

    return Tracker(scalars, histogram, picture, close)


def tag(name: str) -> str:
    """A name as a tag, which TensorBoard shows in HTML."""
    return re.sub(r"[<>&\"']", "_", one_line(name))


def _leave_out_os_errors(failure: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread; the next value raises its error once more."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
