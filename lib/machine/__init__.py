"""The machine: where things lie, how the two environments are built and entered, and how a report's notebooks are planned
and run. Nothing here knows a model, a tensor or a verdict; what a notebook measures or shows belongs to the other rooms.

`environment` (places, variables, entering) is imported by the others and imports none of them but `headers`. `doctor`,
`locks`, `installation` build; `python3 -m lib.machine` is their command line; all of them, and `launcher`, are read by any
Python 3 from 3.8 on with the standard library alone. `pipeline` plans a report, `job` runs one piece of it, `notebook` one
notebook.
"""
