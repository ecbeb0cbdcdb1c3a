from codebases.ultralytics.utils.nms import non_max_suppression


def predict(prediction, **settings):
    return non_max_suppression(prediction, **settings)
