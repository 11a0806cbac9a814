"""Ids and file names of an exported COCO file: our own, or those of an annotation file of the same images."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from boxsup_dist.data.schema import BACKGROUND, VOC_NAME_OF_COCO
from boxsup_dist.errors import InputError
from boxsup_dist.export.coco import Category, CocoNames, ImagePlace
from boxsup_dist.records.coco import read_index


def coco_names(
    names: Sequence[str], class_names: Sequence[str], annotations: str | None, *, have_source: bool
) -> CocoNames:
    """What images and classes are called in an exported file.

    Args:
        names: The images: paths without ending, or image ids.
        class_names: Names of the C classes.
        annotations: Annotation file whose ids and file names to use; None: our own.
        have_source: As in `CocoNames.own`.

    Raises:
        InputError: The annotation file is bad, or it lacks an image or a class.
    """
    if annotations is None:
        return CocoNames.own(names, class_names, have_source=have_source)
    index = read_index(annotations, "all")
    image_of = {image.name: image for image in index.images}  # read_index refuses two images of one name
    places = {}
    for name in names:
        image = image_of.get(posixpath.basename(name))
        if image is None or image.id is None:
            raise InputError(
                f"the annotation file has no image {name}",
                file=annotations,
                field="images.file_name",
                value=[image.file_name for image in index.images[:3]],
                expected="the annotation file of the exported images",
            )
        places[name] = ImagePlace(image.id, image.file_name, True)
    category_of = {index.classes[class_id]: category for category, class_id in index.class_of.items() if class_id}
    category_of = {VOC_NAME_OF_COCO.get(name, name): category for name, category in category_of.items()} | category_of
    categories = {}
    for class_id, name in enumerate(class_names):
        if class_id == BACKGROUND:
            continue
        if name not in category_of:
            raise InputError(
                f"the annotation file has no category for the class {name}",
                file=annotations,
                field="categories.name",
                value=sorted(index.classes[1:]),
                expected="a category for each class of the network",
            )
        categories[class_id] = Category(category_of[name], name)
    return CocoNames(places, categories)
