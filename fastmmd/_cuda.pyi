"""The CUDA side: what it tells about itself, and its passes. It is there where it was built."""

from collections.abc import Sequence

def driver_version() -> int:
    """As ``cudaDriverGetVersion``: 1000 major + 10 minor, 0 without a driver."""

def runtime_version() -> int:
    """The CUDA runtime it is linked to, as ``driver_version``."""

def device_count() -> int:
    """0 where there is no driver or no device."""

def architectures() -> str:
    """The compute capabilities it was compiled for, such as ``"75 80 90a 120-ptx"``."""

def compute_capability(device: int) -> tuple[int, int]: ...
def shared_bytes(device: int) -> int:
    """Shared memory that a thread block may have."""

def l2_bytes(device: int) -> int: ...
def multiprocessors(device: int) -> int: ...

BLOCK_ROWS: int
DEPTH_UNIT: int

# Arguments are those of fastmmd._native, addresses of the device: without threads, and with
#
#     products: int            # 0 of single threads, 1 mma, 2 wgmma
#     operand: int             # 0 float32, 1 float64, 2 float16, 3 bfloat16, 4 tf32, 5 three tf32
#     z: Sequence[int]         # [padded rows, padded width] of each factor: room for packed rows
#     stream: int, device: int
#
# Nothing waits for the device. What the driver refuses raises RuntimeError.

class Mmd2:
    """The passes of one MMD, in the order of csrc/cuda/mmd.h."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def workspace(self) -> int:
        """Bytes; those of the roads that are one call have functions of their own."""

    def small_workspace(self) -> int: ...
    def fused_workspace(self) -> int: ...
    def panel_workspace(self, rows: int, columns: int) -> int:
        """Bytes beside the workspace, for the largest panel."""

    def set_workspace(self, address: int) -> None: ...
    def begin(self) -> None: ...
    def values(self) -> None: ...
    def panel(
        self,
        row: int,
        rows: int,
        column: int,
        columns: int,
        w: Sequence[int],  # [rows, columns] of each factor that moves; empty: only values
        workspace: int,
    ) -> None: ...
    def pairs(self) -> None: ...
    def finish(self) -> None: ...
    def takes_small(self) -> bool: ...
    def small(self) -> None: ...
    def takes_fused(self) -> bool: ...
    def fused(self) -> None: ...

class KernelSum:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def workspace(self) -> int: ...
    def run(self, workspace: int) -> None: ...

class SignForms:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def workspace(self) -> int: ...
    def run(self, workspace: int) -> None: ...
