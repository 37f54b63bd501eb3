"""One machine playing all parts."""
