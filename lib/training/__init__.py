"""From a recipe and batches to averaged weights: loop, schedule, average, precision, where a run starts, log, weights.

What a run needs for itself and leaves in its folder belongs here; what is computed only to judge two frameworks by
their runs does not.
"""
