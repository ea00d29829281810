"""What reads data sets from files. Nothing here imports another module of the project."""
