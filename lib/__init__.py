"""Alignment of detectors ported from PyTorch to Jittor: models, losses, data, evaluation, evidence, report."""
