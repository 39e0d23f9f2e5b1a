# SPDX-License-Identifier: GPL-2.0-or-later
"""Sort, sum up and multiply numpy arrays; print the sha256 of each result.

numpy_jobs.py JOB MIB, where JOB is sort, cumsum or matmul and MIB is the size of one array
"""

import hashlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.data.cast("B")).hexdigest()


def sort(size: int) -> str:
    array = np.random.default_rng(1).integers(0, 2**63, size // 8)
    array.sort()
    assert (array[:-1] <= array[1:]).all()
    return digest(array)


def cumsum(size: int) -> str:
    array = np.random.default_rng(2).standard_normal(size // 8)
    total = np.cumsum(array)
    np.cumsum(total, out=array)
    return digest(total) + " " + digest(array)


def matmul(size: int) -> str:
    """Blocked, so that what is worked on at a time is small: one row of blocks of each."""
    n = int((size / 8) ** 0.5) // 256 * 256
    random = np.random.default_rng(3)
    left, right = random.standard_normal((n, n)), random.standard_normal((n, n))
    product = np.zeros((n, n))
    for i in range(0, n, 256):
        for k in range(0, n, 256):
            product[i : i + 256] += left[i : i + 256, k : k + 256] @ right[k : k + 256]
    return digest(product)


if __name__ == "__main__":
    job = {"sort": sort, "cumsum": cumsum, "matmul": matmul}[sys.argv[1]]
    print(sys.argv[1], job(int(sys.argv[2]) << 20))
