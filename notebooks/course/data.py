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


def articles(seed):
    """A synthetic text for questions about rare words: int64 [57600], a word is its rank 0..199, 0 the most frequent.

    150 articles of 384 words. Every article has a topic, three rare words (ranks 50..199) drawn for it, which fill
    four of ten places. In the other places the word of rank r has a frequency proportional to 1/(r + 1), Zipf's law.
    So rare words come in bursts, as in real texts; nothing else about it is real.
    """
    rng = np.random.default_rng(seed)
    zipf = 1 / np.arange(1, 201)
    common = rng.choice(200, (150, 384), p=zipf / zipf.sum())
    topic = np.take_along_axis(rng.integers(50, 200, (150, 3)), rng.integers(0, 3, common.shape), axis=1)
    return torch.from_numpy(np.where(rng.random(common.shape) < 0.4, topic, common).ravel())
