"""Data sets, preprocessing and batches: NumPy, OpenCV and Pillow, no framework: both sides see the same bytes.

Here is what gets, draws, reads, converts, chooses and describes images with their boxes, and makes batches of them; not
what a detection is worth (`lib.evaluation`), nor what shows a picture to a person (`lib.show`).
"""

import os
import warnings
import zlib

import cv2
import numpy as np

cv2.setNumThreads(1)  # the loader's threads share out the work; OpenCV's own would compete with them and the framework
cv2.setLogLevel(0)  # a damaged image is reported in one line of ours
warnings.filterwarnings("ignore", module=r"PIL\.")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # and so is a damaged video


def stream(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """The random numbers of one purpose, epoch and item: the same in any order and on any worker."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), epoch, index]))
