"""The example of 32_port_your_own: an original in PyTorch and its port in Jittor."""
