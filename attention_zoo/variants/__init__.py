"""One variant, whole, per file: options, class, registration. The file's name is the variant's name."""
