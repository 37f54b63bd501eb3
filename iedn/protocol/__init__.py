"""What both sides of the hospital wall agree on."""
