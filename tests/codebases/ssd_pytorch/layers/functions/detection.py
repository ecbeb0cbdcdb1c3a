import torch

from ..box_utils import decode, nms


class Detect:
    def __init__(self, num_classes, bkg_label, top_k, conf_thresh, nms_thresh):
        self.num_classes = num_classes
        self.background_label = bkg_label
        self.top_k = top_k
        self.conf_thresh = conf_thresh
        self.nms_thresh = nms_thresh
        self.variance = [0.1, 0.2]

    def forward(self, loc_data, conf_data, prior_data):
        images, count = loc_data.shape[0], len(prior_data)
        output = torch.zeros(images, self.num_classes, self.top_k, 5)
        conf = conf_data.view(images, count, self.num_classes).transpose(2, 1)
        for i in range(images):
            decoded = decode(loc_data[i], prior_data, self.variance)
            for c in range(1, self.num_classes):
                mask = conf[i, c] > self.conf_thresh
                if not mask.any():
                    continue
                scores, boxes = conf[i, c][mask], decoded[mask]
                ids, n = nms(boxes, scores, self.nms_thresh, self.top_k)
                rows = torch.cat([scores[ids[:n], None], boxes[ids[:n]]], 1)
                output[i, c, :n] = rows
        return output

    __call__ = forward
