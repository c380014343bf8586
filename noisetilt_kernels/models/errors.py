"""What can go wrong with a model that a person can do something about."""


class ModelError(ValueError):
    """A model cannot be loaded or used. The message is one sentence for whoever named the model, with the way out."""
