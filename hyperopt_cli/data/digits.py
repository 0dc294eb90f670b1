"""Handwritten digits that ship with the package: 1,797 pictures of 8 x 8 pixels, for runs of seconds without a network.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(https://doi.org/10.24432/C50P49), the test part, CC BY 4.0. Every row is 64 integers 0 ... 16, then the digit.
"""

import gzip
from importlib.resources import files

import numpy as np
import torch

from hyperopt_cli.data.partition import stratified_partition
from hyperopt_cli.data.seeds import generator
from hyperopt_cli.data.splits import InMemory, Splits

TEST_FRACTION = 0.2


def digits() -> Splits:
    """Returns handwritten digits: 1,438 to train and validate on, and 359 to test on, always the same ones.

    Returns:
        Inputs uint8 [N, 1, 8, 8], 0 ... 255; targets int64 [N], 0 ... 9.
    """
    archive = files("hyperopt_cli.data").joinpath("digits.csv.gz").read_bytes()
    table = torch.from_numpy(np.loadtxt(gzip.decompress(archive).decode().splitlines(), delimiter=",", dtype=np.int64))
    # 16 becomes 255, so that dividing by 255 gives the range of every other set of pictures
    pictures = ((table[:, :64] * 255 + 8) // 16).to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64]
    train, test = stratified_partition(labels, TEST_FRACTION, generator(0, "digits", "test"))
    return Splits(InMemory(pictures[train], labels[train]), InMemory(pictures[test], labels[test]), (1, 8, 8), 10)
