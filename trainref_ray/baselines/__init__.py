"""The rivals of METHOD 7, each at full strength: on images (`disc`, `training`) and on embeddings (`features`)."""
