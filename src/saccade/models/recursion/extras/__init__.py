"""What may be added to the recursion: one file, one switch and one row of the ablation each."""
