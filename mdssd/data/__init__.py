"""Images with boxes: data sets of every usual format, generated scenes, SSD's augmentation."""

from mdssd.data.augment import Augmentation
from mdssd.data.coco import CocoDataset
from mdssd.data.coco_writer import write_coco
from mdssd.data.dataset import DetectionDataset
from mdssd.data.datasets import open_dataset
from mdssd.data.images import IMAGE_SUFFIXES, decode_image, read_image
from mdssd.data.loader import TrainingSet, collate, worker_init
from mdssd.data.preprocess import Preprocess, subtract_mean
from mdssd.data.sample import DataError, Sample
from mdssd.data.synthetic import SyntheticScenes
from mdssd.data.voc import VOCDataset, VOCYears
from mdssd.data.voc_writer import write_voc
from mdssd.data.yolo_writer import write_yolo
from mdssd.models import MEAN_RGB

__all__ = [
    "IMAGE_SUFFIXES",
    "MEAN_RGB",
    "Augmentation",
    "CocoDataset",
    "DataError",
    "DetectionDataset",
    "Preprocess",
    "Sample",
    "SyntheticScenes",
    "TrainingSet",
    "VOCDataset",
    "VOCYears",
    "collate",
    "decode_image",
    "open_dataset",
    "read_image",
    "subtract_mean",
    "worker_init",
    "write_coco",
    "write_voc",
    "write_yolo",
]
