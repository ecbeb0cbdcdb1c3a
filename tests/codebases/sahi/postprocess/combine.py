import numpy as np
from codebases.sahi.prediction import ObjectPrediction


def overlap(a, b, metric):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    inside = np.prod(np.maximum(high - low, 0))
    areas = np.prod(a[2:4] - a[:2]), np.prod(b[2:4] - b[:2])
    whole = min(areas) if metric == "IOS" else areas[0] + areas[1] - inside
    return inside / whole if whole > 0 else 0.0


def ranked(rows):
    return sorted(range(len(rows)), key=lambda i: (-rows[i, 4], *rows[i, :4]))


def groups(rows, metric, threshold):
    """Each box that stays, and those that it takes."""
    left, found = ranked(rows), {}
    while left:
        first, *rest = left
        taken = [i for i in rest if overlap(rows[first], rows[i], metric) >= threshold]
        found[first] = taken
        left = [i for i in rest if i not in taken]
    return found


def chains(rows, metric, threshold):
    """As `groups`, but a box that was taken takes others for the box that it belongs to."""
    free, belongs, found = set(range(len(rows))), {}, {}
    for i in ranked(rows):
        if i in free:
            free.remove(i)
            belongs[i], found[i] = i, []
        for j in sorted(free):
            if overlap(rows[i], rows[j], metric) >= threshold:
                free.remove(j)
                belongs[j] = belongs[i]
                found[belongs[i]].append(j)
    return found


def by_category(rows):
    return [np.where(rows[:, 5] == label)[0] for label in np.unique(rows[:, 5])]


def nms(predictions, match_metric="IOU", match_threshold=0.5):
    return list(groups(predictions, match_metric, match_threshold))


def batched_nms(predictions, match_metric="IOU", match_threshold=0.5):
    keep = []
    for own in by_category(predictions):
        keep += own[nms(predictions[own], match_metric, match_threshold)].tolist()
    return sorted(keep, key=lambda i: -predictions[i, 4])


class Postprocess:
    def __init__(self, match_threshold=0.5, match_metric="IOU", class_agnostic=True):
        self.match_threshold, self.match_metric = match_threshold, match_metric
        self.class_agnostic = class_agnostic

    def rows(self, object_predictions):
        return np.array(
            [[*p.bbox.to_xyxy(), p.score.value, p.category.id] for p in object_predictions]
        )


class NMSPostprocess(Postprocess):
    def __call__(self, object_predictions):
        function = nms if self.class_agnostic else batched_nms
        rows = self.rows(object_predictions)
        keep = function(rows, match_metric=self.match_metric, match_threshold=self.match_threshold)
        return [object_predictions[i] for i in keep]


class GreedyNMMPostprocess(Postprocess):
    groups = staticmethod(groups)

    def __call__(self, object_predictions):
        if any(p.mask is not None for p in object_predictions):
            return "the original"
        rows, results = self.rows(object_predictions), []
        places = [np.arange(len(rows))] if self.class_agnostic else by_category(rows)
        for own in places:
            found = self.groups(rows[own], self.match_metric, self.match_threshold)
            for first, taken in found.items():
                best = object_predictions[own[first]]
                for other in rows[own[taken]]:
                    box = np.array(best.bbox.to_xyxy())
                    if overlap(box, other, self.match_metric) >= self.match_threshold:
                        low = np.minimum(box[:2], other[:2])
                        high = np.maximum(box[2:], other[2:4])
                        best = ObjectPrediction(
                            [*low.tolist(), *high.tolist()],
                            best.category.id,
                            best.category.name,
                            best.score.value,
                            shift_amount=best.bbox.shift_amount,
                        )
                results.append(best)
        return results


class NMMPostprocess(GreedyNMMPostprocess):
    groups = staticmethod(chains)

    def __call__(self, object_predictions):
        return super().__call__(object_predictions)
