"""What the larger commands do, apart from the command line itself."""
