"""Fast forms of operators; each equals a reference in `attention_zoo.functional`, outputs and gradients."""
