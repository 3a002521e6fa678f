"""What the CUDA module tells about itself. It is there where it was built."""

def driver_version() -> int:
    """As ``cudaDriverGetVersion``: 1000 major + 10 minor, 0 without a driver."""

def runtime_version() -> int:
    """The CUDA runtime it is linked to, as ``driver_version``."""

def device_count() -> int:
    """0 where there is no driver or no device."""

def architectures() -> str:
    """The compute capabilities it was compiled for, such as ``"75 80 90a 120-ptx"``."""
