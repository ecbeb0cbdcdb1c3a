"""Data sets of the library `datasets` of Hugging Face, saved to disk or as Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mdssd.data.arrow_files import check_images, read_schema
from mdssd.data.hugging_face_tables import (
    ImageReader,
    Row,
    read_features,
    read_rows,
    row_text,
    table_files,
)
from mdssd.data.image_headers import ImageHeader, parse_header
from mdssd.data.images import decode_image
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.data.photos import CollectFaults, progress
from mdssd.data.reasons import Tally
from mdssd.data.sample import DataError, Sample
from mdssd.data.splits import ALL, chosen_splits
from mdssd.data.values import flag, number, shown, stated_size, text

_IMAGES = ("image", "img", "images", "pixel_values")
_OBJECTS = ("objects", "object", "annotations")
_BOXES = ("bbox", "bboxes", "boxes", "box", "bounding_box", "bounding_boxes")
_LABELS = ("category", "categories", "label", "labels", "class", "classes", "category_id", "name")
_CROWDS = ("iscrowd", "is_crowd", "crowd")
_DIFFICULT = ("difficult", "is_difficult")
_TRIED = 1000  # images of each split that decide the form of the boxes


class Columns(NamedTuple):
    """The columns of a data set.

    Attributes:
        image: the column of the images.
        objects: the column of the objects; "" if boxes and classes are columns themselves.
        boxes: the key of the boxes.
        labels: the key of the classes.
        names: the class names in the order of their numbers; [] if none are declared.
    """

    image: str
    objects: str
    boxes: str
    labels: str
    names: list[str]


class HuggingFaceDataset(ListedDataset):
    """The rows of the tables. The path of an image is its file with the number of its row."""

    def __init__(self, columns: Columns, root: Path, *args: Any, **keywords: Any) -> None:
        self._images = ImageReader(columns.image, root)
        super().__init__(*args, root=root, **keywords)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its ground truth; see `DetectionDataset`."""
        path = self._paths[index]
        data, upright = self._images.read(path), self._upright[index]
        image = decode_image(data, row_text(path), upright=upright, limits=self.limits)
        return self._annotations[index].sample(image, self.image_ids[index])

    def image_path(self, index: int) -> Path | None:
        """Return None: the images are in the tables."""
        return None

    def image_bytes(self, index: int) -> bytes:
        """Return the bytes of image `index`, as its table holds them."""
        return self._images.read(self._paths[index])

    def read_header(self, path: Path) -> ImageHeader:
        """Return the header of the image in a row."""
        data = self._images.read(path, self.limits)
        header = parse_header(io.BytesIO(data), row_text(path))
        self.limits.check(header, row_text(path))  # it is not read by windows
        return header

    def has_image(self, path: Path) -> bool:
        """Return True: the row is there."""
        return True


def is_hugging_face(path: Path) -> bool:
    """Return whether this is a data set saved to disk, or Parquet files. Never raises."""
    try:
        return bool(table_files(path))
    except DataError:  # a broken description, which opening it names
        return True
    except OSError:
        return False


def open_hugging_face(
    path: Path, split: str | None, train: bool, options: ReadOptions
) -> HuggingFaceDataset:
    """Open a data set saved to disk, or Parquet files; see `open_dataset`.

    Raises:
        DataError: something cannot be read, or pyarrow is missing.
    """
    files = table_files(path)
    splits = list(files)
    if splits == [""] and split not in (None, ALL):
        raise DataError(f"{path}: no such split {split} (there are none)")
    chosen = [""] if splits == [""] else chosen_splits(path, splits, split, train)
    first = files[splits[0]][0]
    columns = _find_columns(first)
    notes: list[str] = []
    form = _form_of_boxes(columns, files, notes, path if path.is_dir() else path.parent)
    dropped: list[str] = []
    faults: list[str] = []
    classes = columns.names or _found_classes(columns, files, notes, faults)
    if not classes:
        dropped += faults  # the reasons why there is none
    one = chosen[0] if len(chosen) == 1 and split != ALL else ALL
    kind = "Parquet" if first.suffix.lower() == ".parquet" else "saved to disk"
    return HuggingFaceDataset(
        columns,
        path if path.is_dir() else path.parent,
        f"{path.resolve().name} {one or ALL}",
        _listed(columns, files, chosen, form, dropped, notes, options.faults),
        classes,
        options,
        format=f"Hugging Face data set ({kind})",
        split=one or None,
        dropped=dropped,
        notes=notes,
        upright=True,
    )


