"""Selecting visual tokens: scores, balance, allocation, gates, pruning, and the model around them."""
