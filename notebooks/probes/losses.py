"""Losses: defaults, saturation, and targets out of range."""

import numpy as np

from notebooks.probes.probe import attempt, f32, given

TOPIC = "Losses"
LOGITS = f32([2, -1, 0.5], [0.1, 0.2, 3])
LABELS = np.array([0, 2], np.int64)
FOUND, TRUE = f32(0.2, 3, -1), f32(0, 0, -1)


def negative_log_shares(x):
    """-log softmax along axis 1."""
    return np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x + x.max(1, keepdims=True)


PROBES = {
    "cross entropy": given(LOGITS, LABELS, cancels=True).ask(
        "What is the mean cross entropy of two rows?",
        "Equal: a mean over rows of labels.",
        jittor=lambda jt, x, y: jt.nn.cross_entropy_loss(x, y),
        torch=lambda torch, x, y: torch.nn.functional.cross_entropy(x, y),
        expected=lambda x, y: negative_log_shares(x)[[0, 1], y].mean(),
    ),
    "cross entropy's ignored label by default": given(LOGITS, np.array([-100, 2]), cancels=True).ask(
        "Is the label -100 left out of the mean?",
        "Both leave it out, Jittor because every label out of range is.",
        jittor=lambda jt, x, y: jt.nn.cross_entropy_loss(x, y),
        torch=lambda torch, x, y: torch.nn.functional.cross_entropy(x, y),
        expected=lambda x, y: negative_log_shares(x)[1, 2],
    ),
    "cross entropy's label out of range": given(LOGITS, np.array([7, 2])).ask(
        "What does label 7 of 3 classes give?",
        "Check labels in NumPy: a class offset goes unseen in Jittor.",
        jittor=lambda jt, x, y: attempt(lambda: jt.nn.cross_entropy_loss(x, y).numpy()),
        torch=lambda torch, x, y: attempt(lambda: torch.nn.functional.cross_entropy(x, y)),
        expected=lambda x, y: "raises",
    ),
    "cross entropy of nothing": given(LOGITS, np.array([-100, -100])).ask(
        "What is the mean where every label is ignored?",
        "NaN in both: count before dividing.",
        jittor=lambda jt, x, y: jt.nn.cross_entropy_loss(x, y),
        torch=lambda torch, x, y: torch.nn.functional.cross_entropy(x, y),
        expected=lambda x, y: np.nan,
    ),
    "cross entropy with smoothed labels": given(LOGITS, LABELS, cancels=True).ask(
        "Does cross entropy know label_smoothing?",
        "Write the smoothed target out.",
        jittor=lambda jt, x, y: attempt(lambda: jt.nn.cross_entropy_loss(x, y, label_smoothing=0.1).numpy()),
        torch=lambda torch, x, y: torch.nn.functional.cross_entropy(x, y, label_smoothing=0.1),
        expected=lambda x, y: 0.9 * negative_log_shares(x)[[0, 1], y].mean() + 0.1 * negative_log_shares(x).mean(),
    ),
    "nll_loss": given(LOGITS, LABELS).ask(
        "What is the negative log-likelihood of given log shares?",
        "Equal.",
        jittor=lambda jt, x, y: jt.nn.nll_loss(x, y),
        torch=lambda torch, x, y: torch.nn.functional.nll_loss(x, y),
        expected=lambda x, y: -x[[0, 1], y].mean(),
    ),
    "binary cross entropy at the ends": given(f32(0), f32(1)).ask(
        "What is the binary cross entropy of probability 0 for target 1?",
        "Use logits: the clamps differ, 46 against 100.",
        jittor=lambda jt, p, y: jt.nn.bce_loss(p, y),
        torch=lambda torch, p, y: torch.nn.functional.binary_cross_entropy(p, y),
        expected=lambda p, y: 100.0,
    ),
    "binary cross entropy with logits": given(f32(-2, 0.5, 1), f32(0, 1, 0.3), cancels=True).ask(
        "What is the mean over logits?",
        "Equal.",
        jittor=lambda jt, x, y: jt.nn.binary_cross_entropy_with_logits(x, y),
        torch=lambda torch, x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y),
        backend=lambda B, x, y: B.binary_cross_entropy_with_logits(x, y),
        expected=lambda x, y: (np.logaddexp(0, x) - x * y).mean(),
    ),
    "binary cross entropy with logits, element by element": given(f32(-3, 0.5, 1), f32(1, 1, 0.3), cancels=True).ask(
        'Does binary_cross_entropy_with_logits know reduction="none"?',
        "Write max(x, 0) - x y + log(1 + exp(-|x|)): quality focal loss needs each element.",
        jittor=lambda jt, x, y: attempt(lambda: jt.nn.binary_cross_entropy_with_logits(x, y, reduction="none").numpy()),
        torch=lambda torch, x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none"),
        backend=lambda B, x, y: B.binary_cross_entropy_with_logits(x, y, reduction="none"),
        expected=lambda x, y: np.logaddexp(0, x) - x * y,
    ),
    "certain logits": given(f32(20), f32(1)).ask(
        "What is log10 of the loss of a right logit of 20?",
        "log(1 + e) loses a small e: the loss of a certain score is 0 in Jittor, with no gradient.",
        jittor=lambda jt, x, y: jt.log(jt.nn.binary_cross_entropy_with_logits(x, y)) / np.log(10.0).item(),
        torch=lambda torch, x, y: (
            torch.log(torch.nn.functional.binary_cross_entropy_with_logits(x, y)) / np.log(10.0).item()
        ),
        backend=lambda B, x, y: B.log(B.binary_cross_entropy_with_logits(x, y)) / np.log(10.0).item(),
        expected=lambda x, y: np.log10(np.logaddexp(0, -x)),
    ),
    "smooth L1": given(FOUND, TRUE).ask(
        "What is smooth_l1_loss with its defaults?",
        "Equal at beta 1; the arguments are swapped, which the value hides.",
        jittor=lambda jt, x, y: jt.nn.smooth_l1_loss(y, x),
        torch=lambda torch, x, y: torch.nn.functional.smooth_l1_loss(x, y),
        expected=lambda x, y: np.where(np.abs(x - y) < 1, (x - y) ** 2 / 2, np.abs(x - y) - 0.5).mean(),
    ),
    "smooth L1 with another beta": given(FOUND, TRUE).ask(
        "Does smooth_l1_loss know beta?",
        "Write it out: Jittor has beta 1 alone.",
        jittor=lambda jt, x, y: attempt(lambda: jt.nn.smooth_l1_loss(y, x, beta=0.5).numpy()),
        torch=lambda torch, x, y: torch.nn.functional.smooth_l1_loss(x, y, beta=0.5),
        expected=lambda x, y: np.where(np.abs(x - y) < 0.5, (x - y) ** 2, np.abs(x - y) - 0.25).mean(),
    ),
    "L1 element by element": given(FOUND, TRUE).ask(
        'Does l1_loss know reduction="none"?',
        "Write abs(x - y), with the slope at 0 in mind.",
        jittor=lambda jt, x, y: attempt(lambda: jt.nn.l1_loss(x, y, reduction="none").numpy()),
        torch=lambda torch, x, y: torch.nn.functional.l1_loss(x, y, reduction="none"),
        backend=lambda B, x, y: B.abs(x - y),
        expected=lambda x, y: np.abs(x - y),
    ),
    "mean squared error": given(FOUND, TRUE).ask(
        "What is mse_loss with its defaults?",
        "Equal: a mean over elements.",
        jittor=lambda jt, x, y: jt.nn.mse_loss(x, y),
        torch=lambda torch, x, y: torch.nn.functional.mse_loss(x, y),
        expected=lambda x, y: ((x - y) ** 2).mean(),
    ),
}
