"""The version of this package, as its metadata says."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("callboard")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0.0.0"
