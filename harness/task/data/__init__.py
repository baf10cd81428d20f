"""The data sets: what each one is (no files needed), and reading its original files.

One module per data set. A module of this package is a data set when it has `INFO`, `ORIGINALS` and `load`
(see `registry.DataModule`); its file name is its name in an experiment. Adding one is adding one file.
"""

from harness.task.data.dataset import DataInfo, Dataset, Scale, Split
from harness.task.data.registry import info, load, names

__all__ = ["DataInfo", "Dataset", "Scale", "Split", "info", "load", "names"]
