"""From tile probabilities to slide and patient calls. Nothing here imports torch."""
