"""Random features of the CUDA side, run by the emulator on CPU tensors."""

from __future__ import annotations

import shutil

import pytest
from cuda_feature_bodies import *  # noqa: F403
from emulation.build import CXX
from emulation.fixtures import emulated_backend, emulated_module  # noqa: F401

pytestmark = pytest.mark.skipif(not shutil.which(CXX), reason="needs a C++ compiler")
