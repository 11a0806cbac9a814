"""Ids and file names of an exported COCO file: our own, or those of an annotation file of the same images."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Sequence

from boxsup_dist.data.input_names import InputNames
from boxsup_dist.data.schema import BACKGROUND, VOC_NAME_OF_COCO
from boxsup_dist.errors import InputError
from boxsup_dist.export.coco import Category, CocoNames, ImagePlace
from boxsup_dist.records.coco import CocoIndex, read_index


def coco_names(
    names: Sequence[str],
    class_names: Sequence[str],
    annotations: Sequence[str],
    *,
    have_source: bool,
    kept: InputNames | None = None,
) -> CocoNames:
    """What images and classes are called in an exported file.

    Args:
        names: The images: paths without ending, or image ids.
        class_names: Names of the C classes.
        annotations: Annotation files whose ids and file names to use; the categories are those of the first. Empty:
            those in `kept`.
        have_source: As in `CocoNames.own`.
        kept: What the input of the records calls images and classes. Images that it does not name get the ids after
            its own; where two would have one id or file name, all of these are our own. So are the category ids where
            it does not name all classes.

    Raises:
        InputError: An annotation file is bad, they lack an image or a class, or two images have the same id.
    """
    if not annotations:
        own = CocoNames.own(names, class_names, have_source=have_source)
        return own if kept is None else _with_input_names(own, kept)
    indexes = [read_index(file, "all") for file in annotations]
    image_of = {image.name: image for index in indexes for image in index.images}
    places = {}
    for name in names:
        image = image_of.get(posixpath.basename(name))
        if image is None or image.id is None:
            raise InputError(
                f"the annotations have no image {name}",
                file=" + ".join(annotations),
                field="images.file_name",
                value=[image.file_name for image in indexes[0].images[:3]],
                expected="the annotation files of the exported images",
            )
        places[name] = ImagePlace(image.id, image.file_name, True)
    if len({place.id for place in places.values()}) < len(places):
        raise InputError("two exported images have the same id", file=" + ".join(annotations), field="images.id")
    return CocoNames(places, _categories(class_names, indexes[0], annotations[0]))


def _with_input_names(own: CocoNames, kept: InputNames) -> CocoNames:
    """Our own names, replaced by those of the input where these are distinct, and complete for the classes."""
    places, categories = dict(own.images), dict(own.categories)
    images = {name: kept.images[name] for name in places if name in kept.images}
    named = places | {name: ImagePlace(places[name].id, image.file_name, True) for name, image in images.items()}
    if len({place.file_name for place in named.values()}) == len(places):
        places = named
    ids = {name: image.id for name, image in images.items() if image.id is not None}
    if ids and len(set(ids.values())) == len(ids):
        others = itertools.count(max(ids.values()) + 1)
        places = {name: place._replace(id=ids[name] if name in ids else next(others)) for name, place in places.items()}
    if all(category.name in kept.category_ids for category in categories.values()):
        categories = {k: Category(kept.category_ids[c.name], c.name) for k, c in categories.items()}
    return CocoNames(places, categories)


def _categories(class_names: Sequence[str], index: CocoIndex, file: str) -> dict[int, Category]:
    """The category of each class id but the background's; VOC's classes have other names in COCO."""
    names = {index.classes[class_id]: category for category, class_id in index.class_of.items() if class_id}
    category_of = {VOC_NAME_OF_COCO.get(name, name): category for name, category in names.items()} | names
    found = {}
    for class_id, name in enumerate(class_names):
        if class_id == BACKGROUND:
            continue
        if name not in category_of:
            raise InputError(
                f"the annotation file has no category for the class {name}",
                file=file,
                field="categories.name",
                value=sorted(names),
                expected="a category for each class of the network",
            )
        found[class_id] = Category(category_of[name], name)
    return found
