import torch
from codebases import plain


class TorchNMS:
    @staticmethod
    def nms(boxes, scores, iou_threshold):
        order = plain.falling(scores)
        return order[plain.suppress(boxes[order], iou_threshold)]


def non_max_suppression(
    prediction,
    conf_thres=0.25,
    iou_thres=0.45,
    classes=None,
    agnostic=False,
    multi_label=False,
    labels=(),
    max_det=300,
    nc=0,
    max_time_img=0.05,
    max_nms=30000,
    max_wh=7680,
    rotated=False,
    end2end=False,
    return_idxs=False,
):
    assert 0 <= conf_thres <= 1 and 0 <= iou_thres <= 1
    if isinstance(prediction, list | tuple):
        prediction = prediction[0]
    if rotated or end2end or len(labels) or prediction.shape[-1] == 6:
        return "the original"
    nc = nc or prediction.shape[1] - 4
    output, indices = [], []
    for columns in prediction:
        rows = []
        for place, row in enumerate(columns.T):
            scores = row[4 : 4 + nc]
            both = multi_label and nc > 1
            for label in range(nc) if both else [int(scores.argmax())]:
                allowed = classes is None or label in classes
                if scores[label] > conf_thres and allowed:
                    corners = plain.corners(row[:4])
                    head = torch.tensor([scores[label], label])
                    rows.append((place, torch.cat([corners, head, row[4 + nc :]])))
        found = torch.zeros(0, 6 + len(columns) - 4 - nc)
        place = torch.tensor([place for place, _ in rows], dtype=torch.int64)
        if rows:
            found = torch.stack([row for _, row in rows])
            order = plain.falling(found[:, 4])[:max_nms]
            found, place = found[order], place[order]
            shifted = found[:, :4] + found[:, 5:6] * (0 if agnostic else max_wh)
            keep = TorchNMS.nms(shifted, found[:, 4], iou_thres)[:max_det]
            found, place = found[keep], place[keep]
        output.append(found)
        indices.append(place)
    return (output, indices) if return_idxs else output
