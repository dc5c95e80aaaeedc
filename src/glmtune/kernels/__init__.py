"""Tensor code that any model family can use: attention over packs, fused pieces, int8."""
