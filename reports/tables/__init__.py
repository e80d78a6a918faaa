"""Tables: records in, text cells out."""
