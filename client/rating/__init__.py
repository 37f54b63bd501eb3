"""The reader study: radiologists score synthetic maps on a page of this machine."""
