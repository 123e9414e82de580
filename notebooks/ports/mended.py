"""The port of the example, mended: the two places where Jittor means something else by the same words."""

import jittor as jt
from jittor import nn

from notebooks.ports import port


class Gate(port.Gate):
    """Jittor's max along a dimension gives the values alone: [0] took the first image's map for all of the batch."""

    def execute(self, x):
        strongest = x.max(1, keepdims=True)
        return x * jt.sigmoid(self.scale * strongest + self.shift)


class BatchNorm(nn.BatchNorm2d):
    """Jittor averages the biased variance into its running statistics, PyTorch the unbiased one."""

    def execute(self, x):
        before = self.running_var.copy()
        y = super().execute(x)
        if self.is_train:
            count = x.numel() // x.shape[1]
            biased = (self.running_var - (1 - self.momentum) * before) / self.momentum
            self.running_var.update((1 - self.momentum) * before + self.momentum * biased * (count / (count - 1)))
        return y


def build():
    model = port.Detector()
    for module in model.modules():
        if isinstance(module, port.ConvNorm):
            module.bn = BatchNorm(module.bn.num_features, eps=module.bn.eps, momentum=module.bn.momentum)
        if isinstance(module, port.Residual):
            module.gate = Gate()
    return model
