"""What can be known before a training: see ``checking.check``."""
