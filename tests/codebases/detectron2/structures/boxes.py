"""Boxes, and the matrix of their overlaps."""

import torch
from codebases import plain


class Boxes:
    def __init__(self, tensor):
        self.tensor = tensor.float()

    def __len__(self):
        return len(self.tensor)

    @staticmethod
    def cat(parts):
        return Boxes(torch.cat([part.tensor for part in parts]))


def pairwise_iou(boxes1, boxes2):
    return plain.overlaps(boxes1.tensor[:, None], boxes2.tensor[None]).nan_to_num(0)
