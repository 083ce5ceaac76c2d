"""The trainer: grows, trains and evaluates one stage of a chain, on one process or many.

It reads a resolved stage (modelchain.resolved) and leaves artifacts (modelchain.artifacts) in a store. It may
import modelchain and torch; neither kopf nor the operator, timm only in model/timm_adapter.py, and open_clip and
torchvision nowhere outside tests.
"""
