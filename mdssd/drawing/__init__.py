"""Draws detections on images, and encodes images and charts as files."""

from mdssd.drawing.detections import class_color, draw_detections
from mdssd.drawing.encoding import encode_image, write_image

__all__ = ["class_color", "draw_detections", "encode_image", "write_image"]
