"""Every word the report prints, by language and key. Numbers are filled in by the page, bound to their records."""
from lib.errors import UserError

ENGLISH = {
    "title": "Alignment report",
    "lead": "Jittor against PyTorch against the published implementation: every number below was measured, and is judged "
            "by the rounding noise measured beside it.",
    "summary": "Summary",
    "contents": "Contents",
    "models": "Models",
    "verdicts": "Verdicts",
    "counts": "{passed} of {judged} judged questions pass; {failed} fail; {not_run} were not run.",
    "reference": "Reference",
    "reference_value": "published implementation, commit {commit}",
    "reference_absent": "NOT RUN: no golden record of the published implementation for these models",
    "machine": "Machine",
    "machine_value": "{cpu}, {cores} cores, {memory} GiB, {os}",
    "frameworks": "Frameworks",
    "measured": "Compared (UTC)",
    "commit": "Commit",
    "commit_dirty": "with local changes",
    "commit_absent": "not in a git checkout",
    "profile": "Profile",
    "question": "Question",
    "not_asked": "not asked: the published side has no such record",
    "how_title": "How to read this",
    "how_floor": "A noise floor is how far the reference's own float32 run lies from its float64 run on the same bytes. "
                 "A gate is {k} times that floor: the published code's floor where the published side is the reference, "
                 "PyTorch's own where the frameworks are compared with each other.",
    "how_flips": "For gradients the floor is the largest among PyTorch's float32 runs on record, the published code's included: "
                 "an activation whose input lies within noise of zero takes one slope in some runs and the other in others, "
                 "and the gradients behind it jump.",
    "how_statistics": "Where the published side gives a tensor's norm, mean and first values instead of all its elements, "
                      "each is held to the bound that the tensor's floor implies.",
    "how_targets": "Quoted targets are what people state as tolerances. They are not judged. Where the floor itself lies "
                   "above a target, the target is below rounding there: neither a pass nor a fail.",
    "how_ref": "Point at a number to see the record and the field that hold it.",
    "PASS": "PASS", "FAIL": "FAIL", "NOT RUN": "NOT RUN", "SHOWN": "SHOWN",
    "published": "Published", "torch": "PyTorch", "jittor": "Jittor", "none": "none",
    "pair": "{first} ↔ {second}",
    "all_rows": "{count} numbers compared; the worst of each kind:",
    "apart": "Set apart by name",
    "apart_gradients": "true gradient zero, only noise is left: held to the largest noise among them",
    "apart_step": "true gradient zero: AdamW turns its noise into a whole step, so the norm of the change is not compared",
    "targets": "Quoted target {target} relative: met by {met}, missed by {missed}, below rounding here for {below} of the numbers.",
    "column_name": "Tensor or number", "column_what": "Compared", "column_error": "Error", "column_floor": "Noise floor",
    "column_gate": "Gate", "column_ratio": "Error / gate", "column_target": "Quoted target", "column_note": "Note",
    "column_quantity": "Quantity",
    "met": "met", "missed": "missed", "below rounding": "below rounding here",
    "provenance": "Provenance",
    "provenance_lead": "One line per record: what produced it, with which versions, when, and how long it took.",
    "record": "Record", "command": "Command", "versions": "Versions", "seed": "Seed", "threads": "Threads", "started": "Started (UTC)",
    "seconds": "Seconds", "peak": "Peak MiB",
   
    # reasons: one sentence each
    "within_gate": "All {total} numbers lie within their gates; the closest is {name} ({what}) with {error} against {gate}.",
    "identical": "Identical: {total} of {total} comparisons.",
    "beyond_gate": "{failing} of {total} numbers exceed their gates; the worst is {name} ({what}): {error} where {gate} is allowed. {note}",
    "differs": "{failing} of {total} comparisons differ; the worst: {name}, {error} differences. {note}",
    "fault": "{failing} of {total} comparisons fail; {name}: {note}.",
    "nothing_compared": "Nothing was compared: neither side holds a number for this question.",
    "no_gate": "Shown, not judged: {total} numbers have no noise floor of their own.",
    "no_record": "No record: {missing}.",
    "other_case": "The two records measured different cases: {first} and {second}.",
    "clock_fault": "The clock is at fault on side {side}: for {work}, batch {batch}, not waiting takes as long as waiting, "
                   "where calls return before the work is done.",
    "ratios": "Shown, not judged. Time of {second} over time of {first}: {ratios}.",
    # questions: title, what is asked, what to look for
    "structure": "Structure",
    "structure_ask": "Do all sides have the same entries (name, shape, type, order), parameter counts and normalisation layers?",
    "conversion": "Conversion",
    "conversion_ask": "Does every weight arrive, with the same bytes, and does each file format bring them back bit for bit?",
    "forward": "Forward",
    "forward_ask": "Do the same weights and the same image give the same features, raw outputs and detections?",
    "forward_see": "Look for a step: a fault lifts the curve at one feature and everything behind it.",
    "losses": "Losses",
    "losses_ask": "Does every loss component agree, before and after the auxiliary branch is detached?",
    "assignment": "Assignment",
    "assignment_ask": "Is every prior given the same box?",
    "gradients": "Gradients",
    "gradients_ask": "Does every parameter receive the same gradient?",
    "gradients_see": "Look at the right end: marks above the line would be gradients beyond their gate.",
    "step": "One optimiser step",
    "step_ask": "Does one optimiser step, clipping included, change every parameter as the published rule says?",
    "batch_norm": "Batch-norm statistics",
    "batch_norm_ask": "Are the running statistics right after one training forward?",
    "training": "Training",
    "training_ask": "From the same weights and batches, do both frameworks start with the same losses, and where do they end?",
    "training_see": "Look for the curves lying on each other at first and keeping the same course later: after the first updates "
                    "rounding alone separates any two runs, so curves and final AP are shown, not judged.",
    "training_map_see": "Look at the last point; differences between the lines are not judged.",
    "evaluation": "Evaluation with common weights",
    "evaluation_ask": "Do the weights that PyTorch trained give the same detections and COCO numbers in both frameworks?",
    "evaluation_see": "Boxes with a score above 0.2, drawn from the PyTorch-trained weights. Look for one that one framework draws and the other does not.",
    "speed": "Speed and memory",
    "speed_ask": "How long do inference and a training step take, and how much memory, by one meter for both?",
    "speed_see": "Look at the bars, not the crosses: a cross is what a clock shows that doesn't wait for the work to be done.",
    "memory_see": "Look for a bar that grows faster with the batch than its neighbour.",
    # numbers
    "parameters": "trainable parameters", "loaded": "entries loaded", "final_map": "final AP", "training_seconds": "training time (s)",
    "coco": "COCO", "units": "time in matmul units:", "synchronised_ms": "median time (ms):",
}  # fmt: skip

LANGUAGES = {"en": ENGLISH}


class Messages:
    """The catalogue of one language; an unknown key is a programming error and raises KeyError."""

    def __init__(self, language: str):
        if language not in LANGUAGES:
            raise UserError(f"language '{language}' has no catalogue in lib/report/messages.py: choose from {', '.join(LANGUAGES)}")
        self.language, self._texts = language, LANGUAGES[language]

    def __call__(self, key: str) -> str:
        return self._texts[key]

