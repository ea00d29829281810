"""What unstructured_pruner.py is made of. Needs Paddle and numpy alone."""
