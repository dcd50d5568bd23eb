"""Images per optimizer step: kept on another number of processes, or changed as the user asks."""

from dataclasses import replace

from data.parts import find_part
from recognition.config import Config


def step_images(config: Config, processes: int) -> int:
    """Images of an optimizer step on all processes together."""
    return config.optim.batch_size * config.optim.accumulation * processes


def with_step_size(config: Config, processes: int) -> tuple[Config, str | None]:
    """The config as it runs on that many processes, and one line about what is not as written.

    `optim.step_images` gets a number if it has none. Where `optim.changed_batch` is `fit`,
    batch_size and accumulation are changed so that they give it. Raises ValueError if none do.
    """
    optim, size = config.optim, step_images(config, processes)
    planned = optim.step_images or size
    config = replace(config, optim=replace(optim, step_images=planned))
    if size == planned:
        return config, None
    if optim.changed_batch == "fit":
        config = _fitted(config, planned, processes)
        return config, (
            f"optim.step_images={planned} on {_count(processes)}: this run takes "
            f"optim.batch_size={config.optim.batch_size} "
            f"optim.accumulation={config.optim.accumulation}, which keeps learning rate and batch"
        )
    share = rate_share(config, processes)
    rate = "as it was planned for each image" if share == 1 else f"multiplied by {share:.6g}"
    return config, (
        f"optim.changed_batch={optim.changed_batch}: steps have {size} images instead of the "
        f"planned {planned}, and the learning rate is {rate}"
    )


def rate_share(config: Config, processes: int) -> float:
    """What the learning rate is multiplied by, because steps have another size than planned."""
    optim = config.optim
    if optim.changed_batch != "scale_rate" or optim.step_images is None:
        return 1.0
    return step_images(config, processes) / optim.step_images


def _fitted(config: Config, planned: int, processes: int) -> Config:
    """The config with the largest batch_size, up to that of the config, that gives the step."""
    optim = config.optim
    share, rest = divmod(planned, processes)
    for batch_size in range(min(optim.batch_size, share), 1, -1):
        if rest == 0 and share % batch_size == 0:
            accumulation = share // batch_size
            try:
                fitted = replace(
                    config, optim=replace(optim, batch_size=batch_size, accumulation=accumulation)
                )
                find_part("recognition.classifiers", config.classifier.name).FACTS.check(fitted)
            except ValueError:  # other rules of the config do not admit this batch
                continue
            return fitted

    size = step_images(config, processes)
    raise ValueError(
        f"optim.step_images: {planned} images per step can't be kept on {_count(processes)} "
        f"with batches of up to {optim.batch_size}; take another number of processes, or choose "
        f"optim.changed_batch=keep_rate (steps of {size} images, the learning rate as planned) or "
        f"optim.changed_batch=scale_rate (the learning rate also times {size / planned:.4g})"
    )


def _count(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"
