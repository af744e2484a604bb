"""Figures of merit: label-error detection, relabelling, out-of-distribution detection and confidence."""
