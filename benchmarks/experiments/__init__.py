"""Experiments of the project's own: speed of training, what distillation gains and int8 loses."""
