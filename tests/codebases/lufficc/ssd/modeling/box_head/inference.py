from types import SimpleNamespace

import torch
from codebases import plain


class Container:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class PostProcessor:
    def __init__(self, cfg):
        self.cfg = cfg
        self.width = cfg.INPUT.IMAGE_SIZE
        self.height = cfg.INPUT.IMAGE_SIZE

    def __call__(self, detections):
        results = []
        for scores, boxes in zip(*detections, strict=True):
            classes = scores.shape[1]
            boxes = boxes[:, None].expand(-1, classes, 4)[:, 1:].reshape(-1, 4)
            labels = torch.arange(classes).expand_as(scores)[:, 1:].reshape(-1)
            scores = scores[:, 1:].reshape(-1)
            passes = scores > self.cfg.TEST.CONFIDENCE_THRESHOLD
            boxes, scores, labels = boxes[passes], scores[passes], labels[passes]
            boxes[:, 0::2] *= self.width
            boxes[:, 1::2] *= self.height
            limit = self.cfg.TEST.NMS_THRESHOLD
            keep = plain.suppress_by_class(boxes, scores, labels, limit)
            keep = keep[: self.cfg.TEST.MAX_PER_IMAGE]
            found = Container(boxes=boxes[keep], labels=labels[keep], scores=scores[keep])
            found.img_width, found.img_height = self.width, self.height
            results.append(found)
        return results


CFG = SimpleNamespace(
    INPUT=SimpleNamespace(IMAGE_SIZE=300),
    TEST=SimpleNamespace(CONFIDENCE_THRESHOLD=0.01, NMS_THRESHOLD=0.45, MAX_PER_IMAGE=100),
)
