"""Photos of handwritten digits: files, ink, digits, MNIST's form."""
