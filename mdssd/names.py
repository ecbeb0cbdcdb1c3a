"""The choices that users type: one list each, for the command line and for the code behind it.

This module imports nothing, so that `mdssd --help` shows the choices without loading PyTorch.
"""

MODELS = (
    "mdssd300",
    "mdssd512",
    "ssd300",
    "ssd512",
    "dssd321",
    "dssd513",
    "ssd321",
    "ssd513",
)
# The networks under SSD and MDSSD, beside those of timm. DSSD, ssd321 and ssd513 have resnet101.
TRUNKS = ("vgg16", "resnet101", "efficientnet_lite0")
# Sides of the input, in pixels, that every model can have beside those of its papers. Width and
# height can differ.
INPUT_SIZES = range(256, 1025, 32)
# The most pixels of a tile, whose part beyond the image is filled.
MOST_TILE_PIXELS = 100_000_000
# The least side of a tile. Each tile is enlarged to the input and costs a run of the network.
LEAST_TILE_SIDE = 32
# Sets of prior sizes. SSD has the first two; "paper" and "small" exist for MDSSD only.
SSD_PRIOR_SCALES = ("voc", "coco")
PRIOR_SCALES = (*SSD_PRIOR_SCALES, "paper", "small")
# `mdssd train` fits the sizes to the boxes of the data.
AUTO_PRIORS = "auto"
# The parts of a model that training can leave unchanged.
FREEZABLE = ("base", "batch-norm")
# Boxes that training can take for neither objects nor background.
IGNORABLE = ("cut", "crowd", "difficult")
# By which measure of a prior and an object training matches them, see `ops.match_priors`.
MATCH_METRICS = ("iou", "nwd")
# What boxes refer to where EXIF turns an image. "auto": what the stated size or the format says.
ORIENTATIONS = ("auto", "upright", "stored")
# Backends of the operators. Development installs also have "simt", which is for tests only.
BACKENDS = ("reference", "cpp", "cuda", "triton")
# Ways to run the network of a Detector, and its data types.
RUNTIMES = ("eager", "compile", "openvino", "graph")
DTYPES = ("float32", "bfloat16", "float16")
# Formats of `mdssd data convert`.
DATA_FORMATS = ("yolo", "coco", "voc")
# Formats of `mdssd export`.
EXPORTS = ("onnx", "pt2", "aoti")
# Formats of the detections that `mdssd detect` writes.
TABLES = ("json", "csv", "jsonl", "coco", "yolo", "geojson")
# Where `mdssd detect` works: in this process, or on a Ray cluster.
ENGINES = ("local", "ray")
# Evaluation servers that `mdssd eval --submit` writes for.
SUBMISSIONS = ("voc", "coco")
# Settings of a training run: learning rate schedules, what the loss is divided by, and the data
# types of mixed precision.
SCHEDULES = ("mdssd", "ssd", "steps", "cosine")
NORMALIZERS = ("global", "local")
AMP = ("bf16", "fp16")
