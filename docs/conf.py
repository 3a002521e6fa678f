from __future__ import annotations

from importlib.metadata import version as installed_version

project = "fastmmd"
author = "The fastmmd authors"
copyright = "2026, The fastmmd authors"
release = version = installed_version("fastmmd")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fastmmd {release}"

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# What an example may take as given.
doctest_global_setup = """
import logging
import warnings
logging.getLogger("lightning.pytorch").setLevel("ERROR")
warnings.filterwarnings("ignore", module="lightning")
import torch
import fastmmd as fm
from torch import nn
from fastmmd import *
from fastmmd.train import *
torch.manual_seed(0)
"""
