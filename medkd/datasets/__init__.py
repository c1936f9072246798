"""Slide tables, patient-level splits, MONAI transforms and datasets."""
