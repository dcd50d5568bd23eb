"""Parquet files, as the Hugging Face hub has them: a column of images and a column of labels.

A set is one file or a folder of them. The image column is bytes or a struct with a field `bytes`.
Labels are whole numbers, or texts, which are numbered in their order. Names of a ClassLabel become
the names of the identities. A column `landmarks` has ten numbers per row: x and y of five landmarks
(data/landmarks.py); null where an image has none.

Rows lie in compressed groups, and a group is read as a whole. Groups that were read last are kept
in memory, so images are read well in the order of the file, or in the order `block`, which mixes a
few groups at a time. A random order would read a whole group for each image.
"""

import importlib
import json
import threading
from collections import OrderedDict
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np

from data.formats._packed import detect_shards, landmarks_beside, list_shards
from data.landmarks import Landmarks, check_range
from data.limits import FREE_BYTES, MOST_BYTES_PER_BYTE, MOST_IDENTITIES
from data.order import MIXED, Blocks
from data.types import Int64

KEPT_BYTES = 1 << 27  # of groups that are mixed; about four times as many may be in memory
MOST_GROUP_BYTES = 1 << 30
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "face")
LANDMARKS_COLUMN = "landmarks"
LABEL_NAMES = ("label", "labels", "cls", "class", "identity", "identity_id", "person", "id")


class ParquetSet:
    """A FaceSet on Parquet files.

    sources: the file and the number of each row group. starts: int64 (groups + 1,), the first image
        of each group, and at last their number. group_bytes: int64 (groups,), uncompressed.
    column: name of the column, or of the struct's field, with the images' bytes.
    """

    def __init__(
        self,
        sources: list[tuple[str, int]],
        starts: Int64,
        group_bytes: Int64,
        column: str,
        labels: Int64,
        num_classes: int,
        names: list[str] | None,
    ) -> None:
        self.sources = sources
        self.starts = starts
        self.group_bytes = group_bytes
        self.column = column
        self.labels = labels
        self.num_classes = num_classes
        self.names = names
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Future[Any]] = OrderedDict()
        self._metadata: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def blocks(self) -> Blocks:
        """The groups, of which as many are mixed as KEPT_BYTES hold."""
        fit = KEPT_BYTES // max(int(self.group_bytes.max()), 1)
        return Blocks(self.starts[:-1], min(max(fit, 1), MIXED))

    def read(self, index: int) -> bytes:
        group, row = self._place(index)
        encoded = self._group(group)[row].as_py()
        if encoded is None:
            raise ValueError(
                f"{self.describe(index)}: holds no bytes; a path alone is not followed"
            )
        return bytes(encoded)

    def describe(self, index: int) -> str:
        group, row = self._place(index)
        path, number = self.sources[group]
        return f"{path} row {row} of group {number}"

    @property
    def landmarks_file(self) -> str:
        return landmarks_beside(list(dict.fromkeys(path for path, _ in self.sources)))

    def landmarks(self) -> Landmarks | None:
        """The column of landmarks; None if there is no such column."""
        arrow, parquet = _pyarrow(self.sources[0][0])
        files = list(dict.fromkeys(path for path, _ in self.sources))
        parts = []
        for path in files:
            where = f"{path}, column {LANDMARKS_COLUMN}"
            try:
                file = parquet.ParquetFile(path)
                if LANDMARKS_COLUMN not in file.schema_arrow.names:
                    return None
                _check_ten(file.metadata, where)
                column = file.read(columns=[LANDMARKS_COLUMN], use_threads=False).column(0)
            except (arrow.ArrowException, OSError) as error:
                raise ValueError(f"{path}: cannot be read ({_first_line(error)})") from None
            parts.append(_ten_numbers(arrow, column, where))
        return check_range(np.concatenate(parts), f"{files[0]}, column {LANDMARKS_COLUMN}")

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers, and the bytes of each image's group: those of an image are not stored."""
        return np.arange(len(self)), np.repeat(self.group_bytes, np.diff(self.starts))

    def _place(self, index: int) -> tuple[int, int]:
        """The group of an image, and its row there."""
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return group, index - int(self.starts[group])

    def _group(self, number: int) -> Any:
        """The images of a group as one Arrow array. Threads that need it at once read it once."""
        with self._lock:
            found = self._groups.get(number)
            if found is None:
                mine: Future[Any] = Future()
                self._groups[number] = mine
                while len(self._groups) > 4 * self.blocks.mixed:
                    self._groups.popitem(last=False)
            else:
                self._groups.move_to_end(number)
        if found is not None:
            return found.result()
        try:
            mine.set_result(self._load(number))
        except BaseException as error:
            with self._lock:
                self._groups.pop(number, None)
            mine.set_exception(error)
        return mine.result()

    def _load(self, number: int) -> Any:
        path, group = self.sources[number]
        arrow, parquet = _pyarrow(path)
        try:
            # A ParquetFile serves one thread at a time; its metadata serves all.
            file = parquet.ParquetFile(path, metadata=self._metadata.get(path))
            self._metadata[path] = file.metadata
            column = file.read_row_group(group, columns=[self.column], use_threads=False).column(0)
            images = column.combine_chunks()
            for field in self.column.split(".")[1:]:
                images = images.field(field)
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: group {group} cannot be read ({_first_line(error)})"
            ) from None
        expected = int(self.starts[number + 1] - self.starts[number])
        if len(images) != expected:
            raise ValueError(f"{path}: group {group} has {len(images)} rows, expected {expected}")
        return images

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_groups": OrderedDict(), "_metadata": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": threading.Lock()}


