"""Runs a chain on this machine: the reconcile core, driven by local processes of the trainer's own entry
point.

`runner` observes and acts, `processes` starts and watches one trainer, `display` shows how it goes.
May import: the rest of the core, rich. Never: torch, modelchain_trainer.
"""
