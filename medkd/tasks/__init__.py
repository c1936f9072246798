"""What a task means: its supervised loss and its metrics."""
