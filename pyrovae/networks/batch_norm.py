"""Batch normalization that takes a batch of one value too."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, but for one value per channel, which has no variance: the running statistics serve it.

    Such is a last minibatch of one datum where feature maps have shrunk to one pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)``."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
