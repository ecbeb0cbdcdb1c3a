import torch
from codebases import plain


def match(threshold, truths, priors, variances, labels, loc_t, conf_t, idx):
    assert tuple(variances) == (0.1, 0.2)
    iou = plain.overlaps(truths[:, None], plain.corners(priors)[None])  # [M, P]
    best, which = iou.max(0)
    for j, prior in enumerate(iou.max(1).indices):
        best[prior], which[prior] = 2, j
    label = labels[which] + 1
    label[best < threshold] = 0
    loc_t[idx] = plain.encode(truths[which], priors)
    conf_t[idx] = label


def decode(loc, priors, variances):
    low = priors[:, :2] + loc[:, :2] * variances[0] * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(loc[:, 2:] * variances[1])
    low = low - size / 2
    return torch.cat([low, low + size], 1)


def nms(boxes, scores, overlap=0.5, top_k=200):
    keep = torch.zeros(len(scores), dtype=torch.int64)
    if boxes.numel() == 0:
        return keep
    x1, y1, x2, y2 = boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    order = plain.falling(scores)[:top_k].flip(0)  # the best is last
    count = 0
    while len(order):
        i = order[-1]
        keep[count] = i
        count += 1
        order = order[:-1]
        width = (x2[order].clamp(max=x2[i]) - x1[order].clamp(min=x1[i])).clamp(min=0)
        height = (y2[order].clamp(max=y2[i]) - y1[order].clamp(min=y1[i])).clamp(min=0)
        inside = width * height
        iou = inside / (area[order] - inside + area[i])
        order = order[iou <= overlap]  # drops NaN
    return keep, count
