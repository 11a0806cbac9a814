"""Quality and speed of Selective Search on real photographs."""

import numpy as np
import pytest

from boxsup_dist.data.images import decode_image
from boxsup_dist.proposals import quality
from boxsup_dist.proposals.selective_search import selective_search
from boxsup_dist.records import voc

NUM_IMAGES = 24


@pytest.mark.parametrize(("folder", "split", "floor"), [("voc-mini", "core_train", 0.72), ("voc-full", "train", 0.73)])
def test_best_jaccard_on_voc(shared, folder, split, floor):
    """Measured on these images: .743 and .750 at 2,000 candidates, .704 and .681 at 500."""
    root = str(shared / folder / "VOCdevkit" / "VOC2012")
    image_ids = voc.read_split(root, split)
    best = []
    for image_id in image_ids[:: len(image_ids) // NUM_IMAGES][:NUM_IMAGES]:
        record = voc.read_record(root, image_id, split)
        objects = quality.objects_of(record)
        if objects.masks:
            found = selective_search(decode_image(record.image))
            best.append(quality.best_overlaps(found, objects.masks, [500, 2000], objects.valid).jaccard)
    at_500, at_2000 = np.concatenate(best).mean(0)
    assert at_2000 >= floor and at_500 >= floor - 0.07
