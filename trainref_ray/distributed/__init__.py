"""Everything that runs on Ray: reading shards, the stages of a curation, the supporter pool, training.

The only package that imports Ray. An adapter here turns Arrow into arrays and back, holds a loaded model, and calls a
function of the layers below.
"""
