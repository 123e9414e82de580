"""The miniature project of the pipeline's tests, and the scenes of those of several processes."""

from test_parallel import data
from test_pipeline import project

__all__ = ["data", "project"]
