"""The same boxes in every format of annotation tools, written as those tools write them.

VOC's and VIA's tools write whole pixels, CVAT hundredths, YOLO's six decimals of a share.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

Boxes = Sequence[tuple[str, tuple[float, float, float, float]]]  # class name; x0, y0, x1, y1 in pixels
Images = Mapping[str, tuple[tuple[int, int], Boxes]]  # path of the image -> its width and height, its boxes


def classes_of(images: Images) -> list[str]:
    return sorted({name for _, boxes in images.values() for name, _ in boxes})


def _coco(out: Path, images: Images) -> Path:
    classes = classes_of(images)
    content = {
        "images": [
            {"id": n, "file_name": path, "width": w, "height": h}
            for n, (path, ((w, h), _)) in enumerate(images.items(), start=10)
        ],
        "categories": [{"id": 3 * k + 7, "name": name} for k, name in enumerate(classes)],
        "annotations": [
            {
                "id": 100 * n + k,
                "image_id": n,
                "category_id": 3 * classes.index(name) + 7,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
            }
            for n, (_, boxes) in enumerate(images.values(), start=10)
            for k, (name, (x0, y0, x1, y1)) in enumerate(boxes)
        ],
    }
    return _text(out / "instances.json", json.dumps(content))


def _voc(out: Path, images: Images) -> Path:
    for path, ((w, h), boxes) in images.items():
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{round(x0) + 1}</xmin><ymin>{round(y0) + 1}</ymin>"
            f"<xmax>{round(x1)}</xmax><ymax>{round(y1)}</ymax></bndbox></object>"
            for name, (x0, y0, x1, y1) in boxes
        )
        size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{Path(path).name}</filename>{size}{objects}</annotation>"
        _text(out / "xml" / Path(path).with_suffix(".xml"), text)
    return out / "xml"


def _yolo(out: Path, images: Images) -> Path:
    classes = classes_of(images)
    for path, ((w, h), boxes) in images.items():
        lines = [
            f"{classes.index(name)} {(x0 + x1) / 2 / w:.6f} {(y0 + y1) / 2 / h:.6f} {(x1 - x0) / w:.6f} "
            f"{(y1 - y0) / h:.6f}"
            for name, (x0, y0, x1, y1) in boxes
        ]
        if lines:  # an image without objects has no file
            _text(out / "labels" / Path(path).with_suffix(".txt"), "\n".join(lines))
    settings = {
        "path": "/home/other/data",
        "train": "images/train",
        "nc": len(classes),
        "names": dict(enumerate(classes)),
    }
    return _text(out / "data.yaml", yaml.safe_dump(settings))


def _yolo_old(out: Path, images: Images) -> Path:
    _yolo(out, images)
    (out / "data.yaml").unlink()
    _text(out / "labels" / "classes.txt", "\n".join(classes_of(images)) + "\n")
    return out / "labels"


def _csv(out: Path, images: Images) -> Path:
    rows = [["image", "x0", "y0", "x1", "y1", "class"]]
    for path, (_, boxes) in images.items():
        rows += [[path, *corners, name] for name, corners in boxes] or [[path, "", "", "", "", ""]]
    return _rows(out / "boxes.csv", rows)


def _csv_tensorflow(out: Path, images: Images) -> Path:
    rows = [["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]]
    for path, ((w, h), boxes) in images.items():
        rows += [[path, w, h, name, *corners] for name, corners in boxes] or [[path, w, h, "", "", "", "", ""]]
    return _rows(out / "labels.csv", rows)


def _csv_bare(out: Path, images: Images) -> Path:
    rows = []
    for path, (_, boxes) in images.items():
        rows += [[path, *corners, name] for name, corners in boxes] or [[path, "", "", "", "", ""]]
    return _rows(out / "boxes.csv", rows)


def _cvat(out: Path, images: Images) -> Path:
    labels = "".join(f"<label><name>{name}</name></label>" for name in classes_of(images))
    items = "".join(
        f'<image id="{n}" name="{path}" width="{w}" height="{h}">'
        + "".join(
            f'<box label="{name}" occluded="0" xtl="{x0:.2f}" ytl="{y0:.2f}" xbr="{x1:.2f}" ybr="{y1:.2f}" z_order="0">'
            "</box>"
            for name, (x0, y0, x1, y1) in boxes
        )
        + "</image>"
        for n, (path, ((w, h), boxes)) in enumerate(images.items())
    )
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return _text(out / "annotations.xml", f"<?xml version='1.0'?><annotations>{meta}{items}</annotations>")


def _labelme(out: Path, images: Images) -> Path:
    for path, ((w, h), boxes) in images.items():
        shapes = [
            {"label": name, "points": [[x1, y1], [x0, y0]], "shape_type": "rectangle"}  # drawn from the right
            for name, (x0, y0, x1, y1) in boxes
        ]
        content = {"shapes": shapes, "imagePath": Path(path).name, "imageData": None, "imageHeight": h, "imageWidth": w}
        _text(out / "labelme" / Path(path).with_suffix(".json"), json.dumps(content))
    return out / "labelme"


def _label_studio(out: Path, images: Images) -> Path:
    def region(size: tuple[int, int], name: str, corners: tuple[float, float, float, float]) -> dict[str, object]:
        (w, h), (x0, y0, x1, y1) = size, corners
        value = {"x": 100 * x0 / w, "y": 100 * y0 / h, "width": 100 * (x1 - x0) / w, "height": 100 * (y1 - y0) / h}
        value |= {"rotation": 0, "rectanglelabels": [name]}
        return {"type": "rectanglelabels", "original_width": w, "original_height": h, "value": value}

    tasks = [
        {
            "id": n,
            "data": {
                "image": f"/data/upload/1/{n:08x}-{Path(path).name}"
                if "/" not in path
                else f"/data/local-files/?d={path}"
            },
            "annotations": [
                {"was_cancelled": True, "result": [region(size, "no class", (0, 0, 1, 1))]},
                {"was_cancelled": False, "result": [region(size, name, corners) for name, corners in boxes]},
            ][::-1],
        }
        for n, (path, (size, boxes)) in enumerate(images.items())
    ]
    return _text(out / "export.json", json.dumps(tasks))


def _open_images(out: Path, images: Images) -> Path:
    classes = classes_of(images)
    rows = [["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded", "IsGroupOf"]]
    for path, ((w, h), boxes) in images.items():
        stem = str(Path(path).with_suffix(""))
        rows += [
            [stem, "xclick", f"/m/{classes.index(name)}", "1", x0 / w, x1 / w, y0 / h, y1 / h, "0", "0"]
            for name, (x0, y0, x1, y1) in boxes
        ] or [[stem, "verification", "/m/0", "0", 0, 1, 0, 1, "0", "0"]]
    _rows(out / "class-descriptions-boxable.csv", [[f"/m/{k}", name] for k, name in enumerate(classes)])
    return _rows(out / "train-annotations-bbox.csv", rows)


def _via_rect(x0: int, y0: int, x1: int, y1: int) -> dict[str, object]:
    return {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}


def _via(out: Path, images: Images) -> Path:
    items = {
        f"{path}123": {
            "filename": path,
            "size": 123,
            "regions": [
                {
                    "shape_attributes": _via_rect(*map(round, corners)),
                    "region_attributes": {"kind": name},
                }
                for name, corners in boxes
            ],
        }
        for path, (_, boxes) in images.items()
    }
    return _text(out / "via_project.json", json.dumps({"_via_settings": {}, "_via_img_metadata": items}))


WRITERS: dict[str, Callable[[Path, Images], Path]] = {
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
    "yolo, old layout": _yolo_old,
    "csv": _csv,
    "csv of TensorFlow": _csv_tensorflow,
    "csv without header": _csv_bare,
    "cvat": _cvat,
    "labelme": _labelme,
    "label_studio": _label_studio,
    "open_images": _open_images,
    "via": _via,
}


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _rows(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path
