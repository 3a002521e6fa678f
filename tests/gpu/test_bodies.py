"""The tests that the emulator runs, on a GPU."""

from __future__ import annotations

import pytest
from cuda_bodies import *  # noqa: F403
from cuda_input_bodies import *  # noqa: F403

pytestmark = pytest.mark.gpu
