"""From overlaps to a box and a label for each anchor."""

import torch


class Matcher:
    def __init__(self, thresholds, labels, allow_low_quality_matches=False):
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix):
        overlap = match_quality_matrix
        if overlap.numel() == 0:
            index = torch.zeros(overlap.shape[1], dtype=torch.int64)
            return index, torch.full_like(index, self.labels[0], dtype=torch.int8)
        assert (overlap >= 0).all()
        best, index = overlap.max(0)
        place = sum((best >= end).int() for end in self.thresholds[1:-1])
        labels = torch.tensor(self.labels, dtype=torch.int8)[place]
        if self.allow_low_quality_matches:
            labels[(overlap == overlap.amax(1, keepdim=True)).any(0)] = 1
        return index, labels
