"""Samples from webdataset shards: index, order, reading, decoding, tokens, batches.

What a step sees is a pure function of the data and the seed; nothing here depends on how many processes there
are. May import: numpy, PIL, torch, tokenizers, modelchain, and what `model` says of its images. Never
open_clip or torchvision: they take seconds to import.
"""