def _find_columns(file: Path) -> Columns:
    schema, features = read_schema(file), read_features(file)
    names = list(schema.names)
    image = next((n for n in names if _is_image(features.get(n))), None)
    image = image or next((n for n in _IMAGES if n in names), None)
    if image is None:
        raise DataError(f"{file}: has no column of images, expected 'image'; it has {_some(names)}")
    check_images(file, image)
    objects = next((n for n in _OBJECTS if n in names), "")
    keys = _keys(schema.field(names.index(objects)).type) if objects else names
    boxes = next((k for k in keys if k.split("_x")[0].split("_cx")[0] in _BOXES), None)
    labels = next((k for k in _LABELS if k in keys), None)
    if boxes is None or labels is None:
        what = "boxes ('bbox')" if boxes is None else "classes ('category')"
        where = f"the column '{objects}'" if objects else "its columns"
        raise DataError(f"{file}: no {what} in {where}, which has {_some(keys)}")
    declared = features.get(objects) if objects else features.get(labels)
    classes = _class_names(declared, labels if objects else "", file)
    return Columns(image, objects, boxes, labels, classes)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def _keys(kind: Any) -> list[str]:
    """Return the fields of the type of objects, a struct of lists or a list of structs."""
    while (inner := getattr(kind, "value_type", None)) is not None:
        kind = inner
    return [kind.field(k).name for k in range(kind.num_fields)]


def _class_names(feature: Any, key: str, file: Path, depth: int = 8) -> list[str]:
    """Return the names of the ClassLabel below a key of a feature; [] if there is none."""
    if depth == 0:
        return []
    if isinstance(feature, list):
        return _class_names(feature[0], key, file, depth - 1) if feature else []
    if not isinstance(feature, dict):
        return []
    declared = feature.get("names")
    if not key and isinstance(declared, list):
        names = [text(name) for name in declared]
        for number, name in enumerate(names):
            if name is None or name in names[:number]:
                raise DataError(
                    f"{file}: the name of class {number} is {shown(declared[number])}, expected a "
                    "name that no other class has"
                )
        return [name for name in names if name is not None]
    if key in feature:
        return _class_names(feature[key], "", file, depth - 1)
    return _class_names(feature.get("feature"), key, file, depth - 1)


def _objects(columns: Columns, row: Row) -> list[dict[str, Any]]:
    """Return the objects of a row as one dictionary each.

    Raises:
        DataError: the row cannot be used.
    """
    where = f"{row.file}: row {row.number}"
    if row.fault:
        raise DataError(f"{where}: {row.fault}")
    value = row.values.get(columns.objects) if columns.objects else row.values
    if value is None:
        return []
    if isinstance(value, list):
        for position, each in enumerate(value):
            if not isinstance(each, dict):
                found = f"{columns.objects}[{position}] is {shown(each)}"
                raise DataError(f"{where}: {found}, expected an object")
        return value
    if not isinstance(value, dict):
        raise DataError(f"{where}: {columns.objects} is {shown(value)}, expected objects")
    for name in (columns.boxes, columns.labels):
        if not isinstance(value.get(name), list | None):
            raise DataError(f"{where}: {name} is {shown(value.get(name))}, expected a list")
    count, classes = (len(value.get(name) or []) for name in (columns.boxes, columns.labels))
    if count != classes:
        raise DataError(f"{where}: has {count} boxes and {classes} classes")
    lists = {k: v for k, v in value.items() if isinstance(v, list) and len(v) == count}
    return [{k: v[i] for k, v in lists.items()} for i in range(count)]


def _annotation_columns(columns: Columns, file: Path) -> list[str]:
    """Return the columns to read. Raises DataError if one is missing that the first file has."""
    names = read_schema(file).names
    needed = [columns.objects] if columns.objects else [columns.boxes, columns.labels]
    for name in (*needed, columns.image):
        if name not in names:
            raise DataError(f"{file}: has no column '{name}', which the first file has")
    more = ("width", "height") if columns.objects else (*_CROWDS, *_DIFFICULT, "width", "height")
    return [n for n in names if n in (*needed, *more) and n != columns.image]


def _found_classes(
    columns: Columns, files: dict[str, list[Path]], notes: list[str], faults: list[str]
) -> list[str]:
    """Return the class names, or numbers, that occur in any split.

    Faults are collected; listing the images names those of the splits that are read.
    """
    found: set[Any] = set()
    for file in (file for each in files.values() for file in each):
        with CollectFaults(faults):
            for row in read_rows(file, _annotation_columns(columns, file)):
                with CollectFaults(faults):
                    for one in _objects(columns, row):
                        label = one.get(columns.labels)
                        name = _name(label, [])
                        found.add(name)
                        if name is None and not faults:
                            where = f"{row.file}: row {row.number}"
                            faults.append(f"{where}: {columns.labels} is {shown(label)}, no name")
    names = sorted(name for name in found if name is not None)
    if names and all(name.isdecimal() for name in names):
        file = next(iter(files.values()))[0]
        notes.append(f"{file}: no class names are declared; the class numbers are taken as names")
        names.sort(key=int)
    return names


def _name(label: Any, names: Sequence[str]) -> str | None:
    if isinstance(label, str):
        return text(label)
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # a table with an empty cell makes floats of all numbers
    if not isinstance(label, int) or isinstance(label, bool):
        return None
    if not names:
        return str(label)
    return names[label] if 0 <= label < len(names) else None