def detect(path: str) -> bool:
    return detect_shards(path, ".parquet")


def open_set(path: str) -> ParquetSet:
    """Reads the labels of all rows, but no image."""
    arrow, parquet = _pyarrow(path)
    sources: list[tuple[str, int]] = []
    rows: list[int] = []
    sizes: list[int] = []
    labels: list[Any] = []
    first: tuple[str, str, list[str] | None] | None = None
    for shard in list_shards(path, ".parquet"):
        try:
            file = parquet.ParquetFile(shard)
            schema = file.schema_arrow
            image, label = _image_column(arrow, schema, shard), _label_column(arrow, schema, shard)
            found = image, label, _class_names(schema, label)
            if first is not None and found != first:
                raise ValueError(f"{shard}: has other columns or names than the first file")
            first = found
            for group in range(file.metadata.num_row_groups):
                facts = file.metadata.row_group(group)
                sources.append((shard, group))
                rows.append(facts.num_rows)
                sizes.append(_bytes_of(facts, image, f"{shard}: group {group}"))
            labels.append(file.read(columns=[label], use_threads=False).column(0))
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{shard}: is no readable Parquet file ({_first_line(error)})"
            ) from None
    assert first is not None  # list_shards gives a file, or it raises an error
    starts = np.cumsum([0, *rows]).astype(np.int64)
    if not starts[-1]:
        raise ValueError(f"{path}: holds no row")
    numbers, names = _numbered(arrow, labels, first[2], path)
    if len(numbers) != starts[-1]:
        raise ValueError(f"{path}: has {len(numbers)} labels and {starts[-1]} rows")
    classes = len(names) if names else int(numbers.max(initial=-1)) + 1
    # Groups without rows hold no image, and two blocks may not begin at one place.
    kept = np.flatnonzero(np.array(rows))
    return ParquetSet(
        [sources[group] for group in kept.tolist()],
        np.append(starts[kept], starts[-1]),
        np.array(sizes, np.int64)[kept],
        first[0],
        numbers,
        max(classes, 0),
        names,
    )


def _pyarrow(path: str) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install -e '.[parquet]'") from None


def _image_column(arrow: Any, schema: Any, path: str) -> str:
    """The column of bytes, or the field of bytes in a struct, that holds the images."""

    def is_bytes(kind: Any) -> bool:
        return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))

    found = {}
    for field in schema:
        if is_bytes(field.type):
            found[str(field.name)] = str(field.name)
        elif arrow.types.is_struct(field.type):
            inside = field.type.get_field_index("bytes")
            if inside >= 0 and is_bytes(field.type.field(inside).type):
                found[field.name] = f"{field.name}.bytes"
    return found[_the_one(found, IMAGE_NAMES, "images (bytes)", schema, path)]


