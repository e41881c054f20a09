"""Selecting visual tokens: scores, balance, allocation, gates, pruning, the model around them."""
