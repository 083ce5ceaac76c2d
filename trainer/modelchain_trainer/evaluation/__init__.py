"""What a model can do: the evaluation sets of a stage, and how each kind is measured."""
