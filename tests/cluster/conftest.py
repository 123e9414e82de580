"""The miniature project of the pipeline's tests."""

from test_pipeline import project

__all__ = ["project"]
