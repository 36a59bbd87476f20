"""Attention in linear time: feature maps, fading states, learned mixtures of keys, and memories that overwrite."""
