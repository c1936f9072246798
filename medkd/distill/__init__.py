"""Distillation graphs and the cohort that runs them. Knows nothing of slides, files or MLflow."""
