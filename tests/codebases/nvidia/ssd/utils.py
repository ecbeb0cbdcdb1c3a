import torch
from codebases import plain


class DefaultBoxes:
    def __init__(self, cxcywh):
        self.cxcywh = cxcywh
        self.scale_xy, self.scale_wh = 0.1, 0.2

    def __call__(self, order):
        return plain.corners(self.cxcywh) if order == "ltrb" else self.cxcywh


class Encoder:
    def __init__(self, dboxes):
        self.dboxes = dboxes(order="ltrb")
        self.dboxes_xywh = dboxes(order="xywh").unsqueeze(0)
        self.nboxes = self.dboxes.size(0)
        self.scale_xy, self.scale_wh = dboxes.scale_xy, dboxes.scale_wh

    def encode(self, bboxes_in, labels_in, criteria=0.5):
        iou = plain.overlaps(bboxes_in[:, None], self.dboxes[None])  # [M, P]
        best, which = iou.max(0)
        for box, prior in enumerate(iou.max(1).indices):
            best[prior], which[prior] = 2, box
        mask = best > criteria
        labels = torch.zeros(self.nboxes, dtype=torch.int64)
        labels[mask] = labels_in[which[mask]]
        boxes = self.dboxes.clone()
        boxes[mask] = bboxes_in[which[mask]]
        return plain.centres(boxes), labels

    def decode_batch(self, bboxes_in, scores_in, criteria=0.45, max_output=200):
        loc, scores = bboxes_in.permute(0, 2, 1), scores_in.permute(0, 2, 1).softmax(-1)
        priors = self.dboxes_xywh
        middle = self.scale_xy * loc[..., :2] * priors[..., 2:] + priors[..., :2]
        size = (self.scale_wh * loc[..., 2:]).exp() * priors[..., 2:]
        boxes = plain.corners(torch.cat([middle, size], -1))
        return [
            self.decode_single(*one, criteria, max_output)
            for one in zip(boxes, scores, strict=True)
        ]

    def decode_single(self, bboxes_in, scores_in, criteria, max_output, max_num=200):
        parts = []
        for c in range(1, scores_in.shape[1]):
            mask = scores_in[:, c] > 0.05
            boxes, scores = bboxes_in[mask], scores_in[mask, c]
            rest = plain.falling(scores)[:max_num]
            kept = []
            while len(rest):
                kept.append(int(rest[0]))
                iou = plain.overlaps(boxes[rest[1:]], boxes[rest[0]])
                rest = rest[1:][iou < criteria]  # drops NaN
            parts.append((boxes[kept], torch.full((len(kept),), c), scores[kept]))
        boxes, labels, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        if not len(scores):
            return [torch.tensor([]) for _ in range(3)]
        order = plain.falling(scores)[:max_output].flip(0)
        return boxes[order], labels[order], scores[order]
