"""One slide in, one report out, from the model package alone. Nothing here imports torch."""