def _label_column(arrow: Any, schema: Any, path: str) -> str:
    def is_label(kind: Any) -> bool:
        texts = arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
        return bool(arrow.types.is_integer(kind) or texts or arrow.types.is_dictionary(kind))

    found = {field.name: field.name for field in schema if is_label(field.type)}
    return _the_one(found, LABEL_NAMES, "labels (whole numbers or texts)", schema, path)


def _the_one(
    found: dict[str, str], preferred: tuple[str, ...], what: str, schema: Any, path: str
) -> str:
    """The only column that was found, or the first of the preferred names among them."""
    if len(found) == 1:
        return next(iter(found))
    name = next((name for name in preferred if name in found), None)
    if name is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{path}: no one column of {what} among {columns[:300]}; "
            f"expected one, or one called {' or '.join(preferred)}"
        )
    return name


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names of a ClassLabel, which the library datasets writes beside the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _bytes_of(facts: Any, image: str, where: str) -> int:
    """The uncompressed bytes of the image column in a group; ValueError for too many."""
    for number in range(facts.num_columns):
        column = facts.column(number)
        if column.path_in_schema == image:
            size, stored = int(column.total_uncompressed_size), int(column.total_compressed_size)
            most = min(MOST_GROUP_BYTES, FREE_BYTES + MOST_BYTES_PER_BYTE * max(stored, 0))
            if not 0 <= size <= most:
                raise ValueError(
                    f"{where} has {size:,} bytes of images, which are read at once; the limit is "
                    f"{most:,}; write the file with smaller row groups"
                )
            return size
    raise ValueError(f"{where} lacks the column {image}")


def _check_ten(metadata: Any, where: str) -> None:
    """ValueError if the landmarks of a file claim more than ten numbers per row."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name == LANDMARKS_COLUMN and column.num_values > 10 * group.num_rows:
                raise ValueError(
                    f"{where}: claims {column.num_values:,} numbers in {group.num_rows:,} rows, "
                    "expected ten per row"
                )


def _ten_numbers(arrow: Any, column: Any, where: str) -> Landmarks:
    """float32 (N,5,2) of a column of lists of ten numbers; NaN where it is null."""
    kind = column.type
    lists = arrow.types.is_list(kind) or arrow.types.is_fixed_size_list(kind)
    if not lists or not arrow.types.is_floating(kind.value_type):
        raise ValueError(f"{where}: found {kind}, expected lists of ten numbers")
    whole = column.combine_chunks()
    held = np.flatnonzero(whole.is_valid().to_numpy(zero_copy_only=False))
    numbers = whole.drop_null().flatten()
    if len(numbers) != 10 * len(held) or numbers.null_count:
        raise ValueError(
            f"{where}: found {len(numbers):,} numbers in {len(held):,} rows, expected ten per row"
        )
    found = np.full((len(whole), 5, 2), np.nan, np.float32)
    found[held] = numbers.to_numpy(zero_copy_only=False).reshape(-1, 5, 2)
    return found


def _numbered(
    arrow: Any, columns: list[Any], names: list[str] | None, path: str
) -> tuple[Int64, list[str] | None]:
    """(labels int64 (N,), names or None) of label columns, one per file."""
    if any(column.null_count for column in columns):
        raise ValueError(f"{path}: some rows have no label")
    if arrow.types.is_integer(columns[0].type):
        numbers = np.concatenate([column.to_numpy() for column in columns])
        if len(numbers) and int(numbers.max()) >= MOST_IDENTITIES:
            raise ValueError(
                f"{path}: label {int(numbers.max())}, expected 0…{MOST_IDENTITIES - 1}"
            )
        return numbers.astype(np.int64), names
    # Each file's texts are numbered by Arrow, so that Python sees each text once.
    texts = [column.cast(arrow.string()).combine_chunks().dictionary_encode() for column in columns]
    every = sorted({text for one in texts for text in one.dictionary.to_pylist()})
    number_of = {text: number for number, text in enumerate(every)}
    coded = []
    for one in texts:
        own = np.array([number_of[text] for text in one.dictionary.to_pylist()], np.int64)
        coded.append(own[one.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(coded), every


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
