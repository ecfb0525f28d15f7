"""Data: x comes in, and nothing is probabilistic yet.

load          data from a name, a path, an array, a torch data set or a loader, split in three
load_split    one split of all of an array, a data set or a loader, such as a test set
digits        bundled with scikit-learn; mnist, fashion_mnist and kmnist are read from a copy or fetched
from_arrays   your own numbers; from_file, from_folder and from_dataset read them from elsewhere
Data          train, validation and test, each a Split
Split         stored values, and the transform through which a likelihood sees them
transforms    what may be done to stored values: binarize, dequantize, standardize, ...
fingerprint   the hash by which a result says what it was computed on
"""

from pyrovae.data import transforms
from pyrovae.data.arrays import from_arrays
from pyrovae.data.datasets import digits, fashion_mnist, kmnist, load, load_split, mnist
from pyrovae.data.files import from_file
from pyrovae.data.images import from_folder
from pyrovae.data.splits import Data, Split, fingerprint
from pyrovae.data.torch_datasets import from_dataset

__all__ = [
    "Data",
    "Split",
    "digits",
    "fashion_mnist",
    "fingerprint",
    "from_arrays",
    "from_dataset",
    "from_file",
    "from_folder",
    "kmnist",
    "load",
    "load_split",
    "mnist",
    "transforms",
]
