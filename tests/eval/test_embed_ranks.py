"""Embedding on several ranks: bits equal to those of one, and errors that reach every rank."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from data.decode import decode_any
from data.decode_threads import decode_threads
from data.images import BytesImages, FileImages, Images
from data.pairs.verification_bin import write_bin
from eval.benchmarks import pairs
from eval.embed import BATCH, Embed, ModelRun, embed_faces, embed_views
from eval.report.write import as_json
from recognition.distributed import Ranks

SIZE = 8
MANY, FEW = 6 * BATCH + 10, 40  # seven batches, which neither 2 nor 3 divide, and one batch
BROKEN = (BATCH + 3, 5 * BATCH + 7)  # on rank 1 of two in the first and in the last but one round
NAN = 4 * BATCH + 1


def model(images: torch.Tensor) -> torch.Tensor:
    """Depends on all images of the batch, and is NaN for an image that is white."""
    weights = torch.linspace(-1, 1, 3 * SIZE * SIZE * 4).reshape(-1, 4).sin()
    flat = images.float().flatten(1)
    flat = torch.where((flat == 255).all(1, keepdim=True), torch.nan, flat)
    return (flat - flat.nanmean(0) / 2) @ weights


def pngs(count: int) -> list[bytes]:
    rng = np.random.default_rng(7)
    faces = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    return [cv2.imencode(".png", face)[1].tobytes() for face in faces]


def with_broken(at: int) -> Images:
    encoded = pngs(MANY)
    return BytesImages([*encoded[:at], b"\x89PNG", *encoded[at + 1 :]], "set")


def with_nan(at: int) -> Images:
    encoded, white = pngs(MANY), np.full((SIZE, SIZE, 3), 255, np.uint8)
    encoded[at] = cv2.imencode(".png", white)[1].tobytes()
    return BytesImages(encoded, "set")


def error_of(embed: Embed, images: Images, indices: Sequence[int] | None = None) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        embed_faces(embed, images, SIZE, indices=indices)
    return f"{caught.type.__name__}: {caught.value}"


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),  # A rank that waits for another in vain fails.
    )
    ranks, shown = Ranks(rank, world), Shown()
    run = ModelRun(model, ranks, shown.progress)
    found: dict[str, np.ndarray] = {}
    for count in (MANY, FEW):
        plain, mirrored = embed_views(run, BytesImages(pngs(count), "set"), SIZE)
        assert mirrored is not None
        found |= {f"plain{count}": plain, f"mirrored{count}": mirrored}
    assert shown.totals == {MANY: MANY, FEW: FEW}

    result = pairs.build(bin=f"{folder}/set.bin")(run, SIZE)
    missing = [Path(folder, f"{number}.png") for number in range(MANY)]
    for path, encoded in zip(missing, pngs(MANY), strict=True):
        if rank == 0 and path.name != f"{BATCH + 5}.png":
            path.write_bytes(encoded)
    dist.barrier()
    errors = [
        *(error_of(run, with_broken(at)) for at in BROKEN),
        error_of(run, FileImages(missing)),
        error_of(run, with_nan(NAN)),
        error_of(run, BytesImages(pngs(FEW + rank), "set")),
    ]
    told = {"result": as_json(result), "errors": errors}
    Path(folder, f"{rank}.json").write_text(json.dumps(told))

    # No rank is behind after the errors.
    found["after"] = embed_faces(run, BytesImages(pngs(MANY), "set"), SIZE)
    torch.save({name: torch.from_numpy(one) for name, one in found.items()}, f"{folder}/{rank}.pt")
    shared = ranks.broadcast(torch.tensor([rank + 5, 7]))
    assert shared.tolist() == [5, 7]
    os._exit(0)  # as in tests/recognition/classifiers/test_class_pool_ranks.py


class Shown:
    """A Progress that counts the images of each set."""

    def __init__(self) -> None:
        self.totals: dict[int, int] = {}

    def progress(self, total: int) -> "Shown":
        self.total = total
        self.totals[total] = 0
        return self

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, images: int) -> None:
        self.totals[self.total] += images


def literal(count: int, *, mirror: bool) -> np.ndarray:
    """The embeddings by a plain loop over batches."""
    faces = np.stack([decode_any(one) for one in pngs(count)])
    images = torch.from_numpy(faces).permute(0, 3, 1, 2).contiguous()
    batches = images.flip(3).split(BATCH) if mirror else images.split(BATCH)
    return torch.cat([model(batch) for batch in batches]).numpy()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_what_one_process_finds(world: int, tmp_path: Path) -> None:
    encoded = pngs(5 * BATCH)
    write_bin(tmp_path / "set.bin", encoded, np.arange(len(encoded) // 2) % 3 == 0)
    spawn(work, (world, str(tmp_path)), world)

    one = as_json(pairs.build(bin=str(tmp_path / "set.bin"))(model, SIZE))
    assert {"accuracy", "accuracy_without_mirror", "auc"} <= one["metrics"].keys()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    for rank in range(world):
        assert told[rank]["result"] == one
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for count in (MANY, FEW):
            plain, mirrored = literal(count, mirror=False), literal(count, mirror=True)
            np.testing.assert_array_equal(found[f"plain{count}"], plain)
            np.testing.assert_array_equal(found[f"mirrored{count}"], mirrored)
            if count == MANY:
                np.testing.assert_array_equal(found["after"], plain + mirrored)

    for number, at in enumerate(BROKEN):
        owner = at // BATCH % world
        for rank in range(world):
            expected = "4 bytes" if rank == owner else f"rank {owner} cannot read or decode it"
            error = told[rank]["errors"][number]
            assert error.startswith(f"BadImage: set, image {at}: ")
            assert expected in error
    lost = f"{tmp_path}/{BATCH + 5}.png"
    for rank in range(world):
        _, _, absent, diverged, uneven = told[rank]["errors"]
        assert lost in absent
        assert absent.startswith("BadImage")
        assert diverged.startswith(f"ValueError: set, image {NAN}: its embedding is not finite")
        assert f"the ranks find {FEW}, {FEW + 1}" in uneven


def test_one_process_finds_what_a_plain_loop_finds() -> None:
    images = BytesImages(pngs(MANY), "set")
    plain, mirrored = embed_views(model, images, SIZE)
    assert mirrored is not None
    np.testing.assert_array_equal(plain, literal(MANY, mirror=False))
    np.testing.assert_array_equal(mirrored, literal(MANY, mirror=True))
    np.testing.assert_array_equal(embed_faces(model, images, SIZE), plain + mirrored)
    assert "set, image 67: 4 bytes" in error_of(model, with_broken(67))
    assert error_of(model, images, []) == "ValueError: no image to embed: the set is empty"


def test_a_batch_is_read_after_the_next_one_is_embedded() -> None:
    """On a GPU, the CPU therefore waits only for work that has another batch behind it."""
    events: list[object] = []

    def told(images: torch.Tensor) -> torch.Tensor:
        events.append("embed")
        return model(images)

    run = ModelRun(told, progress=lambda total: nullcontext(events.append))
    embed_faces(run, BytesImages(pngs(2 * BATCH + 1), "set"), SIZE, mirror=False)
    assert events == ["embed", "embed", BATCH, "embed", BATCH, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_finds_what_it_finds_on_the_cpu() -> None:
    class OnGpu:
        device = torch.device("cuda")

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            assert images.is_cuda
            return images.float().flatten(1)[:, ::7]

    images = BytesImages(pngs(MANY), "set")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = embed_faces(OnGpu(), images, SIZE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = embed_faces(lambda x: x.float().flatten(1)[:, ::7], images, SIZE)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(16, None, 16), (16, 3, 5), (2, 8, 1), (None, None, 1)]
)
def test_decode_threads_are_the_cores_of_a_rank(
    cores: int | None, ranks: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert decode_threads() == threads
