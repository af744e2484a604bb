"""The report of a run: one self-contained HTML page, and a dataset card in Markdown."""
