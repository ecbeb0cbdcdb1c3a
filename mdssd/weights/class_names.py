"""The class names of published SSDs, whose files do not have them."""

_VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
# COCO's categories by their number, from 1; "-" is a number that COCO skips.
_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,-,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,-,"
    "backpack,umbrella,-,-,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,-,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,"
    "couch,potted plant,bed,-,dining table,-,-,toilet,-,tv,laptop,mouse,remote,keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,-,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
).split(",")


def usual_names(layout: str, count: int) -> list[str] | None:
    """Return the class names that a published SSD with this number of classes has, if it is known.

    Args:
        layout: the codebase; see `Published.layout`.
        count: number of classes without the background.

    Returns:
        The names of VOC (20 classes) or COCO (80; 90 with the numbers it skips; the 200 of
        ssd.pytorch, which uses 80); None for another number.

    Example:
        >>> from mdssd.weights.class_names import usual_names
        >>> usual_names("lufficc/SSD", 20)[:2], usual_names("lufficc/SSD", 5)
        (['aeroplane', 'bicycle'], None)
    """
    if count == len(_VOC):
        return list(_VOC)
    if count == len(_COCO):
        return [f"unused {k}" if name == "-" else name for k, name in enumerate(_COCO, 1)]
    named = [name for name in _COCO if name != "-"]
    if count == 200 and layout == "ssd.pytorch":
        named += [f"unused {k}" for k in range(81, 201)]
    return named if count == len(named) else None
