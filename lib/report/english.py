"""The report's words in English: texts by key, and the terms that records use."""

TEXTS = {
    "title": "Alignment report",
    "lead": "Is the port the same detector? Jittor, PyTorch and the published implementation side by side: every number was measured, "
            "and differences are judged by rounding noise that was measured too.",
    "summary": "Summary",
    "contents": "Contents",
    "models": "Models",
    "verdicts": "Verdicts",
    "headline_fail": "Not aligned: {counts}", "headline_pass": "Aligned as far as it was asked: {counts}",
    "headline_gaps": "Incomplete: {counts}", "headline_none": "Nothing was judged: {counts}",
    "counted": "{number} {verdict}", "listed": ", ",
    "highlights": "Shown, not judged", "highlight_final_map": "AP, each its own training", "highlight_time_ratio": "Time, Jittor / PyTorch",
    "legend": "What the verdicts mean", "legend_PASS": "identical, or within its gate", "legend_FAIL": "beyond its gate",
    "legend_NOT RUN": "no record, which is never a pass", "legend_SHOWN": "measured, not judged",
    "legend_UNDERPOWERED": "what was measured can't tell a right port from a wrong one",
    "failing": "What fails",
    "not_run_list": "What was not run",
    "and_more": "More of them stand below.",
    "reference": "Reference: published implementation, commit",
    "reference_absent": "NOT RUN: no golden record of the published implementation",
    "machine": "Machine",
    "machine_value": "{cpu}, {cores} cores, {memory} GiB, {os}",
    "frameworks": "Frameworks",
    "data_set": "Trained and evaluated on",
    "data_set_value": "{name}: {train} images to train on, {val} to evaluate on",
    "data_set_absent": "NOT RUN: no record of the data set",
    "measured": "Measured (UTC)",
    "measured_value": "{first} to {last}",
    "commit": "Commit",
    "commit_dirty": "with local changes",
    "commit_absent": "not in a git checkout",
    "question": "Question",
    "not_asked": "not asked: the published side has no such record",
    "how_title": "How to read this",
    "how_floor": "A noise floor is how far the reference's own float32 run lies from its float64 run on the same bytes. "
                 "A gate is {k} times that floor: the published code's floor where the published side is the reference, "
                 "PyTorch's own where the frameworks are compared with each other; one floor more where the published numbers are "
                 "float32 themselves.",
    "how_flips": "For gradients the floor is the largest among PyTorch's float32 runs on record, the published code's included: "
                 "an activation whose input lies within noise of zero takes one slope in some runs and the other in others, "
                 "and the gradients behind it jump. Between the frameworks both may: that jump, measured in PyTorch by float64 runs "
                 "whose weights were moved there and back, is counted into the floor of float32 gradients, step norms and lock-step, "
                 "two of them into the gate. Float64 rows are not widened where all of it was computed in float64. A discrete decision may flip only where its margin lies below the gate: "
                 "how far the scores behind it must move for the other choice, from their exact values, in floors of their own.",
    "how_statistics": "Where the published side gives a tensor's norm, mean and first values instead of all its elements, "
                      "each is held to the bound that the tensor's floor implies.",
    "how_targets": "Quoted targets are what people state as tolerances. They are not judged. Where the floor itself lies "
                   "above a target, the target is below rounding there: neither a pass nor a fail.",
    "how_ref": "Point at a number to see the record and the field that hold it (record#/field); follow it to the line of that record "
               "at the end. This command reads the records again and fails if one digit here is not theirs:",
    "how_verify": "python -m lib verify FOLDER",
    "PASS": "PASS", "FAIL": "FAIL", "NOT RUN": "NOT RUN", "SHOWN": "SHOWN", "UNDERPOWERED": "UNDERPOWERED",
    "published": "Published", "torch": "PyTorch", "jittor": "Jittor", "none": "none", "no_framework": "No framework",
    "pair": "{first} ↔ {second}",
    "all_rows": "{pair}, numbers compared: {count}; of each kind the one closest to its gate, or those farthest beyond it",
    "evidence": "The numbers behind it",
    "apart": "Set apart by name",
    "apart_gradients": "true gradient zero, only noise is left: held to the largest noise among them",
    "apart_step": "true gradient zero: an adaptive optimiser turns its noise into a whole step, so the norm of the change is not compared",
    "targets": "Quoted target {target} relative: {counts}.", "targets_met": "met by {number}", "targets_missed": "missed by {number}",
    "targets_below rounding": "below rounding here for {number}",
    "column_name": "Tensor or number", "column_what": "Compared", "column_error": "Error", "column_floor": "Noise floor",
    "column_gate": "Gate", "column_ratio": "Error / gate", "column_target": "Quoted target", "column_note": "Note",
    "column_quantity": "Quantity",
    "met": "met", "missed": "missed", "below rounding": "below rounding here",
    "provenance": "Where every number comes from",
    "provenance_lead": "One line per record: what produced it, from which commit, when, and how long it took. Records lie in the folder records.",
    "restarted": "Started again:",
    "gaps": "Why it did not run",
    "gap_see": "{model}, {side}, {stage} failed: {why}. What it left: {see}",
    "gap_why": "{model}, {side}, {stage} failed: {why}",
    "gap_waits": "{model}, {side}, {stage} did not run, because {waits_for} failed.",
    "gap_open": "{model}, {side}, {stage} was interrupted, or had not started when the others ended.",
    "software": "Software",
    "software_lead": "Versions in the processes that wrote the records.",
    "package": "Package",
    "git_commit": "Commit",
    "device": "Device",
    "record": "Record", "command": "Command", "versions": "Versions", "seed": "Seed", "threads": "Threads", "wait_policy": "Threads wait", "started": "Started (UTC)",
    "wall_seconds": "Seconds", "peak_rss_mib": "Peak MiB",
    # themes
    "theme_parts": "Parts and data", "theme_answers": "Answers", "theme_learning": "Learning", "theme_result": "Result", "theme_cost": "Cost",
    # the probes of both frameworks' own operators
    "rosetta": "Where the frameworks differ",
    "rosetta_ask": "Does the installed Jittor answer as PyTorch does, operator by operator?",
    "rosetta_counts": "Of {total} probes of Jittor's own operators {same} answer as PyTorch, {mended} answer otherwise and are mended by the backend, "
                      "{different} answer otherwise, {unknown} are unknown.",
    "rosetta_absent": "No record of the probes.",
    "rosetta_see": "Look at “different”: there a port has to follow the advice of the notebook:",
    "rosetta_notebook": "30_migration",
    "rosetta_topic": "Topic", "rosetta_same": "same", "rosetta_mended": "mended", "rosetta_different": "different", "rosetta_unknown": "unknown",
    # reasons: one sentence each
    "within_gate": "All {total} numbers lie within their gates; the closest is {name} ({what}) with {error} against {gate}.",
    "identical": "Identical: {total} of {total} comparisons.",
    "decided": "{flipped} of {decisions} decisions flipped, none beyond rounding. {within} have a margin below the gate, so that "
               "rounding may flip them. The nearest, in {nearest_name}, is {nearest} floors away from another choice.",
    "within_gate_decided": "All {total} numbers lie within their gates; the closest is {name} ({what}) with {error} against {gate}. "
                           "{flipped} of {decisions} decisions on the way flipped, none beyond rounding, and {within} have a margin "
                           "below the gate; the nearest, in {nearest_name}, is {nearest} floors away from another choice.",
    "beyond_gate": "{failing} of {total} numbers exceed their gates; the worst is {name} ({what}): {error} where {gate} is allowed. {note}",
    "differs": "{failing} of {total} comparisons differ; the worst: {name}, {error} differences. {note}",
    "fault": "{failing} of {total} comparisons fail; {name}: {note}.",
    "nothing_compared": "Nothing was compared: neither side holds a number for this question.",
    "no_gate": "Shown, not judged: {total} numbers have no noise floor of their own.",
    "no_record": "No record: {missing}.",
    "other_case": "The two records measured different cases: {first} and {second}.",
    "clock_fault": "The clock is at fault on side {side}: for {work}, batch {batch}, not waiting takes as long as waiting, "
                   "where calls return before the work is done.",
    "diverges_nowhere": "No layer of {layers} is beyond its gate, forward or backward; the closest is {name} ({what}): {error} against "
                        "{gate}. The error that reaches a layer is amplified most by {amplifier}: {amplification} times.",
    "diverges_at": "First beyond its gate: forward {forward}, backward {backward}; {failing} of {total} numbers in all. The worst is {name} "
                   "({what}): {error} where {gate} is allowed. The layer alone, in each environment: {script}",
    "data_differs": "First different: {first}. {note}",
    "first_apart": "First apart, mode {mode}: {tensor}, {kind}, {precision}. {failing} of {total} numbers exceed their gates; the worst is "
                   "{name} ({what}): {error} where {gate} is allowed.",
    "stays_in_band": "Inside the band of {controls} control runs for as long as they stay together, {horizon} of {steps} steps; the run "
                     "whose learning rate is wrong on purpose leaves it at step {left}.",
    "band_cannot_tell": "Neither a pass nor a fail: inside the band of {controls} control runs, {horizon} of {steps} steps long, but that "
                        "proves nothing here: the controls themselves part at the first step, or the run whose learning rate is wrong "
                        "on purpose stays inside (it leaves at step {left}).",
    "map_difference": "Common weights: {outcome}: mAP differs by {difference} ({low} to {high} over other draws of the {images} images; margin "
                      "± {margin}). Own weights, not judged: {own}: by {own_difference} ({own_low} to {own_high}); how far two trainings of "
                      "one framework lie apart was not measured.",
    "no_common_case": "no case was timed on both sides",
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
    "losses_ask": "Does every loss component agree, in every phase of the published training?",
    "assignment": "Assignment",
    "assignment_ask": "Is every place of the output made responsible for the same box?",
    "gradients": "Gradients",
    "gradients_ask": "Does every parameter receive the same gradient?",
    "divergence": "First divergence",
    "divergence_ask": "Which layer, given exactly the reference's inputs, is the first to give something else, forward or backward?",
    "divergence_see": "Look for a dot above the gate: that layer is to blame, however high the error is that it inherits. Crosses are modules "
                      "that hold others; in the backward they are judged in float64, which is not drawn.",
    "initialisation": "Initialisation",
    "initialisation_ask": "Do both frameworks start from the same fresh weights?",
    "data": "Data, stage by stage",
    "data_ask": "Do both environments decode, augment and batch the first images to the same bytes, and give the same targets?",
    "lockstep": "Lock-step",
    "lockstep_ask": "Step by step: the same gradients, clipped gradients, learning rates, moments, parameters, statistics and average, with the "
                    "same gradients fed to both (fed) and with their own (native)?",
    "trajectory": "Trajectory",
    "trajectory_ask": "Is the training run one that PyTorch could have made, by the measure of PyTorch's runs among themselves?",
    "trajectory_see": "Look for the line of Jittor leaving the grey band before the horizon; that of the wrong rate must leave it.",
    "equivalence": "Equivalence of mAP",
    "equivalence_ask": "Is the difference of mAP smaller than the margin, by more than the choice of images leaves open?",
    "gradients_see": "Look at the right end: marks above the line would be gradients beyond their gate.",
    "step": "One optimiser step",
    "step_ask": "Does one optimiser step, clipping included, change every parameter as the published rule says?",
    "batch_norm": "Batch-norm statistics",
    "batch_norm_ask": "Are the running statistics right after one training forward?",
    "training": "Training",
    "training_ask": "From the same weights and batches, do both frameworks start with the same losses, and where do they end?",
    "training_see": "Look for the curves lying on each other at first and keeping the same course later: after the first updates "
                    "rounding alone separates any two runs, so curves and AP are shown, not judged.",
    "training_map_see": "Look at the highest point of each line: the weights of that epoch are kept. Differences between the lines are not judged.",
    "evaluation": "Evaluation, common weights",
    "evaluation_ask": "Do the weights that PyTorch trained give the same detections and COCO numbers in both frameworks?",
    "evaluation_see": "Boxes from the PyTorch-trained weights. Look for one that one framework draws and the other does not.",
    "speed": "Speed and memory",
    "speed_ask": "How long do inference and a training step take, and how much memory, by one meter for both frameworks? The published code "
                 "was timed on another machine, in units of a matrix product there.",
    "speed_see": "Look at the bars, not the crosses: a cross is what a clock shows that doesn't wait for the work to be done.",
    "memory_see": "Look for a bar that grows faster with the batch than its neighbour.",
    # numbers
    "parameters": "trainable parameters", "loaded": "entries loaded", "final_map": "AP of the best epoch", "training_seconds": "training time (s)",
    "times_plain": "time of the comparison over that of its plain runs", "gb_per_second": "GB of tensors compared per second",
    "coco": "COCO", "units": "time in matmul units:", "synchronised_ms": "median time (ms):",
    # beside the verdicts
    "beside_absent": "no record.", "before": "before", "after": "after",
    "starts": "Trainings by their start", "starts_start": "Start",
    "starts_lead": "COCO's numbers on the images to evaluate on: before the first step, and after, at the best epoch. Shown, not judged.",
    "starts_absent": "{names}. A start needs its weights: make report WEIGHTS=checkpoint BACKBONE=ImageNet-weights; without both, fresh "
                     "weights are trained.",
    "start_fresh": "fresh weights", "start_imagenet": "ImageNet start", "start_fine_tuned": "fine-tuned",
    "loader": "Input pipeline",
    "loader_lead": "Images per second of reading and augmentation alone: {alone}. A training that takes fewer need not wait for them.",
    "loader_absent": "Whether the trainings waited for their images. The speed of reading and augmentation alone was not measured.",
    "loader_images_per_second": "training (images per second)", "loader_waiting_seconds": "waiting for images (s)",
    "loader_waiting_share": "share of the training's time spent waiting",
    "engine": "Alignment engine",
    "engine_lead": "What finding the first diverging layer costs, forward and backward. Its plain runs are each module's own, in float32 and "
                   "float64; PyTorch captures them, Jittor is compared with what was captured. Target: at most five times the plain runs.",
    "engine_times_plain": "time of the comparison over that of its plain runs", "engine_seconds": "comparison (s)",
    "engine_plain_seconds": "plain runs (s)", "engine_gb_per_second": "GB of tensors compared per second of the comparison",
    # the document to hand in
    "h_title": "Hand-in of a port",
    "h_lead": "What the author of a port hands in. Every entry is read from the records; what has no record says NOT RUN.",
    "h_item": "Item", "h_filled": "filled", "h_gaps": "gaps", "h_all": "all sides", "h_number": "Number",
    "h_environment": "Environment", "h_environment_note": "What the framework ran on. The pinned packages stand in environment-torch.yml and environment-jt.yml.",
    "h_data": "Data preparation", "h_data_note": "The data set as it was read, with the hash of its images.",
    "h_training_script": "Training script", "h_training_script_note": "The command that trained, and what came out.",
    "h_test_script": "Test script", "h_test_script_note": "The command that evaluated; common weights are those that PyTorch trained, run in both frameworks.",
    "h_alignment": "Alignment log", "h_alignment_note": "The verdicts; index.html has the evidence behind each.",
    "h_performance": "Performance log", "h_performance_note": "Medians with quartiles, read after a synchronisation; beside them what a clock without one claims.",
    "h_training_log": "Training log", "h_training_log_note": "First and last step, and every evaluation; steps and epochs are counted from zero. The whole log lies beside the weights, in "
                            "log.jsonl.",
    "h_curves": "Loss curves", "h_curves_note": "Drawn from the same log.",
    "h_results": "Visual results", "h_results_note": "Detections on the first images of the validation split.",
    "h_checklist": "Checklist of reproducible machine learning",
    "h_checklist_note": "The demands of the usual checklist, each with what the records say.",
    "h_demand": "Demand", "h_answer": "Answer",
    "h_framework": "framework", "h_python": "Python", "h_numpy": "NumPy", "h_cpu": "processor", "h_cores": "cores", "h_memory": "memory (GiB)",
    "h_os": "operating system", "h_device": "device", "h_threads": "threads", "h_commit": "commit of this project",
    "h_dataset": "data set", "h_train_images": "images to train on", "h_train_boxes": "boxes to train on", "h_val_images": "images to evaluate on",
    "h_val_boxes": "boxes to evaluate on", "h_train_sha256": "training images, SHA-256", "h_val_sha256": "validation images, SHA-256",
    "h_command": "command", "h_seed": "seed", "h_steps": "steps", "h_seconds": "training time (s)", "h_final_ap": "AP of the best epoch",
    "h_final_ap50": "AP50 of the best epoch", "h_weights": "weights", "h_weights_sha256": "weights, SHA-256", "h_peak": "peak memory (MiB)",
    "h_images": "images", "h_own_ap": "AP of its own weights", "h_own_ap50": "AP50 of its own weights", "h_common_ap": "AP of the common weights",
    "h_common_sha256": "common weights, SHA-256", "h_wall": "wall time (s)", "h_parameters": "trainable parameters",
    "h_batch": "batch", "h_median": "median (ms)", "h_low": "first quartile (ms)", "h_high": "third quartile (ms)",
    "h_unsynchronised": "clock not synchronised (ms)", "h_forward": "inference", "h_train": "training step",
    "h_step": "step", "h_loss": "loss", "h_rate": "learning rate", "h_first": "first", "h_last": "last", "h_epoch": "epoch",
    "AP": "AP", "AP50": "AP50",
    "c_model": "The model is specified", "c_assumptions": "Assumptions and limits are stated",
    "c_assumptions_answer": "In the section “How to read this” of index.html: what is judged, by which noise, and what is only shown.",
    "c_cost": "What training costs in time and memory is given", "c_data": "The data set and its size are given",
    "c_splits": "The splits are identified", "c_preparation": "The preparation of the data can be repeated",
    "c_dependencies": "Dependencies are specified", "c_training": "Training code is given", "c_testing": "Evaluation code is given",
    "c_weights": "Trained weights are identified", "c_settings": "Hyper-parameters and how they were chosen are given",
    "c_settings_answer": "The published recipe of each model (lib/schedule.py), scaled to the length of the run by the profile in profiles.",
    "c_runs": "The training runs are enumerated", "c_measure": "The measure is defined and reported",
    "c_variation": "Variation over repeated runs is reported", "c_time": "Run times are given", "c_machine": "The machine is described",
}  # fmt: skip

# What records say in English anyway; a term that ends in a space stands for the beginning of a text.
TERMS = {"forward, batch ": "inference, batch ", "train, batch ": "training step, batch "}
PATTERNS: tuple[tuple[str, str], ...] = ()
