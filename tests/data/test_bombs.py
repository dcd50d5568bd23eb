"""Headers that claim more than is there, files that are none, caches that disagree.

Where memory matters, it is measured: the peak of a new process, or of numpy's and Python's
allocations.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data.arrays import read_npy, read_npz
from data.decode import DecodeError, decode_any, decode_into
from data.faces import open_faces
from data.files import read_file
from data.formats import lmdb, recordio
from data.formats._packed import bytes_column
from data.formats.synthetic import open_set
from data.image_size import jpeg_size, kind_and_size
from data.images import FileImages, image_files, open_images
from data.limits import MOST_IDENTITIES
from data.pairs.lists import from_numbered
from data.pairs.verification_bin import read_bin
from data.writers.records import write_records
from data.writers.shards import write_shards
from recognition.memory import resident_bytes

FACES = "synthetic:identities=3,images=3,size=24"
SIDES = struct.Struct(">II")


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Python and numpy allocate no more than this at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def jpeg_of(height: int, width: int, **options: object) -> bytes:
    whole = saved("JPEG", **options)
    frame = whole.find(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    return replaced(whole, frame + 5, struct.pack(">HH", height, width))


def png_of(height: int, width: int) -> bytes:
    header = b"IHDR" + SIDES.pack(width, height) + saved("PNG")[24:29]
    return replaced(saved("PNG"), 12, header + struct.pack(">I", zlib.crc32(header)))


def tiff_of(tags: dict[int, int]) -> bytes:
    whole = bytearray(saved("TIFF"))
    (at,) = struct.unpack_from("<I", whole, 4)
    for entry in range(at + 2, at + 2 + 12 * whole[at], 12):
        (tag,) = struct.unpack_from("<H", whole, entry)
        if tag in tags:
            struct.pack_into("<HHII", whole, entry, tag, 4, 1, tags[tag])
    return bytes(whole)


def webp_canvas(height: int, width: int) -> bytes:
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in (width, height))
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sides
    return b"RIFF\xff\x0f\0\0WEBP" + chunk + saved("WEBP")[12:]


BOMBS = {
    "JPEG": jpeg_of(30_000, 31_000),
    "progressive JPEG": jpeg_of(30_000, 31_000, progressive=True),
    "JPEG after fill bytes": b"\xff\xd8\x00\x00\xff\xff" + jpeg_of(30_000, 31_000)[3:],
    "PNG": png_of(30_000, 31_000),
    "BMP": replaced(saved("BMP"), 18, struct.pack("<ii", 31_000, -30_000)),
    "GIF": replaced(saved("GIF"), 6, struct.pack("<HH", 31_000, 30_000)),
    "WebP": replaced(saved("WEBP"), 26, struct.pack("<HH", 16_000, 16_000)),
    "lossless WebP": replaced(saved("WEBP", lossless=True), 21, b"\xff\xff\xff\x0f"),
    "WebP canvas": webp_canvas(30_000, 31_000),
    "TIFF": tiff_of({256: 31_000, 257: 30_000}),
    "PNM": b"P6 # of no worth\n31000 30000\n255\n" + bytes(1000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_header_that_claims_too_much_is_refused_before_decoding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decoded)
    with pytest.raises(DecodeError, match=r"\d+ bytes claims \d+×\d+ pixels; at most [\d,]+"):
        decode_any(BOMBS[kind])
    with pytest.raises(DecodeError, match="claims"):
        decode_into(BOMBS[kind], np.empty((8, 8, 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_sizes_in_headers_are_those_of_the_images(kind: str) -> None:
    found = kind_and_size(saved(kind))
    assert found
    assert found[1] == (20, 30) == decode_any(saved(kind)).shape[:2]


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}])
def test_sizes_of_other_webps(options: dict[str, Any]) -> None:
    assert kind_and_size(saved("WEBP", **options)) == ("webp", (20, 30))


def test_honest_photographs_of_24_and_100_megapixels_pass() -> None:
    # One plain color makes the smallest file of so many pixels.
    plain = cv2.imencode(".jpg", np.full((4000, 6000), 255, np.uint8))[1].tobytes()
    assert decode_any(plain).shape == (4000, 6000, 3)
    lines = zlib.compress(bytes(8700 * 11_601), 9)
    with pytest.raises(DecodeError, match="OpenCV finds no image"):  # no limit: only the end lacks
        decode_any(png_of(8700, 11_600)[:33] + lines)


def test_a_header_is_not_searched_without_end() -> None:
    junk, whole = b"\xff\x00", saved("JPEG")
    assert jpeg_size(whole[:2] + junk * 1000 + whole[2:]) == (20, 30)
    assert jpeg_size(whole[:2] + junk * 10_000 + whole[2:]) is None


def test_unknown_kinds_and_cut_headers_are_named() -> None:
    with pytest.raises(DecodeError, match=r"no image of a known kind \(jpg, png, webp"):
        decode_any(b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 3\nMAXVAL 255\nENDHDR\n")
    for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"):
        with pytest.raises(DecodeError):
            decode_any(saved(kind)[:9])
    for size in ((0, 30), (20, 0)):
        with pytest.raises(DecodeError, match="holds no size"):
            decode_any(jpeg_of(*size))


def test_jpegs_that_do_not_fit_cost_no_memory() -> None:
    encoded, out = saved("JPEG"), np.empty((16, 16, 3), np.uint8)
    for _ in range(500):
        decode_into(encoded, out)
    before = resident_bytes()
    for _ in range(4000):  # simplejpeg 1.9.0 would keep 17.6 MB
        decode_into(encoded, out)
    assert resident_bytes() - before < 4 << 20


def make_odd(folder: Path) -> Path:
    """A set of one good image in which a FIFO, a socket and a device look like others."""
    (folder / "a").mkdir()
    (folder / "a/good.jpg").write_bytes(saved("JPEG"))
    os.mkfifo(folder / "a/fifo.jpg")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "a/socket.jpg"))
    return folder


def test_fifos_sockets_and_devices_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = open_faces(make_odd(tmp_path), check=False)
    assert [Path(faces.describe(i)).name for i in range(len(faces))] == ["good.jpg"]
    assert "2 FIFOs, sockets or devices, which are no images, the first is" in caplog.text
    assert [path.name for path in image_files(tmp_path)] == ["good.jpg"]
    with pytest.raises(FileNotFoundError, match=r"fifo\.jpg: no such image"):
        open_images(tmp_path / "a", ["fifo.jpg"])


@pytest.mark.parametrize("name", ["fifo", "socket", "folder", "/dev/zero"])
def test_reading_what_is_no_file_fails_at_once(tmp_path: Path, name: str) -> None:
    make_odd(tmp_path)
    (tmp_path / "a/folder.jpg").mkdir()
    target = Path(name) if name.startswith("/") else tmp_path / f"a/{name}.jpg"
    (tmp_path / "link.jpg").symlink_to(target)
    kind = {"fifo": "FIFO", "/dev/zero": "device"}.get(name, name)
    with pytest.raises(ValueError, match=f"is a {kind}; expected a file"):
        FileImages([tmp_path / "link.jpg"]).read(0)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.rec"])
def test_a_fifo_named_like_a_set_is_none(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds no|known formats"):
        open_faces(tmp_path)
    with pytest.raises(ValueError, match="holds no"):
        open_faces(tmp_path / name)


def test_a_fifo_in_place_of_an_index_cache_is_replaced(tmp_path: Path) -> None:
    write_shards(open_set(FACES), str(tmp_path / "a.zip"), kind="zip", shard=0, progress=print)
    os.mkfifo(tmp_path / "a.zip.index.npz")
    assert len(open_faces(tmp_path / "a.zip")) == 9
    assert (tmp_path / "a.zip.index.npz").is_file()


def test_a_file_of_holes_is_refused_by_its_length(tmp_path: Path) -> None:
    (tmp_path / "hole.jpg").touch()
    os.truncate(tmp_path / "hole.jpg", 1 << 40)
    with pytest.raises(ValueError, match=r"hole\.jpg: has 1,099,511,627,776 bytes, more than"):
        FileImages([tmp_path / "hole.jpg"]).read(0)
    (tmp_path / "five").write_bytes(b"12345")
    with pytest.raises(ValueError, match="has 5 bytes, more than the limit of 4"):
        read_file(tmp_path / "five", 4)


def test_members_that_are_too_long_are_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a/1.jpg", "b/2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(saved("JPEG"))
            archive.addfile(info, io.BytesIO(saved("JPEG")))
        at = archive.offset
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(at)
        info = tarfile.TarInfo("c/long.jpg")
        info.size = 1 << 33
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(at + 512 + info.size + 1024)
    faces = open_faces(tmp_path / "a.tar")
    assert faces.read(0) == saved("JPEG")
    with pytest.raises(ValueError, match=r"image of 8,589,934,592 bytes; the limit is 536,870,912"):
        faces.read(2)


def test_a_zip_of_listed_images_may_not_claim_more_than_it_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", saved("JPEG"))
    data = (tmp_path / "a.zip").read_bytes()
    size = struct.pack("<II", 1 << 31, 1 << 31)
    (tmp_path / "a.zip").write_bytes(replaced(data, data.rfind(b"PK\x01\x02") + 20, size))
    with pytest.raises(ValueError, match=r"1\.jpg claims 2,147,483,648 bytes in an archive of"):
        open_images(tmp_path / "a.zip", ["1.jpg"])


def test_a_deflated_member_is_not_inflated_beyond_its_worth(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.bmp", bytes(30_000_000))
        archive.writestr("b/1.bmp", saved("BMP"))
    faces = open_faces(tmp_path / "a.zip")
    assert faces.read(1) == saved("BMP")
    with at_most(1), pytest.raises(ValueError, match="claims 30,000,000 bytes, deflated to 29,"):
        faces.read(0)


def test_records_of_more_than_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.formats._record_bytes.MOST_IMAGE_BYTES", 1 << 20)
    write_records(open_set(FACES), str(tmp_path / "a.rec"), size=(24, 24), progress=print)
    faces = open_faces(tmp_path / "a.rec")
    assert isinstance(faces, recordio.RecordSet)
    at = int(faces.offsets[-1])
    with open(tmp_path / "a.rec", "r+b") as file:
        file.seek(at)
        file.write(struct.pack("<II", 0xCED7230A, (1 << 29) - 1))
        file.truncate(at + (1 << 30))
    faces = open_faces(tmp_path / "a.rec", check=False)
    assert isinstance(faces, recordio.RecordSet)
    faces.spans[-1], faces.file.size = (1 << 30), at + (1 << 30)
    with pytest.raises(ValueError, match="more than 1,048,576 bytes, the limit"):
        faces.read(len(faces) - 1)


def test_an_index_has_no_more_lines_than_the_file_has_room_for(tmp_path: Path) -> None:
    write_records(open_set(FACES), str(tmp_path / "a.rec"), size=(24, 24), progress=print)
    size = (tmp_path / "a.rec").stat().st_size
    lines = "".join(f"{key}\t0\n" for key in range(size // 8 + 1))
    (tmp_path / "a.idx").write_text(lines)
    with pytest.raises(ValueError, match=rf"a\.idx: has {size // 8 + 1} lines or more, but"):
        open_faces(tmp_path / "a.rec")


@pytest.mark.parametrize("count", ["3000000000", "-1", "1" * 5000, "x"])
def test_declared_identities_are_bounded(tmp_path: Path, count: str) -> None:
    write_records(open_set(FACES), str(tmp_path / "a.rec"), size=(24, 24), progress=print)
    (tmp_path / "property").write_text(f"{count},24,24\n")
    with pytest.raises(ValueError, match=r"property: "):
        open_faces(tmp_path / "a.rec")


def test_labels_of_tar_and_lmdb_are_bounded(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("1.jpg", saved("JPEG")), ("1.cls", b"%d" % MOST_IDENTITIES)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=f"found b'{MOST_IDENTITIES}', expected a label of 0…"):
        open_faces(tmp_path / "a.tar")
    (tmp_path / "x_kv.txt").write_bytes(b"key 999999999\n")
    with pytest.raises(ValueError, match="line 1: found b'999999999'"):
        list(lmdb._listed(tmp_path / "x_kv.txt"))
    (tmp_path / "x_kv.txt").write_bytes(b"x" * 100_000)
    with pytest.raises(ValueError, match="line 1: "):
        list(lmdb._listed(tmp_path / "x_kv.txt"))


def test_one_long_name_does_not_widen_a_table_beyond_the_set(tmp_path: Path) -> None:
    names = [b"%d" % number for number in range(1000)]
    assert bytes_column(names, 10_000, "here").tolist() == names
    with pytest.raises(ValueError, match="here: a name of 60000 bytes among 1001 is too long"):
        bytes_column([*names, b"x" * 60_000], 1_000_000, "here")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(300):
            archive.writestr(f"{number}/1.jpg", b"x")
        archive.writestr(f"{'x' * 60_000}/1.jpg", b"x")
    with at_most(5), pytest.raises(ValueError, match="a name of 60000 bytes among 301"):
        open_faces(tmp_path / "a.zip")


def opcodes(*parts: bytes) -> bytes:
    """A pickle (protocol 3) of a tuple of two lists, whose items are these opcodes."""
    images, labels = parts
    return b"\x80\x03](" + images + b"e](" + labels + b"e\x86."


def named_often(first: bytes, times: int) -> bytes:
    """The opcodes of a value, kept as number 9 in the memo, and then named many times."""
    return first + b"q\x09" + b"h\x09" * (2 * times - 1)


TEXT = b"X" + struct.pack("<I", 200_000) + b"a" * 200_000
BYTES = b"B" + struct.pack("<I", 200_000) + b"a" * 200_000
UINT8 = b"cnumpy\ndtype\nX\x02\0\0\0u1\x85R"
FROM_BUFFER = b"cnumpy._core.numeric\n_frombuffer\n("
ARRAY = FROM_BUFFER + BYTES + b"q\x07" + UINT8 + b"q\x08" + b"J@\r\x03\0\x85X\x01\0\0\0CtR"
ARRAY_AGAIN = FROM_BUFFER + b"h\x07h\x08" + b"J@\r\x03\0\x85X\x01\0\0\0CtR"


@pytest.mark.parametrize(
    "images",
    [
        named_often(BYTES, 100),
        named_often(ARRAY, 100),
        ARRAY + ARRAY_AGAIN * 199,
    ],
    ids=["bytes", "one array", "arrays of the same bytes"],
)
def test_an_image_that_a_bin_names_often_is_held_once(tmp_path: Path, images: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(opcodes(images, b"\x88" * 100))
    with at_most(3):  # 200 images of 200 kB would be 40 MB
        found, same = read_bin(tmp_path / "a.bin")
        assert len(found) == 200
        assert {len(image) for image in found} == {200_000}
        assert same.all()


def test_texts_of_a_bin_do_not_become_more_bytes_than_the_file(tmp_path: Path) -> None:
    encode = b"c_codecs\nencode\nq\x01" + TEXT + b"q\x02X\x06\0\0\0latin1q\x03\x86R"
    again = b"h\x01h\x02h\x03\x86R"
    (tmp_path / "a.bin").write_bytes(opcodes(encode + again * 199, b"\x88" * 100))
    with at_most(3), pytest.raises(ValueError, match=r"a\.bin: refused: its texts become more"):
        read_bin(tmp_path / "a.bin")
    honest = ([bytes([i]) * 1000 for i in range(4)], [True, False])
    (tmp_path / "b.bin").write_bytes(pickle.dumps(honest, 2))
    assert read_bin(tmp_path / "b.bin")[0] == honest[0]


def npy(array: np.ndarray, shape: object = None) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    declared = str(array.shape).encode()
    claimed = (str(shape) if shape else str(array.shape)).encode()
    return file.getvalue().replace(
        declared + b", }" + b" " * (len(claimed) - len(declared)), claimed + b", }"
    )


@pytest.mark.parametrize("shape", [(10**12,), (2,), (4, -1), (10**12, 0)])
def test_an_npy_that_declares_what_is_not_there_is_refused(tmp_path: Path, shape: object) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.arange(3), shape))
    with at_most(1), pytest.raises(ValueError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")


def test_npy_files_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    arrays: list[Any] = [np.arange(6.0).reshape(2, 3), np.array(7), np.zeros((0, 4), bool)]
    for array in [*arrays, np.asfortranarray(arrays[0]), np.array([b"a", b"bc"])]:
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("broken", [b"{'''", b"(" * 118, b"{1: 2, 'shape': 3}", b"\xff" * 50])
def test_an_npy_whose_header_is_no_dictionary_is_refused(tmp_path: Path, broken: bytes) -> None:
    np.save(tmp_path / "a.npy", np.arange(9))
    whole = bytearray((tmp_path / "a.npy").read_bytes())
    whole[10 : 10 + len(broken)] = broken
    (tmp_path / "a.npy").write_bytes(whole)
    with pytest.raises(ValueError, match="a.npy: its header cannot be read"):
        read_npy(tmp_path / "a.npy")


def test_labels_of_a_numbered_folder_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "pair_label.npy").write_bytes(npy(np.ones(3, bool), (10**12,)))
    with pytest.raises(ValueError, match=r"pair_label\.npy: declares bool \(1000000000000,\)"):
        from_numbered(tmp_path)


def test_compressed_and_lying_npz_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(20_000_000, np.uint8))
    with at_most(1), pytest.raises(ValueError, match="other members than stored arrays"):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(np.arange(3), (10**12,)))
    with at_most(1), pytest.raises(ValueError, match=r"a\.npy: declares int64"):
        read_npz(path)
    path.write_bytes(b"PK\x05\x06 nothing")
    with pytest.raises(ValueError, match=r"no whole \.npz"):
        read_npz(path)


Change = Callable[[dict[str, np.ndarray]], object]
DISAGREE: dict[str, Change] = {
    "a column is missing": lambda a: a.pop("offset"),
    "a column is shorter": lambda a: a.update(labels=a["labels"][:-1]),
    "a column has two axes": lambda a: a.update(size=np.stack([a["size"]] * 2, 1)),
    "labels are floats": lambda a: a.update(labels=a["labels"] + 0.5),
    "a label is negative": lambda a: a.update(labels=a["labels"] - 1),
    "a label has no name": lambda a: a.update(labels=a["labels"] + 1),
    "names are numbers": lambda a: a.update(names=np.arange(3)),
    "one name too many": lambda a: a.update(names=np.array([b"a", b"b", b"c", b"d"])),
    "an offset is negative": lambda a: a.update(offset=a["offset"] - 10**6),
    "an image ends behind the file": lambda a: a.update(size=a["size"] + 10**8),
    "an offset overflows": lambda a: a.update(offset=a["offset"] + (2**63 - 10**6)),
    "a shard is not there": lambda a: a.update(shard=a["shard"] + 1),
    "a column of the format is missing": lambda a: a.pop("crc"),
    "there is no image": lambda a: a.update({key: a[key][:0] for key in a if key != "names"}),
}


@pytest.mark.parametrize("change", DISAGREE)
def test_a_planted_index_whose_arrays_disagree_is_rebuilt(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = open_set(FACES), tmp_path / "a.zip"
    write_shards(source, str(path), kind="zip", shard=0, progress=print)
    open_faces(path)
    arrays = read_npz(f"{path}.index.npz")
    stamp = arrays.pop("stamp")
    DISAGREE[change](arrays)
    np.savez(f"{path}.index.npz", stamp=stamp, **arrays)  # type: ignore[arg-type]
    faces = open_faces(path)
    assert [faces.read(i) for i in range(9)] == [source.read(i) for i in range(9)]
    assert "scanning again" in caplog.text
    caplog.clear()
    open_faces(path)
    assert "scanning again" not in caplog.text


LABELS: dict[str, Change] = {
    "a row is not there": lambda a: a.update(rows=a["rows"] + 10**6),
    "a row is there twice": lambda a: a.update(rows=a["rows"] * 0),
    "one label too few": lambda a: a.update(labels=a["labels"][1:]),
    "no labels": lambda a: a.pop("labels"),
    "a label is too large": lambda a: a.update(labels=a["labels"] + 2**30),
}


@pytest.mark.parametrize("change", LABELS)
def test_planted_labels_of_a_record_file_are_rebuilt(change: str, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden"
    for suffix in ("rec", "idx"):
        (tmp_path / f"a.{suffix}").write_bytes((golden / f"im2rec.{suffix}").read_bytes())
    path = tmp_path / "a.rec"
    expected = open_faces(path, check=False).labels
    arrays = read_npz(f"{path}.labels.npz")
    stamp = arrays.pop("stamp")
    LABELS[change](arrays)
    np.savez(f"{path}.labels.npz", stamp=stamp, **arrays)  # type: ignore[arg-type]
    np.testing.assert_array_equal(open_faces(path, check=False).labels, expected)


def test_drawings_are_kept_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.formats.synthetic.KEPT_BYTES", 3000)
    faces = open_set("synthetic:identities=2,images=10,size=48")
    for index in range(20):
        assert faces.read(index) == faces.read(index)
    assert sum(map(len, faces._drawn.values())) <= 3000
    with pytest.raises(ValueError, match="at most"):
        open_set("synthetic:identities=1000000000000")
