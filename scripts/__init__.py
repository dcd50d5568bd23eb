"""What a person runs now and then."""
