from types import SimpleNamespace


class BoundingBox:
    def __init__(self, box, shift_amount):
        self.box, self.shift_amount = box, shift_amount

    def to_xyxy(self):
        return list(self.box)


class ObjectPrediction:
    def __init__(
        self,
        bbox,
        category_id,
        category_name,
        score,
        segmentation=None,
        shift_amount=(0, 0),
        full_shape=None,
    ):
        self.bbox = BoundingBox(bbox, shift_amount)
        self.category = SimpleNamespace(id=category_id, name=category_name)
        self.score = SimpleNamespace(value=score)
        self.mask = segmentation
