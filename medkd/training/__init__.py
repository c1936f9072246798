"""The training loop, its checkpoints, and the stages that need torch."""