def _form_of_boxes(
    columns: Columns, files: dict[str, list[Path]], notes: list[str], root: Path
) -> str:
    """Return "xywh", "xyxy" or "cxcywh", with " relative" if the values are fractions.

    The name of the feature decides; else the boxes of the first images of each split do.
    """
    named = next((f for f in ("cxcywh", "xyxy", "xywh") if columns.boxes.endswith(f"_{f}")), "")
    reader = ImageReader(columns.image, root)
    count, greatest, bad_sides, bad_corners = 0, 0.0, 0, 0
    where = ""
    for files_of_split in files.values():
        for row in islice(_all_rows(columns, files_of_split), _TRIED):
            size: tuple[float, float] | None = None
            with CollectFaults([]):
                boxes = [_values(one.get(columns.boxes)) for one in _objects(columns, row)]
                known = [box for box in boxes if box is not None]
                where = where or str(row.file)
                greatest = max([greatest, *(max(map(abs, box)) for box in known)])
                count += len(known)
                if known and not named:
                    path = row.file / str(row.number)
                    header = parse_header(io.BytesIO(reader.read(path)), row_text(path))
                    size = header.size(upright=True)
            if size is None:
                continue
            width, height = size if greatest > 1.01 else (1, 1)
            for a, b, c, d in known:
                bad_sides += a + c > width * 1.01 or b + d > height * 1.01
                bad_corners += c <= a or d <= b or c > width * 1.01 or d > height * 1.01
    relative = " relative" if count and greatest <= 1.01 else ""
    what = "fractions of the image's size" if relative else "pixels"
    if named:
        notes += [f"{where}: '{columns.boxes}' is taken in {what}"] if relative else []
        return named + relative
    form = "xyxy" if bad_corners < bad_sides else "xywh"
    if count:
        meant = "x, y, width, height" if form == "xywh" else "two corners"
        notes.append(
            f"{where}: '{columns.boxes}' is taken as {meant} in {what}: of {count:,} boxes, "
            f"{bad_sides} do not fit as x, y, width, height and {bad_corners} not as corners"
        )
    return form + relative


def _all_rows(columns: Columns, files: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of all files, as far as they can be read."""
    for file in files:
        with CollectFaults([]):  # listing the images names it
            yield from read_rows(file, _annotation_columns(columns, file))


def _values(box: Any) -> tuple[float, float, float, float] | None:
    values = [number(v) for v in box] if isinstance(box, (list, tuple)) and len(box) == 4 else []
    known = [value for value in values if value is not None]
    return (known[0], known[1], known[2], known[3]) if len(known) == 4 else None


def _listed(
    columns: Columns,
    files: dict[str, list[Path]],
    chosen: Sequence[str],
    form: str,
    dropped: list[str],
    notes: list[str],
    faults: list[str] | None,
) -> Iterator[ListedImage]:
    tally = Tally()
    for split in chosen:
        for part, file in enumerate(progress(files[split], f"reading {split}")):
            with CollectFaults(faults):  # of the whole file
                for row in read_rows(file, _annotation_columns(columns, file)):
                    with CollectFaults(faults):
                        where = f"{file}: row {row.number}"
                        boxes = list(_boxes(columns, row, form, dropped))
                        if null := _null(columns, row):
                            tally.add(where, f"{null} is null; taken as an image without objects")
                        yield ListedImage(
                            f"{split or 'image'}-{part:05d}-{row.number:06d}",
                            file / str(row.number),
                            boxes,
                            where,
                            stated_size(row.values.get("width"), row.values.get("height")),
                            form.endswith("relative"),
                            split,
                        )
    notes += tally.lines()


def _null(columns: Columns, row: Row) -> str:
    """Return the column of the objects, or the key of the boxes, that is null; "" if none is."""
    value = row.values.get(columns.objects) if columns.objects else row.values
    if value is None:
        return columns.objects
    return columns.boxes if isinstance(value, dict) and value.get(columns.boxes) is None else ""


def _boxes(columns: Columns, row: Row, form: str, dropped: list[str]) -> Iterator[NamedBox]:
    for position, one in enumerate(_objects(columns, row)):
        where = f"{row.file}: row {row.number}: {columns.objects or 'objects'}[{position}]"
        values = _values(one.get(columns.boxes))
        label = one.get(columns.labels)
        name = _name(label, columns.names)
        if values is None:
            found = shown(one.get(columns.boxes))
            dropped.append(f"{where}: {columns.boxes} is {found}, expected four numbers")
        elif name is None:
            most = f", expected 0 to {len(columns.names) - 1}" if columns.names else ""
            dropped.append(f"{where}: {columns.labels} is {shown(label)}{most}")
        else:
            a, b, c, d = values
            if form.startswith("xywh"):
                c, d = a + c, b + d
            elif form.startswith("cxcywh"):
                a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
            yield NamedBox(
                (a, b, c, d), name, _is_set(one, _DIFFICULT), _is_set(one, _CROWDS), where=where
            )


def _is_set(one: dict[str, Any], keys: Sequence[str]) -> bool:
    return any(flag(one.get(key)) for key in keys)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:8])) or "none"
