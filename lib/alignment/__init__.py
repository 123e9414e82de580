"""The judge: it measures what the rest of the suite does, compares records of two sides, and turns them into verdicts.

It may look at everything (models, losses, data, training, evaluation), and nothing of that imports it. What a detector
does, or a page shows, does not belong here. Measuring: `measure`, with `capture`, `layers`, `steps`. Judging:
`compare`, then `gate` (of what a model computes) and `verdict` (rows), then `rows`, `lockstep`, `divergence`,
`trajectory`, `decisions`, for `questions`. It knows no model but through `references` and `lib.models`; people bring
their own by `port`. That it finds faults is shown by `notebooks.exam`.
"""
