"""``fastmmd compare``: whether two files of numbers come from one distribution, and where not.

Reading is in :mod:`fastmmd.compare.reading`, the figures in :mod:`fastmmd.compare.comparison`, what
is printed in :mod:`fastmmd.compare.report`, the picture in :mod:`fastmmd.compare.figures`, which
alone needs Matplotlib.
"""
