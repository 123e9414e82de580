"""The machine: where things lie, how the two environments are built and entered, how a report's notebooks are planned
and run. Nothing here knows a model, a tensor or a verdict: what a notebook measures or shows belongs to other rooms.

`environment` (places, variables, entering) imports none of the others. `doctor`, `locks` and `installation` build, and
`python3 -m lib.machine` is their command line; all of these, and `launcher`, are read by any Python 3 from 3.8 on with
the standard library alone. `pipeline` plans a report, or those of a `table`, `job` runs one piece of it, `notebook` one
notebook; `gaps` says what is missing, `forecast` how long it would take.
"""
