"""What the language model sees of a volume: feature vectors with positions in world millimetres, pooled into tokens."""
