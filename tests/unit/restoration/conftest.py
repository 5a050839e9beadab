"""Without webdataset, which the library alone does not need, no images are drawn to try the trained filters on."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("webdataset") else ["test_adaptive.py"]
