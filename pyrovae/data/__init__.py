"""Data sets, their splits, and transforms of their values.

load          data from a name, a path, an array, a torch data set or a loader, split in three
load_or_exit  the same for scripts: bad data end them with one line
load_split    one split of an array, a data set or a loader, such as a test set
digits        from scikit-learn; mnist, fashion_mnist and kmnist are read from a local copy or downloaded
from_arrays   arrays of numbers
Data          train, validation and test, each a Split
Split         stored values, and a transform to the values x that a likelihood scores: `fixed()` returns all x
transforms    transforms of stored values: binarize, dequantize, standardize, ...
fingerprint   hash of tensors, by which a result names its data
"""

from pyrovae.data import transforms
from pyrovae.data.arrays import from_arrays
from pyrovae.data.datasets import digits, fashion_mnist, kmnist, load, load_or_exit, load_split, mnist
from pyrovae.data.splits import Data, Split, fingerprint

__all__ = [
    "Data",
    "Split",
    "digits",
    "fashion_mnist",
    "fingerprint",
    "from_arrays",
    "kmnist",
    "load",
    "load_or_exit",
    "load_split",
    "mnist",
    "transforms",
]
