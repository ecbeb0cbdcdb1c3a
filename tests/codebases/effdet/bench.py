import torch
from codebases.effdet.anchors import generate_detections


def _batch_detection(
    batch_size,
    class_out,
    box_out,
    anchor_boxes,
    indices,
    classes,
    img_scale=None,
    img_size=None,
    max_det_per_image=100,
    soft_nms=False,
):
    return torch.stack(
        [
            generate_detections(
                class_out[i],
                box_out[i],
                anchor_boxes,
                indices[i],
                classes[i],
                None if img_scale is None else img_scale[i],
                None if img_size is None else img_size[i],
                max_det_per_image,
                soft_nms,
            )
            for i in range(batch_size)
        ]
    )
