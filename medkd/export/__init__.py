"""A model package in the formats of other programs, each held against the package."""
