"""The models: one file a family (CLIP, a classifier, a language model, timm's classifiers), how they start, and their
files.

Weights travel both ways between here and open_clip, timm and transformers, yet nothing here imports these but
timm_adapter.py, for a model of timm's: open_clip pulls in torchvision and torch._dynamo, seconds in each rank at each
restart. Tests hold the models equal to theirs.
May import modelchain and torch.
"""

from modelchain_trainer.model.build import build_model, model_from
from modelchain_trainer.model.clip import Clip, crop_tokens
from modelchain_trainer.model.weights import load_weights, save_weights

__all__ = ["Clip", "build_model", "crop_tokens", "load_weights", "model_from", "save_weights"]
