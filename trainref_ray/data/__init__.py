"""Images in and out: tar shards, decoding, labels, noise of known kind, references and the sources of data sets."""
