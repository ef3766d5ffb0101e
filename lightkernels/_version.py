from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lightkernels")
except PackageNotFoundError:
    __version__ = "0.1.0+source"
