"""Writers of face sets, one file per form."""
