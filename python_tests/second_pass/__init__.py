"""The model zoo's depthwise networks once more, as plain functions written from their description alone.

Nothing here imports the package under test: the passes exist to disagree with it.
"""
