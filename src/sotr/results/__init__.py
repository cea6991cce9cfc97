"""What was found in an image, and its drawing."""
