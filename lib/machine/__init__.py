"""The machine: where things lie, environments, what a report runs, and the running of a notebook."""
