"""Exact search for supporters: one FAISS shard, and the merge of the answers of many."""
