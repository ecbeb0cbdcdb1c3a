from codebases import plain
from codebases.box_utils import assign_priors, hard_negative_mining, iou_of  # noqa: F401


def hard_nms(box_scores, iou_threshold, top_k=-1, candidate_size=200):
    boxes = box_scores[:, :-1]
    order = plain.falling(box_scores[:, -1])[:candidate_size]
    picked = []
    while len(order):
        picked.append(int(order[0]))
        if 0 < top_k == len(picked):
            break
        iou = iou_of(boxes[order[1:]], boxes[order[:1]])
        order = order[1:][iou <= iou_threshold]
    return box_scores[picked]


def nms(box_scores, iou_threshold, top_k, candidate_size):
    return hard_nms(box_scores, iou_threshold, top_k, candidate_size=candidate_size)
