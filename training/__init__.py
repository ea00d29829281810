"""What train.py, evaluate.py and export.py are made of: options, errors, checkpoints."""
