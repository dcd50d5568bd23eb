"""Protocol figures as pure functions of arrays."""
