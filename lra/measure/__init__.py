"""What is measured besides accuracy: the machine, and floating-point operations."""
