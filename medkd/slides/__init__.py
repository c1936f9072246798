"""A slide in, patches out. Nothing here imports torch."""
