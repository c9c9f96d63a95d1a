"""The one real data set of the series: 1,797 handwritten digits, 8x8 pixels, shipped in digits.npz (45 kB).

Source: E. Alpaydin and C. Kaynak (1998), *Optical Recognition of Handwritten Digits*, UCI Machine Learning
Repository, data set 80, https://doi.org/10.24432/C50P49, licence CC BY 4.0. The rows are those of its test part
(`optdigits.tes`), in its order; DIGITS.md beside this file tells how they were packed.
"""

from importlib.resources import files

import numpy as np
import torch

TEST_IMAGES = 360  # a fifth: the last rows of the file, in file order


def digits():
    """Training and test images: ``x_train, y_train, x_test, y_test``.

    x_train: float32 [1437, 64], a row is an 8x8 image read line by line, ink from 0 (paper) to 1 (full).
    y_train: int64 [1437], the digit 0..9.  x_test, y_test: the same with 360 rows.
    The split is by position in the file (nothing is shuffled, nothing random), so every call returns equal tensors.
    """
    with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as packed:
        pixels, labels = packed["pixels"], packed["labels"]
    x = torch.from_numpy(pixels).float() / 16  # a pixel counts the inked points in a 4x4 block: 0..16
    y = torch.from_numpy(labels).long()
    return x[:-TEST_IMAGES], y[:-TEST_IMAGES], x[-TEST_IMAGES:], y[-TEST_IMAGES:]
