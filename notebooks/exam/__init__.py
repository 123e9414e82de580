"""The engine's own exam: faults that people make, planted one at a time, and whether the gates find them.

The reference is the clean model, the candidate the same with one fault, both in the running framework and through the
engine's own capture, questions, layers, lock-step and data stages; nothing of these is rebuilt here. `notebooks.faults`
holds the faults, `planting` what they are written with, `subjects` what they are planted in, `gates` what they go
through; `examination` runs and keeps them, `score` and `figures` show them. A fault or a measurement does not belong
here.
"""
