import numpy as np
import numpy.typing as npt

class Memory:
    resident: int
    references: int
    first_touches: int
    faults: int
    brought: int
    def __init__(self, pages: int, behind: bool = True, window: int = 0) -> None: ...
    def touch(self, pages: npt.NDArray[np.uint64]) -> None: ...
    def give_back(self, page: int, count: int) -> None: ...
