# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the policies: what is evicted first."""

AGES = "ages"  # what has not been touched for longest, as far as that is known
BEHIND = "behind"  # ... and what streams have just gone over, where that is seen to save reads
OURS = (AGES, BEHIND)

# What `simulate` compares them with, and what that is in libcachesim.
LRU, OPTIMUM = "lru", "optimum"
OTHERS = {
    "fifo": "FIFO",
    LRU: "LRU",
    "clock": "Clock",
    "arc": "ARC",
    "lirs": "LIRS",
    "s3-fifo": "S3FIFO",
    OPTIMUM: "Belady",
}
