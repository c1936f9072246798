"""medkd: slide-level calls from small student networks, co-trained under knowledge distillation."""

__version__ = "0.1.0"
