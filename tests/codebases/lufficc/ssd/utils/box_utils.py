from codebases.box_utils import assign_priors, hard_negative_mining, iou_of  # noqa: F401
