import torch

from ..utils import box_utils


class Predictor:
    """What follows the network: scores [N, C] and boxes [N, 4] of an image of size 1."""

    def __init__(self, iou_threshold=0.45, filter_threshold=0.01, candidate_size=200):
        self.iou_threshold = iou_threshold
        self.filter_threshold = filter_threshold
        self.candidate_size = candidate_size

    def predict(self, scores, boxes, top_k=-1):
        picked, labels = [], []
        for c in range(1, scores.shape[1]):
            mask = scores[:, c] > self.filter_threshold
            if mask.any():
                rows = torch.cat([boxes[mask], scores[mask, c, None]], 1)
                rows = box_utils.nms(rows, self.iou_threshold, top_k, self.candidate_size)
                picked.append(rows)
                labels.extend([c] * len(rows))
        if not picked:
            return torch.tensor([]), torch.tensor([]), torch.tensor([])
        rows = torch.cat(picked)
        return rows[:, :4], torch.tensor(labels), rows[:, 4]
