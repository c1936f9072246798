"""Data sets as others publish them, brought into the project's tables."""
